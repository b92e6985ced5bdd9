"""The plans of one model that were used last, within a bound of memory."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from weakref import WeakValueDictionary

import torch

from lpd_ext.checks import check_int
from lpd_ext.models.lpd import LPD
from lpd_ext.packed_model import PackedModel
from lpd_ext.plan import DecodePlan
from lpd_ext.plan_buffers import PlanShape, plan_shape

DEFAULT_MAX_BYTES = 4 * 2**30
"""4 GiB: twice the weights of half a billion parameters in float32. What is kept for speed alone
should not crowd a machine of 16 GB."""


class PlanCache:
    """Plans of one model, made when they are first asked for.

    Parameters
    ----------
    model : LPD
        As `lpd_ext.DecodePlan` takes it.
    max_bytes : int
        Plans used least recently are dropped so that those kept take no more, packed weights
        counted once. The plan asked for last is kept, whatever it takes. By default 4 GiB.

    Raises
    ------
    ValueError, TypeError
        `max_bytes` is no int of at least 0.

    Notes
    -----
    Plans of one dtype share their packed weights, which live as long as one of them. A dropped plan
    is not released: who holds it can use it. May be used from several threads. Copies of a cache,
    pickled ones too, begin empty.

    Examples
    --------
    >>> from lpd_ext import LPD, LPDConfig
    >>> config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
    >>> plans = PlanCache(LPD(config).eval())
    >>> plans.get(2, [1, 3, 12]) is plans.get(2, [1, 3, 12])
    True
    """

    def __init__(self, model: LPD, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        check_int("PlanCache", "max_bytes", max_bytes, 0)
        self.model = model
        self.max_bytes = max_bytes
        self._plans: dict[PlanShape, DecodePlan] = {}  # used last comes last
        self._packed: WeakValueDictionary[torch.dtype, PackedModel] = WeakValueDictionary()
        self._lock = RLock()

    def get(
        self,
        batch_size: int,
        group_sizes: Sequence[int],
        guided: bool = True,
        dtype: torch.dtype | None = None,
    ) -> DecodePlan:
        """Return the plan of these arguments, made now if there is none.

        Parameters
        ----------
        batch_size, group_sizes, guided, dtype
            As `lpd_ext.DecodePlan` takes them.

        Returns
        -------
        DecodePlan
            The cache's own: released, it is made anew the next time.

        Raises
        ------
        ValueError, TypeError, NotImplementedError
            As `lpd_ext.DecodePlan` raises them.
        MemoryError
            Not enough memory even without the other plans, which are dropped then.
        """
        with self._lock:
            shape = plan_shape(self.model, batch_size, group_sizes, guided, dtype, None)
            plan = self._plans.pop(shape, None)
            if plan is None or plan.released:
                plan = self._planned(shape)
            self._plans[shape] = plan
            return plan

    @property
    def nbytes(self) -> int:
        """Memory of the plans kept and of their packed weights."""
        with self._lock:
            return self._nbytes_with()

    def __len__(self) -> int:
        """Plans kept."""
        return len(self._plans)

    def release(self) -> None:
        """Drop all plans."""
        with self._lock:
            self._plans.clear()

    def __reduce__(self) -> tuple[type[PlanCache], tuple[LPD, int]]:
        return PlanCache, (self.model, self.max_bytes)

    def _planned(self, shape: PlanShape) -> DecodePlan:
        try:
            return self._within_bound(shape)
        except MemoryError:
            if not self._plans:
                raise
        # Here, where no traceback keeps the first attempt's memory any more.
        self._plans.clear()
        return self._within_bound(shape)

    def _within_bound(self, shape: PlanShape) -> DecodePlan:
        """Make a plan after room for it was made."""
        packed = self._packed.get(shape.dtype)
        if packed is None:
            packed = self._packed[shape.dtype] = PackedModel(self.model, shape.dtype)
        while self._plans and self._nbytes_with(packed) + shape.nbytes > self.max_bytes:
            del self._plans[next(iter(self._plans))]
        arguments = (shape.batch_size, shape.group_sizes)
        return DecodePlan(
            self.model, *arguments, guided=shape.guided, dtype=shape.dtype, packed=packed
        )

    def _nbytes_with(self, *more: PackedModel) -> int:
        plans = [plan for plan in self._plans.values() if not plan.released]
        packed = {*more, *(plan.packed for plan in plans if plan.packed is not None)}
        return sum(plan.shape.nbytes for plan in plans) + sum(w.nbytes for w in packed)
