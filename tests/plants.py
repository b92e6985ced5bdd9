"""Bugs planted into CUDA kernels, and what the tests of the emulated op say of each."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator

CUDA = Path(__file__).parent.parent / "csrc/cuda"
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


def run_plants(plants, selection, make_folder, replace=()):
    """Run each plant's test on kernels that have the bug; return its result by plant.

    Parameters
    ----------
    plants
        The bugs, each of which must stand in one place of its file.
    selection
        What ``pytest -k`` is to run of a test.
    make_folder
        Makes an empty folder.
    replace
        Pairs of texts, the first replaced by the second throughout: fewer instances of templates
        take a fraction of the time to compile.
    """

    def run(plant):
        folder = make_folder("plant")
        files = {CUDA / plant.file}
        if plant.file.endswith("h"):
            # Every kernel that includes it: of two versions of a template the linker takes either.
            files |= {path for path in CUDA.glob("*.cu") if plant.file in path.read_text()}
            files |= {*CUDA.glob("*h")}  # which a file looks for beside itself first
        for path in files:
            source = path.read_text()
            for text, other in replace:
                source = source.replace(text, other)
            if path.name == plant.file:
                assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
                source = source.replace(plant.before, plant.after)
            (folder / path.name).write_text(source)
        return emulator.run_tests(folder, "-k", selection, f"tests/{plant.test}")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(plants, pool.map(run, plants), strict=True))


def assert_found(plant, result):
    """Assert that the test failed, and for the plant's reason."""
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
