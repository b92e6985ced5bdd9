"""Bugs of every class, planted into the CUDA kernel of `token_selection`: its tests find them."""

import pytest
from plants import WRONG_RESULT, Plant, assert_found, run_plants

KERNEL, ROW, TEAM = "token_selection.cu", "token_selection_row.cuh", "token_selection_team.cuh"
DRAW, THRESHOLD = "token_selection_draw.cuh", "token_selection_threshold.cuh"
IDS = "test_token_selection_exact.py::test_ids_are_those_of_the_cpu"
SELECTION = "simt and (1000- or 5000 or 16384 or carry)"

# Two of five kernels: less to compile.
FEWER_INSTANCES = [
    *(
        (
            f"if (params.vocab_size <= {size}) return launch<T, {warps}, kChunks>(params, stream);",
            "",
        )
        for size, warps in ((4096, 4), (32768, 32))
    ),
    ("return launch<T, 32, 0>(params, stream);", "return cudaErrorInvalidValue;"),
]

PLANTS = [
    Plant(
        "no barrier between the bins' adding up and their reading",
        THRESHOLD,
        "if (run != 0) add_to_bin(team, run_bin, run);\n    team.barrier();",
        "if (run != 0) add_to_bin(team, run_bin, run);",
        IDS,
        "data race on shared scratch",
    ),
    Plant(
        "bins that nobody emptied",
        THRESHOLD,
        "team.scratch.low[bin] = team.scratch.high[bin] = 0;",
        "team.scratch.low[bin] = 0;",
        IDS,
        "uninitialised .*shared scratch",
    ),
    Plant(
        "a vocabulary's rest read to the end of its chunk",
        ROW,
        "token + i < vocab_size ? row[token + i]",
        "token <= vocab_size ? row[token + i]",
        IDS,
        "out of bounds: global logits",
    ),
    Plant(
        "wide loads whatever the alignment",
        ROW,
        "aligned = reinterpret_cast<uintptr_t>(cond) % 16 == 0;",
        "aligned = true;",
        "test_token_selection_exact.py::test_a_row_is_the_same_at_any_place",
        "misaligned",
    ),
    Plant(
        "one value too many under top-k",
        KERNEL,
        "return count_above < top_k;",
        "return count_above <= top_k;",
        IDS,
        WRONG_RESULT,
    ),
    Plant(
        "a lost carry",
        THRESHOLD,
        "static_cast<uint32_t>(weight >> 32) + carry;",
        "static_cast<uint32_t>(weight >> 32) + 0 * carry;",
        "test_token_selection_exact.py::test_large_sums_carry",
        WRONG_RESULT,
    ),
    Plant(
        "the last of equals",
        DRAW,
        "if (values[i] == maximum && first == kNone) first",
        "if (values[i] == maximum) first",
        IDS,
        WRONG_RESULT,
    ),
    Plant(
        "a warp that counts its own mass twice",
        TEAM,
        "through - own, warp)",
        "through, warp)",
        IDS,
        WRONG_RESULT + "|uninitialised .*shared scratch",  # no bin is found
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What became of the tests, by plant."""
    return run_plants(PLANTS, SELECTION, tmp_path_factory.mktemp, FEWER_INSTANCES)


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(results, plant):
    assert_found(plant, results[plant])
