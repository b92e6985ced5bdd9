"""The named baseline: the published eager decode loop of LPD, ported to run on `lpd_ext.LPD`.

Ported from mit-han-lab/lpd@f447b83 (``models/lpd.py`` ``sample_tokens``, ``models/block.py``,
``models/sampling.py``, ``engine.py``), operation by operation:

- a dense float32 mask of 0 and -inf over the whole sequence, made once for all images; every layer
  cuts its rows out with an index tensor and its columns with a length read back from that tensor;
- K/V caches of seq_len + 1 keys, zeroed for every call, written with ``index_put`` at the index
  tensor, the queries' K/V too (the next step overwrites them with those of the decoded tokens);
- group sizes and their prefix sums live in tensors, so that every slice reads a number back;
- position embeddings gathered for the whole sequence, once a half of the guidance;
- guidance by ``linspace``, top-k and top-p with a full sort and boolean indexing, softmax,
  ``torch.multinomial``;
- autocast around it all with float32 weights that require grad: what autocast casts, it keeps until
  the call ends.

What differs: device and autocast are those of the model; sizes stay on the host, which spares a GPU
some waiting; the attention is called beside the modules instead of inside them; LayerNorm, GELU and
Linear are those of `lpd_ext.LPD`, which are torch's. Forced tokens and logits, for comparisons, are
additions. Run beside the original with the same seed (LPD-L, batch 1, bfloat16, on a CPU), it drew
the same 256 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lpd_ext import LPD


def block_causal_mask(group_sizes: Sequence[int]) -> Tensor:
    """Return float32 ``[seq_len + 1, seq_len + 1]``: 0 = may attend, -inf = may not."""
    block_sizes = [1, *group_sizes]  # the class token is a block of its own
    mask = torch.full((sum(block_sizes),) * 2, -torch.inf)
    begin = 0
    for size in block_sizes:
        mask[begin : begin + size, : begin + size] = 0
        begin += size
    return mask


@torch.no_grad()
def published_loop(
    model: LPD,
    class_labels: Tensor,
    group_sizes: Sequence[int],
    order: Tensor,
    attn_mask: Tensor,
    *,
    cfg_scale: float = 1.0,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    autocast: torch.dtype | None = torch.bfloat16,
    forced_tokens: Tensor | None = None,
    return_logits: bool = False,
) -> Any:
    """Decode a batch; the random numbers come from torch's global generator.

    Parameters
    ----------
    model : LPD
        In evaluation, float32.
    class_labels, group_sizes, order, forced_tokens, return_logits
        As `lpd_ext.decode` takes them; every label names a class.
    attn_mask : Tensor
        Of `block_causal_mask`.
    cfg_scale, cfg_schedule, temperature, top_k, top_p
        Numbers, for the whole batch.
    autocast : torch.dtype, optional
        The dtype of the matrix products; None: float32 without autocast.
    """
    device = model.device.type
    context = torch.autocast(device, dtype=autocast) if autocast else nullcontext()
    with context:
        return _sample_tokens(
            model, class_labels, group_sizes, order, attn_mask, cfg_scale, cfg_schedule,
            {"temperature": temperature, "top_k": top_k, "top_p": top_p}, forced_tokens,
            return_logits,
        )  # fmt: skip


def _sample_tokens(
    model: LPD,
    class_labels: Tensor,
    group_sizes: Sequence[int],
    order: Tensor,
    attn_mask: Tensor,
    cfg: float,
    cfg_schedule: str,
    filters: dict[str, Any],
    forced_tokens: Tensor | None,
    return_logits: bool,
) -> Any:
    (batch, seq_len), device = order.shape, order.device
    tokens = torch.zeros(batch, seq_len, dtype=torch.int64, device=device)
    fed_back = tokens if forced_tokens is None else forced_tokens.gather(1, order)
    rows = torch.cat([torch.zeros(batch, 1, dtype=order.dtype, device=device), order + 1], dim=1)
    pos_embed = model.pos_embed.clone().repeat(batch, 1, 1)
    pos_embed = pos_embed.gather(1, rows.unsqueeze(-1).expand(-1, -1, pos_embed.shape[2]))
    class_embedding = model.class_emb(class_labels)
    guided = cfg != 1.0
    if guided:
        class_embedding = torch.cat([class_embedding, model.fake_latent.repeat(batch, 1)])
        pos_embed = torch.cat([pos_embed, pos_embed])
    sequences = len(class_embedding)
    caches = _enable_kv_cache(model, sequences)
    sizes = torch.tensor(group_sizes, dtype=torch.int)
    cu = torch.cat([torch.tensor([0, 1], dtype=torch.int), sizes.cumsum(0) + 1])
    all_logits = []

    for i in range(len(sizes)):
        if i == 0:
            previous = class_embedding.unsqueeze(1)
        else:
            previous = model.token_emb(fed_back[:, cu[i] - 1 : cu[i + 1] - 1])
            if guided:
                previous = torch.cat([previous, previous])
        queries = model.mask_token.repeat(sequences, sizes[i], 1)
        x = torch.cat([previous, queries], dim=1) + pos_embed[:, cu[i] : cu[i + 2], :]
        x = model.z_proj_ln(x)
        input_pos = torch.arange(cu[i], cu[i + 2], device=device)
        for block, cache in zip(model.blocks, caches, strict=True):
            x = x + _attention(block.attn, block.norm1(x), cache, input_pos, attn_mask)
            x = x + block.mlp(block.norm2(x))
        logits = model.head(model.norm(x)[:, -sizes[i] :])
        if guided:
            logits = _guide(logits, cfg, cfg_schedule, cu[i + 1], cu[-1])
        if return_logits:
            all_logits.append(logits.float())
        flat = logits.reshape(-1, logits.shape[-1])
        sampled = published_sampling(flat, **filters).reshape(batch, -1)
        tokens[:, cu[i + 1] - 1 : cu[i + 2] - 1] = sampled

    raster = torch.zeros_like(tokens).scatter_(1, order, tokens)
    return (raster, torch.cat(all_logits, dim=1)) if return_logits else raster


def _enable_kv_cache(model: LPD, sequences: int) -> list[tuple[Tensor, Tensor]]:
    c = model.config
    device = model.device
    enabled = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if enabled else torch.float32
    shape = (sequences, c.num_heads, c.seq_len + 1, c.head_dim)

    def zeros() -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return [(zeros(), zeros()) for _ in model.blocks]


def _attention(
    attn: Any, x: Tensor, cache: tuple[Tensor, Tensor], input_pos: Tensor, attn_mask: Tensor
) -> Tensor:
    rows, n, dim = x.shape
    q, k, v = attn.qkv(x).reshape(rows, n, *attn.packed).permute(2, 0, 3, 1, 4).unbind(0)
    k_cache, v_cache = cache
    k_cache[:, :, input_pos] = k
    v_cache[:, :, input_pos] = v
    out = F.scaled_dot_product_attention(
        q,
        k_cache[:, :, : input_pos[-1] + 1],
        v_cache[:, :, : input_pos[-1] + 1],
        attn_mask=attn_mask[input_pos, : input_pos[-1] + 1],
    )
    return attn.proj(out.transpose(1, 2).reshape(rows, n, dim))  # type: ignore[no-any-return]


def _guide(logits: Tensor, cfg: float, cfg_schedule: str, begin: Tensor, end: Tensor) -> Tensor:
    n = logits.shape[1]
    scale = torch.tensor([cfg], device=logits.device)
    if cfg_schedule == "linear":
        places = torch.linspace(begin - 1, begin + n - 2, n, device=logits.device)
        scale = 1 + (cfg - 1) * places / (end - 1)
    conditional, unconditional = logits.chunk(2)
    scale = scale.unsqueeze(0).unsqueeze(-1).expand(conditional.shape)
    return unconditional + scale * (conditional - unconditional)


def published_sampling(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Return int64 ``[rows, 1]`` drawn from logits ``[rows, vocab_size]``."""
    logits = logits / max(temperature, 1e-5)
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]))[0][..., -1, None]
        logits[logits < least] = -torch.inf
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        removed = ordered.softmax(-1).cumsum(-1) > top_p
        removed[..., 1:] = removed[..., :-1].clone()  # the first above the threshold stays
        removed[..., 0] = False
        logits[removed.scatter(1, index, removed)] = -torch.inf
    return torch.multinomial(logits.softmax(-1), num_samples=1)
