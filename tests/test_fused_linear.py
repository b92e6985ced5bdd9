"""The numbers of `fused_linear`."""

from dataclasses import fields, replace
from itertools import combinations, product

import pytest
import torch
import torch.nn.functional as F
from cases import LINEAR_CASES, LINEAR_PAIRS, LinearCase

from lpd_ext.ops import fused_linear, pack_linear, reference

SENTINEL = 7.0
FLOAT_AND_BFLOAT = (torch.float32, torch.bfloat16)
LARGE = LinearCase(400, 164, 1040)


def make_inputs(case, seed=0):
    """x, weight, bias, norm and what stands in out."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    x_dtype = torch.float32 if case.norm else case.dtype
    x = randn(case.batch, case.num_rows, case.in_features).to(x_dtype)
    weight = (randn(case.out_features, case.in_features) / case.in_features**0.5).to(case.dtype)
    bias = randn(case.out_features) if case.bias else None
    norm = (1 + randn(case.in_features) / 4, randn(case.in_features) / 4) if case.norm else None
    out = randn(case.batch, case.num_rows, case.out_features).to(case.out_dtype)
    return x, weight, bias, norm, out


def run(case, x, weight, bias, norm, out, **options):
    packed = pack_linear(weight, bias)
    return fused_linear(x, packed, norm=norm, epilogue=case.epilogue, out=out, **options)


def float64(case, x, weight, bias, norm, out, **options):
    wide = [None if tensor is None else tensor.double() for tensor in (x, weight, bias)]
    out = out.double()
    return reference.fused_linear(*wide, norm=norm, epilogue=case.epilogue, out=out, **options)


def same_dtype(case, x, weight, bias, norm, out, norm_eps=1e-6):
    """PyTorch's own operators: rows in the dtype of the weight, sums in float32."""
    if norm is not None:
        x = F.layer_norm(x, x.shape[-1:], *norm, norm_eps).to(weight.dtype)
    y = F.linear(x.float(), weight.float(), bias)
    y = {"none": lambda: y, "gelu": lambda: F.gelu(y), "add": lambda: out + y}[case.epilogue]()
    return y.to(out.dtype)


def assert_close(out, same_dtype, truth):
    """At most 2x the maximum and 1.5x the mean error of PyTorch in the same dtype, plus 1e-5."""
    error, allowed = (out.double() - truth).abs(), (same_dtype.double() - truth).abs()
    assert not error.isnan().any()
    assert error.max() <= 2 * allowed.max() + 1e-5
    assert error.mean() <= 1.5 * allowed.mean() + 1e-5


def part_of_wider(tensor, value, strided):
    """Return a tensor of `value` and a copy of `tensor` inside of it."""
    batch, num_rows, features = tensor.shape
    rows, columns = (num_rows + 2, features + 5) if strided else (num_rows, features)
    shape = batch + 2, rows, columns
    whole = torch.full(shape, value, dtype=tensor.dtype, device=tensor.device)
    view = whole[1:-1, 1:-1, 3:-2] if strided else whole[1:-1]
    view.copy_(tensor)
    return whole, view


