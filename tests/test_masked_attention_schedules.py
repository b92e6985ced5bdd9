"""The emulated CUDA kernel of `masked_attention`, whatever the order of its threads and blocks."""

import emulator
import pytest
import torch
from cases import HALF_AND_FLOAT, MASKED_CASES
from test_masked_attention import make_inputs, random_lengths, random_mask

from lpd_ext import masked_attention


@pytest.mark.parametrize("make_mask", [random_lengths, random_mask])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", MASKED_CASES, ids=str)
def test_bits_do_not_depend_on_the_schedule(monkeypatch, case, dtype, make_mask):
    emulator.use(monkeypatch)
    inputs = (*make_inputs(case, dtype, torch.device("cpu")), make_mask(case, "cpu"))
    emulator.assert_bits_equal_on_schedules(lambda: masked_attention(*inputs))
