"""What `add_layer_norm` refuses, and how it is traced."""

import pytest
import torch
import torch.nn.functional as F
from test_add_layer_norm import ROWS, VECTORS, changed, make_inputs, same_dtype
from test_fused_linear import SENTINEL
from test_group_embedding_arguments import grad, meta, of_norm, strided

from lpd_ext.ops import add_layer_norm
from lpd_ext.ops.add_layer_norm import prepare_add_layer_norm

SAMPLES = [{}, {"bias": None}, {"delta": None, "bias": None}, {"bias": torch.bfloat16}]


def operator_arguments(inputs):
    """Arguments of the operator itself."""
    scale, shift = inputs["norm"]
    return {"x": inputs["x"], "delta": inputs["delta"], "bias": inputs["bias"],
            "norm_weight": scale, "norm_bias": shift, "norm_eps": inputs["norm_eps"],
            "out": inputs["out"]}  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(torch_device, sample):
    arguments = operator_arguments(make_inputs(**sample, device=torch_device))
    torch.library.opcheck(torch.ops.lpd_ext.add_layer_norm.default, tuple(arguments.values()))


def test_compiled(torch_device):
    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager")
    for sample in SAMPLES:
        inputs = make_inputs(**sample, device=torch_device)
        other = changed(inputs, ROWS, torch.clone)
        out = add_layer_norm(**inputs)
        assert torch.equal(compiled(**other), out)
        assert torch.equal(other["x"], inputs["x"])
        assert torch.equal(other["out"], out)


def test_compiled_inside_a_layer():
    # Between other operators, its tensors made inside, as a model would use it.
    inputs = make_inputs(out=torch.float32)
    weight = torch.randn(8, 48)

    def layer(x):
        x, out = x * 2, torch.empty(3, 5, 48)
        rows = add_layer_norm(**{**inputs, "x": x, "out": out})
        return F.linear(rows, weight) + x.mean()

    expected = layer(inputs["x"])
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(inputs["x"]), expected)


def test_a_launch_sees_what_its_tensors_hold(device):
    inputs = make_inputs(out=torch.float32, device=device)
    launch = prepare_add_layer_norm(**inputs)
    for seed in range(3):
        new = make_inputs(out=torch.float32, device=device, seed=seed)
        for name in ("x", "delta", "bias"):
            inputs[name].copy_(new[name])
        for own, other in zip(inputs["norm"], new["norm"], strict=True):
            own.copy_(other)
        launch()
        for result, expected in zip((inputs["x"], inputs["out"]), same_dtype(new), strict=True):
            torch.testing.assert_close(result, expected)


