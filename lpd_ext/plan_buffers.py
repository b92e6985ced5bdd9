"""Shapes and memory of a planned decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import cu_group_sizes

# Wide rows a power of two apart would compete for the same places of a cache.
_ROW_GAP = 32


@dataclass(frozen=True)
class PlanShape:
    """What a plan is built for, and the sizes that follow from it."""

    config: LPDConfig
    batch_size: int
    group_sizes: tuple[int, ...]
    guided: bool
    dtype: torch.dtype

    @property
    def num_known(self) -> int:
        """Known positions of every image, prefilled in the first step."""
        return self.config.seq_len - sum(self.group_sizes)

    @property
    def sequences(self) -> int:
        """Sequences of a pass: images, twice with guidance."""
        return self.batch_size * (2 if self.guided else 1)

    @property
    def cu(self) -> list[int]:
        """Entry of `order` at which each group begins, and the end."""
        return [self.num_known + begin for begin in cu_group_sizes(self.group_sizes)]

    def context(self, step: int) -> tuple[int, int]:
        """Entries of `order` that are context tokens of a step, from and to."""
        return (0, self.num_known) if step == 0 else (self.cu[step - 1], self.cu[step])

    def context_len(self, step: int) -> int:
        """Context rows of a step; the first has the class row beside the known tokens."""
        begin, end = self.context(step)
        return end - begin + (step == 0)

    def q_len(self, step: int) -> int:
        """Rows of a step."""
        return self.context_len(step) + self.group_sizes[step]

    @property
    def max_q_len(self) -> int:
        """Most rows of a step."""
        return max(self.q_len(step) for step in range(len(self.group_sizes)))

    @property
    def max_kv_len(self) -> int:
        """Keys ever stored: the last group is never context."""
        return 1 + self.cu[-2]

    def nbytes(self) -> dict[str, int]:
        """Bytes of a plan by purpose, the packed weights of its linear layers among them."""
        c, size = self.config, self.dtype.itemsize
        rows = self.sequences * self.max_q_len
        linears = c.depth * (4 + 2 * c.mlp_ratio) * c.dim**2 + c.vocab_size * c.dim
        caches = 2 * c.depth * self.sequences * self.max_kv_len * c.dim
        return {
            "packed weights": linears * size,
            "caches": caches * size,
            "activations": rows * c.dim * (4 + (4 + c.mlp_ratio) * size),
            "logits": self.sequences * max(self.group_sizes) * c.vocab_size * 4,
        }


class PlanBuffers:
    """The tensors of a plan: what a call brings, what passes between operators, the caches."""

    def __init__(self, shape: PlanShape, device: torch.device) -> None:
        c, batch, dtype = shape.config, shape.batch_size, shape.dtype
        rows = shape.sequences * shape.max_q_len

        def new(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(sizes, dtype=dtype, device=device)

        # Of a call.
        self.order = new(batch, c.seq_len, dtype=torch.int64)
        self.tokens = new(batch, c.seq_len, dtype=torch.int64)
        self.forced_tokens = new(batch, c.seq_len, dtype=torch.int64)
        self.uniform = new(batch, sum(shape.group_sizes), dtype=torch.float64)
        self.cfg_scale = new(batch, c.seq_len, dtype=torch.float32)
        self.temperature = new(batch, dtype=torch.float32)
        self.top_k = new(batch, dtype=torch.int64)
        self.top_p = new(batch, dtype=torch.float32)
        # Of a step, each for the widest one.
        self._x = new(rows * c.dim, dtype=torch.float32)
        self._qkv = new(rows * 3 * c.dim, dtype=dtype)
        self._attended = new(rows * c.dim, dtype=dtype)
        self._hidden = new(rows * (c.mlp_ratio * c.dim + _ROW_GAP), dtype=dtype)
        widest = shape.sequences * max(shape.group_sizes)
        self._logits = new(widest * c.vocab_size, dtype=torch.float32)
        # Each layer has storages of its own: torch 2.11 compiles views at an offset wrongly.
        sizes = (shape.sequences, c.num_heads, shape.max_kv_len, c.head_dim)
        self.keys = [new(*sizes, dtype=dtype) for _ in range(c.depth)]
        self.values = [new(*sizes, dtype=dtype) for _ in range(c.depth)]
        self._shape = shape

    def x(self, step: int) -> Tensor:
        """Rows of the residual stream ``[sequences, q_len, dim]``."""
        return self._rows(self._x, step)

    def qkv(self, step: int) -> Tensor:
        """Projections ``[sequences, q_len, 3 * dim]``."""
        return self._rows(self._qkv, step)

    def attended(self, step: int) -> Tensor:
        """Results of the attention ``[sequences, q_len, dim]``."""
        return self._rows(self._attended, step)

    def hidden(self, step: int) -> Tensor:
        """Rows inside the MLP ``[sequences, q_len, mlp_ratio * dim]``."""
        return self._rows(self._hidden, step)[:, :, :-_ROW_GAP]

    def logits(self, step: int) -> Tensor:
        """Logits ``[sequences, group_size, vocab_size]``."""
        shape = self._shape
        sizes = (shape.sequences, shape.group_sizes[step], shape.config.vocab_size)
        return self._logits[: sizes[0] * sizes[1] * sizes[2]].view(sizes)

    def _rows(self, buffer: Tensor, step: int) -> Tensor:
        shape = self._shape
        width = buffer.numel() // (shape.sequences * shape.max_q_len)
        rows = (shape.sequences, shape.q_len(step), width)
        return buffer[: rows[0] * rows[1] * width].view(rows)
