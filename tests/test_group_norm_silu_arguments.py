"""What `group_norm_silu` refuses, and how it is traced."""

import pytest
import torch
import torch.nn.functional as F
from test_fused_linear import SENTINEL
from test_group_embedding_arguments import grad, meta, of_norm
from test_group_norm_silu import channels_last, make_inputs, run

from lpd_ext.ops import group_norm_silu

SHAPE = (2, 6, 5, 7)
SAMPLES = [{}, {"silu": False}, {"norm": torch.bfloat16}, {"shape": SHAPE, "groups": 3}]


def make(**options):
    return make_inputs(**{"shape": SHAPE, "groups": 2, **options})


def operator_arguments(inputs):
    """Arguments of the operator itself."""
    weight, bias = inputs["norm"]
    return {"x": inputs["x"], "norm_weight": weight, "norm_bias": bias,
            "num_groups": inputs["num_groups"], "norm_eps": inputs["norm_eps"],
            "silu": inputs["silu"], "out": inputs["out"]}  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(torch_device, sample):
    arguments = tuple(operator_arguments(make_inputs(**sample, device=torch_device)).values())
    torch.library.opcheck(torch.ops.lpd_ext.group_norm_silu.default, arguments)
    torch.library.opcheck(torch.ops.lpd_ext.group_norm_silu.inplace, arguments[:-1])


def test_compiled(torch_device):
    compiled = torch.compile(group_norm_silu, fullgraph=True, backend="aot_eager")
    for sample in SAMPLES:
        inputs = make_inputs(**sample, device=torch_device)
        expected = run(inputs).clone()
        inputs["out"].fill_(SENTINEL)
        assert torch.equal(compiled(**inputs), expected)
        assert torch.equal(inputs["out"], expected)
        assert torch.equal(compiled(**{**inputs, "out": inputs["x"]}), expected)
        assert torch.equal(inputs["x"], expected)


def test_compiled_between_convolutions():
    # Its tensors made inside, as a model would use it.
    inputs = make(dtype=torch.float32)
    kernel = channels_last(torch.randn(6, 6, 3, 3))

    def layer(x):
        x = F.conv2d(x, kernel)
        group_norm_silu(x, 2, inputs["norm"], out=x)
        return F.conv2d(x, kernel) + x.mean()

    expected = layer(inputs["x"])
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(inputs["x"]), expected)


def contiguous(tensor):
    return tensor.contiguous()


