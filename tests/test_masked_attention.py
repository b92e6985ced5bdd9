"""`masked_attention`: its results, and that nothing hidden has a part in them."""

import pytest
import torch
import torch.nn.functional as F
from cases import HALF_AND_FLOAT, MASKED_CASES, MaskedCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_group_attention import assert_close

from lpd_ext import masked_attention
from lpd_ext.ops import reference

SMALL = MaskedCase("small", 3, 2, 6, 40, 64)
BATCH = MaskedCase("batch", 5, 2, 19, 70, 64)  # two tiles of rows, three of keys


def make_inputs(case, dtype, device, seed=0):
    """q, k and v."""
    generator = torch.Generator().manual_seed(seed)

    def randn(rows):
        shape = (case.batch, case.num_heads, rows, case.head_dim)
        return torch.randn(shape, generator=generator).to(device, dtype)

    return randn(case.q_len), randn(case.kv_len), randn(case.kv_len)


def random_lengths(case, device, seed=0):
    """Prefix lengths a row; one row sees nothing, one everything, if there are so many."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, case.kv_len + 1, (case.batch, case.q_len), generator=generator)
    lengths[:, -2:-1] = 0
    lengths[:, -1:] = case.kv_len
    return lengths.int().to(device)


def random_mask(case, device, seed=0):
    """Booleans, one in three True; one row sees nothing, one everything."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(case.batch, case.q_len, case.kv_len, generator=generator) < 1 / 3
    mask[:, -2:-1] = False
    mask[:, -1:] = True
    return mask.to(device)


def as_bools(lengths, kv_len):
    """The other form of prefix lengths."""
    return torch.arange(kv_len, device=lengths.device) < lengths[..., None]


def sdpa(q, k, v, mask):
    """The same attention by PyTorch's own operator, 0 where a row sees nothing."""
    seen = mask if mask.dtype == torch.bool else as_bools(mask, k.shape[2])
    seen = seen[:, None] if seen.ndim == 3 else seen
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return torch.where(seen.any(-1, keepdim=True), out, 0)


def check(q, k, v, mask):
    truth = reference.masked_attention(q.double(), k.double(), v.double(), mask)
    out = masked_attention(q, k, v, mask)
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    if out.numel():
        assert_close(out, sdpa(q, k, v, mask), truth)
    return out


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make_mask", [random_lengths, random_mask])
@pytest.mark.parametrize("case", MASKED_CASES, ids=str)
def test_reference_is_sdpa(device, case, make_mask):
    inputs, mask = make_inputs(case, torch.float64, device), make_mask(case, device)
    for one in (mask, mask[0]):
        out = reference.masked_attention(*inputs, one)
        torch.testing.assert_close(out, sdpa(*inputs, one), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make_mask", [random_lengths, random_mask])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", MASKED_CASES, ids=str)
def test_against_float64(device, variant, case, dtype, make_mask):
    out = check(*make_inputs(case, dtype, device), make_mask(case, device))
    assert (out[:, :, -2:-1] == 0).all() or case.q_len == 1


