"""The numbers of `add_layer_norm`."""

import emulator
import pytest
import torch
import torch.nn.functional as F
from cases import HALF_AND_FLOAT
from test_fused_linear import SENTINEL, assert_close, off_by_one, part_of_wider

from lpd_ext.ops import add_layer_norm, reference

ROWS = ("x", "delta", "out")
VECTORS = ("bias", "norm")


def make_inputs(shape=(3, 5, 48), delta=torch.bfloat16, bias=torch.float32, out=torch.bfloat16,
                device="cpu", seed=0):  # fmt: skip
    """Arguments of one call; a delta or bias of None is left out."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(device, dtype)

    dim = shape[-1]
    return {
        "x": randn(*shape),
        "delta": None if delta is None else randn(*shape, dtype=delta),
        "bias": None if bias is None else randn(dim, dtype=bias),
        "norm": (1 + randn(dim) / 4, randn(dim) / 4),
        "norm_eps": 1e-6,
        "out": torch.full(shape, SENTINEL, dtype=out, device=device),
    }


def changed(inputs, names, change):
    """The inputs with some of their tensors changed, the norm in both its parts."""
    new = dict(inputs)
    for name in names:
        if name == "norm":
            new[name] = tuple(map(change, inputs[name]))
        elif inputs[name] is not None:
            new[name] = change(inputs[name])
    return new


def float64(inputs):
    """x and out as the reference has them in float64."""
    wide = changed(inputs, (*ROWS, *VECTORS), lambda tensor: tensor.double())
    return wide["x"], reference.add_layer_norm(**wide)


def same_dtype(inputs):
    """x and out by PyTorch's own operators: sums in float32."""
    x = inputs["x"]
    if inputs["delta"] is not None:
        bias = 0 if inputs["bias"] is None else inputs["bias"].float()
        x = x + (inputs["delta"].float() + bias)
    y = F.layer_norm(x, x.shape[-1:], *inputs["norm"], inputs["norm_eps"])
    return x, y.to(inputs["out"].dtype)


def run(inputs):
    """x and out after a call; the inputs stay as they are, their layout is kept."""
    x = inputs["x"].clone()
    out = add_layer_norm(**inputs)
    assert out is inputs["out"]
    after = inputs["x"].clone()
    inputs["x"].copy_(x)
    return after, out.clone()


def assert_exact(inputs):
    truth, allowed = float64(inputs), same_dtype(inputs)
    for result, same, wide in zip(run(inputs), allowed, truth, strict=True):
        assert_close(result, same, wide)


def assert_same_bits(inputs, expected):
    for result, wanted in zip(run(inputs), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=0, equal_nan=True)


