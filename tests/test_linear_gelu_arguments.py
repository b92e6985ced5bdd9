"""What `linear_gelu` refuses, and how it is traced."""

import pytest
import torch
from test_bias_gelu_arguments import strided
from test_fused_linear import SENTINEL
from test_group_embedding_arguments import grad, meta
from test_linear_gelu import make_inputs, run

from lpd_ext.ops import linear_gelu
from lpd_ext.ops.linear_gelu import prepare_linear_gelu

SAMPLES = [{}, {"bias": None}, {"bias": torch.bfloat16}, {"shape": (8,)}]


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(torch_device, sample):
    inputs = make_inputs(**sample, device=torch_device)
    torch.library.opcheck(torch.ops.lpd_ext.linear_gelu.default, tuple(inputs.values()))


def test_compiled(torch_device):
    compiled = torch.compile(linear_gelu, fullgraph=True, backend="aot_eager")
    for sample in SAMPLES:
        inputs = make_inputs(**sample, device=torch_device)
        expected = run(inputs).clone()
        inputs["out"].fill_(SENTINEL)
        assert torch.equal(compiled(**inputs), expected)
        assert torch.equal(inputs["out"], expected)


def test_a_launch_sees_what_its_tensors_hold(device):
    inputs = make_inputs(device=device)
    launch = prepare_linear_gelu(**inputs)
    for seed in range(3):
        new = make_inputs(device=device, seed=seed)
        for name in ("x", "weight", "bias"):
            inputs[name].copy_(new[name])
        launch()
        assert torch.equal(inputs["out"], run(new))


BAD_INPUTS = [
    ("x", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("x", lambda x: x.float(), TypeError, "bfloat16 or float16, got float32"),
    ("x", lambda x: x[0, 0, 0], ValueError, r"\[\.\.\., in_features\], got shape \[\]"),
    ("x", strided, ValueError, "a contiguous tensor, got strides"),
    ("x", lambda x: x[..., :44], NotImplementedError, "multiple of 8, got 44"),
    ("x", lambda x: x[..., :0], NotImplementedError, "multiple of 8, got 0"),
    ("x", meta, NotImplementedError, "device cpu or cuda, got meta"),
    ("x", grad, NotImplementedError, "inference-only"),
    ("weight", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("weight", lambda x: x.half(), TypeError, "bfloat16, got float16"),
    ("weight", lambda x: x[0], ValueError, r"\[out_features, in_features\], got shape \[48\]"),
    ("weight", lambda x: x[:, 8:], ValueError, r"= \[40, 48\], got shape \[40, 40\]"),
    ("weight", strided, ValueError, "a contiguous tensor, got strides"),
    ("weight", meta, ValueError, "device cpu, got meta"),
    ("weight", grad, NotImplementedError, "inference-only"),
    ("bias", lambda x: x.half(), TypeError, "float32 or bfloat16, got float16"),
    ("bias", lambda x: x[1:], ValueError, r"= \[40\], got shape \[39\]"),
    ("bias", strided, ValueError, "contiguous last dimension"),
    ("bias", meta, ValueError, "device cpu, got meta"),
    ("bias", grad, NotImplementedError, "inference-only"),
    ("out", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("out", lambda x: x.float(), TypeError, "bfloat16, got float32"),
    ("out", lambda x: x[1:], ValueError, r"= \[2, 5, 40\], got shape \[1, 5, 40\]"),
    ("out", lambda x: x.flatten(0, 1), ValueError, r"\[\.\.\., out_features\], got shape"),
    ("out", strided, ValueError, "a contiguous tensor, got strides"),
    ("out", meta, ValueError, "device cpu, got meta"),
    ("out", grad, NotImplementedError, "inference-only"),
]


@pytest.mark.parametrize("op", [linear_gelu, prepare_linear_gelu])
@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_INPUTS)
def test_bad_input(op, name, change, error, message):
    inputs = make_inputs()
    out = inputs["out"]
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^linear_gelu: argument `{name}`.*{message}"):
        op(**inputs)
    assert (out == SENTINEL).all()


@pytest.mark.parametrize("other", ["x", "weight", "bias"])
def test_out_overlaps_nothing(other):
    inputs = make_inputs((40, 40), bias=torch.bfloat16)
    begin = inputs[other]
    whole = torch.zeros(begin.numel() + 1600, dtype=torch.bfloat16)
    inputs[other] = whole[: begin.numel()].view(begin.shape)
    inputs["out"] = whole[begin.numel() - 1 : -1].view(40, 40)
    with pytest.raises(ValueError, match=f"`out`: expected memory apart from {other}"):
        linear_gelu(**inputs)
    inputs["out"] = whole[begin.numel() :].view(40, 40)
    run(inputs)


UNSAFE = [  # argument, what becomes of it
    ("x", lambda x: x[:1]),
    ("x", lambda x: x[..., :40].contiguous()),
    ("x", lambda x: x[..., :44].contiguous()),
    ("x", lambda x: x[0, 0, 0]),
    ("x", lambda x: x.half()),
    ("x", lambda x: x.float()),
    ("x", strided),
    ("weight", lambda x: x[:39]),
    ("weight", lambda x: x[:, 8:].contiguous()),
    ("weight", lambda x: x.half()),
    ("weight", strided),
    ("bias", lambda x: x[:39]),
    ("bias", lambda x: x[None]),
    ("bias", lambda x: x.half()),
    ("bias", lambda x: x[:1].expand(40)),
    ("out", lambda x: x[:1]),
    ("out", lambda x: x.flatten(0, 1)),
    ("out", lambda x: x[..., 1:].contiguous()),
    ("out", lambda x: x.half()),
    ("out", strided),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(name, change):
    inputs = make_inputs()
    out = inputs["out"]
    inputs[name] = change(inputs[name])
    with pytest.raises(RuntimeError, match="linear_gelu: "):
        torch.ops.lpd_ext.linear_gelu(*inputs.values())
    assert (out == SENTINEL).all()


def test_the_operator_itself_refuses_float32():
    inputs = [tensor.float() for tensor in make_inputs().values()]
    with pytest.raises(RuntimeError, match=r"linear_gelu: .*BFloat16 or Half, got Float"):
        torch.ops.lpd_ext.linear_gelu(*inputs)


def test_the_operator_itself_takes_what_is_safe():
    # Or the tests above would pass without a look at what was changed.
    inputs = make_inputs()
    torch.ops.lpd_ext.linear_gelu(*inputs.values())
    assert (inputs["out"] != SENTINEL).any()


@pytest.mark.parametrize("name", ["x", "weight", "bias", "out"])
def test_the_operator_itself_refuses_tensors_without_memory(name):
    # Dispatched to the fake kernel, it returns and has written nothing.
    inputs = make_inputs()
    inputs[name] = meta(inputs[name])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.lpd_ext.linear_gelu(*inputs.values())
