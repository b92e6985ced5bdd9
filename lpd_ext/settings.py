"""How images are drawn: the settings of a pipeline call, checked where they are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from lpd_ext.checks import check_int, fail
from lpd_ext.decode_request import CFG_SCHEDULES, RANGES
from lpd_ext.orders import ORDERS

Numbers: TypeAlias = float | tuple[float, ...]
"""A number for all images of a call, or one an image."""

PerImage: TypeAlias = float | Sequence[float] | Tensor
"""`Numbers` as a caller may give them: any sequence, an array or a tensor."""

PER_IMAGE = {name: dtype for name, (dtype, *_) in RANGES.items()}
"""The settings that may differ among the images of a call, and their dtypes."""

GIVEN_ORDER = "given"
"""The order of a call that was given its orders as a tensor, in the settings it returns."""

_OWNER = "LPDPipeline"


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of a generation; a model carries its recommended ones as defaults.

    Parameters
    ----------
    num_steps : int
        Forward passes an image, 1 to the model's seq_len.
    order : str
        A name in `lpd_ext.orders.ORDERS`, or ``"given"`` where a call was given its orders.
    repulsion_threshold : int
        Of the order ``"locality"``; others ignore it.
    cfg_scale : float or tuple[float, ...]
        Classifier-free guidance. The number 1 runs no unconditional half.
    cfg_schedule : str
        ``"linear"`` (guidance grows from 1 to `cfg_scale`) or ``"constant"``.
    temperature : float or tuple[float, ...]
        At least 0; 0 takes the most likely token.
    top_k : int or tuple[int, ...]
        Tokens kept, 0 = all.
    top_p : float or tuple[float, ...]
        Mass kept, in [0, 1], 1 = all.

    Raises
    ------
    ValueError
        A value is out of range; the message names it.
    TypeError
        A value is of another type.

    Notes
    -----
    A tuple has one value an image of the call.
    """

    num_steps: int = 20
    order: str = "locality"
    repulsion_threshold: int = 2
    cfg_scale: Numbers = 1.0
    cfg_schedule: str = "linear"
    temperature: Numbers = 1.0
    top_k: Numbers = 0
    top_p: Numbers = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, unwrapped(value))
        check_int(_OWNER, "num_steps", self.num_steps, 1)
        check_int(_OWNER, "repulsion_threshold", self.repulsion_threshold, 0)
        _check_choice("order", self.order, (*ORDERS, GIVEN_ORDER))
        _check_choice("cfg_schedule", self.cfg_schedule, CFG_SCHEDULES)
        for name in PER_IMAGE:
            value = getattr(self, name)
            if not isinstance(value, tuple):
                _check_number(name, name, value)
                continue
            for image, entry in enumerate(value):
                _check_number(name, f"{name}[{image}]", entry)

    def check_images(self, count: int) -> None:
        """Raise ValueError unless every tuple has one value for each of `count` images."""
        for name in PER_IMAGE:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != count:
                fail(ValueError, _OWNER, name, f"one value for each of {count} images", len(value))


def unwrapped(value: Any) -> Any:
    """Return the Python number in a NumPy scalar, a 0-d array or a 0-d tensor; else the value."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def as_numbers(name: str, value: PerImage) -> Numbers:
    """Return a number as it is, anything with one number an image as a tuple."""
    value = unwrapped(value)
    if _is_number(value):
        return value  # type: ignore[return-value]  # a number, as just seen
    return tuple(as_list(name, value, "a number or a sequence of numbers"))


def as_list(name: str, value: object, wanted: str) -> list[Any]:
    """Return the entries of a sequence, an array or a 1-d tensor, or raise TypeError."""
    if hasattr(value, "tolist"):  # a tensor or an array; Python numbers come out
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence):
        fail(TypeError, _OWNER, name, wanted, repr(value))
    return [unwrapped(entry) for entry in value]


def image_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Return one seed an image: those given, or `seed`, `seed` + 1 and so on."""
    seed = unwrapped(seed)
    if isinstance(seed, int) and not isinstance(seed, bool):
        seeds = [seed + i for i in range(count)]
    else:
        seeds = as_list("seed", seed, "an int or a sequence of them")
        if len(seeds) != count:
            fail(ValueError, _OWNER, "seed", f"one for each of {count} images", len(seeds))
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int):
            fail(TypeError, _OWNER, "seed", "an int or a sequence of them", repr(value))
        if not -(2**63) <= value < 2**63:
            fail(ValueError, _OWNER, "seed", "64-bit integers", value)
    return seeds


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        fail(TypeError, _OWNER, name, f"one of {', '.join(choices)}", type(value).__name__)
    if value not in choices:
        fail(ValueError, _OWNER, name, f"one of {', '.join(choices)}", repr(value))


def _check_number(name: str, label: str, value: Any) -> None:
    _, low, high, wanted = RANGES[name]
    if not _is_number(value) or (name == "top_k" and not isinstance(value, int)):
        fail(TypeError, _OWNER, label, wanted, repr(value))
    if math.isnan(value) or not low <= value <= high:
        fail(ValueError, _OWNER, label, wanted, repr(value))
