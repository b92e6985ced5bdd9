"""Fixtures of all tests."""

from pathlib import Path
from typing import NamedTuple

import emulator
import pytest
import torch

from lpd_ext import cpu_variant

CUDA_KERNELS = [path.stem for path in (Path(__file__).parent.parent / "csrc/cuda").glob("*.cu")]


class Place(NamedTuple):
    """Where an op under test runs: "cpu", "simt" (its CUDA kernel, emulated there) or "cuda"."""

    kind: str
    variant: str | None = None  # instruction set of the CPU kernels


def pytest_generate_tests(metafunc):
    """Run a test at every place that its fixtures ask for."""
    names = metafunc.fixturenames
    if "runs_on" not in names:
        return
    variants = cpu_variant.VARIANTS if "variant" in names else [None]
    places = [pytest.param(Place("cpu", name), id=name or "cpu") for name in variants]
    if any(metafunc.module.__name__.startswith(f"test_{stem}") for stem in CUDA_KERNELS):
        if "device" in names:
            places.append(pytest.param(Place("simt"), id="simt"))
        if "device" in names or "torch_device" in names:
            places.append(pytest.param(Place("cuda"), id="cuda", marks=pytest.mark.cuda))
    metafunc.parametrize("runs_on", places, indirect=True)


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
    if runs_on.kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda" if runs_on.kind == "cuda" else "cpu")


@pytest.fixture
def variant(runs_on):
    """Each instruction set that CPU kernels are written for, where this machine has it."""
    if runs_on.kind != "cpu":
        yield None
        return
    if runs_on.variant not in cpu_variant.cpu_variants():
        pytest.skip(f"this machine has no {runs_on.variant}")
    before = cpu_variant.cpu_variant()
    cpu_variant.set_cpu_variant(runs_on.variant)
    yield runs_on.variant
    cpu_variant.set_cpu_variant(before)


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
