"""The first matrix product of an MLP, and behind it a bias and GELU, in one launch."""

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

_OP = "linear_gelu"
_DTYPES = (torch.bfloat16, torch.float16)
_MULTIPLE = 8  # of features: 16 bytes


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Tensor:
    """Write GELU (exact, with erf) of a linear layer's result to `out`.

    ::

        y = x @ weight.T + bias                                # in float32
        out = y / 2 * (1 + erf(y / sqrt(2)))                   # rounded once

    Parameters
    ----------
    x : Tensor
        ``[..., in_features]``, contiguous, bfloat16 or float16; in_features a multiple of 8.
    weight : Tensor
        ``[out_features, in_features]`` as in `torch.nn.Linear`, contiguous, in the dtype of `x`.
    bias : Tensor, optional
        ``[out_features]``, float32 or in the dtype of `x`.
    out : Tensor
        ``[..., out_features]``, contiguous, in the dtype of `x`, memory apart from all others.

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
        A device without a kernel, in_features that are no multiple of 8, a tensor that requires
        grad.

    Notes
    -----
    Allocates no tensor. A row's bits depend on nothing but the row, weight and bias, on the CPU
    also on the instruction set (`lpd_ext.cpu_variant`). Made for GPUs, whose libraries fuse only
    GELU by tanh; on the CPU `lpd_ext.ops.fused_linear` is much faster. In float32 there are torch's
    product and `lpd_ext.ops.bias_gelu`.

    Source: the MLP of arXiv 2507.01957; what is fused is our choice.

    Examples
    --------
    >>> x, weight = torch.ones(1, 8).bfloat16(), torch.eye(2, 8).bfloat16()
    >>> linear_gelu(x, weight, torch.tensor([0.0, -1.0]), out=torch.empty(1, 2).bfloat16())
    tensor([[0.8398, 0.0000]], dtype=torch.bfloat16)
    """
    prepare_linear_gelu(x, weight, bias, out=out)()
    return out


def prepare_linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor
) -> Launch:
    """Check the arguments of `linear_gelu` once; the result runs it on them, time and again."""
    ndim = max(x.ndim, 1) if isinstance(x, Tensor) else 1
    check_tensor(_OP, "x", x, _DTYPES, "[..., in_features]", ndim)
    check_device_type(_OP, "x", x, ("cpu", "cuda"))
    in_features = x.shape[-1]
    if in_features == 0 or in_features % _MULTIPLE:
        wanted = f"in_features that are a multiple of {_MULTIPLE}"
        fail(NotImplementedError, _OP, "x", wanted, in_features)
    names = "[out_features, in_features]"
    check_tensor(_OP, "weight", weight, (x.dtype,), names, 2)
    out_features = weight.shape[0]
    check_shape(_OP, "weight", weight, (out_features, in_features), names)
    check_device(_OP, "weight", weight, x.device)
    if bias is not None:
        check_bias(_OP, bias, out_features, x)
    check_tensor(_OP, "out", out, (x.dtype,), "[..., out_features]", ndim)
    check_shape(_OP, "out", out, (*x.shape[:-1], out_features), "[..., out_features]")
    check_device(_OP, "out", out, x.device)
    for name, tensor in {"x": x, "weight": weight, "out": out}.items():
        if not tensor.is_contiguous():
            fail(ValueError, _OP, name, "a contiguous tensor", f"strides {tensor.stride()}")
    read = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    check_apart(_OP, {"out": out}, read)
    return partial(torch.ops.lpd_ext.linear_gelu.default, x, weight, bias, out)


@torch.library.register_fake("lpd_ext::linear_gelu")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    check_one_device(_OP, x, weight, bias, out)
