"""What `fused_linear` refuses, and how it is traced."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import LinearCase
from test_fused_linear import FLOAT_AND_BFLOAT, SENTINEL, make_inputs

from lpd_ext.ops import fused_linear, pack_linear, reference
from lpd_ext.ops.fused_linear import prepare_fused_linear

SMALL = LinearCase(5, 40, 48, batch=2)


def small(norm=True, dtype=torch.float32):
    """Arguments of one small call."""
    x, weight, bias, norm, out = make_inputs(replace(SMALL, norm=norm, dtype=dtype))
    packed = pack_linear(weight, bias)
    return {"x": x, "packed": packed, "norm": norm, "norm_eps": 1e-6, "epilogue": "none",
            "out": out}  # fmt: skip


def bad_inputs():
    def first(change):
        return lambda norm: (change(norm[0]), norm[1])

    def second(change):
        return lambda norm: (norm[0], change(norm[1]))

    def strided(tensor):
        return tensor.mT.contiguous().mT

    return [
        ("x_list", "x", lambda x: x.tolist(), TypeError, "`x`: expected a tensor.*got list"),
        ("x_double", "x", lambda x: x.double(), TypeError, "`x`.*got float64"),
        ("x_bfloat16", "x", lambda x: x.bfloat16(), TypeError, "`x`: expected float32, got bfloat"),
        ("x_2d", "x", lambda x: x[0], ValueError, r"`x`.*\[batch, .*got shape \[5, 48\]"),
        ("x_features", "x", lambda x: x[..., :32], ValueError, "`x`.*48 features, got 32"),
        ("x_stride", "x", strided, ValueError, "`x`.*contiguous last dimension, got strides"),
        ("x_meta", "x", lambda x: x.to("meta"), NotImplementedError, "`x`.*device cpu, got meta"),
        ("x_grad", "x", lambda x: x.requires_grad_(), NotImplementedError, "`x`.*inference-only"),
        ("x_blocks", "x", lambda x: x.view(3, 2, 5, 16), ValueError, r"`x`.*num_rows, 32\], got"),
        ("x_blocks_few", "x", lambda x: x.new_ones(1, 2, 5, 32), ValueError, "`x`.*48 features"),
        ("out_blocks", "out", lambda x: x.new_ones(2, 2, 5, 32), ValueError, "`out`.*whole rows"),
        ("out_list", "out", lambda x: x.tolist(), TypeError, "`out`: expected a tensor.*got list"),
        ("out_half", "out", lambda x: x.half(), TypeError, "`out`.*bfloat16, got float16"),
        ("out_2d", "out", lambda x: x[0], ValueError, r"`out`.*got shape \[5, 40\]"),
        ("out_rows", "out", lambda x: x[:, :4], ValueError, r"`out`.*= \[2, 5, 40\], got shape"),
        ("out_batch", "out", lambda x: x[:1], ValueError, r"`out`.*= \[2, 5, 40\], got shape"),
        ("out_features", "out", lambda x: x[..., 1:], ValueError, r"`out`.*= \[2, 5, 40\], got"),
        ("out_stride", "out", strided, ValueError, "`out`.*contiguous last dimension, got strides"),
        ("out_meta", "out", lambda x: x.to("meta"), ValueError, "`out`.*device cpu, got meta"),
        ("out_grad", "out", lambda x: x.requires_grad_(), NotImplementedError, "`out`.*inference"),
        ("norm_list", "norm", first(lambda x: x.tolist()), TypeError, "`norm`.*got list"),
        ("norm_double", "norm", first(lambda x: x.double()), TypeError, "`norm`.*got float64"),
        ("norm_half", "norm", second(lambda x: x.half()), TypeError, "`norm`.*got float16"),
        ("norm_2d", "norm", first(lambda x: x[None]), ValueError, r"`norm`.*got shape \[1, 48\]"),
        ("norm_size", "norm", second(lambda x: x[1:]), ValueError, r"`norm`.*= \[48\], got shape"),
        ("norm_meta", "norm", first(lambda x: x.to("meta")), ValueError, "`norm`.*got meta"),
        ("norm_grad", "norm", second(lambda x: x.requires_grad_()), NotImplementedError, "`norm`"),
        ("eps_text", "norm_eps", lambda _: "1", TypeError, "`norm_eps`.*a number, got str"),
        ("eps_nan", "norm_eps", lambda _: torch.nan, ValueError, "`norm_eps`.*got nan"),
        ("epilogue", "epilogue", lambda _: "relu", ValueError, "`epilogue`.*'gelu'.*got 'relu'"),
        ("epilogue_none", "epilogue", lambda _: None, ValueError, "`epilogue`.*got None"),
    ]


@pytest.mark.parametrize("op", [fused_linear, prepare_fused_linear])
@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [pytest.param(*bad[1:], id=bad[0]) for bad in bad_inputs()],
)
def test_bad_input(op, name, change, error, message):
    inputs = small()
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=f"^fused_linear: argument {message}"):
        op(**inputs)


@pytest.mark.parametrize(
    "shape", [(1, 2, 5, 32), (3, 2, 5, 32), (2, 1, 5, 32), (2, 2, 4, 32), (2, 2, 5, 16)]
)
def test_blocks_of_another_shape_are_refused(shape):
    x, packed = torch.zeros(2, 5, 32), pack_linear(torch.zeros(64, 32))
    with pytest.raises(ValueError, match=r"argument `out`: expected .*32"):
        fused_linear(x, packed, out=torch.zeros(shape))
    fused_linear(x, packed, out=torch.ones(2, 2, 5, 32))  # as it should be


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_rows_without_norm_have_the_dtype_of_the_weight(dtype):
    inputs = small(norm=False, dtype=dtype)
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    inputs["x"] = inputs["x"].to(other)
    with pytest.raises(TypeError, match=f"argument `x`: expected {dtype}, as the weight, got"):
        fused_linear(**inputs)


def overlapping():
    buffer = torch.zeros(1000)
    return [
        ("same", buffer[:480].view(2, 5, 48), buffer[:400].view(2, 5, 40)),
        ("last_element", buffer[:480].view(2, 5, 48), buffer[479:879].view(2, 5, 40)),
        ("first_element", buffer[399:879].view(2, 5, 48), buffer[:400].view(2, 5, 40)),
    ]


@pytest.mark.parametrize(("x", "out"), [pytest.param(*o[1:], id=o[0]) for o in overlapping()])
def test_overlap_is_refused(x, out):
    inputs = {**small(norm=False), "x": x, "out": out}
    with pytest.raises(ValueError, match="argument `out`: expected memory apart from x"):
        fused_linear(**inputs)


def test_overlap_is_refused_beside_parameters():
    # A norm's own parameters are what a caller has at hand.
    norm = torch.nn.LayerNorm(64)
    x = torch.randn(1, 3, 64)
    packed = pack_linear(torch.randn(64, 64))
    with torch.no_grad(), pytest.raises(ValueError, match="argument `out`: expected memory apart"):
        fused_linear(x, packed, norm=(norm.weight, norm.bias), out=x)


def test_rows_of_out_that_overlap_each_other_are_refused():
    inputs = {**small(norm=False), "epilogue": "none"}
    rows, features = inputs["out"].shape[1:]
    buffer = torch.zeros(features + 16 * (rows - 1))
    inputs["out"] = buffer.unfold(0, features, 16)[None].expand(inputs["out"].shape)
    with pytest.raises(ValueError, match="argument `out`: expected no expanded dimension and no"):
        fused_linear(**inputs)


@pytest.mark.parametrize("eps", [-1.0, float("inf"), 10**400], ids=["-1", "inf", "huge"])
def test_an_eps_that_is_none_is_refused(eps):
    with pytest.raises(ValueError, match="argument `norm_eps`: expected a finite number"):
        fused_linear(**{**small(), "norm_eps": eps})


def test_neighbours_in_one_buffer_do_not_overlap():
    inputs = small()
    expected = fused_linear(**{**inputs, "out": inputs["out"].clone()})
    buffer = torch.cat([inputs["x"].flatten(), inputs["out"].flatten()])
    x, out = buffer.split([480, 400])
    inputs |= {"x": x.view(2, 5, 48), "out": out.view(2, 5, 40)}
    assert torch.equal(fused_linear(**inputs), expected)


def test_weights_are_fine_without_grad():
    inputs = small()
    expected = fused_linear(**{**inputs, "out": inputs["out"].clone()})
    inputs["x"].requires_grad_()
    for tensor in inputs["norm"]:
        tensor.requires_grad_()
    with torch.no_grad():
        assert torch.equal(fused_linear(**inputs), expected)


def operator_arguments(norm=True, dtype=torch.float32, epilogue=0):
    """Arguments of the operator itself."""
    inputs = small(norm, dtype)
    packed = inputs["packed"]
    norm = inputs["norm"] or (None, None)
    return {"x": inputs["x"], "weight": packed.weight, "bias": packed.bias, "norm_weight": norm[0],
            "norm_bias": norm[1], "norm_eps": 1e-6, "epilogue": epilogue,
            "out": inputs["out"]}  # fmt: skip


UNSAFE = [  # argument, what becomes of it
    ("x", lambda x: x[0]),
    ("x", lambda x: x[..., :32]),
    ("x", lambda x: x[..., :40]),
    ("x", lambda x: x[..., :0]),
    ("x", lambda x: x[:, :4]),
    ("x", lambda x: x[:1]),
    ("x", lambda x: x.double()),
    ("x", lambda x: x.bfloat16()),
    ("x", lambda x: x.mT.contiguous().mT),
    ("x", lambda x: x.new_ones(1, 2, 5, 32)),
    ("x", lambda x: x.new_ones(3, 2, 5, 16)),
    ("x", lambda x: x.new_ones(32, 2, 5, 48).transpose(0, 3)),
    ("weight", lambda x: x[:1]),
    ("weight", lambda x: x[:, :32]),
    ("weight", lambda x: x.flatten()),
    ("weight", lambda x: x.half()),
    ("weight", lambda x: x.bfloat16()),
    ("weight", lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
    ("bias", lambda x: x[:40]),
    ("bias", lambda x: x[None]),
    ("bias", lambda x: x.double()),
    ("bias", lambda x: x[:1].expand(64)),
    ("norm_weight", lambda _: None),
    ("norm_bias", lambda _: None),
    ("norm_weight", lambda x: x[:32]),
    ("norm_bias", lambda x: x.bfloat16()),
    ("norm_bias", lambda x: x[:1].expand(48)),
    ("epilogue", lambda _: -1),
    ("epilogue", lambda _: 3),
    ("out", lambda x: x[0]),
    ("out", lambda x: x[:, :4]),
    ("out", lambda x: x[..., :32]),  # one panel less than the weight has
    ("out", lambda x: x.new_full((1, 2, 5, 32), SENTINEL)),  # one block less
    ("out", lambda x: x.new_full((3, 2, 5, 32), SENTINEL)),
    ("out", lambda x: x.new_full((2, 2, 4, 32), SENTINEL)),
    ("out", lambda x: x.new_full((2, 1, 5, 32), SENTINEL)),
    ("out", lambda x: x.new_full((2, 2, 5, 16), SENTINEL)),
    ("out", lambda x: x.half()),
    ("out", lambda x: x.double()),
    ("out", lambda x: x.mT.contiguous().mT),
]


@pytest.mark.parametrize(("name", "change"), UNSAFE)
def test_the_operator_itself_refuses_what_is_unsafe(name, change):
    arguments = operator_arguments()
    arguments["out"].fill_(SENTINEL)
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match="fused_linear: "):
        torch.ops.lpd_ext.fused_linear(*arguments.values())
    assert (arguments["out"] == SENTINEL).all()


def test_the_operator_itself_takes_what_is_safe():
    # Or the test above would pass without a look at what was changed.
    torch.ops.lpd_ext.fused_linear(*operator_arguments().values())


@pytest.mark.parametrize("epilogue", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["rows", "norm"])
def test_opcheck(norm, dtype, epilogue):
    sample = tuple(operator_arguments(norm, dtype, epilogue).values())
    torch.library.opcheck(torch.ops.lpd_ext.fused_linear.default, sample)


def test_compiled():
    compiled = torch.compile(fused_linear, fullgraph=True)
    for norm, epilogue in ((True, "none"), (False, "gelu"), (True, "add")):
        inputs = {**small(norm), "epilogue": epilogue}
        before = inputs["out"].clone()
        expected = fused_linear(**{**inputs, "out": before.clone()})
        assert torch.equal(compiled(**inputs), expected)
        assert torch.equal(inputs["out"], expected)
        assert not torch.equal(expected, before)


def test_compiled_inside_a_layer():
    # Between other operators, its output made inside, as a model would use it.
    inputs = small()
    fused = partial(fused_linear, packed=inputs["packed"], norm=inputs["norm"], epilogue="gelu")

    def layer(x):
        return fused(x + 1, out=torch.empty(2, 5, 40)) * 2

    expected = layer(inputs["x"])
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(inputs["x"]), expected)


@pytest.mark.parametrize("epilogue", ["none", "gelu", "add"])
def test_a_launch_sees_what_its_tensors_hold(epilogue):
    inputs = {**small(), "epilogue": epilogue}
    launch = prepare_fused_linear(**inputs)
    before = inputs["out"].clone()
    for seed in range(3):
        x, weight, bias, norm, _ = make_inputs(replace(SMALL, norm=True), seed)
        inputs["x"].copy_(x)
        pack_linear(weight, bias, into=inputs["packed"])
        for own, new in zip(inputs["norm"], norm, strict=True):
            own.copy_(new)
        expected = reference.fused_linear(
            x, weight, bias, norm=norm, epilogue=epilogue, out=before.clone()
        )
        inputs["out"].copy_(before)
        launch()
        torch.testing.assert_close(inputs["out"], expected)


def test_a_launch_adds_each_time():
    inputs = {**small(), "epilogue": "add"}
    launch = prepare_fused_linear(**inputs)
    before = inputs["out"].clone()
    once = fused_linear(**{**inputs, "out": before.clone()}) - before
    for count in (1, 2, 3):
        launch()
        torch.testing.assert_close(inputs["out"], before + count * once)


def no_tensor(_):
    return [1.0]


LAX = [  # what a PackedLinear or an argument is, and the typed error that it should be
    ("weight_meta", {"weight": lambda x: x.to("meta")}, (ValueError, NotImplementedError)),
    ("bias_meta", {"bias": lambda x: x.to("meta")}, (ValueError, NotImplementedError)),
    ("no_packed", {"packed": no_tensor}, TypeError),
    ("norm_half_given", {"norm": lambda norm: (norm[0], None)}, TypeError),
    ("norm_of_one", {"norm": lambda norm: norm[:1]}, (TypeError, ValueError)),
    ("norm_strided", {"norm": lambda norm: (torch.ones(96)[::2], norm[1])}, ValueError),
    ("out_expanded", {"out": lambda out: out[:, :1].expand(-1, 5, -1)}, ValueError),
]


@pytest.mark.parametrize(("changes", "error"), [pytest.param(*lax[1:], id=lax[0]) for lax in LAX])
def test_more_bad_input(changes, error):
    inputs = small()
    for name, change in changes.items():
        if name in ("weight", "bias"):
            changed = {name: change(getattr(inputs["packed"], name))}
            inputs["packed"] = replace(inputs["packed"], **changed)
        else:
            inputs[name] = change(inputs[name])
    with pytest.raises(error, match="fused_linear: argument "):
        fused_linear(**inputs)


@pytest.mark.parametrize("name", ["weight", "bias", "norm_weight"])
def test_the_operator_itself_refuses_tensors_without_memory(name):
    # Dispatched to the fake kernel, it returns and has written nothing.
    arguments = operator_arguments()
    arguments[name] = arguments[name].to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.lpd_ext.fused_linear(*arguments.values())
