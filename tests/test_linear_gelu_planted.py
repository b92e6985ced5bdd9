"""Bugs planted into the CUDA kernel of `linear_gelu`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

KERNEL = "linear_gelu.cu"
EXACT = "test_linear_gelu.py::test_exact_products_give_exact_sums"
ANY_SHAPE = "test_linear_gelu.py::test_against_float64"

PLANTS = [
    Plant(
        "a tile is read before its copies have arrived",
        KERNEL,
        "cp_async_wait<Block::kStages - 2>();",
        "cp_async_wait<Block::kStages - 1>();",
        ANY_SHAPE,
        "while a cp.async to it is in flight",
    ),
    Plant(
        "a stage is written again while others read it",
        KERNEL,
        "tile % Block::kStages * Block::kStage);\n    }",
        "tile % (Block::kStages - 1) * Block::kStage);\n    }",
        ANY_SHAPE,
        "data race|" + WRONG_RESULT,
    ),
    Plant(
        "no barrier between tiles",
        KERNEL,
        "    __syncthreads();  // the tile",
        "    ;  // the tile",
        ANY_SHAPE,
        "uninitialised memory",
    ),
    Plant(
        "columns lie in the order of the tensor",
        KERNEL,
        "column / 2 * 8 + product * 2 + column % 2",
        "product * 8 + column",
        EXACT,
        WRONG_RESULT,
    ),
    Plant(
        "the right operand's halves are exchanged",
        KERNEL,
        "weights[j / 2][j % 2 * 2], weights[j / 2][j % 2 * 2 + 1]",
        "weights[j / 2][j % 2 * 2 + 1], weights[j / 2][j % 2 * 2]",
        EXACT,
        WRONG_RESULT,
    ),
    Plant(
        "wide stores whatever the number of columns",
        KERNEL,
        "{params.in_features, params.out_features}",
        "{params.in_features}",
        ANY_SHAPE,
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
