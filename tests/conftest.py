"""Fixtures of all tests."""

import os
from pathlib import Path
from typing import NamedTuple

import emulator
import pytest
import torch

from lpd_ext import cpu_variant, cuda_variant

VARIANTS = {
    "cpu": cpu_variant.VARIANTS,
    "simt": cuda_variant.VARIANTS,
    "cuda": cuda_variant.VARIANTS,
}
CUDA_KERNELS = [path.stem for path in (Path(__file__).parent.parent / "csrc/cuda").glob("*.cu")]


class Place(NamedTuple):
    """Where an op under test runs: "cpu", "simt" (its CUDA kernel, emulated there) or "cuda"."""

    kind: str
    variant: str | None = None  # of the kernels: an instruction set, or for CUDA an arithmetic


def pytest_configure():
    """Let no process that a test starts take itself for a worker: benchmarks would not be timed."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]


def pytest_generate_tests(metafunc):
    """Run a test at every place that its fixtures ask for."""
    names = metafunc.fixturenames
    if "runs_on" not in names:
        return
    kinds = ["cpu"]
    stems = [stem for stem in CUDA_KERNELS if metafunc.module.__name__.startswith(f"test_{stem}")]
    if stems:
        kinds += ["simt"] if "device" in names else []
        kinds += ["cuda"] if "device" in names or "torch_device" in names else []
    places = []
    for kind in kinds:
        # Of the ops with a CUDA kernel, attention alone has one for each arithmetic.
        varies = "variant" in names and (kind == "cpu" or has_arithmetics(stems))
        for variant in VARIANTS[kind] if varies else [None]:
            label = "-".join(filter(None, [kind, variant]))
            marks = pytest.mark.cuda if kind == "cuda" else ()
            places.append(pytest.param(Place(kind, variant), id=label, marks=marks))
    metafunc.parametrize("runs_on", places, indirect=True)


def pytest_collection_modifyitems(items):
    """Mark what runs torch's compiler or opcheck, which `gpu_check.sh` runs apart."""
    for item in items:
        names = set(item.function.__code__.co_names)
        if "opcheck" in names or {"torch", "compile"} <= names:
            item.add_marker(pytest.mark.compiles)


def has_arithmetics(stems):
    return any(f"{stem}_mma" in CUDA_KERNELS for stem in stems)


def pytest_runtest_setup(item):
    faked = item.config.pluginmanager.hasplugin("fake_cuda")
    if item.get_closest_marker("cuda") and not (faked or torch.cuda.is_available()):
        pytest.skip("no CUDA device")


@pytest.fixture
def runs_on(request):
    """One of the above."""
    return request.param


@pytest.fixture
def device(runs_on, monkeypatch):
    """The device of the tensors that an op under test takes."""
    if runs_on.kind == "simt":
        emulator.use(monkeypatch)
    return device_of(runs_on)


@pytest.fixture
def torch_device(runs_on):
    """The same for tests of what an op registers: the emulated ones have no fake kernels."""
    return device_of(runs_on)


def device_of(runs_on):
    return torch.device("cuda" if runs_on.kind == "cuda" else "cpu")


@pytest.fixture
def variant(runs_on):
    """Each variant of the kernels, where this machine has it; None where there is but one."""
    if runs_on.variant is None:
        yield None
        return
    get, set_ = {
        "cpu": (cpu_variant.cpu_variant, cpu_variant.set_cpu_variant),
        "simt": (emulator.variant, emulator.set_variant),
        "cuda": (cuda_variant.cuda_variant, cuda_variant.set_cuda_variant),
    }[runs_on.kind]
    if runs_on.kind == "cpu" and runs_on.variant not in cpu_variant.cpu_variants():
        pytest.skip(f"this machine has no {runs_on.variant}")
    before = get()
    set_(runs_on.variant)
    yield runs_on.variant
    set_(before)


@pytest.fixture
def repeats(runs_on):
    """How often a call of a small op is repeated, its bits to be the same."""
    return {"cpu": 5, "simt": 2, "cuda": 250}[runs_on.kind]


@pytest.fixture(scope="session")
def golden_folder():
    """Vectors of the published implementation."""
    return Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def one_thread():
    """Keep matrices this small on one thread: several would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
