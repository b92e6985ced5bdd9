"""The residual stream between two layers: what a layer gives is added, the sum normalised."""

from functools import partial

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_apart_within,
    check_bias,
    check_device,
    check_device_type,
    check_norm,
    check_norm_dim,
    check_norm_eps,
    check_one_device,
    check_rows,
    check_shape,
    check_tensor,
    fail,
)
from lpd_ext.ops.launch import Launch

_OP = "add_layer_norm"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = "[batch, rows, dim]"


def add_layer_norm(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    delta: Tensor | None = None,
    bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    out: Tensor,
) -> Tensor:
    """Add what a layer gave to the residual stream, in place, and write its LayerNorm to `out`.

    ::

        x += delta + bias                                      # with a delta
        out = layer_norm(x, *norm, norm_eps)

    Parameters
    ----------
    x : Tensor
        float32 ``[batch, rows, dim]``, dim contiguous, a multiple of 16 and at most 8192; written
        where there is a `delta`.
    norm : tuple of Tensor
        Weight and bias of the LayerNorm, float32 ``[dim]``.
    delta : Tensor, optional
        ``[batch, rows, dim]``, dim contiguous, float32, bfloat16 or float16: a matrix product.
    bias : Tensor, optional
        ``[dim]``, float32 or in the dtype of `delta`, without which there is none.
    norm_eps : float
        Added to the variance.
    out : Tensor
        ``[batch, rows, dim]``, dim contiguous, float32, bfloat16 or float16; memory apart from all
        others.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    ValueError
        A wrong shape, stride, device or range, a bias without a delta, or tensors that overlap.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, a dim that is no multiple of 16 or above 8192, a tensor that
        requires grad.

    Notes
    -----
    Sums are float32, `out` is rounded once; allocates no tensor. A row's bits depend on nothing but
    the row, on the CPU also on the instruction set (`lpd_ext.cpu_variant`).

    Source: the pre-norm blocks of arXiv 2507.01957; what is fused is our choice.

    Examples
    --------
    >>> x, delta = torch.zeros(1, 2, 16), torch.randn(1, 2, 16).bfloat16()
    >>> norm = torch.ones(16), torch.zeros(16)
    >>> out = add_layer_norm(x, norm, delta=delta, out=torch.empty(1, 2, 16))
    >>> torch.equal(x, delta.float())
    True
    """
    torch.ops.lpd_ext.add_layer_norm(*_arguments(x, norm, delta, bias, norm_eps, out))
    return out


def prepare_add_layer_norm(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    delta: Tensor | None = None,
    bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    out: Tensor,
) -> Launch:
    """Check the arguments of `add_layer_norm` once; the result runs it on them, time and again."""
    arguments = _arguments(x, norm, delta, bias, norm_eps, out)
    return partial(torch.ops.lpd_ext.add_layer_norm.default, *arguments)


def _arguments(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    delta: Tensor | None,
    bias: Tensor | None,
    norm_eps: float,
    out: Tensor,
) -> tuple[Tensor | float | None, ...]:
    """Return what the operator takes, checked."""
    check_tensor(_OP, "x", x, (torch.float32,), _ROWS, 3)
    check_device_type(_OP, "x", x, ("cpu", "cuda"))
    dim = x.shape[2]
    check_norm_dim(_OP, "x", dim)
    for name, rows in (("x", x), ("delta", delta), ("out", out)):
        if rows is not None:
            check_tensor(_OP, name, rows, _DTYPES, _ROWS, 3)
            check_shape(_OP, name, rows, x.shape, _ROWS)
            check_device(_OP, name, rows, x.device)
            check_rows(_OP, name, rows)
    check_norm(_OP, norm, dim, x.device)
    check_norm_eps(_OP, norm_eps)
    read = {"norm[0]": norm[0], "norm[1]": norm[1]}
    if delta is not None:
        read["delta"] = delta
    if bias is not None:
        if delta is None:
            fail(ValueError, _OP, "bias", "none without a delta", "one")
        check_bias(_OP, bias, dim, delta)
        read["bias"] = bias
    written = {"x": x, "out": out}
    for name, rows in written.items():
        check_apart_within(_OP, name, rows)
    check_apart(_OP, written, read)
    return x, delta, bias, *norm, norm_eps, out


@torch.library.register_fake("lpd_ext::add_layer_norm")
def _(
    x: Tensor,
    delta: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    out: Tensor,
) -> None:
    check_one_device(_OP, x, delta, bias, norm_weight, norm_bias, out)
