"""Fixtures of all tests."""

from pathlib import Path

import pytest
import torch

from lpd_ext import cpu_variant


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


@pytest.fixture
def device():
    """Where the ops under test run; so far only the CPU has kernels."""
    return torch.device("cpu")


@pytest.fixture(params=cpu_variant.VARIANTS)
def variant(request):
    """Each instruction set that CPU kernels are written for, where this machine has it."""
    if request.param not in cpu_variant.cpu_variants():
        pytest.skip(f"this machine has no {request.param}")
    before = cpu_variant.cpu_variant()
    cpu_variant.set_cpu_variant(request.param)
    yield request.param
    cpu_variant.set_cpu_variant(before)
