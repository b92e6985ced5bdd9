"""GPU work on memory that several streams use, one use after the other. Not yet run on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WITH_STREAMS = ("cuda",)


class StreamOrder:
    """Lets what a call queues on its stream wait for what the call before queued on another.

    A lock orders the host alone: a call that has returned may still run on the GPU.

    Parameters
    ----------
    device : torch.device
        Where the memory is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type in _WITH_STREAMS else None

    def wait_before_deleting(self, owner: object) -> None:
        """Let the host wait for the last use when an object that holds the memory is deleted."""
        if self._event is not None:
            finalizer = weakref.finalize(owner, self._event.synchronize)
            finalizer.atexit = False  # the driver may be gone then

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Queue all uses of the memory inside, on the stream that is current at the beginning."""
        if self._event is None:
            yield
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._event)
        try:
            yield
        finally:
            self._event.record(stream)

    def wait(self) -> None:
        """Let the host wait for the last use, so that the memory can be given back."""
        if self._event is not None:
            self._event.synchronize()
