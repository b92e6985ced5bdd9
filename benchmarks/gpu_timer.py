"""Time on the GPU: calls captured in a CUDA graph, replayed over cold caches between two events.

Beside it CuPy's event timer, which sees every launch as it comes from Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any, Protocol

import torch
from contender import Contender

from lpd_ext.cuda_graph import captured

MOST_REPLAYS = 64  # in a block


class Gpu(Protocol):
    """What the timer needs of a GPU; the tests have one with a clock of their own."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Return what replays the work that `run` queues."""

    def flush(self) -> None:
        """Queue something that leaves nothing of interest in L2."""

    def seconds(self, run: Callable[[], None]) -> float:
        """Return the time on the GPU from the begin to the end of what `run` queues."""

    def synchronize(self) -> None:
        """Wait until all work is done."""


class CudaGpu:
    """The current CUDA device."""

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties().L2_cache_size
        self._cold = torch.empty(max(2 * size, 2**26), dtype=torch.uint8, device="cuda")

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        for _ in range(2):  # what is set up at a first call is no work of a graph
            run()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a contender without a graph is none
            graph = captured(run, self._cold.device, "contender")
        assert graph is not None
        return graph.replay

    def flush(self) -> None:
        self._cold.zero_()

    def seconds(self, run: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def synchronize(self) -> None:
        torch.cuda.synchronize()


current_gpu = cache(CudaGpu)


@dataclass
class GraphContender(Contender):
    """A contender whose time is the GPU's: one call with each input, in one graph.

    The inputs are memory of their own and L2 is flushed before each replay, so that every call
    reads its input from memory. The flush is still running when the graph is queued: the time that
    Python takes to queue it does not show.
    """

    gpu: Gpu = field(default_factory=lambda: current_gpu())
    on_gpu = True

    def next(self) -> Any:
        """Call with the next inputs and wait for the result: the host's time."""
        result = super().next()
        self.gpu.synchronize()
        return result

    def time_block(self) -> float:
        """Replay the graph as often as was calibrated and keep the seconds a call on the GPU."""
        total = 0.0
        for _ in range(self.calls // len(self.inputs)):
            self.gpu.flush()
            total += self.gpu.seconds(self._replay)
        self.seconds.append(total / self.calls)
        return self.seconds[-1]

    def calibrate(self, block_seconds: float) -> float:
        """Capture the graph, choose the replays of a block; return what it takes on the GPU."""
        self._replay = self.gpu.capture(self._one_pass)
        self.calls = len(self.inputs)
        most = MOST_REPLAYS * len(self.inputs)
        while (seconds := self.time_block() * self.calls) < block_seconds and self.calls < most:
            self.calls *= 2
        self.seconds = []
        return seconds

    def _one_pass(self) -> None:
        for arguments in self.inputs:
            self.call(*arguments)

    def cupy_us(self, repeats: int) -> dict[str, float]:
        """Median microseconds of a call by CuPy's events, launches included; {} without CuPy.

        Both libraries queue to the default stream here, so CuPy's events stand around torch's work.
        """
        try:
            from cupyx.profiler import benchmark
        except ImportError:
            return {}
        times = benchmark(super().next, n_repeat=repeats, n_warmup=3, name="call").gpu_times[0]
        return {"cupy_us": 1e6 * median(float(seconds) for seconds in times)}


@dataclass
class LoopContender(Contender):
    """A contender that no graph can capture, as it waits for the GPU between its launches.

    Its time is the host's, from the call until all work is done.
    """

    gpu: Gpu = field(default_factory=lambda: current_gpu())

    def __post_init__(self) -> None:
        call = self.call

        def whole(*arguments: Any) -> Any:
            result = call(*arguments)
            self.gpu.synchronize()
            return result

        self.call = whole
        super().__post_init__()
