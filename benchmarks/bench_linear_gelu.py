"""The MLP's first product with bias and GELU, in one launch and in two, on a GPU.

From which number of rows on the library's product is faster than ours by more than a launch and the
way of its result to memory and back tells how `DecodePlan` should choose.
"""

import pytest
import torch
from gpu_timer import current_gpu
from roofline import ELEMENT, Work, floor_notes
from torch.nn import functional as F

from lpd_ext import LPDConfig
from lpd_ext.ops import bias_gelu, linear_gelu, reference

ROWS = [4, 52, 256, 416, 3328, 13312]  # 26 rows, those of a step, of 2, 16, 128 and 512 sequences
LAYERS = 6  # take turns, as in a model


def product_and_bias_gelu(x, weight, bias, out):
    return bias_gelu(torch.mm(x, weight.T, out=out), bias, out=out)


def linear_and_gelu(x, weight, bias, out):
    return torch.ops.aten.gelu.out(F.linear(x, weight, bias), out=out)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("model", ["lpd-l-256", "lpd-xl-256"])
def test_linear_gelu_on_gpu(versus, device, model, rows):
    config = LPDConfig.named(model)
    dim, hidden = config.dim, config.dim * config.mlp_ratio
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape, scale=1.0):
        x = torch.randn(shape, generator=generator, device=device)
        return (scale * x).to(torch.bfloat16)

    inputs = [
        (randn(rows, dim), randn(hidden, dim, scale=dim**-0.5), randn(hidden),
         torch.empty(rows, hidden, dtype=torch.bfloat16, device=device))
        for _ in range(LAYERS)
    ]  # fmt: skip

    def ours(x, weight, bias, out):
        return linear_gelu(x, weight, bias, out=out)

    x, weight, bias, out = inputs[0]
    few = (tensor.double() for tensor in (x[:64], weight, bias))
    exact = reference.linear_gelu(*few, out=torch.empty_like(out[:64], dtype=torch.float64))
    current_gpu().capture(lambda: ours(*inputs[0]))()
    error = (out[:64].double() - exact).abs()
    theirs = (linear_and_gelu(x, weight, bias, torch.empty_like(out))[:64].double() - exact).abs()
    assert error.max() <= 2 * theirs.max()
    assert error.mean() <= 1.5 * theirs.mean()

    elements = rows * dim + hidden * dim + hidden + rows * hidden
    work = Work(elements * ELEMENT, 2 * rows * dim * hidden)
    versus(
        "linear_gelu",
        f"{model}, {rows} rows",
        ours,
        {"product_and_bias_gelu": product_and_bias_gelu, "linear_and_gelu": linear_and_gelu},
        inputs=inputs,
        device=device.type,
        **floor_notes(torch.cuda.get_device_name(), work.floor),
    )
