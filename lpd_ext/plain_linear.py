"""A linear layer as torch's matrix products take it: a copy of its own in one dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lpd_ext.checks import check_shape, fail
from lpd_ext.ops.launch import Launch

_OWNER = "PlainLinear"


@dataclass(frozen=True)
class PlainLinear:
    """Weight ``[out_features, in_features]`` and bias ``[out_features]``, of one dtype."""

    weight: Tensor
    bias: Tensor

    def product(self, x: Tensor, *, with_bias: bool = False, out: Tensor) -> Launch:
        """Return the launch of ``out = x @ weight.T``, plus bias if asked for.

        `x` and `out` are contiguous, their last dimension holds the features.
        """
        rows, product = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
        weight, bias = self.weight.t(), self.bias

        def launch() -> None:
            if with_bias:
                torch.addmm(bias, rows, weight, out=product)
            else:
                torch.mm(rows, weight, out=product)

        return launch


def copy_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    into: PlainLinear | None = None,
) -> PlainLinear:
    """Copy a linear layer, into the same memory where there is some; no bias is one of zeros."""
    if into is None:
        into = PlainLinear(
            torch.empty(weight.shape, dtype=dtype, device=weight.device),
            torch.empty(weight.shape[0], dtype=dtype, device=weight.device),
        )
    if into.weight.device != weight.device:
        fail(ValueError, _OWNER, "weight", f"one on {into.weight.device}, as before", weight.device)
    check_shape(_OWNER, "weight", weight, tuple(into.weight.shape), "[out_features, in_features]")
    into.weight.copy_(weight)
    if bias is None:
        into.bias.zero_()
    else:
        into.bias.copy_(bias)
    return into
