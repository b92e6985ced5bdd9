"""Shapes and memory of a planned decode."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpd_ext.checks import check_int, checked_group_sizes, fail, naming_memory
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD, cu_group_sizes
from lpd_ext.packed_model import Products, check_model, checked_products

_OWNER = "DecodePlan"
BLOCK = 32
"""Features of a block of rows, for `lpd_ext.ops.fused_linear`."""


@dataclass(frozen=True)
class PlanShape:
    """What a plan is built for, and the sizes that follow from it."""

    config: LPDConfig
    batch_size: int
    group_sizes: tuple[int, ...]
    guided: bool
    dtype: torch.dtype
    products: Products

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

    @property
    def in_blocks(self) -> bool:
        """Whether the residual stream lies in blocks of features, as own products like it best."""
        return self.products == "own" and self.config.dim % BLOCK == 0

    @property
    def logits_dtype(self) -> torch.dtype:
        """Own products end in float32; what rounds to the products' dtype is not widened."""
        return torch.float32 if self.products == "own" else self.dtype

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the buffers by purpose."""
        c, size = self.config, self.dtype.itemsize
        rows = self.sequences * self.max_q_len
        images = self.batch_size
        return {
            "requests": images * (c.seq_len * (3 * 8 + 4) + sum(self.group_sizes) * 8 + 4 + 8 + 4),
            "caches": 2 * c.depth * self.sequences * self.max_kv_len * c.dim * size,
            "activations": rows * c.dim * (4 + (4 + c.mlp_ratio) * size),
            "logits": self.sequences
            * max(self.group_sizes)
            * c.vocab_size
            * self.logits_dtype.itemsize,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        guided = "guided" if self.guided else "not guided"
        sizes = ", ".join(f"{what} {size / 2**20:.1f} MiB" for what, size in self.sizes.items())
        return f"batch_size {self.batch_size}, {guided}, {self.dtype}: {sizes}"


def plan_shape(
    model: LPD,
    batch_size: int,
    group_sizes: Sequence[int],
    guided: bool,
    dtype: torch.dtype | None,
    products: Products | None,
) -> PlanShape:
    """Check what a plan is asked for; see `lpd_ext.DecodePlan` for types and errors."""
    dtype = check_model(_OWNER, model, dtype)
    products = checked_products(_OWNER, model, products)
    check_int(_OWNER, "batch_size", batch_size, 1)
    if not isinstance(guided, bool):
        fail(TypeError, _OWNER, "guided", "a bool", type(guided).__name__)
    sizes = checked_group_sizes(_OWNER, group_sizes, model.config.seq_len, or_fewer=True)
    return PlanShape(model.config, batch_size, tuple(sizes), guided, dtype, products)


class PlanBuffers:
    """The tensors of a plan: what a call brings, what passes between operators, the caches."""

    def __init__(self, shape: PlanShape, device: torch.device) -> None:
        c, batch, dtype = shape.config, shape.batch_size, shape.dtype
        rows = shape.sequences * shape.max_q_len

        def new(*sizes: int, dtype: torch.dtype) -> Tensor:
            # Under inference_mode the buffers could be written nowhere else.
            with torch.inference_mode(False), naming_memory(_OWNER, str(shape)):
                if shape.nbytes > sys.maxsize:  # torch would speak of an overflow
                    raise MemoryError
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
        self._hidden = new(rows * c.mlp_ratio * c.dim, dtype=dtype)
        widest = shape.sequences * max(shape.group_sizes)
        self._logits = new(widest * c.vocab_size, dtype=shape.logits_dtype)
        # Each layer has storages of its own: torch 2.11 compiles views at an offset wrongly.
        sizes = (shape.sequences, c.num_heads, shape.max_kv_len, c.head_dim)
        self.keys = [new(*sizes, dtype=dtype) for _ in range(c.depth)]
        self.values = [new(*sizes, dtype=dtype) for _ in range(c.depth)]
        self.shape = shape

        self.take_any()

    def take_any(self) -> None:
        """Write a request that every model can serve: a plan may run before the first call."""
        for buffer in (self.tokens, self.forced_tokens, self.top_k, self.embedded(0)):
            buffer.zero_()
        for buffer in (self.cfg_scale, self.temperature, self.top_p):
            buffer.fill_(1)
        device = self.order.device
        self.order.copy_(torch.arange(self.order.shape[1], device=device))
        self.uniform.copy_(torch.linspace(0, 1, self.uniform.shape[1] + 1, device=device)[:-1])

    def take(self, name: str, value: float | Tensor) -> None:
        """Write what a call brings: a number, or one row an image; the last one fills the batch."""
        buffer: Tensor = getattr(self, name)
        if not isinstance(value, Tensor):
            buffer.fill_(value)
            return
        _fill(buffer, value)

    def take_class_rows(self, rows: Sequence[Tensor]) -> None:
        """Write the class rows ``[batch, 1, dim]`` of each half."""
        halves = self.embedded(0)[:, :1].chunk(len(rows))
        for half, per_image in zip(halves, rows, strict=True):
            _fill(half, per_image)

    def x(self, step: int) -> Tensor:
        """Rows of the residual stream ``[sequences, q_len, dim]``, whole or to be cut in blocks."""
        return self._rows(self._x, step)

    def embedded(self, step: int) -> Tensor:
        """Rows as they enter, whole: in the memory of `qkv` where the stream lies in blocks."""
        memory = self._qkv.view(torch.float32) if self.shape.in_blocks else self._x
        return self._rows(memory[: len(self._x)], step)

    def qkv(self, step: int) -> Tensor:
        """Projections ``[sequences, q_len, 3 * dim]``."""
        return self._rows(self._qkv, step)

    def product(self, step: int) -> Tensor:
        """Rows ``[sequences, q_len, dim]`` in the memory of `qkv`."""
        return self._rows(self._qkv[: len(self._attended)], step)

    def attended(self, step: int) -> Tensor:
        """Results of the attention ``[sequences, q_len, dim]``."""
        return self._rows(self._attended, step)

    def queries(self, step: int) -> Tensor:
        """Rows ``[sequences, group_size, dim]`` in the memory of `attended`."""
        sizes = (self.shape.sequences, self.shape.group_sizes[step], self.shape.config.dim)
        return self._attended[: math.prod(sizes)].view(sizes)

    def hidden(self, step: int) -> Tensor:
        """Rows inside the MLP ``[sequences, q_len, mlp_ratio * dim]``."""
        return self._rows(self._hidden, step)

    def logits(self, step: int) -> Tensor:
        """Logits ``[sequences, group_size, vocab_size]``."""
        sizes = (self.shape.sequences, self.shape.group_sizes[step], self.shape.config.vocab_size)
        return self._logits[: math.prod(sizes)].view(sizes)

    def _rows(self, buffer: Tensor, step: int) -> Tensor:
        shape = self.shape
        width = buffer.numel() // (shape.sequences * shape.max_q_len)
        rows = (shape.sequences, shape.q_len(step), width)
        return buffer[: rows[0] * rows[1] * width].view(rows)


def _fill(buffer: Tensor, per_image: Tensor) -> None:
    count = len(per_image)
    buffer[:count].copy_(per_image)
    buffer[count:].copy_(per_image[-1:])
