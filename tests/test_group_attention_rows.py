"""`group_attention` of any shape, and at every number of rows and keys where a tile ends."""

import pytest
import torch
from cases import AttentionCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_group_attention import assert_close, make_inputs, run, sdpa

from lpd_ext import group_attention
from lpd_ext.ops import reference


@st.composite
def shapes(draw):
    q_len, cache_len = draw(st.integers(0, 9)), draw(st.integers(0, 20))
    context_len = draw(st.integers(0, q_len))
    return AttentionCase(
        name="drawn",
        batch=draw(st.integers(0, 3)),
        q_len=q_len,
        num_heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([32, 64, 80, 96, 128])),
        cache_len=cache_len,
        context_len=context_len,
        max_kv_len=cache_len + context_len + draw(st.integers(0, 3)),
    )


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the device stays the same
)
@given(
    case=shapes(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    more_rows=st.integers(0, 2),
    more_columns=st.integers(0, 5),
)
def test_any_shape(device, case, dtype, more_rows, more_columns):
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    width = 3 * case.num_heads * case.head_dim
    rows = torch.full(
        (case.batch, case.q_len + more_rows, width + more_columns), torch.nan, device=device
    )
    view = rows.to(dtype)[:, : case.q_len, :width].unflatten(2, qkv.shape[2:])
    view.copy_(qkv)
    same_dtype = sdpa(case, qkv, k_cache, v_cache)
    wide = (qkv.double(), k_cache.double(), v_cache.double())
    truth = run(reference.group_attention, case, *wide)
    out = run(group_attention, case, view, k_cache, v_cache)
    assert out.shape == truth.shape
    if out.numel():
        assert_close(out, same_dtype, truth)
    torch.testing.assert_close(k_cache.double(), wide[1], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(v_cache.double(), wide[2], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_keys", [1, 257, 1025])
@pytest.mark.parametrize("remainder", range(16))
def test_every_remainder_of_rows(device, variant, remainder, num_keys, dtype):
    # One key: a single row, or rows of context whose first one sees nothing but itself.
    q_len = 16 + remainder if num_keys > 1 else 1
    context_len = remainder % (q_len + 1)
    case = AttentionCase(
        "rows", 1, q_len, 1, 32, num_keys - q_len, context_len, num_keys - q_len + context_len
    )
    qkv, k_cache, v_cache = make_inputs(case, dtype, device, seed=remainder)
    same_dtype = sdpa(case, qkv, k_cache, v_cache)
    wide = (qkv.double(), k_cache.double(), v_cache.double())
    truth = run(reference.group_attention, case, *wide)
    out = run(group_attention, case, qkv, k_cache, v_cache)
    assert_close(out, same_dtype, truth)
    assert torch.equal(k_cache.double(), wide[1])
    assert torch.equal(v_cache.double(), wide[2])


@pytest.mark.parametrize("num_keys", range(27, 37))
@pytest.mark.parametrize("q_len", [3, 19])
def test_every_end_of_a_tile_of_keys(device, variant, q_len, num_keys):
    # Both prefixes end before, at and behind the end of a tile, and apart from each other.
    for context_len in {0, 1, q_len - 1, q_len}:
        cache_len = num_keys - q_len
        case = AttentionCase("keys", 1, q_len, 2, 32, cache_len, context_len, 40)
        qkv, k_cache, v_cache = make_inputs(case, torch.float32, device)
        same_dtype = sdpa(case, qkv, k_cache, v_cache)
        wide = (qkv.double(), k_cache.double(), v_cache.double())
        truth = run(reference.group_attention, case, *wide)
        assert_close(run(group_attention, case, qkv, k_cache, v_cache), same_dtype, truth)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("batch", [100, 300])
def test_bits_do_not_depend_on_how_rows_are_shared_out(device, batch, head_dim):
    # With many images a kernel may give a block more rows: four groups of 16 in place of one.
    case = AttentionCase("many", batch, 50, 1, head_dim, 3, 20, 23)
    inputs = make_inputs(case, torch.bfloat16, device)
    out = run(group_attention, case, *(tensor.clone() for tensor in inputs))
    alone = run(group_attention, case, *(tensor[-1:].clone() for tensor in inputs))
    assert not out.isnan().any()
    assert torch.equal(out[-1:], alone)


def test_bits_do_not_depend_on_who_walks_the_keys(device):
    # Keys that are split over blocks for one image: one block walks them where there are many.
    case = AttentionCase("many", 70, 3, 2, 32, 800, 1, 801)
    inputs = make_inputs(case, torch.bfloat16, device)
    out = run(group_attention, case, *(tensor.clone() for tensor in inputs))
    alone = run(group_attention, case, *(tensor[-1:].clone() for tensor in inputs))
    assert not out.isnan().any()
    assert torch.equal(out[-1:], alone)
