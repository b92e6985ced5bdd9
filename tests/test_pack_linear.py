"""The order in which `fused_linear` reads a weight."""

import pytest
import torch
import torch.nn.functional as F
from test_fused_linear import FLOAT_AND_BFLOAT

from lpd_ext.ops import pack_linear


def expected_weight(weight, dtype):
    """The layout that csrc/include/lpd/fused_linear.h describes."""
    out_features, in_features = weight.shape
    panels, blocks = -(-out_features // 32), -(-in_features // 32)
    padded = F.pad(weight.to(dtype), (0, 32 * blocks - in_features, 0, 32 * panels - out_features))
    if dtype == torch.float32:
        return padded[:, :in_features].unflatten(0, (panels, 32)).transpose(1, 2)
    # [panel, tile, output, block, pair, input of the pair]
    return padded.view(panels, 2, 16, blocks, 16, 2).permute(0, 3, 1, 4, 2, 5)


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16, torch.float64],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(1, 16), (7, 48), (16, 32), (17, 80), (33, 64), (64, 16)]
)
def test_layout(out_features, in_features, source, dtype):
    weight, bias = torch.randn(out_features, in_features).to(source), torch.randn(out_features)
    packed = pack_linear(weight, bias, dtype=dtype)
    assert (packed.in_features, packed.out_features) == (in_features, out_features)
    assert packed.weight.dtype == dtype
    assert packed.weight.is_contiguous()
    assert torch.equal(packed.weight, expected_weight(weight, dtype))
    assert packed.bias.dtype == torch.float32
    assert torch.equal(packed.bias, F.pad(bias, (0, len(packed.bias) - out_features)))
    assert len(packed.bias) == 32 * len(packed.weight)


def test_dtype_of_the_weight_is_kept_without_another():
    for dtype in FLOAT_AND_BFLOAT:
        assert pack_linear(torch.randn(8, 16, dtype=dtype)).weight.dtype == dtype


def test_no_bias_adds_nothing():
    assert (pack_linear(torch.randn(8, 16)).bias == 0).all()


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_packing_strided_weights(dtype):
    wide = torch.randn(3 * 48, 2 * 40)
    for weight in (wide[::3, ::2].T, wide[3:-1, 5:].T[::2, :48], torch.randn(40, 1).expand(40, 48)):
        packed = pack_linear(weight, dtype=dtype)
        assert torch.equal(packed.weight, expected_weight(weight.contiguous(), dtype))


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_packing_is_a_copy(dtype):
    # 32 by 32 in float32, transposed: the one shape that a view could serve.
    for weight in (torch.randn(32, 32).T.to(dtype), torch.randn(32, 32, dtype=dtype)):
        bias = torch.randn(32)
        packed = pack_linear(weight, bias)
        before = packed.weight.clone(), packed.bias.clone()
        weight.zero_()
        bias.zero_()
        assert torch.equal(packed.weight, before[0])
        assert torch.equal(packed.bias, before[1])


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_packing_again_in_place(dtype):
    into = pack_linear(torch.randn(40, 48), torch.randn(40), dtype=dtype)
    addresses = into.weight.data_ptr(), into.bias.data_ptr()
    weight, bias = torch.randn(40, 48), torch.randn(40)
    packed = pack_linear(weight, bias, dtype=dtype, into=into)
    assert packed is into
    assert (into.weight.data_ptr(), into.bias.data_ptr()) == addresses
    assert torch.equal(into.weight, expected_weight(weight, dtype))  # the padding is still zero
    assert torch.equal(into.bias, F.pad(bias, (0, 24)))


def test_packing_a_layer_in_training():
    layer = torch.nn.Linear(16, 8)
    into = pack_linear(layer.weight, layer.bias)
    for packed in (into, pack_linear(layer.weight, layer.bias, into=into)):
        assert not packed.weight.requires_grad
        assert not packed.bias.requires_grad


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: pack_linear(w.half()), TypeError, "dtype`.*bfloat16, got torch.float16"),
        (lambda w: pack_linear(w, dtype=torch.int64), TypeError, "dtype`.*got torch.int64"),
        (lambda w: pack_linear(w[0]), ValueError, r"weight`.*\[out_features, .*got \[48\]"),
        (lambda w: pack_linear(w[None]), ValueError, r"weight`.*got \[1, 40, 48\]"),
        (lambda w: pack_linear(w[:, :40]), NotImplementedError, "weight`.*multiple of 16, got 40"),
        (lambda w: pack_linear(w[:, :0]), NotImplementedError, "weight`.*multiple of 16, got 0"),
        (lambda w: pack_linear(w, w[0]), ValueError, r"bias`.*= \[40\], got shape \[48\]"),
        (lambda w: pack_linear(w, w[:, :1]), ValueError, r"bias`.*= \[40\], got shape \[40, 1\]"),
        (
            lambda w: pack_linear(w, into=pack_linear(w[:32])),
            ValueError,
            r"into`.*\[40, 48\].*, got \[32, 48\]",
        ),
        (
            lambda w: pack_linear(w, into=pack_linear(w[:, :32])),
            ValueError,
            r"into`.*\[40, 48\].*, got \[40, 32\]",
        ),
        (
            lambda w: pack_linear(w, into=pack_linear(w, dtype=torch.bfloat16)),
            ValueError,
            r"into`.*float32, got \[40, 48\] in torch.bfloat16",
        ),
    ],
)
def test_bad_packing(call, error, message):
    with pytest.raises(error, match=f"^pack_linear: argument `{message}"):
        call(torch.randn(40, 48))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: pack_linear(w.tolist()), TypeError, "weight`: expected a tensor"),
        (lambda w: pack_linear(w, w[:, 0].tolist()), TypeError, "bias`: expected a tensor"),
        (lambda w: pack_linear(w.long(), dtype=torch.float32), TypeError, "weight`.*int64"),
        (lambda w: pack_linear(w, into=w), TypeError, "into`"),
        # The same panels, but other features: what is left over of the last layer stays.
        (lambda w: pack_linear(w[:33], into=pack_linear(w)), ValueError, "into`"),
        (
            lambda w: pack_linear(w.bfloat16(), into=pack_linear(F.pad(w, (0, 16)).bfloat16())),
            ValueError,
            "into`",
        ),
    ],
)
def test_more_bad_packing(call, error, message):
    with pytest.raises(error, match=f"^pack_linear: argument `{message}"):
        call(torch.randn(40, 48))


def test_packing_again_without_a_bias_adds_nothing():
    into = pack_linear(torch.randn(40, 48), torch.randn(40))
    assert (pack_linear(torch.randn(40, 48), into=into).bias == 0).all()


def test_packing_no_outputs():
    with pytest.raises(ValueError, match="argument `weight`: expected at least one output"):
        pack_linear(torch.randn(0, 48))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_the_bias_is_float32_whatever_torch_s_default(default):
    weight = torch.randn(40, 48)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        packed = pack_linear(weight)
    finally:
        torch.set_default_dtype(before)
    assert packed.bias.dtype == torch.float32


def test_a_bias_elsewhere_is_refused():
    with pytest.raises(ValueError, match="argument `bias`: expected device cpu, got meta"):
        pack_linear(torch.randn(40, 48), torch.randn(40, device="meta"))
