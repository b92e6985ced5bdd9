"""Every class of bug, planted into the CUDA kernel of `group_attention`: its own tests find it."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
import pytest

KERNELS = Path(__file__).parent.parent / "csrc/cuda"
AGAINST_FLOAT64 = "test_group_attention.py::test_against_float64"


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
        "__syncthreads();  // the last tile has been read",
        "",
        AGAINST_FLOAT64,
        "data race on shared (keys|values)",
    ),
    Plant(
        "no barrier before a tile is read",
        "__syncthreads();\n\n    float scores",
        "float scores",
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
        "a barrier that some threads pass by",
        "__syncthreads();\n\n    float scores",
        "if (lane < count) __syncthreads();\n\n    float scores",
        AGAINST_FLOAT64,
        "__syncthreads",
    ),
    Plant(
        "keys out of bounds",
        "i < count * kChunks",
        "i < kKeys * kChunks",
        AGAINST_FLOAT64,
        "out of bounds: global (qkv|k_cache|v_cache)",
    ),
    Plant(
        "the context sees a query",
        "lengths.context_len : lengths.q_len)",
        "lengths.context_len + 1 : lengths.q_len)",
        "test_group_attention.py::test_one_hidden_key_would_be_seen",
        "AssertionError|error.max",
    ),
    Plant(
        "a query does not see the last one",
        "lengths.context_len : lengths.q_len)",
        "lengths.context_len : lengths.q_len - 1)",
        AGAINST_FLOAT64,
        "AssertionError|error.max",
    ),
    Plant(
        "keys that nobody loaded",
        "if (lane < count) {",
        "{",
        AGAINST_FLOAT64,
        "uninitialised .*shared keys",
    ),
    Plant(
        "every block appends",
        " && first_row == 0",
        "",
        AGAINST_FLOAT64,
        "data race on global (k|v)_cache",
    ),
    Plant(
        "wide loads whatever the strides",
        "return bits % 16 == 0;",
        "return true;",
        "test_group_attention_rows.py::test_any_shape",
        "misaligned",
    ),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the tests print of each plant."""

    def run(plant):
        folder = tmp_path_factory.mktemp("plant") / "cuda"
        shutil.copytree(KERNELS, folder)
        path = folder / "group_attention.cu"
        source = path.read_text()
        assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
        path.write_text(source.replace(plant.before, plant.after))
        return emulator.run_tests(folder, "-k", "simt", f"tests/{plant.test}")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PLANTS, pool.map(run, PLANTS), strict=True))


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(reports, plant):
    result = reports[plant]
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
