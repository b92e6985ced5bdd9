"""What `bias_gelu` refuses, and how it is traced."""

import pytest
import torch
import torch.nn.functional as F
from test_bias_gelu import make_inputs, run
from test_fused_linear import SENTINEL
from test_group_embedding_arguments import grad, meta

from lpd_ext.ops import bias_gelu
from lpd_ext.ops.bias_gelu import prepare_bias_gelu

SAMPLES = [{}, {"bias": None}, {"bias": torch.bfloat16}, {"shape": (7,)}]


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(torch_device, sample):
    x, bias, out = make_inputs(**sample, device=torch_device).values()
    torch.library.opcheck(torch.ops.lpd_ext.bias_gelu.default, (x, bias, out))
    torch.library.opcheck(torch.ops.lpd_ext.bias_gelu.inplace, (x, bias))


def test_compiled(torch_device):
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    for sample in SAMPLES:
        inputs = make_inputs(**sample, device=torch_device)
        expected = run(inputs).clone()
        inputs["out"].fill_(SENTINEL)
        assert torch.equal(compiled(**inputs), expected)
        assert torch.equal(inputs["out"], expected)
        assert torch.equal(compiled(inputs["x"], inputs["bias"], out=inputs["x"]), expected)
        assert torch.equal(inputs["x"], expected)


def test_compiled_inside_an_mlp():
    # Between other operators, in place, as a model would use it.
    weight, inputs = torch.randn(8, 48), make_inputs(dtype=torch.float32)

    def mlp(x):
        hidden = x * 2
        return F.linear(bias_gelu(hidden, inputs["bias"], out=hidden), weight)

    expected = mlp(inputs["x"])
    torch.testing.assert_close(torch.compile(mlp, fullgraph=True)(inputs["x"]), expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_launch_sees_what_its_tensors_hold(device, in_place):
    inputs = make_inputs(device=device)
    x, bias = inputs["x"], inputs["bias"]
    out = x if in_place else inputs["out"]
    launch = prepare_bias_gelu(x, bias, out=out)
    for seed in range(3):
        new = make_inputs(device=device, seed=seed)
        x.copy_(new["x"])
        bias.copy_(new["bias"])
        launch()
        assert torch.equal(out, run(new))


def strided(tensor):
    return tensor.repeat(*[1] * (tensor.ndim - 1), 2)[..., ::2]


BAD_INPUTS = [
    ("x", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("x", lambda x: x.double(), TypeError, "got float64"),
    ("x", lambda x: x[0, 0, 0], ValueError, r"\[\.\.\., features\], got shape \[\]"),
    ("x", strided, ValueError, "a contiguous tensor, got strides"),
    ("x", lambda x: x[:, 1:], ValueError, "a contiguous tensor, got strides"),
    ("x", meta, NotImplementedError, "device cpu or cuda, got meta"),
    ("x", grad, NotImplementedError, "inference-only"),
    ("bias", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("bias", lambda x: x.half(), TypeError, "float32 or bfloat16, got float16"),
    ("bias", lambda x: x[None], ValueError, r"\[features\], got shape"),
    ("bias", lambda x: x[1:], ValueError, r"= \[48\], got shape \[47\]"),
    ("bias", strided, ValueError, "contiguous last dimension"),
    ("bias", meta, ValueError, "device cpu, got meta"),
    ("bias", grad, NotImplementedError, "inference-only"),
    ("out", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("out", lambda x: x.float(), TypeError, "bfloat16, got float32"),
    ("out", lambda x: x[1:], ValueError, r"= \[2, 5, 48\], got shape \[1, 5, 48\]"),
    ("out", lambda x: x.flatten(0, 1), ValueError, r"= \[2, 5, 48\], got shape \[10, 48\]"),
    ("out", strided, ValueError, "a contiguous tensor, got strides"),
    ("out", meta, ValueError, "device cpu, got meta"),
    ("out", grad, NotImplementedError, "inference-only"),
]


@pytest.mark.parametrize("op", [bias_gelu, prepare_bias_gelu])
@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_INPUTS)
def test_bad_input(op, name, change, error, message):
    inputs = make_inputs()
    out = inputs["out"]
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^bias_gelu: argument `{name}`.*{message}"):
        op(**inputs)
    assert (out == SENTINEL).all()


def test_out_overlaps_nothing_but_x():
    whole = torch.zeros(11, 48)
    for x, bias, out, other in (
        (whole[:10], None, whole[1:], "x"),
        (whole[:10], None, whole[:10].view(10, 48), "x"),  # the same memory, another tensor
        (whole[:1], whole[10], whole[10:], "bias"),
    ):
        with pytest.raises(ValueError, match=f"argument `out`: expected memory apart from {other}"):
            bias_gelu(x, bias, out=out)
    x = whole[9:]
    with pytest.raises(ValueError, match="argument `out`: expected memory apart from bias"):
        bias_gelu(x, whole[10], out=x)


UNSAFE = [  # argument, what becomes of it
    ("x", lambda x: x[:1]),
    ("x", lambda x: x[..., :40]),
    ("x", lambda x: x[0, 0, 0]),
    ("x", lambda x: x.float()),
    ("x", lambda x: x.double()),
    ("x", strided),
    ("bias", lambda x: x[:40]),
    ("bias", lambda x: x[None]),
    ("bias", lambda x: x.half()),
    ("bias", lambda x: x[:1].expand(48)),
    ("out", lambda x: x[:1]),
    ("out", lambda x: x.flatten(0, 1)),
    ("out", lambda x: x.half()),
    ("out", strided),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(name, change):
    inputs = make_inputs()
    out = inputs["out"]
    inputs[name] = change(inputs[name])
    with pytest.raises(RuntimeError, match="bias_gelu: "):
        torch.ops.lpd_ext.bias_gelu(*inputs.values())
    assert (out == SENTINEL).all()


def test_the_operator_itself_takes_what_is_safe():
    # Or the test above would pass without a look at what was changed.
    inputs = make_inputs()
    torch.ops.lpd_ext.bias_gelu(*inputs.values())
    assert (inputs["out"] != SENTINEL).any()


@pytest.mark.parametrize("name", ["x", "bias", "out"])
def test_the_operator_itself_refuses_tensors_without_memory(name):
    # Dispatched to the fake kernel, it returns and has written nothing.
    inputs = make_inputs()
    inputs[name] = meta(inputs[name])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.lpd_ext.bias_gelu(*inputs.values())