def decoders(case):
    """Masks as parallel decoders have them."""
    rows, keys = torch.arange(case.q_len), torch.arange(case.kv_len)
    before = case.kv_len - case.q_len  # keys of earlier steps
    scales = (rows // 5 + 1) * 5 + before
    return {
        # Random order, rows blind to each other: all that came before, and oneself.
        "random_order": (keys < before) | (keys - before == rows[:, None]),
        # Next scale: all rows of one's own scale, none of the finer ones.
        "next_scale": scales.clamp(max=case.kv_len).int(),
        # Speculative Jacobi: causal among the drafted rows.
        "jacobi": (before + 1 + rows).int(),
        # A window of recent keys: whole tiles are hidden at both ends.
        "window": (keys <= before + rows[:, None]) & (keys > before - 9 + rows[:, None]),
        # The first and the last key: what lies between is passed by.
        "both_ends": ((keys == 0) | (keys == case.kv_len - 1)).expand(case.q_len, -1).contiguous(),
        # The last key alone.
        "last_key": (keys == case.kv_len - 1).expand(case.q_len, -1).contiguous(),
    }


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("decoder", decoders(BATCH))
def test_masks_of_decoders(device, variant, decoder, dtype):
    case = MaskedCase("decoder", 2, 1, 21, 350, 64)
    check(*make_inputs(case, dtype, device), decoders(case)[decoder].to(device))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the device stays the same
)
@given(
    batch=st.integers(0, 3),
    num_heads=st.integers(1, 3),
    q_len=st.integers(0, 20),
    kv_len=st.integers(0, 70),
    head_dim=st.sampled_from([32, 64, 80, 96, 128]),
    dtype=st.sampled_from(HALF_AND_FLOAT),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    shift=st.integers(0, 9),
    seed=st.integers(0, 9),
)
def test_any_shape(device, batch, num_heads, q_len, kv_len, head_dim, dtype, share, shift, seed):
    case = MaskedCase("drawn", batch, num_heads, q_len, kv_len, head_dim)
    q, k, v = make_inputs(case, dtype, device, seed)
    wide = torch.full((batch, num_heads, kv_len, head_dim + shift), torch.nan).to(device, dtype)
    wide[..., shift:] = k  # at no multiple of 16 bytes
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, q_len, kv_len, generator=generator) < share).to(device)
    check(q, wide[..., shift:], v, mask)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_both_forms_give_the_same_bits(device, variant, dtype):
    inputs, lengths = make_inputs(BATCH, dtype, device), random_lengths(BATCH, device)
    expected = masked_attention(*inputs, lengths)
    equal(masked_attention(*inputs, as_bools(lengths, BATCH.kv_len)), expected)
    one = masked_attention(*inputs, lengths[0])
    equal(one, masked_attention(*inputs, lengths[:1].expand(BATCH.batch, -1)))
    equal(one, masked_attention(*inputs, as_bools(lengths[0], BATCH.kv_len)))


@pytest.mark.parametrize("make_mask", [random_lengths, random_mask])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_bits_depend_on_the_image_alone(device, variant, dtype, make_mask):
    inputs = (*make_inputs(BATCH, dtype, device), make_mask(BATCH, device))
    expected = masked_attention(*inputs)
    assert not expected.isnan().any()
    for images in ([3], [4, 0], [4, 3, 2, 1, 0], [2, 2, 2]):
        equal(masked_attention(*(tensor[images] for tensor in inputs)), expected[images])
    for count in (2, 5):  # the fixture one_thread sets it back
        torch.set_num_threads(count)
        equal(masked_attention(*inputs), expected)


def test_repeats_are_bitwise_equal(device):
    inputs = (*make_inputs(SMALL, torch.float32, device), random_mask(SMALL, device))
    expected = masked_attention(*inputs)
    for _ in range(250):
        equal(masked_attention(*inputs), expected)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("make_mask", [random_lengths, random_mask])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_what_a_row_does_not_see_cannot_reach_it(device, variant, dtype, make_mask, poison):
    # One key after the other, so that rows that see it share tiles with others that do not.
    case = MaskedCase("poisoned", 1, 1, 19, 70, 64)
    q, k, v = make_inputs(case, dtype, device)
    mask = make_mask(case, device)
    seen = mask if mask.dtype == torch.bool else as_bools(mask, case.kv_len)
    expected = masked_attention(q, k, v, mask)
    for key in (0, 31, 32, 63, 64, case.kv_len - 1):
        sees_it = seen[:, None, :, key]
        for poisoned in (k, v):
            before = poisoned[:, :, key].clone()
            poisoned[:, :, key] = poison
            out = masked_attention(q, k, v, mask)
            poisoned[:, :, key] = before
            equal(out[~sees_it], expected[~sees_it])
            if poisoned is v:  # a key may well score -inf and drop out
                assert not out[sees_it].isfinite().any()
            if poison != poison:
                assert out[sees_it].isnan().all()


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_a_bad_value_spoils_its_column_alone(device, variant, dtype):
    # Of the rows that see it, and of no other.
    case = MaskedCase("column", 1, 1, 19, 70, 64)
    q, k, v = make_inputs(case, dtype, device)
    mask = random_mask(case, device)
    expected = masked_attention(q, k, v, mask)
    for key, column in ((0, 0), (3, 1), (14, 6), (17, 8), (24, 31), (47, 40), (66, 63)):
        bad = v.clone()
        bad[:, :, key, column] = torch.inf
        spoiled = expected.clone()
        spoiled[:, :, :, column].masked_fill_(mask[:, None, :, key], torch.inf)
        equal(masked_attention(q, k, bad, mask), spoiled)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_a_row_that_sees_nothing_is_0_whatever_there_is(device, variant, dtype):
    inputs = [torch.full_like(x, torch.nan) for x in make_inputs(SMALL, dtype, device)]
    for mask in (torch.zeros(6, dtype=torch.int32), torch.zeros(6, 40, dtype=torch.bool)):
        equal(masked_attention(*inputs, mask.to(device)), torch.zeros_like(inputs[0]))


