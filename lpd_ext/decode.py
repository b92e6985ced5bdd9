"""The decode loop: group after group, context tokens and position queries in one pass.

Source: Algorithm 1 of arXiv 2507.01957; ``sample`` in ``models/lpd.py`` of mit-han-lab/lpd@f447b83.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor

from lpd_ext.decode_request import check_request
from lpd_ext.kernels import Kernels, kernels_for
from lpd_ext.models.lpd import LPD, UNCONDITIONAL, cu_group_sizes

Progress: TypeAlias = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, steps in all, tokens so far, -1 = not yet decoded)."""


class InvalidLogitsError(RuntimeError):
    """The logits of a row held NaN or +inf, or no finite value.

    Parameters
    ----------
    image : int
        The first such image of the call.
    step : int
        The step, 0-based, at which it happened.
    """

    def __init__(self, image: int, step: int) -> None:
        self.image = image
        self.step = step
        super().__init__(
            f"image {image}, step {step}: the logits hold NaN or +inf, or no finite value; "
            "check the weights and the dtype (float16 overflows where bfloat16 does not)"
        )


@overload
def decode(
    model: LPD,
    class_labels: Tensor,
    group_sizes: Sequence[int],
    order: Tensor,
    *,
    uniform: Tensor | None = ...,
    cfg_scale: float | Tensor = ...,
    cfg_schedule: str = ...,
    temperature: float | Tensor = ...,
    top_k: int | Tensor = ...,
    top_p: float | Tensor = ...,
    known_tokens: Tensor | None = ...,
    forced_tokens: Tensor | None = ...,
    return_logits: Literal[False] = ...,
    kernels: Kernels | None = ...,
    progress: Progress | None = ...,
) -> Tensor: ...


