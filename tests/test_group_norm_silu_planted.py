"""Bugs planted into the CUDA kernels of `group_norm_silu`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

KERNEL = "group_norm_silu.cu"
TESTS = "test_group_norm_silu.py::test_"
EVERY_SHAPE, IN_PLACE = f"{TESTS}every_shape_against_float64", f"{TESTS}in_place"

PLANTS = [
    Plant(
        "no barrier before the statistics are used",
        KERNEL,
        "  __syncthreads();\n  if (place.row",
        "  if (place.row",
        EVERY_SHAPE,
        "(uninitialised .*|data race on )shared",
    ),
    Plant(
        "the last chunk counts as a full one",
        KERNEL,
        "return static_cast<int>(min(left, int64_t{division.chunk_pixels}));",
        "return division.chunk_pixels;",
        EVERY_SHAPE,
        "read out of bounds|" + WRONG_RESULT,
    ),
    Plant(
        "sums are not shifted",
        KERNEL,
        "const float off = values[i] - shift[i];",
        "const float off = values[i];",
        f"{TESTS}a_far_mean",
        WRONG_RESULT,
    ),
    Plant(
        "pixels of other threads are read ahead",
        KERNEL,
        "for (; pixel + (kAhead - 1) * num_rows < pixels; pixel",
        "for (; pixel < pixels; pixel",
        IN_PLACE,
        "out of bounds|data race on global x",
    ),
    Plant(
        "wide accesses whatever the norm's address",
        KERNEL,
        "{params.x, params.norm_weight, params.norm_bias, params.out}",
        "{params.x, params.out}",
        f"{TESTS}any_alignment",
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