@pytest.mark.parametrize("op", [masked_attention, reference.masked_attention], ids=["op", "spec"])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_lengths_that_do_not_fit_harm_their_row_alone(device, variant, dtype, op):
    inputs, lengths = make_inputs(SMALL, dtype, device), random_lengths(SMALL, device)
    expected = op(*inputs, lengths)
    bad = lengths.clone()
    for row, length in ((0, -1), (1, SMALL.kv_len + 1), (3, 2**31 - 1), (4, -(2**31))):
        bad[1, row] = length
    out = op(*inputs, bad)
    assert out[1, :, [0, 1, 3, 4]].isnan().all()
    equal(out[1, :, [2, 5]], expected[1, :, [2, 5]])
    equal(out[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_one_hidden_key_would_be_seen(device, variant, dtype):
    # Hidden keys score +8 against -8 of the visible ones and carry the value 200.
    case = MaskedCase("adversarial", 1, 2, 19, 100, 64)
    q, k, v = make_inputs(case, dtype, device)
    mask = random_mask(case, device)[0]
    for row in range(case.q_len):
        q[:], k[:], v[:] = 1, torch.where(mask[row, :, None], -1, 1), v.clamp(-1, 1)
        loud = torch.where(mask[row, :, None], v, 200)
        alone = masked_attention(q[:, :, row : row + 1], k, loud, mask[row : row + 1])
        assert alone.abs().max() <= 1.01
        equal(masked_attention(q, k, loud, mask)[:, :, row : row + 1], alone)


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_large_scores_do_not_overflow(device, variant, dtype):
    # The maximum of what a row sees is subtracted before the exponential.
    q, k, v = make_inputs(SMALL, dtype, device)
    check(q * 100, k * 100, v, random_mask(SMALL, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_of_score_minus_infinity_have_no_weight(device, variant, dtype):
    # The first blocks of keys hold nothing else: -inf minus a maximum of -inf would be NaN.
    q, k, v = make_inputs(BATCH, dtype, device)
    q[:], k[:, :, :66] = 1, -torch.inf
    mask = random_mask(BATCH, device)
    mask[..., 66:] = True
    out = masked_attention(q, k, v, mask)
    expected = masked_attention(q, k[:, :, 66:], v[:, :, 66:], mask[..., 66:])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0])
def test_any_scale(device, variant, scale):
    inputs = (*make_inputs(BATCH, torch.float32, device), random_mask(BATCH, device))
    expected = reference.masked_attention(*inputs, scale=scale)
    out = masked_attention(*inputs, scale=scale)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    default = masked_attention(*inputs)
    equal(masked_attention(*inputs, scale=64**-0.5), default)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_value_is_widened_exactly_and_rounded_to_nearest_even(device, variant, dtype):
    # One key has weight 1: a row is its value, for all 65536 bit patterns. Two keys of equal score:
    # the row is their mean, exact in float32 before it is rounded.
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(dtype)
    v = torch.stack([patterns, patterns.roll(1)], dim=0).view(2, 1, 512, 128).permute(1, 2, 0, 3)
    zeros = torch.zeros_like(v)
    lengths = torch.tensor([1, 2], dtype=torch.int32, device=device)
    out = masked_attention(zeros, zeros, v, lengths)
    equal(out[:, :, 0], v[:, :, 0])
    equal(out[:, :, 1], ((v[:, :, 0].float() + v[:, :, 1].float()) * 0.5).to(dtype))
