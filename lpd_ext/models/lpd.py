"""The LPD transformer: position query tokens beside context tokens, any set of positions a pass.

Module names follow the published checkpoint keys, so a published state dict loads unchanged.

Source: arXiv 2507.01957, ``models/lpd.py`` of mit-han-lab/lpd@f447b83.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpd_ext.checks import (
    check_permutations,
    check_range,
    check_shape,
    check_tensor,
    checked_group_sizes,
)
from lpd_ext.models.config import LPDConfig

Attend: TypeAlias = Callable[[int, Tensor], Tensor]
"""Attention of one layer: (layer index, packed ``[batch, q_len, 3, num_heads, head_dim]``) ->
``[batch, q_len, num_heads * head_dim]``. The model knows neither caches nor kernels."""

UNCONDITIONAL = -1
"""The class label of an image without one."""

NORM_EPS = 1e-6
"""Of every LayerNorm."""
_NARROW = (torch.bfloat16, torch.float16)


class LPD(nn.Module):
    """Pre-norm transformer over context tokens and position query tokens.

    Parameters
    ----------
    config : LPDConfig
        Shape of the model.

    Notes
    -----
    ``model.to(torch.bfloat16)`` turns weights and matrix products, the head's included, to
    bfloat16; LayerNorm and the residual stream stay float32, and logits are widened to it.

    Examples
    --------
    >>> config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
    >>> model = LPD(config)
    >>> tokens, order = torch.zeros(1, 16, dtype=torch.int64), torch.arange(16)[None]
    >>> model.training_loss(tokens, torch.tensor([2]), [1, 3, 12], order).shape
    torch.Size([])
    """

    def __init__(self, config: LPDConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.fake_latent = nn.Parameter(torch.empty(1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, config.seq_len + 1, dim))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))  # the position query token
        self.class_emb = nn.Embedding(config.num_classes, dim)
        self.token_emb = nn.Embedding(config.vocab_size, dim)
        self.z_proj_ln = _LayerNorm(dim, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = _LayerNorm(dim, eps=NORM_EPS)
        self.head = nn.Linear(dim, config.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and matrix products."""
        return self.head.weight.dtype

    def embed_class(self, class_labels: Tensor) -> Tensor:
        """Return the class row ``[batch, 1, dim]``; label -1 means unconditional."""
        known = class_labels >= 0
        embedding = self.class_emb(class_labels.clamp(min=0))
        x = torch.where(known[:, None], embedding, self.fake_latent.to(embedding.dtype))
        return self._embed(x[:, None], self.pos_embed[:, :1])

    def embed_context(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return rows ``[batch, n, dim]`` of decoded tokens; an invalid id -1 reads as token 0."""
        x = self.token_emb(tokens.clamp(min=0))
        return self._embed(x, self.pos_embed[0, 1 + positions])

    def embed_queries(self, positions: Tensor) -> Tensor:
        """Return rows ``[batch, n, dim]`` that ask for the tokens at raster `positions`."""
        return self._embed(self.mask_token, self.pos_embed[0, 1 + positions])

    def transform(self, x: Tensor, attend: Attend) -> Tensor:
        """Run all blocks over rows ``[batch, q_len, dim]``."""
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Return float32 logits ``[..., vocab_size]`` of transformed rows."""
        return _at_least_float32(self.head(self.norm(x).to(self.dtype)))

    def training_loss(
        self, tokens: Tensor, class_labels: Tensor, group_sizes: Sequence[int], order: Tensor
    ) -> Tensor:
        """Return the mean cross-entropy of all query rows under teacher forcing, in one pass.

        Parameters
        ----------
        tokens : Tensor
            int64 ``[batch, seq_len]`` in raster order.
        class_labels : Tensor
            int64 ``[batch]``; -1 drops the label.
        group_sizes : Sequence[int]
            Sums to seq_len; the same for the whole batch.
        order : Tensor
            int64 ``[batch, seq_len]``, a permutation of raster positions an image.

        Returns
        -------
        Tensor
            float32 scalar.

        Raises
        ------
        ValueError
            If a shape or a value does not fit or `group_sizes` do not sum to seq_len.
        TypeError
            If an argument holds no int64 numbers.

        Notes
        -----
        Rows are ``[class, group 0 .. n-2 | queries of group 0 .. n-1]``.
        Source: "Training" of arXiv 2507.01957.
        """
        seq_len = self.config.seq_len
        op = "LPD.training_loss"
        sizes = checked_group_sizes(op, group_sizes, seq_len)
        names, ints = "[batch, seq_len]", (torch.int64,)
        check_tensor(op, "tokens", tokens, ints, names, 2)
        check_shape(op, "tokens", tokens, (tokens.shape[0], seq_len), names)
        check_range(op, "tokens", tokens, 0, self.config.vocab_size)
        check_tensor(op, "class_labels", class_labels, ints, "[batch]", 1)
        check_shape(op, "class_labels", class_labels, tokens.shape[:1], "[batch]")
        check_range(op, "class_labels", class_labels, UNCONDITIONAL, self.config.num_classes)
        check_tensor(op, "order", order, ints, names, 2)
        check_shape(op, "order", order, tokens.shape, names)
        check_permutations(op, "order", order)
        targets = tokens.gather(1, order)
        num_context = 1 + seq_len - sizes[-1]
        fed = num_context - 1
        rows = torch.cat(
            [
                self.embed_class(class_labels),
                self.embed_context(targets[:, :fed], order[:, :fed]),
                self.embed_queries(order),
            ],
            dim=1,
        )
        mask = training_mask(sizes, device=rows.device)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            # Context rows never see queries: attending apart saves their half of the mask.
            rows_of = [num_context, seq_len]
            q_context, q_queries = q.split(rows_of, dim=2)
            out_context = F.scaled_dot_product_attention(
                q_context,
                k.split(rows_of, dim=2)[0],
                v.split(rows_of, dim=2)[0],
                attn_mask=mask[:num_context, :num_context],
            )
            out_queries = F.scaled_dot_product_attention(
                q_queries, k, v, attn_mask=mask[num_context:]
            )
            return torch.cat([out_context, out_queries], dim=2).transpose(1, 2).flatten(2)

        logits = self.logits(self.transform(rows, attend)[:, num_context:])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _embed(self, x: Tensor, position_embedding: Tensor) -> Tensor:
        x = _at_least_float32(x) + _at_least_float32(position_embedding)
        return self.z_proj_ln(x)  # type: ignore[no-any-return]


def training_mask(group_sizes: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return who may attend to whom in one teacher-forced pass.

    Parameters
    ----------
    group_sizes : Sequence[int]
        Sizes of the n groups.
    device : torch.device, optional
        Where the mask goes.

    Returns
    -------
    Tensor
        bool ``[rows, rows]`` with rows ``[class, group 0 .. n-2 | queries of group 0 .. n-1]``,
        True = may attend. A row sees the context rows of all earlier groups; a context row also
        its own group, a query row also the queries of its own group.
    """
    step = torch.arange(len(group_sizes), device=device)
    sizes = torch.tensor(group_sizes, device=device)
    # Step k encodes context k (the class row for k = 0, else group k-1) and queries group k.
    context_step = step.repeat_interleave(torch.cat([sizes.new_ones(1), sizes[:-1]]))
    query_step = step.repeat_interleave(sizes)
    row_step = torch.cat([context_step, query_step])
    sees_context = row_step[:, None] >= context_step
    is_query = torch.arange(len(row_step), device=device)[:, None] >= len(context_step)
    sees_queries = is_query & (row_step[:, None] == query_step)
    return torch.cat([sees_context, sees_queries], dim=1)


def cu_group_sizes(group_sizes: Sequence[int]) -> list[int]:
    """Return the prefix sums of group sizes, the first 0."""
    return [0, *accumulate(group_sizes)]


class Block(nn.Module):
    """Attention, then MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = _LayerNorm(dim, eps=NORM_EPS)
        self.attn = _Attention(dim, num_heads)
        self.norm2 = _LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _MLP(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        """Return rows ``[batch, q_len, dim]`` after both."""
        dtype = self.mlp.fc1.weight.dtype
        x = x + self.attn(self.norm1(x).to(dtype), layer, attend)
        return x + self.mlp(self.norm2(x).to(dtype))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.packed = (3, num_heads, dim // num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        return self.proj(attend(layer, self.qkv(x).unflatten(-1, self.packed)))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class _LayerNorm(nn.LayerNorm):
    """LayerNorm whose parameters stay float32 when the model goes to a narrower dtype.

    Those that are narrow none the less, as of a published model, are widened to the rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _LayerNorm:
        def apply_but_stay_wide(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in _NARROW else moved

        super()._apply(apply_but_stay_wide, recurse)  # type: ignore[no-untyped-call]
        return self


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _NARROW else x
