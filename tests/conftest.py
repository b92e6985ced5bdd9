"""Fixtures of all tests."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def golden_folder():
    """Vectors of the published implementation."""
    return Path(__file__).parent / "golden"


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
