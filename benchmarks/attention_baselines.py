"""What `group_attention` is measured against: torch's attention, FlexAttention, flashinfer.

Each does what the op does, in caches with room for the queries: all K/V go behind the cached ones,
those of the queries last, and the next step overwrites them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import TypeAlias

import torch
from contender import Call
from sdpa_loop import sdpa_on_slices
from torch import Tensor
from torch.nn import functional as F

from lpd_ext import group_attention
from lpd_ext.cuda_variant import cuda_variant, set_cuda_variant

Prepare: TypeAlias = Callable[[Tensor, Tensor, Tensor, int, int], Call]
"""Takes the arguments of a call, of which it keeps shapes only, and returns what is called."""

_WORKSPACE = 2**27  # bytes; what flashinfer's examples take


@cache
def dense_mask(
    context_len: int, q_len: int, kept: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What is added to the scores: 0, and -inf where a context row would see a query.

    Rows begin at multiples of 8 elements: else torch would copy the mask at every call on a GPU.
    """
    num_keys = kept + q_len - context_len
    mask = torch.zeros(q_len, num_keys + -num_keys % 8, dtype=dtype, device=device)[:, :num_keys]
    mask[:context_len, kept:] = -torch.inf
    return mask


def sdpa_dense_mask(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
) -> Tensor:
    """Append, a mask made beforehand, one call."""
    q, keys, values = _append_all(qkv, k_cache, v_cache, cache_len)
    kept = cache_len + context_len
    mask = dense_mask(context_len, qkv.shape[1], kept, qkv.dtype, qkv.device)
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def sdpa_concatenated(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
) -> Tensor:
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


SDPA_TWO_SLICES: Mapping[str, Call] = {
    "queries behind the context": sdpa_on_slices,
    "concatenated": sdpa_concatenated,
}


def simple_kernel(*arguments: object) -> Tensor:
    """Run our own kernel without tensor cores."""
    before = cuda_variant()
    set_cuda_variant("float32")
    try:
        return group_attention(*arguments)
    finally:
        set_cuda_variant(before)


def prepare_flex_attention(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
) -> Call:
    """Compile torch's flex_attention for one shape, the two prefixes as a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, kept = qkv.shape[1], cache_len + context_len

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (row >= context_len) | (key < kept)

    mask = create_block_mask(visible, None, None, rows, cache_len + rows, device=qkv.device)
    torch.compiler.reset()  # a function is compiled a few times only, and eager from then on
    attend = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def call(
        qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
    ) -> Tensor:
        out = attend(*_append_all(qkv, k_cache, v_cache, cache_len), block_mask=mask)
        return out.transpose(1, 2).flatten(2)

    call(qkv, k_cache.clone(), v_cache.clone(), cache_len, context_len)
    return call


def prepare_flashinfer(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
) -> Call:
    """Plan flashinfer's paged attention for one shape.

    The cache of a sequence is one page. Its context rows and its queries are two requests on that
    page, of different lengths: no mask at all, one launch. Its second generation of kernels has
    tiles for few rows and pages of any length.
    """
    flashinfer = import_module("flashinfer")
    batch, rows, _, num_heads, head_dim = qkv.shape
    requests = 2 * batch

    def alternating(of_context: int, of_queries: int) -> Tensor:
        pair = torch.tensor([of_context, of_queries], dtype=torch.int32, device=qkv.device)
        return pair.repeat(batch)

    row_counts = alternating(context_len, rows - context_len)
    attention = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(_WORKSPACE, dtype=torch.uint8, device=qkv.device), "HND", backend="fa2"
    )
    attention.plan(
        F.pad(row_counts.cumsum(0, dtype=torch.int32), (1, 0)),
        torch.arange(requests + 1, dtype=torch.int32, device=qkv.device),
        torch.arange(batch, dtype=torch.int32, device=qkv.device).repeat_interleave(2),
        alternating(cache_len + context_len, cache_len + rows),
        num_heads,
        num_heads,
        head_dim,
        k_cache.shape[2],
        q_data_type=qkv.dtype,
        kv_data_type=qkv.dtype,
    )

    def call(
        qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
    ) -> Tensor:
        _append_all(qkv, k_cache, v_cache, cache_len)
        q = qkv.flatten(0, 1)[:, 0]
        out: Tensor = attention.run(q, (k_cache, v_cache))
        return out.view(batch, rows, -1)

    return call


PREPARED: Mapping[str, Prepare] = {
    "flex_attention": prepare_flex_attention,
    "flashinfer": prepare_flashinfer,
}


def _append_all(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Append the K/V of all rows; return q and all keys and values, heads before rows."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    end = cache_len + qkv.shape[1]
    k_cache[:, :, cache_len:end] = k
    v_cache[:, :, cache_len:end] = v
    return q, k_cache[:, :, :end], v_cache[:, :, :end]