BAD_INPUTS = [
    ("x", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("x", lambda x: x.double(), TypeError, "got float64"),
    ("x", lambda x: x[0], ValueError, r"\[batch, channels, height, width\], got shape"),
    ("x", contiguous, ValueError, r"torch.channels_last memory, got strides \(210, 35, 7, 1\)"),
    ("x", lambda x: x[..., 1:], ValueError, "torch.channels_last memory, got strides"),
    ("x", lambda x: x[:, 1:], ValueError, "torch.channels_last memory, got strides"),
    ("x", lambda x: x[:, :0], NotImplementedError, "1 to 8192 channels, got 0"),
    ("x", lambda x: channels_last(x[:, :, :1, :1].repeat(1, 1366, 1, 1)), NotImplementedError,
     "1 to 8192 channels, got 8196"),
    ("x", meta, NotImplementedError, r"device c(pu|uda)[^,]*, got meta"),
    ("x", grad, NotImplementedError, "inference-only"),
    ("num_groups", lambda _: 4, ValueError, "a divisor of the 6 channels, got 4"),
    ("num_groups", lambda _: 0, ValueError, "at least 1, got 0"),
    ("num_groups", lambda _: 2.0, TypeError, "an int, got float"),
    ("norm", lambda _: None, TypeError, r"\(weight, bias\), got NoneType"),
    ("norm", lambda norm: norm[:1], TypeError, r"\(weight, bias\)"),
    ("norm", of_norm(0, lambda x: x.half()), TypeError, "float32 or bfloat16, got float16"),
    ("norm", of_norm(1, lambda x: x.bfloat16()), TypeError, "float32, got bfloat16"),
    ("norm", of_norm(0, lambda x: x[None]), ValueError, r"\[channels\], got shape"),
    ("norm", of_norm(1, lambda x: x[1:]), ValueError, r"= \[6\], got shape \[5\]"),
    ("norm", of_norm(1, meta), ValueError, r"device c(pu|uda)[^,]*, got meta"),
    ("norm", of_norm(1, lambda x: x.repeat(2)[::2]), ValueError, "contiguous last dimension"),
    ("norm_eps", lambda _: None, TypeError, "a number, got NoneType"),
    ("norm_eps", lambda _: -1e-6, ValueError, "at least 0"),
    ("silu", lambda _: 1, TypeError, "a bool, got int"),
    ("out", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("out", lambda x: x.float(), TypeError, "bfloat16, got float32"),
    ("out", lambda x: x[1:], ValueError, r"= \[2, 6, 5, 7\], got shape \[1, 6, 5, 7\]"),
    ("out", contiguous, ValueError, "torch.channels_last memory, got strides"),
    ("out", lambda x: x[:1].expand(2, -1, -1, -1), ValueError, "channels_last memory"),
    ("out", meta, ValueError, r"device c(pu|uda)[^,]*, got meta"),
    ("out", grad, NotImplementedError, "inference-only"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_INPUTS)
def test_bad_input(name, change, error, message):
    inputs = make()
    out = inputs["out"]
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^group_norm_silu: argument `{name}`.*{message}"):
        group_norm_silu(**inputs)
    assert (out == SENTINEL).all()


def test_a_single_pixel_or_channel_is_both_layouts():
    # Torch tells the layouts apart by strides, of which then several are right.
    for shape in ((2, 6, 1, 1), (2, 1, 5, 7), (1, 1, 1, 1), (1, 6, 1, 1)):
        inputs = make(shape=shape, groups=1, dtype=torch.float32)
        expected = run(inputs).clone()
        inputs["x"], inputs["out"] = inputs["x"].contiguous(), torch.empty(shape)
        assert torch.equal(run(inputs), expected)


def test_out_overlaps_nothing_but_x():
    whole = channels_last(torch.zeros(4, 6, 1, 1))
    ones = torch.ones(6)
    for x, norm, out, other in (
        (whole[:3], (ones, ones), whole[1:], "x"),
        (whole[:3], (ones, ones), whole[:3].clone().set_(whole[:3]), "x"),  # another tensor
        (whole[:1], (whole[3, :, 0, 0], ones), whole[3:], r"norm\[0\]"),
    ):
        with pytest.raises(ValueError, match=f"argument `out`: expected memory apart from {other}"):
            group_norm_silu(x, 2, norm, out=out)
    x = whole[3:]
    with pytest.raises(ValueError, match=r"argument `out`: expected memory apart from norm\[1\]"):
        group_norm_silu(x, 2, (ones, whole[3, :, 0, 0]), out=x)


UNSAFE = [  # argument, what becomes of it
    ("x", lambda x: x[:1]),
    ("x", lambda x: x[0]),
    ("x", contiguous),
    ("x", lambda x: x[..., 1:]),
    ("x", lambda x: x[:, :0]),
    ("x", lambda x: x.float()),
    ("x", lambda x: x.double()),
    ("norm_weight", lambda x: x[:5]),
    ("norm_weight", lambda x: x.half()),
    ("norm_weight", lambda x: x.bfloat16()),
    ("norm_weight", lambda x: x[:1].expand(6)),
    ("norm_bias", lambda x: x[None]),
    ("norm_bias", lambda x: x[:1].expand(6)),
    ("norm_bias", lambda x: x.bfloat16()),
    ("num_groups", lambda _: 0),
    ("num_groups", lambda _: 4),
    ("out", lambda x: x[:1]),
    ("out", lambda x: x.half()),
    ("out", contiguous),
    ("out", lambda x: x[:1].expand(2, -1, -1, -1)),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(name, change):
    inputs = operator_arguments(make())
    out = inputs["out"]
    inputs[name] = change(inputs[name])
    with pytest.raises(RuntimeError, match="group_norm_silu: "):
        torch.ops.lpd_ext.group_norm_silu(*inputs.values())
    assert (out == SENTINEL).all()


def test_the_operator_itself_takes_what_is_safe():
    # Or the test above would pass without a look at what was changed.
    inputs = operator_arguments(make())
    torch.ops.lpd_ext.group_norm_silu(*inputs.values())
    assert (inputs["out"] != SENTINEL).any()


@pytest.mark.parametrize("name", ["x", "norm_weight", "norm_bias", "out"])
def test_the_operator_itself_refuses_tensors_without_memory(name):
    # Dispatched to the fake kernel, it returns and has written nothing.
    inputs = operator_arguments(make())
    inputs[name] = meta(inputs[name])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.lpd_ext.group_norm_silu(*inputs.values())
