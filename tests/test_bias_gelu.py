"""The numbers of `bias_gelu`."""

import math

import emulator
import pytest
import torch
import torch.nn.functional as F
from cases import HALF_AND_FLOAT
from test_fused_linear import SENTINEL, assert_close, off_by_one

from lpd_ext.ops import bias_gelu, fused_linear, pack_linear, reference

SHAPES = [
    (3, 1),  # less than any vector
    (7,),  # no rows around it
    (2, 13, 47),  # odd, the last vector filled in part
    (2, 3, 1024),  # what a block of threads takes
    (3, 1032),  # a vector more
    (2, 1025),  # an element more
    (2, 4096),  # the hidden features of LPD-L
]


def make_inputs(shape=(2, 5, 48), dtype=torch.bfloat16, bias=torch.float32, device="cpu", seed=0):
    """Arguments of one call; a bias of None is left out."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, dtype):
        return (2 * torch.randn(shape, generator=generator)).to(device, dtype)

    return {
        "x": randn(*shape, dtype=dtype),
        "bias": None if bias is None else randn(shape[-1], dtype=bias),
        "out": torch.full(shape, SENTINEL, dtype=dtype, device=device),
    }


def run(inputs):
    assert bias_gelu(**inputs) is inputs["out"]
    return inputs["out"]


def assert_exact(inputs):
    x, bias, out = inputs["x"], inputs["bias"], inputs["out"]
    wide_bias = None if bias is None else bias.double()
    truth = reference.bias_gelu(x.double(), wide_bias, out=torch.empty_like(x.double()))
    # PyTorch's own operators: sums in float32.
    same_dtype = F.gelu(x.float() if bias is None else x.float() + bias.float()).to(out.dtype)
    assert_close(run(inputs), same_dtype, truth)


def test_reference_is_what_it_says():
    inputs = make_inputs()
    out = torch.empty_like(inputs["x"], dtype=torch.float64)
    reference.bias_gelu(inputs["x"].double(), inputs["bias"].double(), out=out)
    y = inputs["x"].double() + inputs["bias"].double()
    expected = [value / 2 * (1 + math.erf(value / math.sqrt(2))) for value in y.flatten().tolist()]
    torch.testing.assert_close(out.flatten(), out.new_tensor(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("bias", ["none", "float32", "narrow"])
def test_against_float64(device, variant, shape, dtype, bias):
    bias_dtype = {"none": None, "float32": torch.float32, "narrow": dtype}[bias]
    assert_exact(make_inputs(shape, dtype, bias_dtype, device))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (2, 0, 3)])
def test_no_elements(device, variant, shape):
    assert run(make_inputs(shape, device=device)).shape == shape


@pytest.mark.parametrize("limit", [0.1, 1, 10, torch.inf])
def test_every_bfloat16(device, variant, limit):
    # The error is measured against the largest, so small ones alone as well.
    values = torch.arange(-(2**15), 2**15).short().view(torch.bfloat16).to(device)
    x = values[values.abs() < limit][None]
    assert_exact({"x": x, "bias": None, "out": torch.empty_like(x)})


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_special_values(device, variant, dtype):
    x = torch.tensor([0.0, -0.0, torch.inf, 30, -30, -torch.inf, torch.nan]).to(device, dtype)
    out = run({"x": x, "bias": None, "out": torch.empty_like(x)})
    expected = F.gelu(x.double()).to(dtype)  # of -inf NaN, of inf (unlike in float32) inf
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_in_place(device, variant, shape, dtype):
    inputs = make_inputs(shape, dtype, device=device)
    expected = run(inputs).clone()
    assert torch.equal(run({**inputs, "out": inputs["x"]}), expected)


@pytest.mark.parametrize("name", ["x", "bias", "out"])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_any_alignment(device, variant, dtype, name):
    inputs = make_inputs((3, 64), dtype, device=device)
    expected = run(inputs).clone()
    assert torch.equal(run({**inputs, name: off_by_one(inputs[name])}), expected)


@pytest.mark.parametrize("features", [16, 47])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_between_sentinels(device, variant, dtype, features):
    inputs = make_inputs((3, features), dtype, device=device)
    expected = run(inputs).clone()
    whole = torch.full((3 * features + 32,), SENTINEL, dtype=dtype, device=device)
    inputs["out"] = whole[16:-16].view(3, features)
    assert torch.equal(run(inputs), expected)
    inputs["out"].fill_(SENTINEL)
    assert (whole == SENTINEL).all()


def test_bits_of_an_element_depend_on_it_and_its_bias_alone(device, variant):
    inputs = make_inputs((4, 47), torch.float32, device=device)
    expected = run(inputs).clone()
    for features in ([46, *range(46)], [3, 40], [46]):
        some = {name: tensor[..., features].contiguous() for name, tensor in inputs.items()}
        assert torch.equal(run(some), expected[:, features])
    inputs["x"][2, 17] = torch.nan
    expected[2, 17] = torch.nan
    torch.testing.assert_close(run(inputs), expected, rtol=0, atol=0, equal_nan=True)
    inputs["x"][2, 17] = 0
    expected = run(inputs).clone()
    torch.set_num_threads(2)  # the fixture sets it back
    assert torch.equal(run(inputs), expected)


def test_bits_are_those_of_fused_linear(variant):
    # Of the CPU kernels: both have the same erf.
    inputs = make_inputs(dtype=torch.float32)
    packed = pack_linear(torch.eye(48), inputs["bias"])
    out = fused_linear(inputs["x"], packed, epilogue="gelu", out=torch.empty_like(inputs["x"]))
    assert torch.equal(run(inputs), out)


def test_repeats_are_bitwise_equal(device, repeats):
    inputs = make_inputs((3, 1032), device=device)
    expected = run(inputs).clone()
    for _ in range(repeats):
        inputs["out"].fill_(torch.nan)
        assert torch.equal(run(inputs), expected)


def test_bits_do_not_depend_on_the_schedule(monkeypatch):
    emulator.use(monkeypatch)
    inputs = make_inputs((3, 1032))
    emulator.assert_bits_equal_on_schedules(lambda: run(inputs).clone())