@overload
def decode(
    model: LPD,
    class_labels: Tensor,
    group_sizes: Sequence[int],
    order: Tensor,
    *,
    uniform: Tensor | None = ...,
    cfg_scale: float | Tensor = ...,
    cfg_schedule: str = ...,
    temperature: float | Tensor = ...,
    top_k: int | Tensor = ...,
    top_p: float | Tensor = ...,
    known_tokens: Tensor | None = ...,
    forced_tokens: Tensor | None = ...,
    return_logits: Literal[True],
    kernels: Kernels | None = ...,
    progress: Progress | None = ...,
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def decode(
    model: LPD,
    class_labels: Tensor,
    group_sizes: Sequence[int],
    order: Tensor,
    *,
    uniform: Tensor | None = None,
    cfg_scale: float | Tensor = 1.0,
    cfg_schedule: str = "linear",
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    known_tokens: Tensor | None = None,
    forced_tokens: Tensor | None = None,
    return_logits: bool = False,
    kernels: Kernels | None = None,
    progress: Progress | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Decode images of a batch, one group of positions a forward pass.

    ::

        context = [class row; known tokens]
        for group in groups of order:
            rows = transformer([context; queries of group])      # context K/V stay in the cache
            tokens[group] = token_selection(logits(rows of queries), uniform[group])
            context = tokens[group]

    Parameters
    ----------
    model : LPD
        In evaluation; float32, bfloat16 or float16 (float64 with the reference kernels).
    class_labels : Tensor
        int64 ``[batch]`` on the model's device, in [-1, num_classes); -1 is unconditional.
    group_sizes : Sequence[int]
        Positive; sums to seq_len, or to the number of unknown positions.
    order : Tensor
        int64 ``[batch, seq_len]``, a permutation of raster positions an image; known ones first.
    uniform : Tensor, optional
        float64 ``[batch, num_generated]`` in [0, 1), in generation order. May be left out only
        where `temperature` is the number 0.
    cfg_scale : float or Tensor
        Classifier-free guidance, a finite number or float32 ``[batch]``. The number 1 runs no
        unconditional half; a tensor always does, so that an image does not depend on others.
    cfg_schedule : str
        ``"linear"``: entry j of `order` has scale ``1 + (cfg_scale - 1) * j / seq_len``;
        ``"constant"``: `cfg_scale` throughout.
    temperature, top_k, top_p : number or Tensor
        As `lpd_ext.token_selection` takes them: a number, or a tensor ``[batch]``.
    known_tokens : Tensor, optional
        int64 ``[batch, seq_len]`` in raster order, -1 = to be generated; the same number of known
        positions in every image. They are prefilled with the class row.
    forced_tokens : Tensor, optional
        int64 ``[batch, seq_len]`` in raster order: fed back in place of the tokens chosen.
    return_logits : bool
        Also return the logits.
    kernels : Kernels, optional
        The operators (`lpd_ext.kernels.OPS`) or their reference (`REFERENCE`). By default
        `lpd_ext.kernels.kernels_for` the model's device: operators, and plain torch for those that
        have no kernel there or fail their self-check.
    progress : Callable, optional
        Called after each step with (steps done, steps in all, tokens so far).

    Returns
    -------
    tokens : Tensor
        int64 ``[batch, seq_len]`` in raster order.
    logits : Tensor
        Only with `return_logits`: float32 ``[batch, num_generated, vocab_size]`` after guidance,
        before temperature, in generation order.

    Raises
    ------
    ValueError
        An argument's shape, device or value does not fit; the message names it.
    TypeError
        An argument's type or dtype does not fit.
    InvalidLogitsError
        The model gave logits that are no numbers. Other images of the batch are not harmed, but
        no tokens are returned.

    Notes
    -----
    Deterministic: all randomness comes in through `order` and `uniform`. An image's tokens are the
    same whatever the other images of its batch are and wherever it stands among them, for the same
    build, device, dtype, number of threads and batch size (matrix products of the vendor's library
    may round otherwise in batches of another size; the ops themselves do not).

    Source: Section 3 of arXiv 2507.01957.

    Examples
    --------
    >>> from lpd_ext import LPD, LPDConfig, group_order
    >>> config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
    >>> sizes = [1, 3, 12]
    >>> order = group_order(torch.tensor([7]), config.grid, sizes)
    >>> decode(LPD(config), torch.tensor([2]), sizes, order, temperature=0).shape
    torch.Size([1, 16])
    """
    request = check_request(
        model, class_labels, group_sizes, order, uniform, cfg_scale, cfg_schedule, temperature,
        top_k, top_p, known_tokens, forced_tokens,
    )  # fmt: skip
    kernels = kernels_for(model.device) if kernels is None else kernels
    guided = request.cfg_scale is not None
    labels = class_labels
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, UNCONDITIONAL)])
    cache = _Cache.empty(model, len(labels), request.max_kv_len)
    cu = [request.num_known + begin for begin in cu_group_sizes(request.group_sizes)]
    all_logits = []

    def both_halves(rows: Tensor) -> Tensor:
        return rows.repeat(2, 1, 1) if guided else rows

    context = model.embed_class(labels)
    tokens = torch.full_like(order, -1)
    fed_back = tokens if forced_tokens is None else forced_tokens
    if known_tokens is not None:
        tokens.copy_(known_tokens)
        positions = order[:, : request.num_known]
        rows = model.embed_context(known_tokens.gather(1, positions), positions)
        context = torch.cat([context, both_halves(rows)], dim=1)

    for step in range(len(request.group_sizes)):
        if step > 0:
            decoded = order[:, cu[step - 1] : cu[step]]
            context = both_halves(model.embed_context(fed_back.gather(1, decoded), decoded))
        group = slice(cu[step], cu[step + 1])
        positions = order[:, group]
        rows = torch.cat([context, both_halves(model.embed_queries(positions))], dim=1)
        attend = cache.attend(kernels, context_len=context.shape[1])
        logits = model.logits(model.transform(rows, attend)[:, context.shape[1] :])
        cache.length += context.shape[1]

        scale = None if request.cfg_scale is None else request.cfg_scale[:, group]
        drawn = slice(group.start - request.num_known, group.stop - request.num_known)
        ids = kernels.token_selection(
            logits,
            request.uniform[:, drawn],
            cfg_scale=scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        tokens.scatter_(1, positions, ids)
        if return_logits:
            all_logits.append(logits if scale is None else guide(logits, scale))
        if progress is not None:
            progress(step + 1, len(request.group_sizes), tokens.clone())

    raise_for_invalid(tokens, order, cu)
    return (tokens, torch.cat(all_logits, dim=1)) if return_logits else tokens


@dataclass
class _Cache:
    """Static K/V of all layers; beyond `length` nothing is ever read."""

    keys: list[Tensor]  # a layer: [batch, num_heads, max_kv_len, head_dim]
    values: list[Tensor]  # the same
    length: int = 0

    @staticmethod
    def empty(model: LPD, batch: int, max_kv_len: int) -> _Cache:
        c = model.config
        shape = (batch, c.num_heads, max_kv_len, c.head_dim)

        def layers() -> list[Tensor]:
            return [
                torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(c.depth)
            ]

        return _Cache(layers(), layers())

    def attend(self, kernels: Kernels, context_len: int) -> Callable[[int, Tensor], Tensor]:
        cache_len = self.length

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return kernels.group_attention(
                qkv, self.keys[layer], self.values[layer], cache_len, context_len
            )

        return attend


def guide(logits: Tensor, scale: Tensor) -> Tensor:
    """Return the guided logits of stacked halves, as a caller who asked for logits sees them."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale[..., None] * (conditional - unconditional)


def raise_for_invalid(tokens: Tensor, order: Tensor, cu: Sequence[int]) -> None:
    """Raise for the first id -1 in decoding order; `cu` holds where each group begins in it."""
    invalid = (tokens.gather(1, order) < 0).nonzero()
    if len(invalid):
        image, place = invalid[0].tolist()
        step = sum(begin <= place for begin in cu) - 1
        raise InvalidLogitsError(image, step)
