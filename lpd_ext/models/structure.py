"""What a module consists of, and whether it still does: asked before every planned decode."""

from __future__ import annotations

from typing import Any

from torch import nn


class Structure:
    """Which modules and parameters a module consisted of at one moment, and of which classes.

    Parameters
    ----------
    model : nn.Module
        Read now.

    Notes
    -----
    Neither values nor settings such as an epsilon or ``training`` belong to it.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        holders = [held for m in modules for held in (m._modules, m._parameters)]
        self._sizes = [(holder, len(holder)) for holder in holders]
        self._held = [(holder, *item) for holder in holders for item in holder.items()]
        self._classes = [(module, type(module)) for module in modules]
        self._own: list[dict[str, Any]] = [vars(module) for module in modules]
        self._hooks: list[dict[Any, Any]] = [
            hooks
            for module in modules
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]

    def holds(self) -> bool:
        """Return whether it still consists of the same ones."""
        for holder, size in self._sizes:
            if len(holder) != size:
                return False
        for holder, key, value in self._held:
            if holder.get(key) is not value:
                return False
        return all(module.__class__ is kind for module, kind in self._classes)

    def has_hooks(self) -> bool:
        """Return whether calls of a part of it run something else than its class says."""
        return any(self._hooks) or any("forward" in own for own in self._own)
