"""Bugs of every class, planted into the CUDA kernel of `token_selection`: its tests find them."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
import pytest

KERNELS = sorted(Path(__file__).parent.parent.glob("csrc/cuda/token_selection*.cu*"))
KERNEL, ROW, TEAM = "token_selection.cu", "token_selection_row.cuh", "token_selection_team.cuh"
DRAW, THRESHOLD = "token_selection_draw.cuh", "token_selection_threshold.cuh"
IDS = "test_token_selection_exact.py::test_ids_are_those_of_the_cpu"
SELECTION = "simt and (1000- or 5000 or 16384 or 16385- or carry)"
WRONG_IDS = "AssertionError|assert torch.equal"


@dataclass(frozen=True)
class Plant:
    """A change of the source, the test that is to find it, and what it then says."""

    name: str
    file: str
    before: str
    after: str
    test: str
    found: str

    def __str__(self):
        return self.name


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
        WRONG_IDS,
    ),
    Plant(
        "a lost carry",
        THRESHOLD,
        "static_cast<uint32_t>(weight >> 32) + carry;",
        "static_cast<uint32_t>(weight >> 32) + 0 * carry;",
        "test_token_selection_exact.py::test_large_sums_carry",
        WRONG_IDS,
    ),
    Plant(
        "the last of equals",
        DRAW,
        "if (values[i] == maximum && first == kNone) first",
        "if (values[i] == maximum) first",
        IDS,
        WRONG_IDS,
    ),
    Plant(
        "a warp that counts its own mass twice",
        TEAM,
        "through - own, warp)",
        "through, warp)",
        IDS,
        WRONG_IDS,
    ),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the tests print of each plant."""

    def run(plant):
        folder = tmp_path_factory.mktemp("plant")
        # Two of five kernels: less to compile.
        for path in KERNELS:
            source = path.read_text()
            if path.name == KERNEL:
                source = re.sub(r".*launch<T, (4|32), kChunks>.*\n", "", source)
            if path.name == plant.file:
                assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
                source = source.replace(plant.before, plant.after)
            (folder / path.name).write_text(source)
        return emulator.run_tests(folder, "-k", SELECTION, f"tests/{plant.test}")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PLANTS, pool.map(run, PLANTS), strict=True))


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(reports, plant):
    result = reports[plant]
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
