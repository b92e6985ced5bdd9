"""The kernels a decode loop runs on, as a value: compiled operators or their plain-torch twins."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lpd_ext import ops
from lpd_ext.ops import reference


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
