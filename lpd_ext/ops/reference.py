"""The ops in plain torch, with the signatures of the public functions: the executable spec.

Made to be read and to test against, on any device and dtype torch has; arguments are not checked.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lpd_ext import philox


def group_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_len: int | Tensor,
    context_len: int | Tensor,
    *,
    q_len: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Append the context rows to the caches and attend; float64 and float32 in their own dtype."""
    if q_len is not None:
        assert isinstance(cache_len, Tensor)
        assert isinstance(context_len, Tensor)
        result = qkv.new_zeros(*qkv.shape[:2], qkv.shape[3] * qkv.shape[4])
        lengths = torch.stack([cache_len, context_len, q_len], dim=1).tolist()
        for i, (cached, context, rows) in enumerate(lengths):
            fits = 0 <= context <= rows <= qkv.shape[1] and cached >= 0
            if not fits or cached + context > k_cache.shape[2]:
                result[i] = torch.nan
                continue
            image = slice(i, i + 1)
            result[image, :rows] = group_attention(
                qkv[image, :rows], k_cache[image], v_cache[image], cached, context, scale=scale
            )
        return result if out is None else out.copy_(result)
    assert isinstance(cache_len, int)
    assert isinstance(context_len, int)
    end = cache_len + context_len
    k_cache[:, :, cache_len:end] = qkv[:, :context_len, 1].transpose(1, 2)
    v_cache[:, :, cache_len:end] = qkv[:, :context_len, 2].transpose(1, 2)

    compute = qkv.dtype if qkv.dtype == torch.float64 else torch.float32
    q, k, v = (part.transpose(1, 2).to(compute) for part in qkv.unbind(2))
    keys = torch.cat([k_cache[:, :, :end].to(compute), k[:, :, context_len:]], dim=2)
    values = torch.cat([v_cache[:, :, :end].to(compute), v[:, :, context_len:]], dim=2)
    if scale is None:
        scale = qkv.shape[-1] ** -0.5

    def attend(rows: slice, kv_len: int) -> Tensor:
        scores = q[:, :, rows] @ keys[:, :, :kv_len].transpose(2, 3) * scale
        return scores.softmax(dim=-1) @ values[:, :, :kv_len]

    context = attend(slice(0, context_len), end)
    queries = attend(slice(context_len, None), keys.shape[2])
    result = torch.cat([context, queries], dim=2).transpose(1, 2).flatten(2).to(qkv.dtype)
    return result if out is None else out.copy_(result)


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend to what each row sees, row by row; float64 and float32 in their own dtype."""
    batch, _, q_len, head_dim = q.shape
    compute = q.dtype if q.dtype == torch.float64 else torch.float32
    if scale is None:
        scale = head_dim**-0.5
    result = q.new_zeros(q.shape)
    for image, row in itertools.product(range(batch), range(q_len)):
        told = (mask if mask.ndim == 1 + (mask.dtype == torch.bool) else mask[image])[row]
        if mask.dtype == torch.int32:
            if not 0 <= int(told) <= k.shape[2]:
                result[image, :, row] = torch.nan
                continue
            told = torch.arange(k.shape[2], device=k.device) < told
        keys, values = (tensor[image][:, told].to(compute) for tensor in (k, v))
        scores = q[image, :, row : row + 1].to(compute) @ keys.transpose(1, 2) * scale
        result[image, :, row : row + 1] = (scores.softmax(dim=-1) @ values).to(q.dtype)
    return result if out is None else out.copy_(result)


def group_order(
    seeds: Tensor,
    grid: tuple[int, int],
    group_sizes: Sequence[int],
    *,
    proximity_threshold: float = 1.0,
    repulsion_threshold: int = 2,
    known: Tensor | None = None,
) -> Tensor:
    """Draw one locality-aware decoding order per image, position by position."""
    height, width = grid
    seq_len = height * width

    def cell(position: int) -> tuple[int, int]:
        return position // width, position % width

    def score(position: int, decoded: set[int]) -> float:
        row, col = cell(position)
        orthogonal, diagonal = 0, 0
        for r in range(max(row - 1, 0), min(row + 2, height)):
            for c in range(max(col - 1, 0), min(col + 2, width)):
                if r * width + c in decoded:
                    if r == row or c == col:
                        orthogonal += 1
                    else:
                        diagonal += 1
        return orthogonal + diagonal * math.sqrt(0.5)

    def repelled(position: int, pick: int) -> bool:
        (row, col), (pick_row, pick_col) = cell(position), cell(pick)
        return max(abs(row - pick_row), abs(col - pick_col)) <= repulsion_threshold

    def squared_distance(position: int, pick: int) -> int:
        (row, col), (pick_row, pick_col) = cell(position), cell(pick)
        return (row - pick_row) ** 2 + (col - pick_col) ** 2

    def draw(keys: list[list[int]], order: list[int]) -> list[int]:
        for key, group_size in zip(keys, group_sizes, strict=True):
            decoded = set(order)
            scores = {p: score(p, decoded) for p in range(seq_len) if p not in decoded}
            free = sorted(scores, key=lambda p: (-scores[p], key[p], p))
            picks: list[int] = []
            turned_away: list[int] = []
            for position in (p for p in free if scores[p] >= proximity_threshold):
                if len(picks) == group_size:
                    break
                repels = any(repelled(position, pick) for pick in picks)
                (turned_away if repels else picks).append(position)
            left = [p for p in free if scores[p] < proximity_threshold] + turned_away
            if len(left) <= group_size - len(picks):
                picks += left
            while len(picks) < group_size:
                if picks:  # max and min take the first of equals
                    far = max(left, key=lambda p: min(squared_distance(p, q) for q in picks))
                else:
                    far = min(left, key=lambda p: (key[p], p))
                left.remove(far)
                picks.append(far)
            order = order + picks
        return order

    steps = [philox.order_keys(seeds, step, seq_len).tolist() for step in range(len(group_sizes))]
    orders = [
        draw(
            [keys[image] for keys in steps],
            [] if known is None else known[image].nonzero().flatten().tolist(),
        )
        for image in range(seeds.shape[0])
    ]
    return torch.tensor(orders, dtype=torch.int64, device=seeds.device).reshape(-1, seq_len)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    norm_eps: float = 1e-6,
    epilogue: str = "none",
    out: Tensor,
) -> Tensor:
    """Write a linear layer to ``out``; takes the weight as it is, not packed."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    a = x.to(compute)
    if norm is not None:
        a = F.layer_norm(a, a.shape[-1:], norm[0].to(compute), norm[1].to(compute), norm_eps)
    y = F.linear(a, weight.to(compute), None if bias is None else bias.to(compute))
    if epilogue == "gelu":
        y = F.gelu(y)
    if epilogue == "add":
        y = out.to(compute) + y
    return out.copy_(y)


