"""Classes by number or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lpd_ext.checks import fail
from lpd_ext.models.lpd import UNCONDITIONAL

ClassLabel: TypeAlias = int | str | None
"""A class by number or name; -1, None and "unconditional" ask for an image of no given class."""

UNCONDITIONAL_NAME = "unconditional"
_OWNER = "LPDPipeline"


class ClassNames:
    """The classes of a model, with or without names.

    Parameters
    ----------
    num_classes : int
        How many there are.
    names : Sequence[str], optional
        One a class, all different; upper and lower case are alike.

    Raises
    ------
    ValueError
        Another number of names than of classes, or two that read alike.
    TypeError
        A name is no string.
    """

    def __init__(self, num_classes: int, names: Sequence[str] | None) -> None:
        self.num_classes = num_classes
        self.names = None if names is None else tuple(names)
        self._labels = {UNCONDITIONAL_NAME: UNCONDITIONAL}
        if self.names is None:
            return
        if not all(isinstance(name, str) for name in self.names):
            fail(TypeError, _OWNER, "class_names", "strings", list(self.names))
        self._labels |= {name.casefold(): label for label, name in enumerate(self.names)}
        if len(self.names) != num_classes:
            fail(ValueError, _OWNER, "class_names", f"{num_classes} names", len(self.names))
        if len(self._labels) != num_classes + 1:
            wanted = f'different names, none of them "{UNCONDITIONAL_NAME}"'
            fail(ValueError, _OWNER, "class_names", wanted, list(self.names))

    def label(self, entry: ClassLabel) -> int:
        """Return the number of a class, -1 for unconditional; ValueError, TypeError otherwise."""
        if entry is None:
            return UNCONDITIONAL
        if isinstance(entry, str):
            label = self._labels.get(entry.casefold())
            if label is None:
                known = ", ".join((*(self.names or ()), UNCONDITIONAL_NAME))
                fail(ValueError, _OWNER, "class_labels", f"names of {known}", repr(entry))
            return label
        if isinstance(entry, bool) or not isinstance(entry, int):
            fail(TypeError, _OWNER, "class_labels", "numbers or names", repr(entry))
        if not UNCONDITIONAL <= entry < self.num_classes:
            wanted = f"numbers in [0, {self.num_classes}), or -1 for unconditional"
            fail(ValueError, _OWNER, "class_labels", wanted, entry)
        return entry

    def name(self, label: int) -> str:
        """Return the name of a class, or its number where there are no names."""
        if label == UNCONDITIONAL:
            return UNCONDITIONAL_NAME
        return str(label) if self.names is None else self.names[label]
