"""What torch lets its CUDA libraries round to fewer bits than the dtypes say, switched off a while.

The settings are those of the whole process, so other threads have them, too, until the last block
ends. What is captured inside a block keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_WITH_LIBRARIES = ("cuda",)


class _SwitchedOff:
    """A setting that the first of all blocks changes and the last one puts back.

    Parameters
    ----------
    change : Callable
        Switches it off and returns what puts it back.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._lock = Lock()
        self._blocks: int = 0
        self._put_back: Callable[[], None] = lambda: None

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        """Keep it off for launches on a device, if that is a GPU."""
        if device.type not in _WITH_LIBRARIES:
            yield
            return
        with self._lock:
            if self._blocks == 0:
                self._put_back = self._change()
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if self._blocks == 0:
                    self._put_back()


def _without_tf32() -> Callable[[], None]:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # of torch itself
    before = convolutions.fp32_precision

    def put_back() -> None:
        convolutions.fp32_precision = before

    convolutions.fp32_precision = "ieee"
    return put_back


def _with_float32_sums() -> Callable[[], None]:
    products = torch.backends.cuda.matmul
    rounded = products.allow_bf16_reduced_precision_reduction
    splits = products.allow_bf16_reduced_precision_reduction_split_k

    def put_back() -> None:
        products.allow_bf16_reduced_precision_reduction = (rounded, splits)

    products.allow_bf16_reduced_precision_reduction = (False, splits)
    return put_back


float32_convolutions = _SwitchedOff(_without_tf32)
"""Convolutions of float32 stay float32: by default cuDNN may round their inputs to the 10 bits of
TF32. Matrix products are float32 by default; `torch.set_float32_matmul_precision` holds for them
here as elsewhere."""

float32_sums = _SwitchedOff(_with_float32_sums)
"""Products of bfloat16 matrices are summed in float32: by default cuBLAS may round to bfloat16 in
between, where it splits a sum."""