def test_reference_is_what_it_says():
    inputs = make_inputs()
    x, out = float64(inputs)
    y = inputs["x"].double() + (inputs["delta"].double() + inputs["bias"].double())
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    scale = (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    y = (y - y.mean(-1, keepdim=True)) / scale
    y = y * inputs["norm"][0].double() + inputs["norm"][1].double()
    torch.testing.assert_close(out, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("out", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("delta", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("narrow_bias", [False, True])
def test_every_dtype_against_float64(device, variant, delta, narrow_bias, out):
    bias = delta if narrow_bias else torch.float32
    assert_exact(make_inputs(delta=delta, bias=bias, out=out, device=device))


# A vector, odd ones, one more than a warp has, those of LPD-L and LPD-XL, the longest.
@pytest.mark.parametrize("dim", [16, 80, 256, 272, 1024, 1280, 8192])
@pytest.mark.parametrize("bias", [None, torch.float32])
@pytest.mark.parametrize("delta", [None, torch.bfloat16])
def test_every_dim_against_float64(device, variant, delta, bias, dim):
    inputs = make_inputs((2, 2, dim), delta, bias if delta else None, device=device)
    if delta is None:
        assert torch.equal(run(inputs)[0], inputs["x"])
    assert_exact(inputs)


@pytest.mark.parametrize("shape", [(0, 5, 48), (3, 0, 48), (1, 1, 48)])
def test_few_rows(device, variant, shape):
    inputs = make_inputs(shape, device=device)
    if inputs["x"].numel():
        assert_exact(inputs)
    else:
        assert run(inputs)[1].shape == shape


def test_adds_in_place_every_time(device, variant):
    inputs = make_inputs(delta=torch.float32, bias=None, device=device)
    expected = inputs["x"] + inputs["delta"] + inputs["delta"]
    for _ in range(2):
        add_layer_norm(**inputs)
    assert torch.equal(inputs["x"], expected)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_strided_views_between_sentinels(device, variant, dtype):
    inputs = make_inputs(delta=dtype, out=dtype, device=device)
    expected = run(inputs)
    wholes = {}
    for name in ROWS:
        wholes[name], inputs[name] = part_of_wider(inputs[name], SENTINEL, strided=True)
    assert_same_bits(inputs, expected)
    for name in ROWS:
        inputs[name].fill_(SENTINEL)
        assert (wholes[name] == SENTINEL).all()


def test_the_rows_behind_a_context(device, variant):
    # Aligned rows of images that lie further apart.
    inputs = make_inputs((3, 9, 48), device=device)
    expected = [rows[:, 4:] for rows in run(inputs)]
    some = changed(inputs, ROWS, lambda rows: rows[:, 4:])
    before = inputs["x"].clone()
    inputs["out"].fill_(SENTINEL)
    assert_same_bits(some, expected)
    assert torch.equal(inputs["x"], before)
    assert (inputs["out"][:, :4] == SENTINEL).all()


@pytest.mark.parametrize("name", [*ROWS, *VECTORS])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_any_alignment(device, variant, dtype, name):
    inputs = make_inputs(delta=dtype, out=dtype, device=device)
    expected = run(inputs)
    assert_same_bits(changed(inputs, [name], off_by_one), expected)


def test_bits_of_a_row_depend_on_the_row_alone(device, variant):
    inputs = make_inputs((5, 7, 272), device=device)
    x, out = run(inputs)
    for images, rows in (([3], slice(7)), ([4, 0], slice(2, 5)), ([2, 2, 2], slice(6, 7))):
        some = changed(inputs, ROWS, lambda tensor: tensor[images][:, rows])  # noqa: B023
        assert_same_bits(some, (x[images][:, rows], out[images][:, rows]))
    flat = changed(inputs, ROWS, lambda tensor: tensor.flatten(0, 1)[:, None])
    assert_same_bits(flat, (x.flatten(0, 1)[:, None], out.flatten(0, 1)[:, None]))
    torch.set_num_threads(2)  # the fixture sets it back
    assert_same_bits(inputs, (x, out))


@pytest.mark.parametrize("name", ["x", "delta"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_row_changes_no_other(device, variant, name, value):
    inputs = make_inputs(device=device)
    x, out = run(inputs)
    inputs[name][1, 2, 40] = value
    x[1, 2, 40] = value
    out[1, 2] = torch.nan
    assert_same_bits(inputs, (x, out))


def test_norm_of_a_far_mean_and_eps(device, variant):
    inputs = make_inputs((2, 3, 1024), out=torch.float32, device=device)
    inputs["x"] += 1e4
    assert_exact(inputs)
    inputs = make_inputs(out=torch.float32, device=device)
    for name in ("x", "delta", "bias"):
        inputs[name] *= 1e-3
    for norm_eps in (1e-12, 1e-6, 1e-2):
        inputs["norm_eps"] = norm_eps
        assert_exact(inputs)


def test_equal_values_give_the_bias_of_the_norm(device, variant):
    inputs = make_inputs(delta=None, bias=None, out=torch.float32, device=device)
    inputs["x"].fill_(3)
    assert torch.equal(run(inputs)[1], inputs["norm"][1].expand(3, 5, -1))


def test_repeats_are_bitwise_equal(device, repeats):
    inputs = make_inputs((3, 5, 272), device=device)
    expected = run(inputs)
    for _ in range(repeats):
        inputs["out"].fill_(torch.nan)
        assert_same_bits(inputs, expected)


def test_bits_do_not_depend_on_the_schedule(monkeypatch):
    emulator.use(monkeypatch)
    inputs = make_inputs((3, 5, 272))
    emulator.assert_bits_equal_on_schedules(lambda: run(inputs))
