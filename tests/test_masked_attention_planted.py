"""Bugs of every class, planted into the CUDA kernel of `masked_attention`: its tests find them."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
import pytest

KERNEL = Path(__file__).parent.parent / "csrc/cuda/masked_attention.cu"
AGAINST_FLOAT64 = "test_masked_attention.py::test_against_float64"
UNSEEN = "test_masked_attention.py::test_what_a_row_does_not_see_cannot_reach_it"
WRONG_RESULT = "AssertionError|error.max"
# Cases of the one head_dim that is compiled here.
SELECTION = "simt and (few_keys or tile_ or kv_ or row or nothing or alignment)"


@dataclass(frozen=True)
class Plant:
    """A change of the source, the test that is to find it, and what it then says."""

    name: str
    before: str
    after: str
    test: str
    found: str

    def __str__(self):
        return self.name


PLANTS = [
    Plant(
        "no barrier before a tile is overwritten",
        "!__syncthreads_or(by_any != 0)",
        "false",
        AGAINST_FLOAT64,
        "data race on shared (keys|values)",
    ),
    Plant(
        "a vote of one thread",
        "!__syncthreads_or(by_any != 0)",
        "(__syncthreads(), by_any == 0)",
        AGAINST_FLOAT64,
        "__syncthreads",
    ),
    Plant(
        "no barrier before a tile is read",
        "__syncthreads();\n    if (by_any",
        "if (by_any",
        AGAINST_FLOAT64,
        "uninitialised .*shared|data race on shared",
    ),
    Plant(
        "no warp barrier",
        "__syncwarp();",
        "",
        AGAINST_FLOAT64,
        "(uninitialised .*|data race on )shared weights",
    ),
    Plant(
        "keys out of bounds",
        "i < count * kChunks",
        "i < kKeys * kChunks",
        AGAINST_FLOAT64,
        "out of bounds: global (k|v)",
    ),
    Plant(
        "booleans out of bounds",
        "key < params.kv_len && ",
        "",
        AGAINST_FLOAT64,
        "out of bounds: global mask",
    ),
    Plant(
        "rows out of bounds",
        "if (row >= params.q_len) return 0;",
        "",
        AGAINST_FLOAT64,
        "out of bounds: global mask",
    ),
    Plant(
        "a prefix one too long",
        "params.prefix_lens[offset] - first",
        "params.prefix_lens[offset] + 1 - first",
        AGAINST_FLOAT64,
        WRONG_RESULT,
    ),
    Plant(
        "a weight of 0 in place of no weight",
        "if (seen[r] >> (i + j) & 1) ",
        "",
        UNSEEN,
        WRONG_RESULT,
    ),
    Plant(
        "hidden scores in the maximum",
        "visible ? scores[r] : -INFINITY",
        "scores[r]",
        UNSEEN,
        WRONG_RESULT,
    ),
    Plant(
        "nothing divided by nothing",
        "sees_any[r] != 0 ? sums[r][c] / total : of_nothing",
        "sums[r][c] / total",
        "test_masked_attention.py::test_a_row_that_sees_nothing_is_0_whatever_there_is",
        WRONG_RESULT,
    ),
    Plant(
        "any length will do",
        "fits(params, image, row) ? 0.0f : NAN",
        "0.0f",
        "test_masked_attention.py::test_lengths_that_do_not_fit_harm_their_row_alone",
        "AssertionError",
    ),
    Plant(
        "wide loads whatever the strides",
        "return bits % 16 == 0;",
        "return true;",
        "test_masked_attention_arguments.py::test_any_alignment",
        "misaligned",
    ),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the tests print of each plant."""

    def run(plant):
        source = KERNEL.read_text()
        assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
        source = source.replace(plant.before, plant.after)
        folder = tmp_path_factory.mktemp("plant")
        # One head_dim takes a fraction of the time to compile.
        (folder / KERNEL.name).write_text(source.replace("<32, 64, 80, 96, 128>", "<64>"))
        return emulator.run_tests(folder, "-k", SELECTION, f"tests/{plant.test}")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PLANTS, pool.map(run, PLANTS), strict=True))


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(reports, plant):
    result = reports[plant]
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
