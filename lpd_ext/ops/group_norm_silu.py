"""What stands before a convolution of the tokenizer: GroupNorm and SiLU, channels last."""

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_device,
    check_device_type,
    check_int,
    check_norm_eps,
    check_one_device,
    check_rows,
    check_shape,
    check_tensor,
    fail,
)

_OP = "group_norm_silu"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_IMAGES = "[batch, channels, height, width]"
_MAX_CHANNELS = 8192  # csrc/include/lpd/group_norm_silu.h


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    norm: tuple[Tensor, Tensor],
    *,
    norm_eps: float = 1e-6,
    silu: bool = True,
    out: Tensor,
) -> Tensor:
    """Write GroupNorm and SiLU of channels-last images to `out`, which may be `x`.

    ::

        y = group_norm(x, num_groups, *norm, norm_eps)         # in float32
        out = y / (1 + exp(-y)) if silu else y                 # rounded once

    Parameters
    ----------
    x : Tensor
        ``[batch, channels, height, width]`` in ``torch.channels_last`` memory, at most 8192
        channels; float32, bfloat16 or float16.
    num_groups : int
        Groups that the channels are normalised in; divides their number.
    norm : tuple of Tensor
        Weight and bias of the GroupNorm, ``[channels]``, both float32 or in the dtype of `x`.
    norm_eps : float
        Added to the variance.
    silu : bool
        Whether SiLU follows.
    out : Tensor
        Shape, dtype and memory format of `x`: `x` itself or memory apart from it.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    ValueError
        A wrong shape, memory format, device or range, or tensors that overlap.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, more than 8192 channels, a tensor that requires grad.

    Notes
    -----
    Statistics and arithmetic are float32. An image's bits depend on nothing but the image, on the
    CPU also on the instruction set (`lpd_ext.cpu_variant`). There no tensor is allocated, and of
    what becomes bfloat16 the sigmoid has a relative error of up to 1.5e-4, a thirteenth of the
    rounding; on a GPU one tensor of partial sums is allocated.

    Source: the tokenizer of arXiv 2406.06525; what is fused is our choice.

    Examples
    --------
    >>> x = torch.tensor([-1.0, 1.0]).expand(1, 1, 1, 2).clone()
    >>> group_norm_silu(x, 1, (torch.ones(1), torch.zeros(1)), out=x).flatten()
    tensor([-0.2689,  0.7311])
    """
    check_tensor(_OP, "x", x, _DTYPES, _IMAGES, 4)
    check_device_type(_OP, "x", x, ("cpu", "cuda"))
    channels = x.shape[1]
    if not 1 <= channels <= _MAX_CHANNELS:
        fail(NotImplementedError, _OP, "x", f"1 to {_MAX_CHANNELS} channels", channels)
    _check_channels_last("x", x)
    check_int(_OP, "num_groups", num_groups, 1)
    if channels % num_groups:
        fail(ValueError, _OP, "num_groups", f"a divisor of the {channels} channels", num_groups)
    _check_norm(norm, x)
    check_norm_eps(_OP, norm_eps)
    if not isinstance(silu, bool):
        fail(TypeError, _OP, "silu", "a bool", type(silu).__name__)
    read = {"norm[0]": norm[0], "norm[1]": norm[1]}
    op, arguments = torch.ops.lpd_ext.group_norm_silu, (x, *norm, num_groups, norm_eps, silu)
    if out is x:
        check_apart(_OP, {"out": out}, read)
        op.inplace(*arguments)
        return out
    check_tensor(_OP, "out", out, (x.dtype,), _IMAGES, 4)
    check_shape(_OP, "out", out, x.shape, _IMAGES)
    check_device(_OP, "out", out, x.device)
    _check_channels_last("out", out)
    check_apart(_OP, {"out": out}, {"x": x, **read})
    op.default(*arguments, out)
    return out


def _check_channels_last(argument: str, value: Tensor) -> None:
    if not value.is_contiguous(memory_format=torch.channels_last):
        got = f"strides {value.stride()}"
        fail(ValueError, _OP, argument, "torch.channels_last memory", got)


def _check_norm(norm: tuple[Tensor, Tensor], x: Tensor) -> None:
    if not isinstance(norm, (tuple, list)) or len(norm) != 2:
        fail(TypeError, _OP, "norm", "(weight, bias)", type(norm).__name__)
    dtypes: tuple[torch.dtype, ...] = tuple(dict.fromkeys((torch.float32, x.dtype)))
    for tensor in norm:
        check_tensor(_OP, "norm", tensor, dtypes, "[channels]", 1)
        check_shape(_OP, "norm", tensor, (x.shape[1],), "[channels]")
        check_device(_OP, "norm", tensor, x.device)
        check_rows(_OP, "norm", tensor)
        dtypes = (tensor.dtype,)


@torch.library.register_fake("lpd_ext::group_norm_silu")
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_groups: int,
    norm_eps: float,
    silu: bool,
    out: Tensor,
) -> None:
    check_one_device(_OP, x, norm_weight, norm_bias, out)


@torch.library.register_fake("lpd_ext::group_norm_silu.inplace")
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    num_groups: int,
    norm_eps: float,
    silu: bool,
) -> None:
    check_one_device(_OP, x, norm_weight, norm_bias)
