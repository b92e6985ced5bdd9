"""Streams, events and graphs of a GPU that is not there: they write down what they are asked."""

import functools
import threading
from contextlib import contextmanager

import torch

from lpd_ext import cuda_graph

DEVICE = torch.device("cuda", 0)
POOL = 32  # streams that torch hands out in turn


class FakeStreams:
    """Puts itself in place of the functions of `torch.cuda` that a capture and an order need.

    `torch.cuda.graph` stays torch's own, so that its way through an error is the real one. An
    exception in `fails` is raised where its key says.
    """

    def __init__(self, monkeypatch):
        self.log = []  # (what, number of the stream)
        self.fails = {}  # "begin", "end", "synchronize" -> exception
        self.capturing = 0
        self.modes = []
        self._streams = 0
        self._current = threading.local()
        for name, fake in {
            "Stream": lambda device=None: self._next_stream(),
            "Event": lambda: Event(self),
            "CUDAGraph": lambda: Graph(self),
            "current_stream": lambda device=None: self.current,
            "stream": self._stream,
            "synchronize": lambda device=None: self.did("synchronize"),
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        # What was kept of streams is of others.
        fresh = functools.cache(cuda_graph._stream_to_warm_up_on.__wrapped__)
        monkeypatch.setattr(cuda_graph, "_stream_to_warm_up_on", fresh)
        monkeypatch.setattr(cuda_graph, "_captured_on", set())
        for name in ("_host_emptyCache", "_cuda_clearCublasWorkspaces"):
            clear = lambda name=name: self.log.append((name, None))  # noqa: E731
            monkeypatch.setattr(torch._C, name, clear, raising=False)

    @property
    def current(self):
        """The stream of this thread."""
        return getattr(self._current, "stream", Stream(self, 0))

    @contextmanager
    def _stream(self, stream):
        before, self._current.stream = self.current, stream
        try:
            yield
        finally:
            self._current.stream = before

    def _next_stream(self):
        self._streams += 1
        return Stream(self, 1 + (self._streams - 1) % POOL)

    def did(self, what):
        """Write down what was done on the current stream, or fail as asked."""
        self.log.append((what, self.current.cuda_stream))
        if what in self.fails:
            raise self.fails[what]

    def launch(self):
        """Stand for a kernel."""
        self.did("captured run" if self.capturing else "run")


class Stream:
    def __init__(self, gpu, number):
        self._gpu, self.cuda_stream = gpu, number

    def __eq__(self, other):
        return self.cuda_stream == other.cuda_stream

    def __hash__(self):
        return self.cuda_stream

    def wait_stream(self, other):
        self._gpu.log.append((f"waits for {other.cuda_stream}", self.cuda_stream))

    def wait_event(self, event):
        self._gpu.log.append((f"waits for the event of {event.stream}", self.cuda_stream))


class Event:
    def __init__(self, gpu):
        self._gpu, self.stream = gpu, None

    def record(self, stream):
        self.stream = stream.cuda_stream
        self._gpu.log.append(("records", self.stream))

    def synchronize(self):
        self._gpu.log.append((f"host waits for the event of {self.stream}", None))


class Graph:
    def __init__(self, gpu):
        self._gpu = gpu

    def capture_begin(self, capture_error_mode, **others):  # torch 2.13 has others
        assert not self._gpu.capturing, "torch allows one capture at a time"
        self._gpu.modes.append(capture_error_mode)
        self._gpu.did("begin")
        self._gpu.capturing += 1

    def capture_end(self):
        self._gpu.capturing -= 1
        self._gpu.did("end")

    def replay(self):
        self._gpu.did("replay")
