"""What all operators share: where they run, and their launch time and again."""

from collections.abc import Callable
from typing import TypeAlias

import torch

# An operator bound to its arguments: checked once, run on what they then hold.
Launch: TypeAlias = Callable[[], object]


def device_types(op: str) -> tuple[str, ...]:
    """Return the types of device that this build has a kernel of ``lpd_ext::op`` for."""
    built = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(kind for kind in ("cpu", "cuda") if built(f"lpd_ext::{op}", kind.upper()))
