"""The numbers of `linear_gelu`."""

import emulator
import pytest
import torch
import torch.nn.functional as F
from test_fused_linear import SENTINEL, assert_close, off_by_one

from lpd_ext.ops import linear_gelu, reference

DTYPES = [torch.bfloat16, torch.float16]
SHAPES = [  # x, out_features
    ((3, 8), 1),  # less than any block
    ((24,), 7),  # no rows around it
    ((2, 5, 40), 47),  # the last tile of k, vector and column filled in part
    ((65, 64), 40),  # a row more than a block takes, a tile of k
    ((16, 400), 33),  # more tiles of k than stages, a column more than a block takes
    ((300, 40), 136),  # a block for many rows, two of each way
    ((257, 176), 130),  # a row more than few
    ((1, 1024), 8),  # the features of LPD-L
]


def make_inputs(
    shape=(2, 5, 48),
    out_features=40,
    dtype=torch.bfloat16,
    bias=torch.float32,
    device="cpu",
    seed=0,
):
    """Arguments of one call; a bias of None is left out."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, dtype):
        return torch.randn(shape, generator=generator).to(device, dtype)

    return {
        "x": randn(*shape, dtype=dtype),
        "weight": (randn(out_features, shape[-1], dtype=torch.float32) * 2 / shape[-1] ** 0.5).to(
            dtype
        ),
        "bias": None if bias is None else randn(out_features, dtype=bias),
        "out": torch.full((*shape[:-1], out_features), SENTINEL, dtype=dtype, device=device),
    }


def run(inputs):
    assert linear_gelu(**inputs) is inputs["out"]
    return inputs["out"]


def wide(inputs):
    """Arguments in float64, and an `out` for them."""
    values = {name: None if x is None else x.double() for name, x in inputs.items()}
    return {**values, "out": torch.empty_like(values["out"])}


def assert_exact(inputs):
    truth = reference.linear_gelu(**wide(inputs))
    x, weight, bias, out = inputs.values()
    # PyTorch's own operators: sums in float32.
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert_close(run(inputs), F.gelu(y).to(out.dtype), truth)


def test_reference_is_what_it_says():
    inputs = wide(make_inputs())
    y = torch.einsum("bri,oi->bro", inputs["x"], inputs["weight"]) + inputs["bias"]
    expected = y / 2 * (1 + torch.erf(y / 2**0.5))
    torch.testing.assert_close(reference.linear_gelu(**inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(device, variant, shape, dtype):
    assert_exact(make_inputs(*shape, dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", ["none", "narrow"])
def test_other_biases(device, variant, dtype, bias):
    bias_dtype = {"none": None, "narrow": dtype}[bias]
    assert_exact(make_inputs(dtype=dtype, bias=bias_dtype, device=device))


@pytest.mark.parametrize(("shape", "out_features"), [((0, 8), 5), ((2, 0, 8), 5), ((3, 8), 0)])
def test_no_elements(device, variant, shape, out_features):
    assert run(make_inputs(shape, out_features, device=device)).numel() == 0


@pytest.mark.parametrize("rows", [3, 300])
def test_exact_products_give_exact_sums(device, variant, rows):
    # Of small integers any order of summation is exact: a wrong index cannot hide in a tolerance.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (rows, 104), generator=generator)
    weight = torch.randint(-4, 5, (200, 104), generator=generator)
    bias = 64 - (x @ weight.T).amin(0)  # GELU of a large number is the number
    expected = x @ weight.T + bias
    assert expected.min() >= 64
    assert expected.max() <= 2048
    out = torch.empty(rows, 200, dtype=torch.float16, device=device)
    moved = (x.to(device).half(), weight.to(device).half(), bias.to(device).float())
    assert linear_gelu(*moved, out=out).cpu().equal(expected.half())


@pytest.mark.parametrize("name", ["x", "weight", "bias", "out"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(device, variant, dtype, name):
    inputs = make_inputs((20, 80), dtype=dtype, device=device)
    expected = run(inputs).clone()
    assert torch.equal(run({**inputs, name: off_by_one(inputs[name])}), expected)


@pytest.mark.parametrize("out_features", [32, 47])
@pytest.mark.parametrize("rows", [3, 260])
def test_between_sentinels(device, variant, rows, out_features):
    inputs = make_inputs((rows, 16), out_features, device=device)
    expected = run(inputs).clone()
    whole = torch.full((rows * out_features + 32,), SENTINEL, dtype=torch.bfloat16, device=device)
    inputs["out"] = whole[16:-16].view(rows, out_features)
    assert torch.equal(run(inputs), expected)
    inputs["out"].fill_(SENTINEL)
    assert (whole == SENTINEL).all()


def test_bits_of_a_row_depend_on_neither_neighbours_nor_place(device, variant):
    inputs = make_inputs((280, 72), device=device)
    expected = run(inputs).clone()
    for rows in ([279, *range(270)], [270, 3], range(200), [17]):
        rows = list(rows)
        out = torch.empty_like(inputs["out"][rows])
        assert torch.equal(run({**inputs, "x": inputs["x"][rows], "out": out}), expected[rows])
    inputs["x"][5, 7] = torch.nan
    expected[5] = torch.nan
    torch.testing.assert_close(run(inputs), expected, rtol=0, atol=0, equal_nan=True)


def test_bits_do_not_depend_on_the_number_of_threads(variant):
    inputs = make_inputs((13, 72))
    expected = run(inputs).clone()
    torch.set_num_threads(2)  # the fixture sets it back
    assert torch.equal(run(inputs), expected)


def test_repeats_are_bitwise_equal(device, repeats):
    inputs = make_inputs((70, 200), device=device)
    expected = run(inputs).clone()
    for _ in range(repeats):
        inputs["out"].fill_(torch.nan)
        assert torch.equal(run(inputs), expected)


@pytest.mark.parametrize("rows", [40, 260])
def test_bits_do_not_depend_on_the_schedule(monkeypatch, rows):
    emulator.use(monkeypatch)
    inputs = make_inputs((rows, 200))
    emulator.assert_bits_equal_on_schedules(lambda: run(inputs).clone())


@pytest.mark.parametrize("rows", [40, 260])
def test_tensor_cores_read_without_bank_conflicts(monkeypatch, rows):
    emulator.use(monkeypatch)
    before = emulator.stats()
    run(make_inputs((rows, 200)))
    after = emulator.stats()
    assert after["mma"] > before["mma"]
    assert after["async_copies"] > before["async_copies"]
    assert after["ldmatrix_phases"] > before["ldmatrix_phases"]
    assert after["bank_conflicts"] == before["bank_conflicts"]
