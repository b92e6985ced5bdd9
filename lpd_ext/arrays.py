"""Functions of torch tensors, called with arrays of NumPy or CuPy: the same memory, no copy."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lpd_ext.checks import fail

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: neither is imported here

_LEGACY_DEFAULT_STREAMS = (0, 1)  # cudaStream_t by number: null, and its name cudaStreamLegacy
_PER_THREAD_DEFAULT_STREAM = 2


def with_arrays(op: Callable[..., Any]) -> Callable[..., Any]:
    """Let an op take arrays of NumPy or CuPy and return such, without a copy.

    ::

        tensors = from_dlpack(arrays)                  # the same memory
        result = op(tensors)                           # writes in place where op does
        return from_dlpack(result), or the very array that op was given to write to

    Parameters
    ----------
    op : Callable
        An op of this package: `lpd_ext.group_attention`, say.

    Returns
    -------
    Callable
        With the arguments of `op`. Arrays, also those in tuples and lists, become tensors, all else
        is passed on; results that are tensors become arrays of the same library. Called without
        arrays it is `op`.

    Raises
    ------
    ValueError
        When called: an array that cannot be written to, has negative strides or is not aligned.
    TypeError
        When called: arrays of different libraries (tensors count as one), of another library, or
        of a dtype that DLPack or torch does not have. NumPy itself has no bfloat16.
    NotImplementedError
        When called: an array of CuPy where torch has no GPU, or while CuPy's current stream is the
        per-thread default stream, which torch cannot use.

    Notes
    -----
    Any array must be writable, as an op writes to some and torch has no tensors that cannot be
    written to. What `op` itself refuses (shapes, dtypes, another device) it refuses as ever.

    With CuPy arrays the op runs on CuPy's current stream of their device: it waits for what was
    queued there before and what is queued after waits for it, as with a function of CuPy.

    Source: DLPack, https://dmlc.github.io/dlpack; the streams as in the Python array API.

    Examples
    --------
    >>> import numpy as np
    >>> from lpd_ext import group_attention
    >>> qkv = np.ones((1, 5, 3, 4, 32), np.float32)
    >>> k_cache, v_cache = np.zeros((2, 1, 4, 8, 32), np.float32)
    >>> with_arrays(group_attention)(qkv, k_cache, v_cache, 0, 2).shape
    (1, 5, 128)
    >>> float(k_cache[0, 0, :, 0].sum())
    2.0
    """
    signature, name = inspect.signature(op), op.__name__

    @wraps(op)
    def on_arrays(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        arrays = [pair for item in bound.arguments.items() for pair in _arrays_in(*item)]
        library = _library_of_all(name, arrays)
        if library in ("", "torch"):
            return op(*args, **kwargs)
        lent_by: dict[int, Array] = {}
        with _STREAMS[library](name, *arrays[0]):
            for argument, value in bound.arguments.items():
                bound.arguments[argument] = _borrowed(name, argument, value, lent_by)
            return _returned(library, op(*bound.args, **bound.kwargs), lent_by)

    return on_arrays


def _arrays_in(argument: str, value: Any) -> Iterator[tuple[str, Array]]:
    """Yield what speaks DLPack, with the argument's name."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _arrays_in(argument, item)
    elif hasattr(value, "__dlpack__"):
        yield argument, value


def _library_of_all(op: str, arrays: list[tuple[str, Array]]) -> str:
    """Return the one library of all arrays, "" where there are none."""
    one = ""
    for argument, array in arrays:
        library = _library(array)
        if library not in ("torch", *_STREAMS):
            got = f"{type(array).__module__}.{type(array).__qualname__}"
            fail(TypeError, op, argument, "a tensor or an array of NumPy or CuPy", got)
        if library != (one := one or library):
            fail(TypeError, op, argument, f"an array of {one}, like those before it", library)
    return one


def _library(array: Array) -> str:
    packages = [cls.__module__.partition(".")[0] for cls in type(array).__mro__]
    known = [package for package in packages if package in ("torch", *_STREAMS)]
    return known[0] if known else packages[0]


def _borrowed(op: str, argument: str, value: Any, lent_by: dict[int, Array]) -> Any:
    """Return a value with tensors in place of arrays; `lent_by` leads back from them."""
    if isinstance(value, (tuple, list)):
        if not any(_arrays_in(argument, value)):
            return value  # group sizes, mostly
        return tuple(_borrowed(op, argument, item, lent_by) for item in value)
    if not hasattr(value, "__dlpack__"):
        return value
    # torch writes to a read-only array without a word, and a negative stride ends the process.
    if not getattr(value.flags, "writeable", True):
        fail(ValueError, op, argument, "an array that can be written to", "a read-only one")
    if any(stride < 0 for stride in value.strides):
        fail(ValueError, op, argument, "strides of at least 0", f"{value.strides} (bytes)")
    try:
        tensor = from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        reason, _, _ = str(error).partition("\n")
        got = f"{value.dtype} ({reason})"
        raise TypeError(
            f"{op}: argument `{argument}`: expected a dtype that DLPack and torch have, got {got}"
        ) from error
    if tensor.data_ptr() % tensor.element_size():
        fail(ValueError, op, argument, "aligned memory", f"address {tensor.data_ptr():#x}")
    lent_by[id(tensor)] = value
    return tensor


def _returned(library: str, result: Any, lent_by: dict[int, Array]) -> Any:
    """Return a result with arrays in place of tensors, each lent one as the array it was."""
    if isinstance(result, tuple):
        return tuple(_returned(library, item, lent_by) for item in result)
    if not isinstance(result, Tensor):
        return result
    return lent_by[id(result)] if id(result) in lent_by else _EXPORTS[library](result)


def _cupy_array(tensor: Tensor) -> Array:
    return sys.modules["cupy"].from_dlpack(tensor)


def _cupy_stream(op: str, argument: str, array: Array) -> AbstractContextManager[Any]:
    """Make CuPy's current stream torch's."""
    # Then nothing needs to wait, arguments written in place included, and memory that either
    # library frees is used again in the order of that stream only.
    if not torch.cuda.is_available():
        fail(NotImplementedError, op, argument, "an array of NumPy: torch has no GPU", "CuPy's")
    _, index = array.__dlpack_device__()
    number = sys.modules["cupy"].cuda.get_current_stream(index).ptr
    if number == _PER_THREAD_DEFAULT_STREAM:
        wanted = "arrays on another stream of CuPy than the per-thread default stream"
        fail(NotImplementedError, op, argument, wanted, "that one")
    if number in _LEGACY_DEFAULT_STREAMS:  # torch would make a new stream of 0
        return torch.cuda.stream(torch.cuda.default_stream(index))
    return torch.cuda.stream(torch.cuda.ExternalStream(number, index))


def _no_stream(op: str, argument: str, array: Array) -> AbstractContextManager[Any]:
    return nullcontext()


_STREAMS: dict[str, Callable[[str, str, Array], AbstractContextManager[Any]]] = {
    "numpy": _no_stream,
    "cupy": _cupy_stream,
}
_EXPORTS: dict[str, Callable[[Tensor], Array]] = {"numpy": Tensor.numpy, "cupy": _cupy_array}
