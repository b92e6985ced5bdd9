"""`group_attention` against SDPA with the dense mask, at the shapes of LPD-L, 256 px, 20 steps."""

import pytest
import torch
from torch.nn import functional as F

from lpd_ext import group_attention

BATCH, HEADS, HEAD_DIM, MAX_KV_LEN = 2, 16, 64, 257
STEPS = {"first": (0, 1, 1), "middle": (66, 14, 15), "last": (216, 20, 20)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = {f"{dtype} {step}": (DTYPES[dtype], *STEPS[step]) for dtype in DTYPES for step in STEPS}


def sdpa_dense_mask(qkv, k_cache, v_cache, cache_len, context_len):
    """The baseline: append, one boolean mask, one call of torch's attention."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    k_cache[:, :, cache_len : cache_len + context_len] = k[:, :, :context_len]
    v_cache[:, :, cache_len : cache_len + context_len] = v[:, :, :context_len]
    kept = cache_len + context_len
    keys = torch.cat([k_cache[:, :, :kept], k[:, :, context_len:]], 2)
    values = torch.cat([v_cache[:, :, :kept], v[:, :, context_len:]], 2)
    mask = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool)
    mask[:context_len, kept:] = False
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kernel", [group_attention, sdpa_dense_mask], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", CASES)
def test_group_attention(benchmark, case, kernel):
    dtype, cache_len, context_len, num_queries = CASES[case]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(BATCH, context_len + num_queries, 3, HEADS, HEAD_DIM, generator=generator).to(
        dtype
    )
    caches = torch.randn(2, BATCH, HEADS, MAX_KV_LEN, HEAD_DIM, generator=generator).to(dtype)
    expected = sdpa_dense_mask(qkv.double(), *caches.double(), cache_len, context_len)
    allowed = 2 * (sdpa_dense_mask(qkv, *caches, cache_len, context_len) - expected).abs().max()
    out = kernel(qkv, *caches, cache_len, context_len)
    assert (out.double() - expected).abs().max() <= allowed + 1e-5
    benchmark(kernel, qkv, *caches, cache_len, context_len)
