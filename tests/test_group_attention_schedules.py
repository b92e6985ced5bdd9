"""The emulated CUDA kernel of `group_attention`, whatever the order of its threads and blocks."""

import emulator
import pytest
import torch
from cases import ATTENTION_CASES, HALF_AND_FLOAT
from test_group_attention import make_inputs, run
from test_group_attention_ragged import IMAGES, LONG_IMAGES, make_ragged, run_ragged

from lpd_ext import group_attention

SCHEDULES = [("forward", 1), ("reverse", 1), ("random", 1), ("random", 2)]


@pytest.fixture
def on_each_schedule(monkeypatch):
    """Return what a function returns on each schedule, in turn."""
    emulator.use(monkeypatch)

    def results(function):
        try:
            for order, seed in SCHEDULES:
                emulator.configure(order, seed)
                yield function()
        finally:
            emulator.configure()

    return results


def assert_bits_equal(results):
    first, *others = results
    assert len(others) == len(SCHEDULES) - 1
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_bits_do_not_depend_on_the_schedule(on_each_schedule, case, dtype):
    inputs = make_inputs(case, dtype, "cpu")

    def attend():
        qkv, *caches = (tensor.clone() for tensor in inputs)
        return run(group_attention, case, qkv, *caches), *caches

    assert_bits_equal(on_each_schedule(attend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("images", [IMAGES, LONG_IMAGES], ids=["short", "long"])
def test_nor_do_those_of_the_ragged_form(on_each_schedule, images, dtype):
    tensors, lengths = make_ragged(dtype, "cpu", images)

    def attend():
        qkv, *caches = (tensor.clone() for tensor in tensors)
        return run_ragged(group_attention, (qkv, *caches), lengths), *caches

    assert_bits_equal(on_each_schedule(attend))
