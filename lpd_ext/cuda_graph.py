"""A fixed sequence of launches as one CUDA graph. Not yet run on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

_WITH_GRAPHS = ("cuda",)


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
        None where the device has no graphs, or its memory did not suffice.

    Warns
    -----
    RuntimeWarning
        It did not. `run` is as good as before.
    """
    if device.type not in _WITH_GRAPHS:
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream):
            run()
        with torch.cuda.graph(graph, stream=stream):
            run()
    except torch.OutOfMemoryError:
        warnings.warn(
            f"{what}: not enough device memory for a CUDA graph; launches run one by one",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph
