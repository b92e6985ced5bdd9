"""Whether the weights that a plan copied are still those of its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lpd_ext.checks import fail

_SAMPLES = 16  # values compared on the diagonal of a weight, or up to twice as many


class Snapshot:
    """What tells the weights of one moment from those of another.

    Parameters
    ----------
    weights : Mapping[str, Tensor]
        Parameters by name, none of them made under ``torch.inference_mode()``.

    Notes
    -----
    Noticed are other tensors, other memory behind them, every change in place that torch counts,
    and, as it does not count those of fused optimizers, a change of any of a few values of each.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        # The tensors keep their memory, so that no other can get the same address.
        self._weights = {name: parameter.detach() for name, parameter in weights.items()}
        self._marks = _marks(weights.values())
        samples: dict[torch.dtype, list[Tensor]] = {}
        for tensor in self._weights.values():
            samples.setdefault(tensor.dtype, []).append(_sample(tensor))
        self._samples = list(samples.values())
        self._values = self._sampled()

    def holds(self, weights: Mapping[str, Tensor]) -> bool:
        """Return whether these are the same weights, with the same values."""
        if weights.keys() != self._weights.keys():
            return False
        if _marks(weights[name] for name in self._weights) != self._marks:
            return False
        return torch.equal(self._sampled(), self._values)

    def check_shapes(self, op: str, argument: str, weights: Mapping[str, Tensor]) -> None:
        """Demand weights of the same names and shapes."""
        before = {name: list(tensor.shape) for name, tensor in self._weights.items()}
        now = {name: list(tensor.shape) for name, tensor in weights.items()}
        for name in before | now:
            if before.get(name) != now.get(name):
                wanted = f"weight {name} of shape {before.get(name)}, as packed before"
                fail(ValueError, op, argument, wanted, now.get(name))

    def forget(self) -> None:
        """Hold for no weights any more, but keep their shapes."""
        self._values = self._values.new_empty(0)

    def _sampled(self) -> Tensor:
        # One by dtype: of several, each tensor would be copied by itself on a GPU.
        values = [torch.cat(samples).float() for samples in self._samples]
        return torch.cat(values).view(torch.int32)  # as bits: NaN equals NaN


def check_watchable(op: str, argument: str, weights: Mapping[str, Tensor]) -> None:
    """Demand weights whose changes can be noticed."""
    for name, tensor in weights.items():
        if tensor.is_inference():
            wanted = "weights made outside torch.inference_mode(), whose changes can be noticed"
            fail(ValueError, op, argument, wanted, name)


def _sample(tensor: Tensor) -> Tensor:
    """Return a view of a few values all over a weight, of a kernel's those in its middle."""
    line = tensor.squeeze()
    if line.ndim > 1:
        line = line.diagonal()
    while line.ndim > 1:
        line = line[len(line) // 2]
    line = line.reshape(-1)
    return line[:: max(1, len(line) // _SAMPLES)]


def _marks(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """Return what torch changes of tensors when it writes them or gives them other memory."""
    return [(t._version, t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
