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


def write_kernels(folder, name, source, replace=()):
    """Write a file of kernels that has another source now, and what must be compiled with it.

    Parameters
    ----------
    folder
        Where to.
    name, source
        The file in ``csrc/cuda`` and its new source.
    replace
        Pairs of texts, the first replaced by the second throughout: fewer instances of templates
        take a fraction of the time to compile.
    """
    files = {CUDA / name}
    if name.endswith("h"):
        # Every kernel that includes it: of two versions of a template the linker takes either.
        files |= {path for path in CUDA.glob("*.cu") if name in path.read_text()}
        files |= {*CUDA.glob("*h")}  # which a file looks for beside itself first
    for path in files:
        text = source if path.name == name else path.read_text()
        for before, after in replace:
            text = text.replace(before, after)
        (folder / path.name).write_text(text)


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
        As `write_kernels` takes it.
    """

    def run(plant, folder):
        source = (CUDA / plant.file).read_text()
        assert source.count(plant.before) == 1, f"planted nowhere: {plant}"
        source = source.replace(plant.before, plant.after)
        write_kernels(folder, plant.file, source, replace)
        return emulator.run_tests(folder, "-k", selection, f"tests/{plant.test}")

    with ThreadPoolExecutor(2) as pool:
        # Folders first: pytest makes the one around them in whichever thread asks, twice if two do.
        folders = [make_folder("plant") for _ in plants]
        return dict(zip(plants, pool.map(run, plants, folders), strict=True))


def assert_found(plant, result):
    """Assert that the test failed, and for the plant's reason."""
    assert result.returncode == 1, result.stdout
    assert re.search(plant.found, result.stdout), result.stdout
