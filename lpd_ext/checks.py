"""Argument checks of all rooms: function, argument, wanted and got in every message."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor

_MAX_FLOAT32 = torch.finfo(torch.float32).max
_MAX_CELLS = 2**31 - 1  # positions are 32-bit in the kernels
_MAX_NORM_DIM = 8192  # csrc/include/lpd/layer_norm.h


def fail(error: type[Exception], op: str, argument: str, expected: str, got: object) -> NoReturn:
    """Raise ``error`` in the form all functions share."""
    raise error(f"{op}: argument `{argument}`: expected {expected}, got {got}")


@contextmanager
def naming_memory(op: str, what: str) -> Iterator[None]:
    """Turn a failed allocation, whatever type torch gives it, into a MemoryError that names it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = any(text in str(error) for text in ("can't allocate memory", "not enough memory"))
        if not (known or isinstance(error, (MemoryError, torch.OutOfMemoryError))):
            raise
        raise MemoryError(f"{op}: not enough memory for {what}") from error


def check_tensor(
    op: str, argument: str, value: Tensor, dtypes: Sequence[torch.dtype], shape: str, ndim: int
) -> None:
    """Demand a tensor of one of the dtypes and of ``ndim`` dimensions that wants no gradient."""
    if not isinstance(value, Tensor):
        fail(TypeError, op, argument, f"a tensor {shape}", type(value).__name__)
    if value.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        fail(TypeError, op, argument, names, str(value.dtype).removeprefix("torch."))
    if value.ndim != ndim:
        fail(ValueError, op, argument, shape, f"shape {list(value.shape)}")
    if value.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{op}: argument `{argument}` requires grad, but the ops are inference-only: "
            "call under torch.no_grad() or detach() it"
        )


def check_shape(op: str, argument: str, value: Tensor, shape: Sequence[int], names: str) -> None:
    """Demand every size as given; ``names`` spells the dimensions out."""
    if tuple(value.shape) != tuple(shape):
        fail(ValueError, op, argument, f"{names} = {list(shape)}", f"shape {list(value.shape)}")


def check_device(op: str, argument: str, value: Tensor, device: torch.device) -> None:
    """Demand the device of the first argument."""
    if value.device != device:
        fail(ValueError, op, argument, f"device {device}", value.device)


