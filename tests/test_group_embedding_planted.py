"""Bugs planted into the CUDA kernel of `group_embedding`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

KERNEL = "group_embedding.cu"

PLANTS = [
    Plant(
        "a position that nobody checks",
        KERNEL,
        "if (where < 0 || where >= params.seq_len) return;",
        "",
        "test_group_embedding_arguments.py::test_what_is_outside_the_tables",
        "out of bounds: global",
    ),
    Plant(
        "no token reads in front of the table",
        KERNEL,
        "max(token, int64_t{0}) * params.dim",
        "token * params.dim",
        "test_group_embedding.py::test_no_token_reads_as_token_0",
        "out of bounds: global",
    ),
    Plant(
        "the copies overwrite each other",
        KERNEL,
        "out += params.batch * params.out_batch_stride;",
        "",
        "test_group_embedding.py::test_copies_are_equal_bit_for_bit",
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
