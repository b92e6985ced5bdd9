"""What a planned decode of the tokenizer refuses, and that a refusal spoils nothing."""

from copy import deepcopy

import pytest
import torch
from test_image_plan import CONFIG, GRID, some_codes
from torch import nn

from lpd_ext import ImagePlan, VQModel


@pytest.fixture
def vq():
    torch.manual_seed(0)
    return VQModel(CONFIG).eval()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"vq": None}, TypeError, "`vq`: expected a VQModel, got NoneType"),
        ({"batch_size": 0}, ValueError, "`batch_size`: expected at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "`batch_size`: expected an int, got float"),
        ({"grid": None}, TypeError, r"`grid`: expected \(height, width\), got None"),
        ({"grid": (4,)}, TypeError, r"`grid`: expected \(height, width\), got \(4,\)"),
        ({"grid": (4, 0)}, ValueError, "`grid`: expected at least 1, got 0"),
        ({"dtype": torch.float16}, TypeError, r"`dtype`: .*got torch\.float16"),
        ({"dtype": torch.float64}, TypeError, r"`dtype`: .*got torch\.float64"),
        ({"dtype": "float32"}, TypeError, "`dtype`: .*got float32"),
    ],
    ids=str,
)
def test_bad_plans(vq, change, error, match):
    with pytest.raises(error, match=f"^ImagePlan: argument {match}"):
        ImagePlan(**{"vq": vq, "batch_size": 4, "grid": GRID} | change)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_of_the_tokenizer_is_the_default_and_must_fit(vq, dtype):
    with pytest.raises(TypeError, match=f"^ImagePlan: argument `dtype`: .*got {dtype}"):
        ImagePlan(vq.to(dtype), 4, GRID)


def train(vq):
    vq.train()


def hook(vq):
    vq.decoder.mid[0].register_forward_hook(lambda *a: None)


def patched(vq):
    vq.decoder.mid.forward = lambda x: x


def derived(vq):
    vq.decoder.conv_out = type("Conv", (nn.Conv2d,), {})(8, 3, 3, padding=1)


def other_stride(vq):
    vq.decoder.conv_out = nn.Conv2d(8, 3, 3, padding=1, stride=2)


def other_width(vq):
    vq.decoder.conv_out = nn.Conv2d(8, 1, 3, padding=1)


def no_bias(vq):
    vq.decoder.conv_out = nn.Conv2d(8, 3, 3, padding=1, bias=False)


def no_layer(vq):
    del vq.decoder.conv_blocks[0].upsample


def weight_of_another_shape(vq):
    vq.decoder.conv_out.weight = nn.Parameter(torch.zeros(3, 8, 1, 1))


def inference(vq):
    with torch.inference_mode():
        vq.decoder.conv_out.bias = nn.Parameter(torch.zeros(3))


REFUSED = {
    train: "expected a model in evaluation",
    hook: "without hooks, got _ResBlock with a hook at 'decoder.mid.0'",
    patched: "without hooks, got _Middle with a hook at 'decoder.mid'",
    derived: "got Conv at 'decoder.conv_out'",
    other_stride: r"stride=\(1, 1\).* at 'decoder.conv_out', got .*stride=\(2, 2\)",
    other_width: r"8, 3, kernel_size.* at 'decoder.conv_out', got \(8, 1,",
    no_bias: "at 'decoder.conv_out', got .*bias=False",
    no_layer: r"at 'decoder.conv_blocks.0.upsample', got \(none\)",
    weight_of_another_shape: r"shape of decoder.conv_out.weight = \[3, 8, 3, 3\], got .*1, 1\]",
    inference: "inference_mode.*got decoder.conv_out.bias",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_tokenizer_that_cannot_be_planned(vq, change):
    # When a plan is made, and when one is called: then it serves again once that is undone.
    plan, whole = ImagePlan(vq, 4, GRID), deepcopy(vq)
    expected = plan(some_codes())
    change(vq)
    for attempt in (lambda: plan(some_codes()), lambda: ImagePlan(vq, 4, GRID)):
        with pytest.raises(ValueError, match=f"^ImagePlan: argument `vq`: .*{REFUSED[change]}"):
            attempt()
    plan.vq = whole
    assert plan(some_codes()).equal(expected)


def test_a_tokenizer_that_moved(vq):
    plan = ImagePlan(vq, 4, GRID)
    with pytest.raises(NotImplementedError, match="`vq`: expected device cpu or cuda, got meta"):
        ImagePlan(vq.to("meta"), 4, GRID)
    with pytest.raises(ValueError, match="`vq`: expected device cpu, got meta"):
        plan(some_codes())


@pytest.mark.parametrize(
    ("codes", "error", "match"),
    [
        (some_codes(5), ValueError, "expected at most the 4 images planned for, got 5"),
        (some_codes(0), ValueError, "expected at least one image, got none"),
        (some_codes()[:, :11], ValueError, r"\[count, grid\[0\] \* grid\[1\]\] = \[4, 12\]"),
        (some_codes()[0], ValueError, r"expected \[count, seq_len\], got shape \[12\]"),
        (some_codes().int(), TypeError, "expected int64, got int32"),
        ([[0] * 12], TypeError, r"expected a tensor \[count, seq_len\], got list"),
        (some_codes().to("meta"), ValueError, "expected device cpu, got meta"),
        (some_codes().fill_(16), ValueError, r"expected values in \[0, 16\), got \[16, 16\]"),
        (some_codes().fill_(-1), ValueError, r"expected values in \[0, 16\), got \[-1, -1\]"),
    ],
)
def test_bad_codes(vq, codes, error, match):
    plan = ImagePlan(vq, 4, GRID)
    expected = plan(some_codes())
    with pytest.raises(error, match=f"^ImagePlan: argument `codes`: .*{match}"):
        plan(codes)
    assert plan(some_codes()).equal(expected)


@pytest.mark.parametrize("batch_size", [10**12, 2**62, 10**30])
def test_a_batch_no_machine_has_room_for(vq, batch_size):
    match = rf"^ImagePlan: not enough memory for batch_size {batch_size}, 3x4 tokens.*images .*MiB"
    with pytest.raises(MemoryError, match=match):
        ImagePlan(vq, batch_size, GRID)


def test_short_of_memory_for_activations(vq, monkeypatch):
    plan = ImagePlan(vq, 4, GRID)

    def refuse(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(plan._own.decoder, "forward", refuse)
    with pytest.raises(MemoryError, match=r"^ImagePlan: not enough memory for batch_size 4"):
        plan(some_codes())
