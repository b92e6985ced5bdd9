"""GroupNorm and SiLU of the tokenizer's decoder, channels last, against torch's own two functions.

In channels-last memory, as the convolutions around them like it, and in NCHW, where torch has a
kernel for either on a GPU and no layout has to change.
"""

import pytest
import torch
from gpu_timer import current_gpu
from roofline import ELEMENT, Work, floor_notes
from torch.nn import functional as F

from lpd_ext import VQConfig
from lpd_ext.ops import group_norm_silu, reference

GROUPS = VQConfig().norm_groups
NORM_EPS = 1e-6
SHAPES = [(512, 16), (256, 64), (128, 128), (128, 256)]  # channels and side, from deep to shallow
BATCHES = {"cpu": [1, 4], "cuda": [1, 64]}
CALLS = 3  # inputs that take turns
CASES = [
    pytest.param(device, batch, *shape, marks=marks)
    for device, marks in (("cpu", ()), ("cuda", pytest.mark.cuda))
    for batch in BATCHES[device]
    for shape in SHAPES
]


def with_torch(x, norm):
    return F.silu(F.group_norm(x, GROUPS, *norm, NORM_EPS))


@pytest.mark.parametrize(("device", "batch", "channels", "side"), CASES, indirect=["device"])
def test_group_norm_silu(versus, device, batch, channels, side):
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    norm = randn(channels), randn(channels)
    images = [randn(batch, channels, side, side) for _ in range(CALLS)]
    laid_out = [x.contiguous(memory_format=torch.channels_last) for x in images]
    inputs = [(x, y, torch.empty_like(y)) for x, y in zip(images, laid_out, strict=True)]

    def ours(_, x, out):
        return group_norm_silu(x, GROUPS, norm, norm_eps=NORM_EPS, out=out)

    def channels_last(_, x, out):
        return with_torch(x, norm)

    def nchw(x, _, out):
        return with_torch(x, norm)

    few = inputs[0][0][:1]
    exact = few.double()
    reference.group_norm_silu(few, GROUPS, norm, norm_eps=NORM_EPS, out=exact)
    error = (ours(*inputs[0])[:1].double() - exact).abs()
    theirs = (nchw(*inputs[0])[:1].double() - exact).abs()
    assert error.max() <= 2 * theirs.max()
    assert error.mean() <= 1.5 * theirs.mean()

    notes = {}
    if device.type == "cuda":
        current_gpu().capture(lambda: ours(*inputs[0]))()  # as it is timed
        num_bytes = 2 * inputs[0][0].numel() * ELEMENT  # read once, as if statistics were known
        notes = floor_notes(torch.cuda.get_device_name(), Work(num_bytes).floor)
    versus(
        "group_norm_silu",
        f"{batch} x {side}x{side}x{channels}, bfloat16",
        ours,
        {"torch_channels_last": channels_last, "torch_nchw": nchw},
        inputs=inputs,
        device=device.type,
        images=batch,
        **notes,
    )
