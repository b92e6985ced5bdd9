"""Fixtures of all tests."""

from pathlib import Path

import pytest
import torch


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
