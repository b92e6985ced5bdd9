"""What `decode` was asked for, checked once before the loop starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpd_ext.models.lpd import LPD, UNCONDITIONAL

_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class DecodeRequest:
    """The arguments of `decode` that the loop reads in another form than they came in."""

    group_sizes: list[int]
    num_known: int
    uniform: Tensor  # float64 [batch, num_generated]
    cfg_scale: Tensor | None  # float32 [batch, seq_len] in generation order; None = no guidance

    @property
    def max_kv_len(self) -> int:
        """Keys ever stored: class, known and all groups but the last, which is never encoded."""
        return 1 + self.num_known + sum(self.group_sizes[:-1])


def check_request(
    model: LPD,
    class_labels: Tensor,
    group_sizes: Sequence[int],
    order: Tensor,
    uniform: Tensor | None,
    cfg_scale: float | Tensor,
    cfg_schedule: str,
    temperature: float | Tensor,
    known_tokens: Tensor | None,
    forced_tokens: Tensor | None,
) -> DecodeRequest:
    """Check the arguments of `decode`; see there for shapes, dtypes and errors."""
    c = model.config
    batch = class_labels.shape[0] if class_labels.dim() else 0
    _check_tensor(model, "class_labels", class_labels, torch.int64, (batch,))
    if batch == 0:
        raise ValueError("decode: argument `class_labels`: expected at least one image, got none")
    _check_range("class_labels", class_labels, UNCONDITIONAL, c.num_classes)
    _check_tensor(model, "order", order, torch.int64, (batch, c.seq_len))
    raster = torch.arange(c.seq_len, device=order.device)
    no_permutation = (order.sort(1).values != raster).any(1).nonzero()
    if len(no_permutation):
        raise ValueError(
            f"decode: argument `order`: expected a permutation of 0..{c.seq_len - 1} an image, "
            f"got none in image {int(no_permutation[0])}"
        )
    num_known = 0
    if known_tokens is not None:
        num_known = _count_known(model, known_tokens, order)
    sizes = [int(size) for size in group_sizes]
    num_generated = c.seq_len - num_known
    if not sizes or min(sizes) < 1 or sum(sizes) != num_generated:
        raise ValueError(
            "decode: argument `group_sizes`: expected positive sizes that sum to "
            f"{num_generated}, got {sizes} (sum {sum(sizes)})"
        )
    if forced_tokens is not None:
        _check_tensor(model, "forced_tokens", forced_tokens, torch.int64, (batch, c.seq_len))
        _check_range("forced_tokens", forced_tokens, 0, c.vocab_size)
    return DecodeRequest(
        group_sizes=sizes,
        num_known=num_known,
        uniform=_checked_uniform(model, uniform, temperature, (batch, num_generated)),
        cfg_scale=_guidance(model, cfg_scale, cfg_schedule, batch),
    )


def _count_known(model: LPD, known_tokens: Tensor, order: Tensor) -> int:
    c = model.config
    _check_tensor(model, "known_tokens", known_tokens, torch.int64, tuple(order.shape))
    _check_range("known_tokens", known_tokens, -1, c.vocab_size)
    known = known_tokens >= 0
    counts = known.sum(1)
    num_known = int(counts[0])
    if bool((counts != num_known).any()) or num_known == c.seq_len:
        raise ValueError(
            "decode: argument `known_tokens`: expected the same number of known positions in "
            f"every image and at least one unknown, got {counts.tolist()} of {c.seq_len}"
        )
    if not bool(known.gather(1, order[:, :num_known]).all()):
        raise ValueError(
            f"decode: argument `order`: expected the {num_known} known positions of "
            "`known_tokens` first, got another position among them"
        )
    return num_known


def _checked_uniform(
    model: LPD, uniform: Tensor | None, temperature: float | Tensor, shape: tuple[int, int]
) -> Tensor:
    if uniform is None:
        if isinstance(temperature, Tensor) or temperature != 0:
            raise ValueError(
                f"decode: argument `uniform`: expected float64 {list(shape)} (it may be left out "
                "only where `temperature` is the number 0), got None"
            )
        return torch.zeros(shape, dtype=torch.float64, device=model.device)
    _check_tensor(model, "uniform", uniform, torch.float64, shape)
    if not bool(((uniform >= 0) & (uniform < 1)).all()):
        raise ValueError("decode: argument `uniform`: expected numbers in [0, 1), got others")
    return uniform


def _guidance(
    model: LPD, cfg_scale: float | Tensor, cfg_schedule: str, batch: int
) -> Tensor | None:
    if cfg_schedule not in _SCHEDULES:
        raise ValueError(
            f"decode: argument `cfg_schedule`: expected one of {_SCHEDULES}, got {cfg_schedule!r}"
        )
    if isinstance(cfg_scale, Tensor):
        _check_tensor(model, "cfg_scale", cfg_scale, torch.float32, (batch,))
        finite = bool(cfg_scale.isfinite().all())
    else:
        finite = math.isfinite(cfg_scale)
    if not finite:
        raise ValueError(f"decode: argument `cfg_scale`: expected finite values, got {cfg_scale}")
    if not isinstance(cfg_scale, Tensor):
        if cfg_scale == 1:
            return None
        cfg_scale = torch.full((batch,), cfg_scale, dtype=torch.float32, device=model.device)
    seq_len = model.config.seq_len
    scale = cfg_scale.double()[:, None].expand(batch, seq_len)
    if cfg_schedule == "linear":
        j = torch.arange(seq_len, dtype=torch.float64, device=model.device)
        scale = 1 + (scale - 1) * (j / seq_len)
    return scale.float()


def _check_tensor(
    model: LPD, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"decode: argument `{name}`: expected {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(
            f"decode: argument `{name}`: expected shape {list(shape)}, got {list(tensor.shape)}"
        )
    if tensor.device != model.device:
        raise ValueError(
            f"decode: argument `{name}`: expected the model's device {model.device}, "
            f"got {tensor.device}"
        )


def _check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    if tensor.numel() and not (low <= int(tensor.min()) and int(tensor.max()) < high):
        raise ValueError(
            f"decode: argument `{name}`: expected values in [{low}, {high}), "
            f"got [{int(tensor.min())}, {int(tensor.max())}]"
        )
