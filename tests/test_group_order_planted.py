"""Bugs of every class, planted into the CUDA kernel of `group_order`: its tests find them."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
import pytest

KERNEL = Path(__file__).parent.parent / "csrc/cuda/group_order.cu"
EQUALS_CPU = "test_equals_the_cpu_op"
WRONG_ORDER = "AssertionError"


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
        "no barrier before the warps agree",
        "__syncthreads();\n      const uint4 other",
        "const uint4 other",
        EQUALS_CPU,
        "uninitialised memory.*: shared slots",
    ),
    Plant(
        "slots overwritten while they are read",
        "turn ^= 1;",
        "",
        EQUALS_CPU,
        "data race on shared slots",
    ),
    Plant(
        "no barrier before the known cells are counted",
        "__syncthreads();\n    num_known",
        "num_known",
        EQUALS_CPU,
        "data race on shared known",
    ),
    Plant(
        "known cells behind the last",
        "places_[i] != kNone && known[",
        "known[",
        EQUALS_CPU,
        "out of bounds: global known",
    ),
    Plant(
        "keys of 31 bits",
        "first.z = smallest_of_equals(first.y, middle);",
        "first.z = first.y;",
        "test_keys_that_differ_in_their_lower_half_only",
        WRONG_ORDER,
    ),
    Plant(
        "a random cell by its score",
        "choice == Choice::kRandom ? kAnyPlace : 0",
        "0",
        EQUALS_CPU,
        WRONG_ORDER,
    ),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the tests print of each plant."""

    def run(plant):
        source = KERNEL.read_text()
        assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
        folder = tmp_path_factory.mktemp("plant")
        (folder / KERNEL.name).write_text(source.replace(plant.before, plant.after))
        test = f"tests/test_group_order_cuda.py::{plant.test}"
        return emulator.run_tests(folder, "-k", "simt", test)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PLANTS, pool.map(run, PLANTS), strict=True))


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_found(reports, plant):
    result = reports[plant]
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