def check_one_device(op: str, *tensors: Tensor | None) -> None:
    """Refuse, in a fake kernel, a mixture of real tensors and such without memory."""
    devices = {str(tensor.device) for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise RuntimeError(f"{op}: expected tensors on one device, got {sorted(devices)}")


def check_rows(op: str, argument: str, value: Tensor) -> None:
    """Demand a contiguous last dimension."""
    if value.numel() and value.stride(-1) != 1:
        fail(ValueError, op, argument, "a contiguous last dimension", f"strides {value.stride()}")


def check_apart_within(op: str, argument: str, value: Tensor) -> None:
    """Demand an address of its own for each element that is written."""
    if torch.compiler.is_compiling():
        return
    extent = 1
    dims = zip(value.stride(), value.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dims if size > 1):
        if stride < extent:
            got = f"strides {value.stride()}"
            fail(ValueError, op, argument, "no expanded dimension and no overlapping rows", got)
        extent += stride * (size - 1)


def check_norm_eps(op: str, norm_eps: float) -> None:
    """Demand what may be added to a variance."""
    check_float(op, "norm_eps", norm_eps)
    if not 0 <= norm_eps <= _MAX_FLOAT32:
        fail(ValueError, op, "norm_eps", "a finite number of at least 0", norm_eps)


def check_norm(op: str, norm: tuple[Tensor, Tensor], features: int, device: torch.device) -> None:
    """Demand weight and bias of a LayerNorm, float32 and contiguous."""
    if not isinstance(norm, (tuple, list)) or len(norm) != 2:
        fail(TypeError, op, "norm", "(weight, bias)", type(norm).__name__)
    for tensor in norm:
        check_tensor(op, "norm", tensor, (torch.float32,), "[features]", 1)
        check_shape(op, "norm", tensor, (features,), "[features]")
        check_device(op, "norm", tensor, device)
        check_rows(op, "norm", tensor)


def check_norm_dim(op: str, argument: str, dim: int) -> None:
    """Demand a length of rows that the kernels normalise."""
    if not 0 < dim <= _MAX_NORM_DIM or dim % 16:
        wanted = f"a dim of at most {_MAX_NORM_DIM} that is a multiple of 16"
        fail(NotImplementedError, op, argument, wanted, dim)


def check_bias(op: str, bias: Tensor, features: int, added_to: Tensor) -> None:
    """Demand a bias of float32 or of the dtype of what it is added to."""
    dtypes = dict.fromkeys((torch.float32, added_to.dtype))
    check_tensor(op, "bias", bias, tuple(dtypes), "[features]", 1)
    check_shape(op, "bias", bias, (features,), "[features]")
    check_device(op, "bias", bias, added_to.device)
    check_rows(op, "bias", bias)


def check_apart(op: str, written: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Demand that what is written overlaps nothing else, in ranges from first to last element."""
    # Traced and fake tensors have no address.
    tensors = [*written.values(), *others.values()]
    real = (Tensor, torch.nn.Parameter)
    if torch.compiler.is_compiling() or any(type(x) not in real for x in tensors):
        return
    taken = {name: _data_range(tensor) for name, tensor in others.items()}
    for name, tensor in written.items():
        begin, end = _data_range(tensor)
        for other, (other_begin, other_end) in taken.items():
            if max(begin, other_begin) < min(end, other_end):
                fail(ValueError, op, name, f"memory apart from {other}", "an overlap")
        taken[name] = begin, end


def _data_range(tensor: Tensor) -> tuple[int, int]:
    """Addresses from the first byte to behind the last one."""
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def check_range(op: str, argument: str, value: Tensor, low: int, high: int) -> None:
    """Demand integers in ``[low, high)``, at least one of them."""
    if value.numel() == 0:
        fail(ValueError, op, argument, "at least one image", "none")
    least, most = (int(bound) for bound in value.aminmax())
    if least < low or most >= high:
        fail(ValueError, op, argument, f"values in [{low}, {high})", f"[{least}, {most}]")


def check_permutations(op: str, argument: str, value: Tensor) -> None:
    """Demand that every row ``[seq_len]`` holds each of its positions once."""
    seq_len = value.shape[1]
    raster = torch.arange(seq_len, device=value.device)
    wrong = (value.sort(1).values != raster).any(1).nonzero()
    if len(wrong):
        wanted = f"a permutation of 0..{seq_len - 1} an image"
        fail(ValueError, op, argument, wanted, f"none in image {int(wrong[0])}")


def checked_group_sizes(
    op: str, group_sizes: Sequence[int], total: int, *, or_fewer: bool = False
) -> list[int]:
    """Return the sizes as Python ints; they are positive and sum to ``total``, or to less."""
    try:
        sizes = [operator.index(size) for size in group_sizes]
    except TypeError:
        fail(TypeError, op, "group_sizes", "a sequence of ints", repr(group_sizes))
    least = 1 if or_fewer else total
    if not sizes or min(sizes) < 1 or not least <= sum(sizes) <= total:
        wanted = f"positive sizes that sum to {total}{' or less' if or_fewer else ''}"
        fail(ValueError, op, "group_sizes", wanted, f"{sizes} (sum {sum(sizes)})")
    return sizes


def check_device_type(op: str, argument: str, value: Tensor, supported: Sequence[str]) -> None:
    """Demand a device that has a kernel."""
    if value.device.type not in supported:
        fail(
            NotImplementedError, op, argument, f"device {' or '.join(supported)}", value.device.type
        )


def check_int(op: str, argument: str, value: int, least: int) -> None:
    """Demand an int (or a symbolic one) of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        fail(TypeError, op, argument, "an int", type(value).__name__)
    if value < least:
        fail(ValueError, op, argument, f"at least {least}", value)


def check_float(op: str, argument: str, value: float) -> None:
    """Demand a number that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(TypeError, op, argument, "a number", type(value).__name__)
    if value != value:
        fail(ValueError, op, argument, "a number", "nan")


def check_order_arguments(
    op: str,
    seeds: Tensor,
    grid: tuple[int, int],
    known: Tensor | None,
    *,
    unread: Sequence[str] = (),
) -> int | None:
    """Check what all orders take; count the known positions, None where contents are not read.

    They are not while compiling, nor on the types of device in ``unread``: nobody waits for those.
    """
    check_tensor(op, "seeds", seeds, (torch.int64,), "[batch]", 1)
    if not isinstance(grid, (tuple, list)):
        fail(TypeError, op, "grid", "(height, width)", type(grid).__name__)
    if len(grid) != 2:
        fail(ValueError, op, "grid", "(height, width)", f"{len(grid)} numbers")
    for size in grid:
        check_int(op, "grid", size, 1)
    if grid[0] * grid[1] > _MAX_CELLS:
        fail(ValueError, op, "grid", "fewer than 2^31 cells", f"{grid[0]} x {grid[1]}")
    if known is None:
        return 0
    names = "[batch, height * width]"
    check_tensor(op, "known", known, (torch.bool,), names, 2)
    check_shape(op, "known", known, (seeds.shape[0], grid[0] * grid[1]), names)
    check_device(op, "known", known, seeds.device)
    if torch.compiler.is_compiling() or known.shape[0] == 0 or known.device.type in unread:
        return None
    counts = known.sum(dim=1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        got = f"{fewest} to {most}"
        fail(ValueError, op, "known", "the same number of positions in every image", got)
    return most
