"""The numbers of `group_norm_silu`."""

import emulator
import pytest
import torch
import torch.nn.functional as F
from cases import HALF_AND_FLOAT
from test_fused_linear import SENTINEL, assert_close, off_by_one

from lpd_ext.ops import group_norm_silu, reference

CASES = {  # shape and groups
    "less than a vector": ((2, 8, 3, 4), 4),
    "channels that fill no vector": ((1, 6, 5, 7), 2),
    "groups of one channel": ((2, 32, 4, 4), 32),
    "groups that fill half of the threads, and one more": ((1, 258, 2, 2), 258),
    "one group, a vector and a part": ((1, 19, 3, 3), 1),
    "a single pixel": ((2, 24, 1, 1), 3),
    "aligned rows that end amid a thread's channels": ((1, 12, 24, 24), 3),
    "chunks on a GPU, the last one ragged": ((2, 128, 9, 9), 32),
    "chunks everywhere, the last one ragged": ((1, 512, 16, 9), 32),
    "more columns and groups than threads": ((1, 4104, 1, 2), 513),
    "the most channels": ((1, 8192, 1, 3), 2),
}
EVERY_CASE = pytest.mark.parametrize(("shape", "groups"), CASES.values(), ids=CASES)


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def make_inputs(shape=(2, 128, 9, 9), groups=32, dtype=torch.bfloat16, norm=torch.float32,
                silu=True, device="cpu", seed=0):  # fmt: skip
    """Arguments of one call."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator).to(device, dtype)

    x = channels_last(2 * randn(*shape) + randn(shape[1])[:, None, None])
    weight, bias = 1 + randn(shape[1]) / 4, randn(shape[1]) / 4
    return {
        "x": x,
        "num_groups": groups,
        "norm": (weight.to(norm), bias.to(norm)),
        "norm_eps": 1e-6,
        "silu": silu,
        "out": torch.full_like(x, SENTINEL),
    }


def run(inputs):
    assert group_norm_silu(**inputs) is inputs["out"]
    return inputs["out"]


def truth_of(inputs):
    x = inputs["x"].double()
    return reference.group_norm_silu(**{**inputs, "x": x, "out": torch.empty_like(x)})


def assert_exact(inputs):
    # PyTorch's own operators: sums in float32.
    norm = (part.float() for part in inputs["norm"])
    same = F.group_norm(inputs["x"].float(), inputs["num_groups"], *norm, inputs["norm_eps"])
    same = (F.silu(same) if inputs["silu"] else same).to(inputs["x"].dtype)
    truth = truth_of(inputs)
    assert_close(run(inputs), same, truth)


def assert_same_bits(inputs, expected):
    torch.testing.assert_close(run(inputs), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("silu", [True, False])
def test_reference_is_what_it_says(silu):
    inputs = make_inputs(silu=silu)
    x = inputs["x"].double().unflatten(1, (32, 4))
    mean, var = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), correction=0, keepdim=True)
    y = ((x - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
    weight, bias = (part.double()[:, None, None] for part in inputs["norm"])
    y = y * weight + bias
    expected = y / (1 + (-y).exp()) if silu else y
    torch.testing.assert_close(truth_of(inputs), expected, rtol=0, atol=1e-12)


@EVERY_CASE
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_every_shape_against_float64(device, variant, shape, groups, dtype):
    assert_exact(make_inputs(shape, groups, dtype, device=device))


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("narrow_norm", [True, False])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_every_option_against_float64(device, variant, dtype, narrow_norm, silu):
    norm = dtype if narrow_norm else torch.float32
    assert_exact(make_inputs(dtype=dtype, norm=norm, silu=silu, device=device))


@pytest.mark.parametrize("shape", [(0, 8, 3, 4), (2, 8, 0, 4), (2, 8, 3, 0)])
def test_no_elements(device, variant, shape):
    assert run(make_inputs(shape, 4, device=device)).shape == shape


@EVERY_CASE
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_in_place(device, variant, shape, groups, dtype):
    inputs = make_inputs(shape, groups, dtype, device=device)
    expected = run(inputs).clone()
    assert torch.equal(run({**inputs, "out": inputs["x"]}), expected)


def off_by_one_image(tensor):
    """The same in channels-last memory."""
    return off_by_one(tensor.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["x", "out", "norm"])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_any_alignment(device, variant, dtype, name):
    inputs = make_inputs(dtype=dtype, device=device)
    expected = run(inputs).clone()
    moved = inputs[name]
    moved = tuple(map(off_by_one, moved)) if name == "norm" else off_by_one_image(moved)
    assert_same_bits({**inputs, name: moved}, expected)


@pytest.mark.parametrize("channels", [6, 32])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_between_sentinels(device, variant, dtype, channels):
    inputs = make_inputs((2, channels, 5, 7), 2, dtype, device=device)
    expected = run(inputs).clone()
    for name in ("x", "out"):
        fill = torch.nan if name == "x" else SENTINEL
        whole = channels_last(torch.full((4, channels, 5, 7), fill, dtype=dtype, device=device))
        whole[1:-1] = inputs[name]
        inputs[name] = whole[1:-1]
    assert_same_bits(inputs, expected)
    inputs["out"].fill_(SENTINEL)
    assert (whole == SENTINEL).all()


@pytest.mark.parametrize("shape", [(4, 128, 9, 9), (4, 6, 5, 7), (3, 512, 8, 9)])
def test_bits_of_an_image_depend_on_the_image_alone(device, variant, shape):
    inputs = make_inputs(shape, 2, torch.float32, device=device)
    expected = run(inputs).clone()
    for images in ([2], [1, 0], [0, 2, 2, 1, 0]):
        some = {name: channels_last(inputs[name][images]) for name in ("x", "out")}
        assert_same_bits({**inputs, **some}, expected[images])
    torch.set_num_threads(2)  # the fixture sets it back
    assert_same_bits(inputs, expected)


@pytest.mark.parametrize("place", [(0, 0), (4, 7)], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_group_changes_no_other(device, variant, value, place):
    inputs = make_inputs(dtype=torch.float32, device=device)
    expected = run(inputs).clone()
    inputs["x"][(1, 6, *place)] = value
    expected[1, 4:8] = torch.nan
    assert_same_bits(inputs, expected)


@pytest.mark.parametrize("silu", [True, False])
def test_a_far_mean(device, variant, silu):
    inputs = make_inputs(dtype=torch.float32, silu=silu, device=device)
    inputs["x"] += 1e3
    assert_exact(inputs)


def test_first_pixels_far_off(device, variant):
    # What the sums of a chunk are shifted by.
    inputs = make_inputs((1, 512, 16, 9), 32, torch.float32, device=device)
    inputs["x"].permute(0, 2, 3, 1).flatten(1, 2)[:, ::16] += 1e4
    assert_exact(inputs)


def test_eps(device, variant):
    inputs = make_inputs(dtype=torch.float32, device=device)
    inputs["x"] *= 1e-3
    for norm_eps in (0.0, 1e-6, 1e-2):
        inputs["norm_eps"] = norm_eps
        assert_exact(inputs)


def test_equal_values_give_the_bias(device, variant):
    inputs = make_inputs(dtype=torch.float32, silu=False, device=device)
    inputs["x"].fill_(3)
    assert torch.equal(run(inputs), inputs["norm"][1][:, None, None].expand(2, -1, 9, 9))


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_silu_of_large_and_special_values(device, variant, dtype):
    # Through a bias: the normalised values are 0.
    bias = torch.tensor([0.0, -0.0, 90, -90, 1e4, -1e4, 20, -20, torch.inf, torch.nan])
    x = channels_last(torch.ones(1, 10, 2, 2)).to(device, dtype)
    norm = torch.ones(10, device=device), bias.to(device)
    out = group_norm_silu(x, 10, norm, out=torch.empty_like(x))
    expected = F.silu(bias.double()).to(dtype)
    torch.testing.assert_close(
        out[0, :, 1, 1].cpu(), expected, rtol=1e-6, atol=1e-30, equal_nan=True
    )


def test_repeats_are_bitwise_equal(device, repeats):
    inputs = make_inputs(device=device)
    expected = run(inputs).clone()
    for _ in range(repeats):
        inputs["out"].fill_(torch.nan)
        assert torch.equal(run(inputs), expected)


def test_bits_do_not_depend_on_the_schedule(monkeypatch):
    emulator.use(monkeypatch)
    inputs = make_inputs()
    emulator.assert_bits_equal_on_schedules(lambda: run(inputs).clone())
