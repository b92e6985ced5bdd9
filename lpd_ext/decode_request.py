"""What `decode` was asked for, checked once before the loop starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_device,
    check_float,
    check_int,
    check_permutations,
    check_range,
    check_shape,
    check_tensor,
    checked_group_sizes,
    fail,
)
from lpd_ext.models.lpd import LPD, UNCONDITIONAL

CFG_SCHEDULES = ("linear", "constant")
"""How guidance runs over the tokens of an image; see `decode`."""

_MAX_FLOAT32 = torch.finfo(torch.float32).max
RANGES: dict[str, tuple[torch.dtype, float, float, str]] = {
    "cfg_scale": (torch.float32, -_MAX_FLOAT32, _MAX_FLOAT32, "a finite number"),
    "temperature": (torch.float32, 0, _MAX_FLOAT32, "a finite number of at least 0"),
    "top_k": (torch.int64, 0, 2**63 - 1, "an integer of at least 0"),
    "top_p": (torch.float32, 0, 1, "a number in [0, 1]"),
}
"""What may differ among the images of a batch: dtype, least, most, and these in words."""

_OP = "decode"


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
    top_k: int | Tensor,
    top_p: float | Tensor,
    known_tokens: Tensor | None,
    forced_tokens: Tensor | None,
    *,
    planned_known: int | None = None,
) -> DecodeRequest:
    """Check the arguments of `decode`; see there for shapes, dtypes and errors.

    A plan says how many positions of an image are known in all its calls.
    """
    c = model.config
    check_tensor(_OP, "class_labels", class_labels, (torch.int64,), "[batch]", 1)
    check_device(_OP, "class_labels", class_labels, model.device)
    batch = len(class_labels)
    check_range(_OP, "class_labels", class_labels, UNCONDITIONAL, c.num_classes)
    _check_tensor(model, "order", order, torch.int64, "[batch, seq_len]", (batch, c.seq_len))
    check_permutations(_OP, "order", order)
    num_known = 0
    if known_tokens is not None:
        num_known = _count_known(model, known_tokens, order)
    if planned_known not in (None, num_known):
        wanted = f"{planned_known} known positions an image, as planned"
        fail(ValueError, _OP, "known_tokens", wanted, num_known)
    num_generated = c.seq_len - num_known
    if forced_tokens is not None:
        shape = (batch, c.seq_len)
        _check_tensor(model, "forced_tokens", forced_tokens, torch.int64, "[batch, seq_len]", shape)
        check_range(_OP, "forced_tokens", forced_tokens, 0, c.vocab_size)
    _check_per_image(model, "temperature", temperature, batch)
    _check_per_image(model, "top_k", top_k, batch)
    _check_per_image(model, "top_p", top_p, batch)
    return DecodeRequest(
        group_sizes=checked_group_sizes(_OP, group_sizes, num_generated),
        num_known=num_known,
        uniform=_checked_uniform(model, uniform, temperature, (batch, num_generated)),
        cfg_scale=_guidance(model, cfg_scale, cfg_schedule, batch),
    )


def _count_known(model: LPD, known_tokens: Tensor, order: Tensor) -> int:
    c = model.config
    shape = tuple(order.shape)
    _check_tensor(model, "known_tokens", known_tokens, torch.int64, "[batch, seq_len]", shape)
    check_range(_OP, "known_tokens", known_tokens, -1, c.vocab_size)
    known = known_tokens >= 0
    counts = known.sum(1)
    num_known = int(counts[0])
    if bool((counts != num_known).any()) or num_known == c.seq_len:
        wanted = "the same number of known positions in every image and at least one unknown"
        fail(ValueError, _OP, "known_tokens", wanted, f"{counts.tolist()} of {c.seq_len}")
    if not bool(known.gather(1, order[:, :num_known]).all()):
        wanted = f"the {num_known} known positions of `known_tokens` first"
        fail(ValueError, _OP, "order", wanted, "another position among them")
    return num_known


def _checked_uniform(
    model: LPD, uniform: Tensor | None, temperature: float | Tensor, shape: tuple[int, int]
) -> Tensor:
    if uniform is None:
        if isinstance(temperature, Tensor) or temperature != 0:
            wanted = (
                f"float64 {list(shape)} (it may be left out only where `temperature` is the "
                "number 0)"
            )
            fail(ValueError, _OP, "uniform", wanted, None)
        return torch.zeros(shape, dtype=torch.float64, device=model.device)
    _check_tensor(model, "uniform", uniform, torch.float64, "[batch, num_generated]", shape)
    if not bool(((uniform >= 0) & (uniform < 1)).all()):
        fail(ValueError, _OP, "uniform", "numbers in [0, 1)", "others")
    return uniform


def _guidance(
    model: LPD, cfg_scale: float | Tensor, cfg_schedule: str, batch: int
) -> Tensor | None:
    if cfg_schedule not in CFG_SCHEDULES:
        wanted = f"one of {', '.join(CFG_SCHEDULES)}"
        fail(ValueError, _OP, "cfg_schedule", wanted, repr(cfg_schedule))
    _check_per_image(model, "cfg_scale", cfg_scale, batch)
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


def _check_per_image(model: LPD, name: str, value: Any, batch: int) -> None:
    dtype, least, most, wanted = RANGES[name]
    if isinstance(value, Tensor):
        _check_tensor(model, name, value, dtype, "[batch]", (batch,))
        if not bool(((value >= least) & (value <= most)).all()):
            fail(ValueError, _OP, name, wanted, value.tolist())
        return
    if dtype == torch.int64:
        check_int(_OP, name, value, int(least))
    else:
        check_float(_OP, name, value)
    if not least <= value <= most:
        fail(ValueError, _OP, name, wanted, value)


def _check_tensor(
    model: LPD, name: str, tensor: Tensor, dtype: torch.dtype, names: str, shape: tuple[int, ...]
) -> None:
    check_tensor(_OP, name, tensor, (dtype,), names, len(shape))
    check_shape(_OP, name, tensor, shape, names)
    check_device(_OP, name, tensor, model.device)
