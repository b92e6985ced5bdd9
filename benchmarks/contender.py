"""Timing of one contender in blocks of calls, and what a duel of several says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, TypeAlias

Call: TypeAlias = Callable[..., Any]


@dataclass
class Contender:
    """A callable, its inputs in turn, and the time a call took in each round.

    Parameters
    ----------
    call : Callable
        What is timed.
    inputs : Sequence of tuple
        Arguments of one call after the other, so that not everything is hot in the caches.
    calls : int
        Calls a block: a clock says little about a microsecond.
    """

    call: Call
    inputs: Sequence[tuple[Any, ...]] = ((),)
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    timer: Callable[[], float] = time.perf_counter
    on_gpu = False  # the clock is the host's

    def __post_init__(self) -> None:
        self._turn = cycle(self.inputs)

    def next(self) -> Any:
        """Call with the next inputs."""
        return self.call(*next(self._turn))

    def time_block(self) -> float:
        """Run the calls of one round and keep the seconds a call."""
        call, turn = self.call, self._turn
        begin = self.timer()
        for _ in range(self.calls):
            call(*next(turn))
        self.seconds.append((self.timer() - begin) / self.calls)
        return self.seconds[-1]

    def calibrate(self, block_seconds: float) -> float:
        """Choose `calls` so that a block takes `block_seconds` or more; return what it takes."""
        self.calls = 1
        while (seconds := self.time_block() * self.calls) < block_seconds:
            self.calls *= 2
        self.seconds = []
        return seconds


def fastest(variants: Mapping[str, Contender]) -> str:
    """Return the name of the variant that is fastest, timed in turns."""
    best = dict.fromkeys(variants, float("inf"))
    if len(best) > 1:
        for _ in range(5):
            best = {name: min(best[name], rival.time_block()) for name, rival in variants.items()}
        for rival in variants.values():
            rival.seconds = []
    return min(best, key=best.__getitem__)


def summary(ours: Sequence[float], baselines: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return medians and interquartile ranges in microseconds, and the ratios.

    A ratio is the median over rounds of baseline / ours in the same round: what slows the machine
    down for a while slows both.
    """
    return {
        "ours": _spread(ours),
        "baselines": {
            name: _spread(seconds)
            | {"ratio": statistics.median(b / o for b, o in zip(seconds, ours, strict=True))}
            for name, seconds in baselines.items()
        },
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_us": 1e6 * middle, "iqr_us": 1e6 * (high - low)}
