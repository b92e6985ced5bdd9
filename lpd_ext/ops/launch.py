"""An operator bound to its arguments: checked once, run time and again on what they then hold."""

from collections.abc import Callable
from typing import TypeAlias

Launch: TypeAlias = Callable[[], object]
