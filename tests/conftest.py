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
    """Where the ops under test run: the devices that have kernels."""
    return torch.device("cpu")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