def off_by_one(tensor):
    """Return a copy that begins one element behind an aligned address."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return flat[1:].view(tensor.shape).copy_(tensor)


def test_the_cases_leave_no_pair_out():
    for a, b in combinations([field.name for field in fields(LinearCase)], 2):
        met = {(getattr(case, a), getattr(case, b)) for case in LINEAR_PAIRS}
        assert met == set(product({x for x, _ in met}, {y for _, y in met})), f"{a} and {b}"


@pytest.mark.parametrize("epilogue", ["none", "gelu", "add"])
@pytest.mark.parametrize("norm", [False, True])
def test_reference_is_the_layers_of_torch(epilogue, norm):
    case = LinearCase(5, 7, 48, norm=norm, epilogue=epilogue)
    x, weight, bias, norm, out = make_inputs(case)
    layer = torch.nn.Linear(48, 7, dtype=torch.float64)
    layer.load_state_dict({"weight": weight, "bias": bias})
    rows = x.double()
    if norm is not None:
        layer_norm = torch.nn.LayerNorm(48, eps=1e-6, dtype=torch.float64)
        layer_norm.load_state_dict({"weight": norm[0], "bias": norm[1]})
        rows = layer_norm(rows)
    expected = layer(rows)
    if epilogue == "gelu":
        expected = torch.nn.GELU()(expected)
    if epilogue == "add":
        expected = expected + out
    actual = float64(case, x, weight, bias, norm, out)
    torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_against_float64(variant, case):
    inputs = make_inputs(case)
    truth, allowed = float64(case, *inputs), same_dtype(case, *inputs)
    x, weight, bias, norm, out = inputs
    # What stands around x would be seen in the result, what is written around out in `whole`.
    _, x = part_of_wider(x, torch.nan, case.strided)
    whole, out = part_of_wider(out, SENTINEL, case.strided)
    result = run(case, x, weight, bias, norm, out)
    assert result is out
    assert_close(out, allowed, truth)
    out.fill_(SENTINEL)
    assert (whole == SENTINEL).all()


@pytest.mark.parametrize("norm", [False, True], ids=["rows", "norm"])
@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
@pytest.mark.parametrize("in_features", [48, 1024, 1040])
def test_bits_of_a_row_depend_on_the_row_alone(variant, in_features, dtype, norm):
    # 1024 takes bfloat16 rows from where they are, 48 and 1040 pad them; 64 rows are the most that
    # are.
    case = replace(LARGE, in_features=in_features, dtype=dtype, norm=norm, epilogue="gelu")
    x, weight, bias, norm, _ = make_inputs(case)
    packed = pack_linear(weight, bias)

    def apply(rows):
        out = torch.full((*rows.shape[:2], case.out_features), torch.nan)
        return fused_linear(rows, packed, norm=norm, epilogue=case.epilogue, out=out)

    expected = apply(x)
    assert not expected.isnan().any()
    for begin, end in ((0, 1), (399, 400), (17, 34), (3, 67), (3, 68), (40, 397)):
        assert torch.equal(apply(x[:, begin:end]), expected[:, begin:end]), (begin, end)
    for batch in (4, 100, 400):  # the same rows in other sequences
        out = apply(x.view(batch, -1, in_features))
        assert torch.equal(out.view_as(expected), expected), batch
    assert torch.equal(apply(x.flip(1)), expected.flip(1))
    torch.set_num_threads(2)  # the fixture sets it back
    assert torch.equal(apply(x), expected)
    assert torch.equal(apply(x[:, :20]), expected[:, :20])


def in_blocks(rows, strided):
    """Return a copy of rows that lies in blocks of 32 features."""
    blocks = rows.unflatten(2, (-1, 32)).permute(2, 0, 1, 3)
    if not strided:
        return blocks.contiguous()
    count, batch, num_rows, _ = blocks.shape
    whole = torch.full((count + 1, batch + 1, num_rows + 2, 40), torch.nan, dtype=rows.dtype)
    view = whole[1:, :-1, 1:-1, 3:35]
    return view.copy_(blocks)


def from_blocks(blocks):
    return blocks.permute(1, 2, 0, 3).flatten(2)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("epilogue", ["none", "gelu", "add"])
@pytest.mark.parametrize("norm", [False, True], ids=["rows", "norm"])
@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
@pytest.mark.parametrize("num_rows", [1, 9, 40, 200])  # 200 x 2: a second block of rows
def test_rows_in_blocks_have_the_bits_of_whole_rows(
    variant, num_rows, dtype, norm, epilogue, strided
):
    case = LinearCase(num_rows, 96, 160, batch=2, norm=norm, dtype=dtype, epilogue=epilogue,
                      out_dtype=dtype)  # fmt: skip
    x, *layer, before = make_inputs(case)
    expected = run(case, x, *layer, before.clone())
    for blocks_of_x, blocks_of_out in ((True, False), (False, True), (True, True)):
        rows = in_blocks(x, strided) if blocks_of_x else x
        out = in_blocks(before, strided) if blocks_of_out else before.clone()
        run(case, rows, *layer, out)
        assert torch.equal(from_blocks(out) if blocks_of_out else out, expected)


def test_around_rows_in_blocks_nothing_is_written(variant):
    case = LinearCase(70, 64, 64, dtype=torch.bfloat16)
    x, *layer, _ = make_inputs(case)
    whole = torch.full((4, 3, 72, 64), SENTINEL)
    run(case, x, *layer, whole[1:3, 1:2, 1:71, 16:48])
    assert not (whole[1:3, 1:2, 1:71, 16:48] == SENTINEL).any()
    whole[1:3, 1:2, 1:71, 16:48] = SENTINEL
    assert (whole == SENTINEL).all()


def test_repeats_are_bitwise_equal(variant):
    case = replace(LARGE, num_rows=40, dtype=torch.bfloat16, epilogue="gelu")
    x, weight, bias, _, out = make_inputs(case)
    packed = pack_linear(weight, bias)
    expected = fused_linear(x, packed, epilogue=case.epilogue, out=out.clone())
    for _ in range(50):
        assert torch.equal(fused_linear(x, packed, epilogue=case.epilogue, out=out), expected)


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_norm_of_a_far_mean(variant, dtype):
    # E[x^2] - E[x]^2 would be lost in float32.
    case = LinearCase(20, 33, 1024, norm=True, dtype=dtype)
    x, *others = make_inputs(case)
    x = 1e4 + x
    inputs = x, *others
    out = run(case, *inputs)
    assert_close(out, same_dtype(case, *inputs), float64(case, *inputs))


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_norm_eps(variant, dtype):
    # Rows whose variance is that of eps: a wrong one scales them by up to 1e4.
    case = LinearCase(20, 33, 48, norm=True, dtype=dtype)
    x, *others = make_inputs(case)
    inputs = 1e-3 * x, *others
    for norm_eps in (1e-12, 1e-6, 1e-2):
        options = {"norm_eps": norm_eps}
        out = run(case, *inputs, **options).clone()
        assert_close(out, same_dtype(case, *inputs, **options), float64(case, *inputs, **options))


def test_norm_of_a_constant_row_is_its_bias(variant):
    case = LinearCase(3, 33, 48, norm=True)
    _, weight, bias, norm, out = make_inputs(case)
    x = torch.full((1, 3, 48), 5.0)
    expected = F.linear(norm[1], weight, bias).expand(1, 3, -1)
    torch.testing.assert_close(run(case, x, weight, bias, norm, out), expected)


def test_gelu_is_exact(variant):
    identity = pack_linear(torch.eye(16))
    x = torch.cat([torch.linspace(-40, 40, 32000), torch.linspace(-6, 6, 32000)]).view(1, -1, 16)
    out = fused_linear(x, identity, epilogue="gelu", out=torch.empty_like(x))
    truth = F.gelu(x.double())
    error, allowed = (out - truth).abs(), (F.gelu(x) - truth).abs()
    assert error.max() <= 2 * allowed.max() + 1e-7
    assert error.mean() <= 1.5 * allowed.mean() + 1e-7
    # The approximation with tanh is 4e-4 off: the sweep must tell them apart.
    assert (F.gelu(x.double(), approximate="tanh") - truth).abs().max() > 100 * error.max()
    # The tails are the identity and zero.
    assert torch.equal(out[x > 6], x[x > 6])
    assert out[x < -6].abs().max() <= 1e-7


def test_gelu_of_the_largest_and_no_numbers(variant):
    # Through the bias: a product would make NaN of 0 times infinity.
    values = torch.tensor([1e30, 1e38, -50.0, -1e30, -3e38, torch.nan, torch.inf, -torch.inf])
    out = fused_linear(
        torch.zeros(1, 1, 16),
        pack_linear(torch.zeros(8, 16), values),
        epilogue="gelu",
        out=torch.empty(1, 1, 8),
    )
    # -inf * 0 is no number in torch either; +inf is one in exact arithmetic.
    nan = torch.nan
    expected = torch.tensor([1e30, 1e38, 0.0, 0.0, 0.0, nan, torch.inf, nan])
    torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("epilogue", ["none", "gelu", "add"])
@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["rows", "norm"])
def test_no_numbers_stay_in_their_row(variant, norm, dtype, epilogue):
    case = LinearCase(37, 33, 48, norm=norm, dtype=dtype, epilogue=epilogue)
    x, *others, before = make_inputs(case)
    expected = run(case, x, *others, before.clone())
    x[0, 7, 3], x[0, 20, 47], x[0, 36, 0] = torch.nan, torch.inf, -torch.inf
    out = run(case, x, *others, before.clone())
    touched = torch.zeros(37, dtype=torch.bool)
    touched[[7, 20, 36]] = True
    assert torch.equal(out[:, ~touched], expected[:, ~touched])
    assert out[0, 7].isnan().all()
    same = same_dtype(case, x, *others, before)
    if epilogue == "gelu":  # see above
        same = same.where(~(same_dtype(replace(case, epilogue="none"), x, *others, before) > 1e30),
                          torch.inf)  # fmt: skip
    torch.testing.assert_close(
        out[:, touched], same[:, touched], rtol=1e-4, atol=1e-4, equal_nan=True
    )


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
def test_results_are_rounded_to_nearest_even(variant, dtype):
    # 1 + k / 128 + 1 / 256: exact in float32, a tie in bfloat16.
    x = torch.zeros(1, 128, 16)
    x[0, :, 0], x[0, :, 1] = 1 + torch.arange(128) / 128, 1.0
    weight = torch.zeros(1, 16)
    weight[0, 0], weight[0, 1] = 1, 2**-8
    packed = pack_linear(weight, dtype=dtype)
    out = fused_linear(x.to(dtype), packed, out=torch.empty(1, 128, 1, dtype=torch.bfloat16))
    exact = (x.double() @ weight.double().T).float()
    assert torch.equal(exact.double(), x.double() @ weight.double().T)
    assert torch.equal(out, exact.to(torch.bfloat16))


@pytest.mark.parametrize("out_features", [4, 32])
def test_no_number_stays_none_in_bfloat16(variant, out_features):
    # Rounding carries the low bits of some into the sign, or loses those of others.
    patterns = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32)
    bias = patterns.view(torch.float32).repeat(out_features // 4)
    packed = pack_linear(torch.zeros(out_features, 16), bias)
    out = torch.empty(1, 3, out_features, dtype=torch.bfloat16)
    assert fused_linear(torch.zeros(1, 3, 16), packed, out=out).isnan().all()


@pytest.mark.parametrize("dtype", FLOAT_AND_BFLOAT, ids=str)
@pytest.mark.parametrize(("batch", "num_rows"), [(0, 5), (3, 0), (0, 0)])
def test_no_rows(variant, batch, num_rows, dtype):
    packed = pack_linear(torch.ones(8, 16, dtype=dtype))
    whole = torch.full((3, 5, 8), SENTINEL)
    out = whole[:batch, :num_rows]
    x = torch.empty(batch, num_rows, 16, dtype=dtype)
    assert fused_linear(x, packed, out=out).shape == (batch, num_rows, 8)
    assert (whole == SENTINEL).all()


def test_torch_threads_do_not_share_a_workspace(variant):
    # Two pieces at a time, each in its own thread, time and again.
    torch.set_num_threads(2)
    case = replace(LARGE, norm=True, dtype=torch.bfloat16)
    x, weight, bias, norm, out = make_inputs(case)
    packed = pack_linear(weight, bias)
    expected = fused_linear(x, packed, norm=norm, out=out.clone())
    for _ in range(10):
        assert torch.equal(fused_linear(x, packed, norm=norm, out=out), expected)


def test_which_variants_round_normalised_rows(variant):
    # As documented; a variant that is not taken at all would pass every other test.
    case = replace(LARGE, norm=True, dtype=torch.bfloat16)
    x, weight, bias, norm, out = inputs = make_inputs(case)
    rows = F.layer_norm(x, x.shape[-1:], *norm, 1e-6)
    error = {}
    for rounded, a in ((False, rows), (True, rows.to(torch.bfloat16))):
        truth = float64(replace(case, norm=False), a, weight, bias, None, out)
        error[rounded] = (run(case, *inputs) - truth).abs().mean()
    rounds = variant == "amx"
    assert error[rounds] < 1e-5
    assert error[not rounds] > 1e-4
