"""Bugs of every class, planted into the CUDA kernels of `group_attention`: its tests find them."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
import pytest

KERNELS = sorted(Path(__file__).parent.parent.glob("csrc/cuda/group_attention*.cu*"))
PAIR = "group_attention_pair.cuh"
SIMPLE, MMA = "group_attention_simple.cu", "group_attention_mma.cu"
AGAINST_FLOAT64 = "test_group_attention.py::test_against_float64"
# Cases of that head_dim.
SELECTION = (
    "simt and (first_step or kv_ or many_rows or split- or hidden or any_alignment"
    " or (shared_out and 64))"
)
WRONG_RESULT = "AssertionError|error.max"


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
        "__syncthreads();  // the last tile has been read",
        "",
        AGAINST_FLOAT64,
        "data race on shared (keys|values)",
    ),
    Plant(
        "no warp barrier",
        SIMPLE,
        "__syncwarp();",
        "",
        AGAINST_FLOAT64,
        "(uninitialised .*|data race on )shared weights",
    ),
    Plant(
        "a barrier that some threads pass by",
        SIMPLE,
        "__syncthreads();\n\n    float scores",
        "if (lane < count) __syncthreads();\n\n    float scores",
        AGAINST_FLOAT64,
        "__syncthreads",
    ),
    Plant(
        "keys out of bounds",
        SIMPLE,
        "i < count * kChunks",
        "i < kKeys * kChunks",
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
        SIMPLE,
        "if (lane < count) {",
        "{",
        AGAINST_FLOAT64,
        "uninitialised .*shared keys",
    ),
    Plant(
        "every block appends",
        SIMPLE,
        "first_row == 0 && pair.is_new(slot)",
        "pair.is_new(slot)",
        AGAINST_FLOAT64,
        "data race on global (k|v)_cache",
    ),
    Plant(
        "wide loads whatever the strides",
        PAIR,
        "return bits % 16 == 0;",
        "return true;",
        "test_group_attention_out.py::test_any_alignment",
        "misaligned",
    ),
    Plant(
        "fragments of keys in a wrong order",
        MMA,
        "key_parts[i][0], key_parts[i][1], scores[0]",
        "key_parts[i][0], key_parts[i][2], scores[0]",
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
        "if (g < begin || g >= end) continue;",
        "if (g >= end) continue;",
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
def reports(tmp_path_factory):
    """What the tests print of each plant."""

    def run(plant):
        folder = tmp_path_factory.mktemp("plant")
        # One head_dim takes a third of the time to compile.
        for path in KERNELS if plant.file == PAIR else [KERNELS[0].parent / plant.file]:
            source = path.read_text().replace("<32, 64, 80, 96, 128>", "<64>")
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