def group_embedding(
    tokens: Tensor,
    order: Tensor,
    token_emb: Tensor,
    query_token: Tensor,
    pos_embed: Tensor,
    norm: tuple[Tensor, Tensor],
    context: tuple[int, int],
    query_end: int,
    *,
    norm_eps: float = 1e-6,
    out: Tensor,
) -> Tensor:
    """Embed context and query rows, normalised, once for each copy that ``out`` has room for."""
    compute = torch.float64 if token_emb.dtype == torch.float64 else torch.float32
    places = order[:, context[0] : query_end]
    rows = token_emb[tokens.gather(1, places).clamp(min=0)].to(compute)
    rows[:, context[1] - context[0] :] = query_token.to(compute)
    rows = rows + pos_embed[places].to(compute)
    weight, bias = (part.to(compute) for part in norm)
    rows = F.layer_norm(rows, rows.shape[-1:], weight, bias, norm_eps)
    return out.copy_(rows.repeat(out.shape[0] // max(len(tokens), 1), 1, 1))


def add_layer_norm(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    delta: Tensor | None = None,
    bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    out: Tensor,
) -> Tensor:
    """Add to the rows in place and normalise them, in the dtype of ``x``."""
    if delta is not None:
        x += delta.to(x.dtype) if bias is None else delta.to(x.dtype) + bias.to(x.dtype)
    scale, shift = (part.to(x.dtype) for part in norm)
    return out.copy_(F.layer_norm(x, x.shape[-1:], scale, shift, norm_eps))


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Tensor:
    """Add the bias and take GELU; float64 in its own dtype, else in float32."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(compute)
    return out.copy_(F.gelu(y if bias is None else y + bias.to(compute)))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Tensor:
    """Multiply and take GELU; float64 in its own dtype, else in float32."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(compute) @ weight.to(compute).T
    return out.copy_(F.gelu(y if bias is None else y + bias.to(compute)))


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    norm: tuple[Tensor, Tensor],
    *,
    norm_eps: float = 1e-6,
    silu: bool = True,
    out: Tensor,
) -> Tensor:
    """Normalise by groups of channels and take SiLU; float64 in its own dtype, else in float32."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = (part.to(compute) for part in norm)
    y = F.group_norm(x.to(compute), num_groups, weight, bias, norm_eps)
    return out.copy_(F.silu(y) if silu else y)


def token_selection(
    logits: Tensor,
    uniform: Tensor,
    *,
    cfg_scale: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> Tensor:
    """Select one token per row: masses in float64, guided and scaled logits in float32.

    So ties by value are those of the op, and ids differ from it only where ``uniform`` or ``top_p``
    meets a boundary of the distribution. Values are judged as the op judges them: id -1.
    """
    infinity = float("inf")

    def per_image(value: float | Tensor, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(value, dtype=dtype, device=logits.device).reshape(-1, 1, 1)

    x = logits.float()
    bad = (x.isnan() | (x == infinity)).any(-1, keepdim=True)
    if cfg_scale is not None:
        cond, uncond = x.chunk(2)
        bad = bad[: len(cond)] | bad[len(cond) :]
        # A float32 product is exact in float64: all but a double rounding away from an fma.
        guided = cfg_scale[..., None].double() * (cond - uncond).double() + uncond.double()
        x = guided.float().where(cond != -infinity, -infinity)
        bad |= (x.isnan() | (x == infinity)).any(-1, keepdim=True)
    maximum = x.amax(-1, keepdim=True)
    greedy = (x == maximum).long().argmax(-1)

    t, p = per_image(temperature, torch.float32), per_image(top_p, torch.float32).double()
    vocab_size = x.shape[-1]
    k = per_image(top_k, torch.int64)
    k = k.where((k > 0) & (k < vocab_size), vocab_size)
    y = x * (1 / t)
    overflow = ~(maximum * (1 / t)).isfinite()
    bad |= (maximum == -infinity) | ~((t >= 0) & (t < infinity)) | ~(p >= 0)
    bad |= ~((uniform >= 0) & (uniform < 1))[..., None]
    y = y.masked_fill(bad | overflow, 0.0)  # such rows are decided below

    ranked = y.sort(-1, descending=True).values
    kth = ranked.gather(-1, (k - 1).expand(*ranked.shape[:2], 1))
    ranked_mass = ranked.double().where(ranked >= kth, -infinity).softmax(-1)
    before = ranked_mass.cumsum(-1) - ranked_mass
    first_equal = torch.searchsorted(-ranked, -ranked)  # where the run of equal values begins
    within = (before.gather(-1, first_equal) <= p) | (p >= 1)
    least = ranked.where(within & (ranked >= kth), infinity).amin(-1, keepdim=True)

    cdf = y.double().where(y >= least, -infinity).softmax(-1).cumsum(-1)
    total = cdf[..., -1:]
    target = (uniform[..., None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    drawn = (cdf > target).long().argmax(-1)
    drawn = greedy.where(overflow[..., 0], drawn)
    return drawn.where(~bad[..., 0], -1)


def token_selection_(
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    uniform: Tensor,
    *,
    cfg_scale: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> None:
    """Select one token per row and write it to its position."""
    ids = token_selection(
        logits,
        uniform,
        cfg_scale=cfg_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    tokens.scatter_(1, positions, ids)
