"""What stands between the two matrix products of an MLP: a bias and GELU."""

from functools import partial

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_bias,
    check_device,
    check_device_type,
    check_one_device,
    check_shape,
    check_tensor,
    fail,
)
from lpd_ext.ops.launch import Launch

_OP = "bias_gelu"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Tensor:
    """Write GELU (exact, with erf) of `x` plus a bias to `out`, which may be `x`.

    ::

        y = x + bias                                           # in float32
        out = y / 2 * (1 + erf(y / sqrt(2)))                   # rounded once

    Parameters
    ----------
    x : Tensor
        ``[..., features]``, contiguous, float32, bfloat16 or float16.
    bias : Tensor, optional
        ``[features]``, float32 or in the dtype of `x`.
    out : Tensor
        Shape and dtype of `x`, contiguous: `x` itself or memory apart from it.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    ValueError
        A wrong shape, stride or device, or tensors that overlap.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, a tensor that requires grad.

    Notes
    -----
    Allocates no tensor. An element's bits depend on nothing but the element and its bias, on the
    CPU also on the instruction set (`lpd_ext.cpu_variant`). On the CPU erf is a polynomial, at most
    1.9e-7 from the exact one; it is that of `lpd_ext.ops.fused_linear`.

    Source: the MLP of arXiv 2507.01957; what is fused is our choice.

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 0.0, 1.0]])
    >>> bias_gelu(x, torch.tensor([1.0, 0.0, 0.0]), out=x)
    tensor([[0.0000, 0.0000, 0.8413]])
    """
    prepare_bias_gelu(x, bias, out=out)()
    return out


def prepare_bias_gelu(x: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Launch:
    """Check the arguments of `bias_gelu` once; the result runs it on them, time and again."""
    _check("x", x, _DTYPES)
    check_device_type(_OP, "x", x, ("cpu", "cuda"))
    if bias is not None:
        check_bias(_OP, bias, x.shape[-1], x)
    read = {} if bias is None else {"bias": bias}
    op = torch.ops.lpd_ext.bias_gelu
    if out is x:
        check_apart(_OP, {"out": out}, read)
        return partial(op.inplace, x, bias)
    _check("out", out, (x.dtype,))
    check_shape(_OP, "out", out, x.shape, "[..., features]")
    check_device(_OP, "out", out, x.device)
    check_apart(_OP, {"out": out}, {"x": x, **read})
    return partial(op.default, x, bias, out)


def _check(argument: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Demand contiguous rows, however many dimensions they stand in."""
    ndim = max(value.ndim, 1) if isinstance(value, Tensor) else 1
    check_tensor(_OP, argument, value, dtypes, "[..., features]", ndim)
    if not value.is_contiguous():
        fail(ValueError, _OP, argument, "a contiguous tensor", f"strides {value.stride()}")


@torch.library.register_fake("lpd_ext::bias_gelu")
def _(x: Tensor, bias: Tensor | None, out: Tensor) -> None:
    check_one_device(_OP, x, bias, out)


@torch.library.register_fake("lpd_ext::bias_gelu.inplace")
def _(x: Tensor, bias: Tensor | None) -> None:
    check_one_device(_OP, x, bias)
