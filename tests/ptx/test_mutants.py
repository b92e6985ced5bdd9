"""The cases notice what is changed in the compiler's text."""

import re

import cuda_static
import pytest

from . import results
from .mutants import BARRIERS, MUTANTS

pytestmark = pytest.mark.skipif(cuda_static.nvcc_version() is None, reason="nvcc is missing")


@pytest.fixture(scope="module")
def outcome(request):
    """Results of the mutants that are selected."""
    items = [item for item in request.session.items if item.module is request.module]
    tasks = [next(iter(item.callspec.params.values())) for item in items]
    return results.run([task.name for task in tasks])


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_is_found(outcome, mutant):
    error = outcome[mutant.name]["error"]
    assert error is not None, "the case passes"
    assert re.search(mutant.found, error), error


@pytest.mark.parametrize("sweep", BARRIERS, ids=str)
def test_every_barrier_is_missed(outcome, sweep):
    found = outcome[sweep.name]["found"]
    assert found
    assert not [line for line, error in found.items() if error is None]
