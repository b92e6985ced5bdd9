"""Bugs of every class, planted into the CUDA kernels of `group_attention`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

SIMPLE, SIMPLE_TILES = "group_attention_simple.cu", "attention_simple.cuh"
MMA, MMA_TILES = "group_attention_mma.cu", "attention_mma.cuh"
AGAINST_FLOAT64 = "test_group_attention.py::test_against_float64"
# Cases of that head_dim.
SELECTION = (
    "simt and (first_step or kv_ or many_rows or split- or hidden or any_alignment"
    " or (shared_out and 64))"
)

FEWER_INSTANCES = [("<32, 64, 80, 96, 128>", "<64>")]

PLANTS = [
    Plant(
        "no barrier before a tile is overwritten",
        SIMPLE,
        "__syncthreads();  // the last tile has been read",
        "",
        AGAINST_FLOAT64,
        "data race on shared (keys|values)",
    ),
    Plant(
        "no warp barrier",
        SIMPLE_TILES,
        "__syncwarp();",
        "",
        AGAINST_FLOAT64,
        "(uninitialised .*|data race on )shared weights",
    ),
    Plant(
        "a barrier that some threads pass by",
        SIMPLE,
        "__syncthreads();  // the last tile has been read",
        "if (warp > 0) __syncthreads();",
        AGAINST_FLOAT64,
        "__syncthreads",
    ),
    Plant(
        "keys out of bounds",
        SIMPLE,
        "widen_rows<T, kHeadDim>(count, 1.0f, aligned, key, keys)",
        "widen_rows<T, kHeadDim>(kKeys, 1.0f, aligned, key, keys)",
        AGAINST_FLOAT64,
        "out of bounds: global (qkv|k_cache|v_cache)",
    ),
    Plant(
        "the context sees a query",
        SIMPLE,
        "lengths.context_len : lengths.q_len)",
        "lengths.context_len + 1 : lengths.q_len)",
        "test_group_attention.py::test_one_hidden_key_would_be_seen",
        WRONG_RESULT,
    ),
    Plant(
        "a query does not see the last one",
        SIMPLE,
        "lengths.context_len : lengths.q_len)",
        "lengths.context_len : lengths.q_len - 1)",
        AGAINST_FLOAT64,
        WRONG_RESULT,
    ),
    Plant(
        "keys that nobody loaded",
        SIMPLE_TILES,
        "if (lane < count) {",
        "{",
        AGAINST_FLOAT64,
        "uninitialised .*shared keys",
    ),
    Plant(
        "every block appends",
        SIMPLE,
        "if (first_row == 0) append",
        "append",
        AGAINST_FLOAT64,
        "data race on global (k|v)_cache",
    ),
    Plant(
        "wide loads whatever the strides",
        "group_attention_pair.cuh",
        "return is_aligned<T>(",
        "return true || is_aligned<T>(",
        "test_group_attention_out.py::test_any_alignment",
        "misaligned",
    ),
    Plant(
        "fragments of keys in a wrong order",
        MMA_TILES,
        "keys[i][0], keys[i][1], scores[0]",
        "keys[i][0], keys[i][2], scores[0]",
        AGAINST_FLOAT64,
        WRONG_RESULT,
    ),
    Plant(
        "a wait for one copy too few",
        MMA,
        "cp_async_wait<L::kStages - 2>",
        "cp_async_wait<L::kStages - 1>",
        AGAINST_FLOAT64,
        "while a cp.async to it is in flight",
    ),
    Plant(
        "a stage used again too early",
        MMA,
        "% L::kStages",
        "% (L::kStages - 1)",
        AGAINST_FLOAT64,
        "data race on shared|in flight",
    ),
    Plant(
        "the context sees tiles of queries",
        MMA,
        "if (g >= num_groups || hidden) continue;",
        "if (g >= num_groups) continue;",
        "test_group_attention_rows.py::test_bits_do_not_depend_on_how_rows_are_shared_out",
        WRONG_RESULT,
    ),
    Plant(
        "a part is left out",
        MMA,
        "part < count; ++part",
        "part + 1 < count; ++part",
        AGAINST_FLOAT64,
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
