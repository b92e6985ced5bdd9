"""`group_attention` against torch's attention, at the shapes of LPD-L."""

from functools import cache

import pytest
import torch
from sdpa_loop import sdpa_on_slices
from torch.nn import functional as F

from lpd_ext import group_attention, group_sizes

HEADS, HEAD_DIM = 16, 64
SCHEDULES = {"256 px / 20": group_sizes(256, 20), "512 px / 48": group_sizes(1024, 48)}
STEPS = [("256 px / 20", 0), ("256 px / 20", 10), ("256 px / 20", 19), ("512 px / 48", 47)]
LAYERS = 24  # each has caches of its own: a kernel never finds those of the last call in L2
MAX_BYTES = 2**28


@cache
def dense_mask(context_len, q_len, kept, dtype, device):
    """What is added to the scores: 0, and -inf where a context row would see a query."""
    mask = torch.zeros(q_len, kept + q_len - context_len, dtype=dtype, device=device)
    mask[:context_len, kept:] = -torch.inf
    return mask


def sdpa_dense_mask(qkv, k_cache, v_cache, cache_len, context_len):
    """Append, a mask made beforehand, one call."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    kept, end = cache_len + context_len, cache_len + qkv.shape[1]
    k_cache[:, :, cache_len:end] = k
    v_cache[:, :, cache_len:end] = v
    mask = dense_mask(context_len, qkv.shape[1], kept, qkv.dtype, qkv.device)
    out = F.scaled_dot_product_attention(
        q, k_cache[:, :, :end], v_cache[:, :, :end], attn_mask=mask
    )
    return out.transpose(1, 2).flatten(2)


def sdpa_concatenated(qkv, k_cache, v_cache, cache_len, context_len):
    """Two calls; the queries' keys are put behind a copy of the cached ones."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    kept = cache_len + context_len
    k_cache[:, :, cache_len:kept] = k[:, :, :context_len]
    v_cache[:, :, cache_len:kept] = v[:, :, :context_len]
    keys, values = k_cache[:, :, :kept], v_cache[:, :, :kept]
    context = F.scaled_dot_product_attention(q[:, :, :context_len], keys, values)
    queries = F.scaled_dot_product_attention(
        q[:, :, context_len:],
        torch.cat([keys, k[:, :, context_len:]], 2),
        torch.cat([values, v[:, :, context_len:]], 2),
    )
    return torch.cat([context, queries], 2).transpose(1, 2).flatten(2)


SDPA_TWO_SLICES = {"queries behind the context": sdpa_on_slices, "concatenated": sdpa_concatenated}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize(("schedule", "step"), STEPS, ids=[f"{s[:3]}-{k}" for s, k in STEPS])
def test_group_attention(versus, device, schedule, step, batch, dtype):
    sizes = SCHEDULES[schedule]
    context_len = sizes[step - 1] if step else 1
    cache_len = sum(sizes[:step]) + 1 - context_len
    rows, keys = context_len + sizes[step], cache_len + context_len + sizes[step]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    def layer():
        slots = (batch, HEADS, sum(sizes) + 1, HEAD_DIM)
        qkv = random(batch, rows, 3, HEADS, HEAD_DIM)
        return qkv, random(*slots), random(*slots), cache_len, context_len

    first = layer()
    layers = min(LAYERS, MAX_BYTES // sum(t.nbytes for t in first[:3]))
    inputs = [first] + [layer() for _ in range(layers - 1)]

    def copies():  # of their own, each with room for its queries
        return [x.clone() if isinstance(x, torch.Tensor) else x for x in first]

    expected = sdpa_dense_mask(*[x.double() if torch.is_tensor(x) else x for x in copies()])
    torchs = sdpa_dense_mask(*copies())
    allowed = 2 * (torchs - expected).abs().max() + 1e-5
    for kernel in (group_attention, *SDPA_TWO_SLICES.values()):
        assert (kernel(*copies()) - expected).abs().max() <= allowed, kernel.__name__

    versus(
        "group_attention",
        f"{schedule} steps, step {step + 1}: {rows} rows x {keys} keys, batch {batch}, "
        f"{str(dtype).removeprefix('torch.')}",
        group_attention,
        {"sdpa_dense_mask": sdpa_dense_mask, "sdpa_two_slices": SDPA_TWO_SLICES},
        inputs=inputs,
        device=device.type,
    )
