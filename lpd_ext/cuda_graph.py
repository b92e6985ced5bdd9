"""A fixed sequence of launches as one CUDA graph. Not yet run on a GPU."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from functools import cache
from threading import Lock

import torch

_WITH_GRAPHS = ("cuda",)

# torch allows one capture at a time in a process.
_capturing = Lock()
_captured_on: set[tuple[torch.device, int]] = set()  # streams, by their handles


@torch.no_grad()
def captured(
    run: Callable[[], None], device: torch.device, what: str
) -> torch.cuda.CUDAGraph | None:
    """Run the launches once, so that libraries set themselves up, and capture them.

    Parameters
    ----------
    run : Callable
        Launches on the current stream, on memory that stays where it is; no synchronisation.
    device : torch.device
        Where the memory is.
    what : str
        Whose launches, with its sizes, for the warning.

    Returns
    -------
    torch.cuda.CUDAGraph or None
        None where the device has no graphs, or the capture failed: `run` is as good as before, and
        the current stream is the one it was.

    Raises
    ------
    RuntimeError
        The device runs nothing any more.

    Warns
    -----
    RuntimeWarning
        The capture failed; the warning names the first cause.

    Notes
    -----
    Captures of several threads wait for each other. Other threads may allocate, copy and launch
    meanwhile.
    """
    if device.type not in _WITH_GRAPHS:
        return None
    handled = sys.exc_info()[1]  # by a caller: no cause of what fails here
    try:
        with _capturing:
            return _capture(run, device)
    except RuntimeError as error:  # also of memory, cuBLAS and the driver
        cause = _first_cause(error, handled)
    # Here, where no traceback keeps memory of the capture.
    torch.cuda.synchronize(device)
    warnings.warn(f"{what}: no CUDA graph ({cause}); launches run one by one", RuntimeWarning, 2)
    return None


def _capture(run: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    before, warm_up = torch.cuda.current_stream(device), _stream_to_warm_up_on(device)
    stream = _stream_to_capture_on(device, warm_up)
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # what it deletes may wait for the GPU, which a capture forbids
    try:
        warm_up.wait_stream(before)
        # What fails inside may leave its stream current: this block does not.
        with torch.cuda.stream(warm_up):
            run()
            stream.wait_stream(warm_up)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                run()
    finally:
        if collects:
            gc.enable()
        before.wait_stream(warm_up)
        before.wait_stream(stream)
    return graph


@cache
def _stream_to_warm_up_on(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all, as each keeps a workspace of 32 MiB."""
    return torch.cuda.Stream(device)


def _stream_to_capture_on(device: torch.device, warm_up: torch.cuda.Stream) -> torch.cuda.Stream:
    """Return a stream for which cuBLAS has no workspace; torch hands out the same 32 in turn.

    It then makes one while it is captured, in memory of that graph. A workspace from before might
    be given to others, by `torch.compile` or with an older graph, while replays still write there.
    """
    stream = torch.cuda.Stream(device)
    if stream == warm_up:
        stream = torch.cuda.Stream(device)
    key = (device, stream.cuda_stream)
    if key in _captured_on:
        torch._C._cuda_clearCublasWorkspaces()  # of all streams; graphs keep the memory of theirs
        _captured_on.clear()
    _captured_on.add(key)
    return stream


def _first_cause(error: BaseException, handled: BaseException | None) -> str:
    """Return the first line of what failed first: the end of a broken capture fails as well."""
    while error.__context__ not in (None, handled):
        error = error.__context__
    if isinstance(error, torch.OutOfMemoryError):
        return "not enough device memory"
    return str(error).partition("\n")[0] or type(error).__name__