BAD_INPUTS = [
    ("x", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("x", lambda x: x.bfloat16(), TypeError, "float32, got bfloat16"),
    ("x", lambda x: x[0], ValueError, r"\[batch, rows, dim\], got shape"),
    ("x", lambda x: x[..., :40], NotImplementedError, "multiple of 16, got 40"),
    ("x", lambda x: x[..., :0], NotImplementedError, "multiple of 16, got 0"),
    ("x", lambda x: x.repeat(1, 1, 200), NotImplementedError, "at most 8192 .*, got 9600"),
    ("x", strided, ValueError, "contiguous last dimension, got strides"),
    ("x", lambda x: x[:, :1].expand(-1, 5, -1), ValueError, "no expanded dimension"),
    ("x", meta, NotImplementedError, "device cpu or cuda, got meta"),
    ("x", grad, NotImplementedError, "inference-only"),
    ("norm", lambda _: None, TypeError, r"\(weight, bias\), got NoneType"),
    ("norm", lambda norm: norm[:1], TypeError, r"\(weight, bias\)"),
    ("norm", of_norm(0, lambda x: x.half()), TypeError, "float32, got float16"),
    ("norm", of_norm(0, lambda x: x[None]), ValueError, r"\[features\], got shape"),
    ("norm", of_norm(1, lambda x: x[1:]), ValueError, r"= \[48\], got shape \[47\]"),
    ("norm", of_norm(1, meta), ValueError, "device cpu, got meta"),
    ("norm", of_norm(1, lambda x: x.repeat(2)[::2]), ValueError, "contiguous last dimension"),
    ("norm_eps", lambda _: None, TypeError, "a number, got NoneType"),
    ("norm_eps", lambda _: -1e-6, ValueError, "at least 0"),
    ("delta", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("delta", lambda x: x.double(), TypeError, "got float64"),
    ("delta", lambda x: x[0], ValueError, r"\[batch, rows, dim\], got shape"),
    ("delta", lambda x: x[:, 1:], ValueError, r"= \[3, 5, 48\], got shape \[3, 4, 48\]"),
    ("delta", strided, ValueError, "contiguous last dimension, got strides"),
    ("delta", meta, ValueError, "device cpu, got meta"),
    ("delta", grad, NotImplementedError, "inference-only"),
    ("bias", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("bias", lambda x: x.half(), TypeError, "float32 or bfloat16, got float16"),
    ("bias", lambda x: x[1:], ValueError, r"= \[48\], got shape \[47\]"),
    ("bias", lambda x: x.repeat(2)[::2], ValueError, "contiguous last dimension"),
    ("bias", meta, ValueError, "device cpu, got meta"),
    ("out", lambda x: x.tolist(), TypeError, "expected a tensor.*got list"),
    ("out", lambda x: x.double(), TypeError, "got float64"),
    ("out", lambda x: x[1:], ValueError, r"= \[3, 5, 48\], got shape \[2, 5, 48\]"),
    ("out", strided, ValueError, "contiguous last dimension, got strides"),
    ("out", lambda x: x[:1].expand(3, -1, -1), ValueError, "no expanded dimension"),
    ("out", meta, ValueError, "device cpu, got meta"),
    ("out", grad, NotImplementedError, "inference-only"),
]


@pytest.mark.parametrize("op", [add_layer_norm, prepare_add_layer_norm])
@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_INPUTS)
def test_bad_input(op, name, change, error, message):
    inputs = make_inputs()
    x, out = inputs["x"], inputs["out"]
    before = x.clone()
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^add_layer_norm: argument `{name}`.*{message}"):
        op(**inputs)
    assert torch.equal(x, before)
    assert (out == SENTINEL).all()


def test_a_bias_without_a_delta_is_refused():
    with pytest.raises(ValueError, match="argument `bias`: expected none without a delta"):
        add_layer_norm(**{**make_inputs(), "delta": None})


@pytest.mark.parametrize("read", ["delta", "bias", "norm"])
@pytest.mark.parametrize("written", ["x", "out"])
def test_what_is_written_lies_apart(written, read):
    inputs = make_inputs(delta=torch.float32, out=torch.float32)
    rows = inputs[written]
    inputs[read] = changed(inputs, [read], lambda tensor: rows[:1, :1].expand(3, 5, -1)
                           if tensor.ndim == 3 else rows[2, 4])[read]  # fmt: skip
    with pytest.raises(ValueError, match=f"argument `{written}`: expected memory apart from"):
        add_layer_norm(**inputs)


def test_out_is_not_x():
    inputs = make_inputs(out=torch.float32)
    with pytest.raises(ValueError, match="argument `out`: expected memory apart from x"):
        add_layer_norm(**{**inputs, "out": inputs["x"]})


UNSAFE = [  # argument, what becomes of it
    ("x", lambda x: x[0]),
    ("x", lambda x: x[:2]),
    ("x", lambda x: x[..., :32]),
    ("x", lambda x: x.bfloat16()),
    ("x", strided),
    ("delta", lambda x: x[:2]),
    ("delta", lambda x: x[:, :4]),
    ("delta", lambda x: x.double()),
    ("delta", strided),
    ("delta", lambda _: None),  # with a bias
    ("bias", lambda x: x[:32]),
    ("bias", lambda x: x.half()),
    ("bias", lambda x: x[:1].expand(48)),
    ("norm_weight", lambda x: x[:32]),
    ("norm_weight", lambda x: x.double()),
    ("norm_bias", lambda x: x[:32]),
    ("norm_bias", lambda x: x[:1].expand(48)),
    ("out", lambda x: x[:, 1:]),
    ("out", lambda x: x[..., :32]),
    ("out", lambda x: x.double()),
    ("out", strided),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(name, change):
    arguments = operator_arguments(make_inputs())
    x, out = arguments["x"], arguments["out"]
    before = x.clone()
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match="add_layer_norm: "):
        torch.ops.lpd_ext.add_layer_norm(*arguments.values())
    assert torch.equal(x, before)
    assert (out == SENTINEL).all()


@pytest.mark.parametrize("dim", [40, 0, 8208])
def test_the_operator_itself_refuses_a_dim(dim):
    arguments = operator_arguments(make_inputs((2, 3, dim)))
    with pytest.raises(RuntimeError, match=f"add_layer_norm: argument `x`: .* got {dim}"):
        torch.ops.lpd_ext.add_layer_norm(*arguments.values())


def test_the_operator_itself_takes_what_is_safe():
    # Or the tests above would pass without a look at what was changed.
    arguments = operator_arguments(make_inputs())
    torch.ops.lpd_ext.add_layer_norm(*arguments.values())
    assert (arguments["out"] != SENTINEL).any()


@pytest.mark.parametrize("name", [*ROWS[1:], *VECTORS])
def test_the_operator_itself_refuses_tensors_without_memory(name):
    # Dispatched to the fake kernel, it returns and has written nothing.
    arguments = operator_arguments(changed(make_inputs(), [name], meta))
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.lpd_ext.add_layer_norm(*arguments.values())
