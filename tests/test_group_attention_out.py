"""`group_attention` into a given tensor, and what its variants must not do."""

import pytest
import torch
from cases import AttentionCase
from test_group_attention import SMALL, make_inputs, run, sdpa

from lpd_ext import group_attention
from lpd_ext.ops import reference

ROWS = AttentionCase("rows", 3, 21, 2, 64, 50, 9, 80)  # enough rows for tiles


def out_for(case, dtype, device):
    shape = (case.batch, case.q_len, case.num_heads * case.head_dim)
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [SMALL, ROWS], ids=str)
def test_out_is_written_and_returned(device, variant, case, dtype):
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    caches = k_cache.clone(), v_cache.clone()
    expected = run(group_attention, case, qkv, *caches)
    out = out_for(case, dtype, device)
    assert run(group_attention, case, qkv, k_cache, v_cache, out=out) is out
    assert torch.equal(out, expected)
    torch.testing.assert_close((k_cache, v_cache), caches, rtol=0, atol=0, equal_nan=True)


def test_reference_writes_out(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    out = out_for(SMALL, torch.float32, device)
    assert run(reference.group_attention, SMALL, *inputs, out=out) is out
    torch.testing.assert_close(out, sdpa(SMALL, *inputs))


def test_out_between_sentinels(device, variant):
    # The rows behind the last tile row belong to somebody else.
    inputs = make_inputs(ROWS, torch.bfloat16, device)
    expected = run(group_attention, ROWS, *(tensor.clone() for tensor in inputs))
    buffer = torch.full((expected.numel() + 64,), 7.0, dtype=torch.bfloat16, device=device)
    run(group_attention, ROWS, *inputs, out=buffer[32:-32].view(expected.shape))
    assert torch.equal(buffer[32:-32].view(expected.shape), expected)
    assert (buffer[:32] == 7).all()
    assert (buffer[-32:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_out(torch_device, dtype):
    qkv, k_cache, v_cache = make_inputs(SMALL, dtype, torch_device)
    out = torch.zeros(3, 6, 64, dtype=dtype, device=torch_device)
    sample = (qkv, k_cache.nan_to_num(), v_cache.nan_to_num(), out, 5, 2, 0.2)
    torch.library.opcheck(torch.ops.lpd_ext.group_attention.out, sample)


def test_compiled_out(torch_device):
    inputs = make_inputs(SMALL, torch.float32, torch_device)
    expected = run(group_attention, SMALL, *(tensor.clone() for tensor in inputs))
    out = out_for(SMALL, torch.float32, torch_device)
    compiled = torch.compile(group_attention, fullgraph=True)
    result = run(compiled, SMALL, *inputs, out=out)
    assert torch.equal(out, expected)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(lambda _: [1.0], TypeError, "a tensor.*got list", id="list"),
        pytest.param(lambda x: x.double(), TypeError, "float32, got float64", id="dtype"),
        pytest.param(lambda x: x[0], ValueError, "got shape", id="2d"),
        pytest.param(lambda x: x[:, :5], ValueError, r"= \[3, 6, 64\], got shape", id="rows"),
        pytest.param(lambda x: x.to("meta"), ValueError, "device .+, got meta", id="device"),
        pytest.param(lambda x: x.mT.contiguous().mT, ValueError, "contiguous", id="stride"),
        pytest.param(lambda x: x[:1].expand(3, -1, -1), ValueError, "contiguous", id="expanded"),
        pytest.param(lambda x: x.requires_grad_(), NotImplementedError, "inference", id="grad"),
    ],
)
def test_bad_out(device, change, error, message):
    inputs = make_inputs(SMALL, torch.float32, device)
    out = torch.zeros(3, 6, 64, device=device)
    with pytest.raises(error, match=f"^group_attention: argument `out`.*{message}"):
        run(group_attention, SMALL, *inputs, out=change(out))


@pytest.mark.parametrize("other", [0, 1, 2], ids=["qkv", "k_cache", "v_cache"])
def test_out_may_overlap_nothing(device, other):
    inputs = make_inputs(SMALL, torch.float32, device)
    out = inputs[other].flatten()[-3 * 6 * 64 :].view(3, 6, 64)
    before = inputs[other].clone()
    with pytest.raises(ValueError, match="argument `out`: expected memory apart"):
        run(group_attention, SMALL, *inputs, out=out)
    torch.testing.assert_close(inputs[other], before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "change", [lambda x: x.double(), lambda x: x[:, :5], lambda x: x.mT.contiguous().mT]
)
def test_the_operator_itself_refuses_a_wrong_out(device, change):
    inputs = make_inputs(SMALL, torch.float32, device)
    with pytest.raises(RuntimeError, match="argument `out`"):
        torch.ops.lpd_ext.group_attention.out(
            *inputs, change(torch.zeros(3, 6, 64, device=device)), 5, 2, 1.0
        )


@pytest.mark.parametrize("head_dim", [8, 24, 40])
def test_the_operator_itself_refuses_a_head_dim_that_fills_no_register(device, head_dim):
    # The kernels would write behind the rows.
    qkv = torch.zeros(1, 4, 3, 2, head_dim, device=device)
    k_cache, v_cache = torch.zeros(2, 1, 2, 8, head_dim, device=device)
    with pytest.raises(RuntimeError, match="argument `qkv`: expected a head_dim"):
        torch.ops.lpd_ext.group_attention(qkv, k_cache, v_cache, 0, 2, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("query", [ROWS.context_len, ROWS.q_len - 1], ids=["first", "last"])
def test_nan_of_a_query_stays_with_the_queries(device, variant, query, dtype):
    # Context rows stand in one tile with query rows; a weight of 0 times NaN would be NaN.
    inputs = make_inputs(ROWS, dtype, device)
    expected = run(group_attention, ROWS, *(tensor.clone() for tensor in inputs))
    inputs[0][:, query, 1:] = torch.nan
    out = run(group_attention, ROWS, *inputs)
    assert torch.equal(out[:, : ROWS.context_len], expected[:, : ROWS.context_len])
    assert out[:, ROWS.context_len :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_of_score_minus_infinity_have_no_weight(device, variant, dtype):
    # The first blocks of keys hold nothing else: -inf minus a maximum of -inf would be NaN.
    case = AttentionCase("masked", 1, 21, 1, 32, 300, 9, 320)
    qkv, k_cache, v_cache = make_inputs(case, dtype, device)
    qkv[:, :, 0] = 1
    k_cache[:, :, :290] = -torch.inf
    out = run(group_attention, case, qkv, k_cache, v_cache)
    short = AttentionCase("short", 1, 21, 1, 32, 10, 9, 30)
    expected = run(group_attention, short, qkv, k_cache[:, :, 290:], v_cache[:, :, 290:])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_any_scale(device, variant, scale):
    inputs = make_inputs(ROWS, torch.bfloat16, device)
    wide = [tensor.double() for tensor in inputs]
    expected = run(reference.group_attention, ROWS, *wide, scale=scale)
    out = run(group_attention, ROWS, *inputs, scale=scale)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shifted", range(4), ids=["qkv", "k_cache", "v_cache", "out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_alignment(device, variant, shifted, dtype):
    # One element further on nothing lies at a multiple of 16 bytes: other loads, the same bits.
    inputs = make_inputs(ROWS, dtype, device)
    caches = inputs[1].clone(), inputs[2].clone()
    expected = run(group_attention, ROWS, inputs[0], *caches)
    tensors = [*inputs, out_for(ROWS, dtype, device)]
    buffer = torch.zeros(tensors[shifted].numel() + 1, dtype=dtype, device=device)
    view = buffer[1:].view(tensors[shifted].shape)
    tensors[shifted] = view.copy_(tensors[shifted])
    *others, out = tensors
    run(group_attention, ROWS, *others, out=out)
    assert torch.equal(out, expected)
    torch.testing.assert_close(tuple(others[1:]), caches, rtol=0, atol=0, equal_nan=True)
