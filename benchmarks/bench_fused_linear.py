"""The four linear layers of a block of LPD-L, with their norms, GELU and additions.

24 layers take turns, as in a model: the weights of the last call are in no cache.
"""

import pytest
import torch
from torch.nn import functional as F

from lpd_ext import LPDConfig
from lpd_ext.ops import fused_linear, pack_linear

CONFIG = LPDConfig.named("lpd-l-256")
DIM, HIDDEN = CONFIG.dim, CONFIG.dim * CONFIG.mlp_ratio
NORM_EPS = 1e-6
ROWS = {"float32": [50], "bfloat16": [26, 50, 80, 200]}  # of the guided steps at batch 1 and 4
CASES = [(dtype, rows) for dtype in ROWS for rows in ROWS[dtype]]


class Layer:
    """Weights of one block in the forms the contenders take."""

    def __init__(self, dtype, generator):
        def linear(outputs, inputs):
            weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
            return weight.to(dtype), torch.randn(outputs, generator=generator).to(dtype)

        shapes = [(3 * DIM, DIM), (DIM, DIM), (HIDDEN, DIM), (DIM, HIDDEN)]
        self.plain = [linear(*shape) for shape in shapes]
        self.norms = [(torch.ones(DIM), torch.zeros(DIM)) for _ in range(2)]
        self.ours = [pack_linear(*linear) for linear in self.plain]
        self.onednn = []
        if dtype == torch.bfloat16:
            pack = torch.ops.mkldnn._reorder_linear_weight
            self.onednn = [(pack(weight, 64), bias) for weight, bias in self.plain]


def with_torch(linear):
    """Return the four layers and what stands between them, on torch's operators."""

    def run(x, attended, linears, norms):
        def normal(norm):
            return F.layer_norm(x, (DIM,), *norm, NORM_EPS).to(attended.dtype)

        qkv, proj, fc1, fc2 = linears
        projected = linear(normal(norms[0]), *qkv)
        x = x + linear(attended, *proj)
        x = x + linear(F.gelu(linear(normal(norms[1]), *fc1)), *fc2)
        return projected, x

    return run


def packed_by_onednn(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@pytest.mark.parametrize(("dtype", "rows"), CASES)
def test_fused_linear(versus, dtype, rows):
    dtype = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    layers = [Layer(dtype, generator) for _ in range(CONFIG.depth)]
    x = torch.randn(1, rows, DIM, generator=generator)
    attended = torch.randn(1, rows, DIM, generator=generator).to(dtype)
    projected = torch.empty(1, rows, 3 * DIM, dtype=dtype)
    hidden = torch.empty(HIDDEN // 32, 1, rows, 32, dtype=dtype)  # in blocks of 32 features
    stream = torch.empty_like(x)

    def ours(layer):
        qkv, proj, fc1, fc2 = layer.ours
        stream.copy_(x)
        fused_linear(stream, qkv, norm=layer.norms[0], norm_eps=NORM_EPS, out=projected)
        fused_linear(attended, proj, epilogue="add", out=stream)
        options = {"norm": layer.norms[1], "norm_eps": NORM_EPS, "epilogue": "gelu"}
        fused_linear(stream, fc1, **options, out=hidden)
        fused_linear(hidden, fc2, epilogue="add", out=stream)
        return projected, stream

    def plain(layer):
        return with_torch(F.linear)(x, attended, layer.plain, layer.norms)

    def onednn(layer):
        return with_torch(packed_by_onednn)(x, attended, layer.onednn, layer.norms)

    exact = with_torch(F.linear)(
        x.double(),
        attended.double(),
        [[part.double() for part in linear] for linear in layers[0].plain],
        [[part.double() for part in norm] for norm in layers[0].norms],
    )
    for result, by_torch, wanted in zip(ours(layers[0]), plain(layers[0]), exact, strict=True):
        allowed = 2 * (by_torch - wanted).abs().max() + 1e-5
        assert (result - wanted).abs().max() <= allowed

    baselines = {"torch_linear": plain}
    if dtype == torch.bfloat16:
        baselines["onednn_packed"] = onednn
    name = str(dtype).removeprefix("torch.")
    versus(
        "fused_linear",
        f"{rows} rows, {name}",
        ours,
        baselines,
        inputs=[(layer,) for layer in layers],
    )
