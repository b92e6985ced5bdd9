"""Bugs of every class, planted into the CUDA kernels of `masked_attention`: its tests find them."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
import pytest

KERNELS = sorted(Path(__file__).parent.parent.glob("csrc/cuda/masked_attention*.cu*"))
SIMPLE, MMA = "masked_attention_simple.cu", "masked_attention_mma.cu"
PAIR = "masked_attention_pair.cuh"
AGAINST_FLOAT64 = "test_masked_attention.py::test_against_float64"
UNSEEN = "test_masked_attention.py::test_what_a_row_does_not_see_cannot_reach_it"
WRONG_RESULT = "AssertionError|error.max"
# Cases of the one head_dim that is compiled here.
SELECTION = "simt and not (one_key or many_rows or head_dim)"


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
        "i < count * kChunks",
        "i < kKeys * kChunks",
        AGAINST_FLOAT64,
        "out of bounds: global (k|v)",
    ),
    Plant(
        "a weight of 0 in place of no weight",
        SIMPLE,
        "if (seen[r] >> (i + j) & 1) ",
        "",
        UNSEEN,
        WRONG_RESULT,
    ),
    Plant(
        "wide loads whatever the strides",
        PAIR,
        "return bits % 16 == 0;",
        "return true;",
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
        MMA,
        "__syncthreads();  // tiles, or the group before, have been read",
        "",
        AGAINST_FLOAT64,
        "data race on shared",
    ),
    Plant(
        "fragments in a wrong order",
        MMA,
        "key_parts[i][0], key_parts[i][1]",
        "key_parts[i][0], key_parts[i][2]",
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
def reports(tmp_path_factory):
    """What the tests print of each plant."""

    def run(plant):
        folder = tmp_path_factory.mktemp("plant")
        for kernel in KERNELS if plant.file == PAIR else [KERNELS[0].parent / plant.file]:
            source = kernel.read_text()
            if kernel.name == plant.file:
                assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
                source = source.replace(plant.before, plant.after)
            # One head_dim takes a fraction of the time to compile.
            source = source.replace("<32, 64, 80, 96, 128>", "<64>")
            (folder / kernel.name).write_text(source)
        return emulator.run_tests(folder, "-k", SELECTION, f"tests/{plant.test}")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PLANTS, pool.map(run, PLANTS), strict=True))


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(reports, plant):
    result = reports[plant]
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
