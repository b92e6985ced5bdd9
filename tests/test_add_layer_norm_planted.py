"""Bugs planted into the CUDA kernel of `add_layer_norm`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

KERNEL, ROW = "add_layer_norm.cu", "layer_norm.cuh"
EVERY_DIM = "test_add_layer_norm.py::test_every_dim_against_float64"

PLANTS = [
    Plant(
        "no barrier before the sums of the warps are added",
        ROW,
        "__syncthreads();",
        "",
        EVERY_DIM,
        "(uninitialised .*|data race on )shared (sums|squares)",
    ),
    Plant(
        "threads behind the end of a row add to its variance",
        ROW,
        "is_mine_ ? value - mean : 0.0f",
        "value - mean",
        EVERY_DIM,
        WRONG_RESULT,
    ),
    Plant(
        "wide loads whatever delta's address",
        KERNEL,
        "is_aligned<Delta>({params.delta, params.bias},",
        "is_aligned<Delta>({},",
        "test_add_layer_norm.py::test_any_alignment",
        "misaligned",
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What became of the tests, by plant."""
    return run_plants(PLANTS, "simt", tmp_path_factory.mktemp)


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(results, plant):
    assert_found(plant, results[plant])
