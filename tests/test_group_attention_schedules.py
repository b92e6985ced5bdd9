"""The emulated CUDA kernel of `group_attention`, whatever the order of its threads and blocks."""

import emulator
import pytest
import torch
from cases import ATTENTION_CASES, HALF_AND_FLOAT, AttentionCase
from test_group_attention import make_inputs, run
from test_group_attention_ragged import IMAGES, LONG_IMAGES, make_ragged, run_ragged

from lpd_ext import group_attention


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_bits_do_not_depend_on_the_schedule(monkeypatch, case, dtype):
    emulator.use(monkeypatch)
    inputs = make_inputs(case, dtype, "cpu")

    def attend():
        qkv, *caches = (tensor.clone() for tensor in inputs)
        return run(group_attention, case, qkv, *caches), *caches

    emulator.assert_bits_equal_on_schedules(attend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("images", [IMAGES, LONG_IMAGES], ids=["short", "long"])
def test_nor_do_those_of_the_ragged_form(monkeypatch, images, dtype):
    emulator.use(monkeypatch)
    tensors, lengths = make_ragged(dtype, "cpu", images)

    def attend():
        qkv, *caches = (tensor.clone() for tensor in tensors)
        return run_ragged(group_attention, (qkv, *caches), lengths), *caches

    emulator.assert_bits_equal_on_schedules(attend)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128])
def test_tensor_cores_read_without_bank_conflicts(monkeypatch, head_dim):
    emulator.use(monkeypatch)
    case = AttentionCase("banks", 1, 40, 1, head_dim, 100, 19, 120)
    before = emulator.stats()
    run(group_attention, case, *make_inputs(case, torch.bfloat16, "cpu"))
    after = emulator.stats()
    assert after["ldmatrix_phases"] > before["ldmatrix_phases"]
    assert after["bank_conflicts"] == before["bank_conflicts"]
