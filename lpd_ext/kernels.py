"""The kernels a decode loop runs on, as a value: compiled operators or their plain-torch twins."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lpd_ext import ops
from lpd_ext.ops import reference
from lpd_ext.verdicts import trusted


class GroupAttention(Protocol):
    """Signature of `lpd_ext.group_attention`."""

    def __call__(
        self,
        qkv: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        cache_len: int,
        context_len: int,
        *,
        scale: float | None = None,
    ) -> Tensor:
        """Append context K/V and attend."""


class TokenSelection(Protocol):
    """Signature of `lpd_ext.token_selection`."""

    def __call__(
        self,
        logits: Tensor,
        uniform: Tensor,
        *,
        cfg_scale: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        top_k: int | Tensor = 0,
        top_p: float | Tensor = 1.0,
    ) -> Tensor:
        """Choose one token a query row."""


@dataclass(frozen=True)
class Kernels:
    """What `decode` needs of a backend.

    Parameters
    ----------
    name : str
        For reports.
    group_attention, token_selection : callable
        With the semantics of the public operators.
    """

    name: str
    group_attention: GroupAttention
    token_selection: TokenSelection


OPS = Kernels("ops", ops.group_attention, ops.token_selection)
REFERENCE = Kernels("reference", reference.group_attention, reference.token_selection)


def kernels_for(device: torch.device) -> Kernels:
    """Choose the kernels of a device: each op that is known to be right there, else its reference.

    Parameters
    ----------
    device : torch.device
        Where the tensors are.

    Returns
    -------
    Kernels
        `OPS` on the CPU, whose kernels the test-suite runs. On the first use of another device
        every op is checked (`lpd_ext.verdicts`); one that fails or has no kernel there is replaced,
        and `name` says so.

    Warns
    -----
    RuntimeWarning
        An op failed its check. One that has no kernel for the device is no failure.

    Examples
    --------
    >>> kernels_for(torch.device("cpu")).name
    'ops'
    """
    device = torch.empty(0, device=device).device  # "cuda" with its index
    replaced: dict[str, Any] = {
        op: getattr(REFERENCE, op)
        for op in ("group_attention", "token_selection")
        if not trusted(op, device)
    }
    return replace(OPS, name=" and reference ".join([OPS.name, *replaced]), **replaced)
