"""The strongest simple baseline: static shapes, two plain SDPA calls a layer, nothing read back.

What a careful PyTorch user writes for LPD without a kernel of their own: caches allocated once,
lengths as Python numbers, K/V written by slices, the mask replaced by two calls on prefixes of the
cache, weights in bfloat16, the sampling of `torch_chain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_chain import torch_chain

from lpd_ext import LPD


def sdpa_on_slices(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, cache_len: int, context_len: int
) -> Tensor:
    """Do what `lpd_ext.group_attention` does, in caches with room for the queries as well.

    All K/V go behind the cached ones, those of the queries last, so that either call reads a prefix
    and nothing is concatenated; the next step overwrites the queries.
    """
    batch, q_len, _, num_heads, head_dim = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    kept, end = cache_len + context_len, cache_len + q_len
    k_cache[:, :, cache_len:end] = k
    v_cache[:, :, cache_len:end] = v
    out = qkv.new_empty(batch, q_len, num_heads, head_dim).transpose(1, 2)
    for rows, length in ((slice(0, context_len), kept), (slice(context_len, q_len), end)):
        out[:, :, rows] = F.scaled_dot_product_attention(
            q[:, :, rows], k_cache[:, :, :length], v_cache[:, :, :length]
        )
    return out.transpose(1, 2).flatten(2)


class SDPALoop:
    """The loop for one model, batch size and schedule; called, it decodes.

    Parameters
    ----------
    model : LPD
        In evaluation, in the dtype to compute in.
    batch_size : int
        Images a call.
    group_sizes : Sequence[int]
        Sums to seq_len.
    guided : bool
        Whether the unconditional half is run.
    """

    def __init__(
        self, model: LPD, batch_size: int, group_sizes: Sequence[int], *, guided: bool = True
    ) -> None:
        c = model.config
        self.model, self.group_sizes, self.guided = model, list(group_sizes), guided
        shape = (batch_size * (2 if guided else 1), c.num_heads, c.seq_len + 1, c.head_dim)
        options = {"dtype": model.dtype, "device": model.device}
        self.caches = [torch.empty(2, *shape, **options) for _ in range(c.depth)]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Tensor,
        order: Tensor,
        *,
        uniform: Tensor,
        cfg_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        forced_tokens: Tensor | None = None,
        return_logits: bool = False,
    ) -> Any:
        """Decode a batch; arguments as those of `lpd_ext.decode`, guidance linear."""
        model, seq_len = self.model, order.shape[1]
        scale = 1 + (cfg_scale - 1) * torch.arange(seq_len, device=order.device) / seq_len
        labels = class_labels
        if self.guided:
            labels = torch.cat([labels, torch.full_like(labels, -1)])
        context = model.embed_class(labels)
        queries = self._both_halves(model.embed_queries(order))
        tokens = torch.empty_like(order)  # in generation order
        fed_back = tokens if forced_tokens is None else forced_tokens.gather(1, order)
        all_logits, cache_len, begin = [], 0, 0
        for size in self.group_sizes:
            group = slice(begin, begin + size)
            context_len = context.shape[1]
            rows = torch.cat([context, queries[:, group]], dim=1)
            rows = model.transform(rows, self._attend(cache_len, context_len))
            logits = model.logits(rows[:, context_len:])
            s = scale[group] if self.guided else None
            tokens[:, group] = torch_chain(
                logits, uniform[:, group], cfg_scale=s, temperature=temperature,
                top_k=top_k, top_p=top_p,
            )  # fmt: skip
            if return_logits:
                halves = logits.chunk(2)
                all_logits.append(
                    logits if s is None else torch.lerp(halves[1], halves[0], s[..., None])
                )
            context = self._both_halves(model.embed_context(fed_back[:, group], order[:, group]))
            cache_len, begin = cache_len + context_len, begin + size
        raster = torch.empty_like(tokens).scatter_(1, order, tokens)
        return (raster, torch.cat(all_logits, dim=1)) if return_logits else raster

    def _both_halves(self, rows: Tensor) -> Tensor:
        return rows.repeat(2, 1, 1) if self.guided else rows

    def _attend(self, cache_len: int, context_len: int) -> Callable[[int, Tensor], Tensor]:
        def attend(layer: int, qkv: Tensor) -> Tensor:
            return sdpa_on_slices(qkv, *self.caches[layer], cache_len, context_len)

        return attend
