"""Bugs of every class, planted into the CUDA kernels of `masked_attention`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

SIMPLE, SIMPLE_TILES = "masked_attention_simple.cu", "attention_simple.cuh"
MMA, MMA_TILES = "masked_attention_mma.cu", "attention_mma.cuh"
AGAINST_FLOAT64 = "test_masked_attention.py::test_against_float64"
UNSEEN = "test_masked_attention.py::test_what_a_row_does_not_see_cannot_reach_it"
# Cases of the one head_dim that is compiled here.
SELECTION = "simt and not (one_key or many_rows or head_dim)"

FEWER_INSTANCES = [("<32, 64, 80, 96, 128>", "<64>")]

PLANTS = [
    Plant(
        "no barrier before a tile is overwritten",
        SIMPLE,
        "!__syncthreads_or(by_any != 0)",
        "false",
        AGAINST_FLOAT64,
        "data race on shared (keys|values)",
    ),
    Plant(
        "keys out of bounds",
        SIMPLE,
        "widen_rows<T, kHeadDim>(count, 1.0f, aligned, key, keys)",
        "widen_rows<T, kHeadDim>(kKeys, 1.0f, aligned, key, keys)",
        AGAINST_FLOAT64,
        "out of bounds: global (k|v)",
    ),
    Plant(
        "a weight of 0 in place of no weight",
        SIMPLE_TILES,
        "if (seen[r] >> (i + j) & 1) ",
        "",
        UNSEEN,
        WRONG_RESULT,
    ),
    Plant(
        "wide loads whatever the strides",
        "masked_attention_pair.cuh",
        "return is_aligned<T>(",
        "return true || is_aligned<T>(",
        "test_masked_attention_arguments.py::test_any_alignment",
        "misaligned",
    ),
    Plant(
        "a copy that is not waited for",
        MMA,
        "cp_async_wait<L::kStages - 2>()",
        "cp_async_wait<L::kStages - 1>()",
        AGAINST_FLOAT64,
        "cp.async to it is in flight",
    ),
    Plant(
        "a stage overwritten while it is read",
        MMA,
        "__syncthreads();  // the tile is there, and nobody reads the one before it any more",
        "",
        AGAINST_FLOAT64,
        "data race on shared",
    ),
    Plant(
        "no barrier before the warps merge",
        MMA_TILES,
        "__syncthreads();  // tiles, or the group before, have been read",
        "",
        AGAINST_FLOAT64,
        "data race on shared",
    ),
    Plant(
        "fragments in a wrong order",
        MMA_TILES,
        "keys[i][0], keys[i][1]",
        "keys[i][0], keys[i][2]",
        AGAINST_FLOAT64,
        WRONG_RESULT,
    ),
    Plant(
        "booleans out of bounds, packed",
        MMA,
        "key < params.kv_len && mask[key] != 0",
        "mask[key] != 0",
        AGAINST_FLOAT64,
        "out of bounds: global mask",
    ),
    Plant(
        "a weight of 0 times NaN",
        MMA,
        "if (hides) {",
        "if (false) {",
        UNSEEN,
        WRONG_RESULT,
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What became of the tests, by plant."""
    return run_plants(PLANTS, SELECTION, tmp_path_factory.mktemp, FEWER_INSTANCES)


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(results, plant):
    assert_found(plant, results[plant])
