"""Bugs of every class, planted into the CUDA kernel of `group_order`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

KERNEL = "group_order.cu"
EQUALS_CPU = "test_group_order_cuda.py::test_equals_the_cpu_op"

PLANTS = [
    Plant(
        "no barrier before the warps agree",
        KERNEL,
        "__syncthreads();\n      const uint4 other",
        "const uint4 other",
        EQUALS_CPU,
        "uninitialised memory.*: shared slots",
    ),
    Plant(
        "slots overwritten while they are read",
        KERNEL,
        "turn ^= 1;",
        "",
        EQUALS_CPU,
        "data race on shared slots",
    ),
    Plant(
        "no barrier before the known cells are counted",
        KERNEL,
        "__syncthreads();\n    num_known",
        "num_known",
        EQUALS_CPU,
        "data race on shared known",
    ),
    Plant(
        "known cells behind the last",
        KERNEL,
        "places_[i] != kNone && known[",
        "known[",
        EQUALS_CPU,
        "out of bounds: global known",
    ),
    Plant(
        "keys of 31 bits",
        KERNEL,
        "first.z = smallest_of_equals(first.y, middle);",
        "first.z = first.y;",
        "test_group_order_cuda.py::test_keys_that_differ_in_their_lower_half_only",
        WRONG_RESULT,
    ),
    Plant(
        "a random cell by its score",
        KERNEL,
        "choice == Choice::kRandom ? kAnyPlace : 0",
        "0",
        EQUALS_CPU,
        WRONG_RESULT,
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What became of the tests, by plant."""
    return run_plants(PLANTS, "simt", tmp_path_factory.mktemp)


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(results, plant):
    assert_found(plant, results[plant])
