"""Attention under any mask, for parallel decoders of every kind."""

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_device,
    check_device_type,
    check_float,
    check_rows,
    check_shape,
    check_tensor,
    fail,
)
from lpd_ext.ops.launch import device_types

_OP = "masked_attention"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICE_TYPES = device_types(_OP)
HEAD_DIMS = (32, 64, 80, 96, 128)
_Q = "[batch, num_heads, q_len, head_dim]"
_KV = "[batch, num_heads, kv_len, head_dim]"
_MASKS = {torch.int32: "[(batch,) q_len]", torch.bool: "[(batch,) q_len, kv_len]"}


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend to the keys that each row may see; what a row does not see cannot reach it.

    ::

        seen = arange(kv_len) < mask[row]  if mask holds prefix lengths  else  mask[row]
        weights = softmax(scale * q[row] @ k[seen].T)
        out[row] = weights @ v[seen]       # a row that sees nothing: 0

    Parameters
    ----------
    q : Tensor
        ``[batch, num_heads, q_len, head_dim]``, float32, bfloat16 or float16, CPU or (in a CUDA
        build) CUDA; any strides, head_dim contiguous: a view of a packed projection will do.
        head_dim: 32, 64, 80, 96 or 128.
    k, v : Tensor
        ``[batch, num_heads, kv_len, head_dim]``, dtype and device of ``q``; any strides, head_dim
        contiguous: a view of a static cache will do.
    mask : Tensor
        Which keys a row sees, the same for all heads, on the device of ``q``. int32 ``[q_len]`` or
        ``[batch, q_len]``: the first so many; a number outside ``[0, kv_len]`` gives a row of NaN
        (they are data, no device is asked to wait for them). Or bool ``[q_len, kv_len]`` or
        ``[batch, q_len, kv_len]``, kv_len contiguous: those where it is True.
    scale : float, optional
        Factor of the scores, by default ``head_dim ** -0.5``.
    out : Tensor, optional
        ``[batch, num_heads, q_len, head_dim]``, contiguous, dtype and device of ``q``, apart from
        the memory ranges of the others: written and returned. By default a new tensor.

    Returns
    -------
    Tensor
        ``[batch, num_heads, q_len, head_dim]``, contiguous, dtype of ``q``.

    Raises
    ------
    ValueError
        A wrong shape, stride or device, or an ``out`` that overlaps another tensor.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        Another head_dim, a device without a kernel, or a tensor that requires grad.

    Notes
    -----
    Sums are float32. An image's bits depend neither on the rest of the batch nor on the number of
    threads; both forms of a mask that say the same give the same. Keys and values that a row does
    not see have no part in it: they may be NaN. The CUDA kernels have not yet run on a GPU.

    Source: arXiv 1706.03762, equation 1; the masks are those of parallel decoders in random order
    without mutual visibility (prefix lengths), of next-scale prediction (arXiv 2404.02905: prefix
    lengths in steps) and of speculative Jacobi decoding (arXiv 2410.01699: causal windows).

    Examples
    --------
    Four rows behind 5 keys of a cache, blind to each other:

    >>> q, (k, v) = torch.randn(1, 2, 4, 32), torch.randn(2, 1, 2, 9, 32)
    >>> mask = torch.ones(4, 9, dtype=torch.bool)
    >>> mask[:, 5:] = torch.eye(4)
    >>> masked_attention(q, k, v, mask).shape
    torch.Size([1, 2, 4, 32])
    """
    scale = _checked(q, k, v, mask, scale, out)
    op = torch.ops.lpd_ext.masked_attention
    if out is None:
        result: Tensor = op.default(q, k, v, mask, scale)
        return result
    op.out(q, k, v, mask, out, scale)
    return out


def _checked(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None, out: Tensor | None
) -> float:
    """Return the scale; all else is as it has to be."""
    check_tensor(_OP, "q", q, _DTYPES, _Q, 4)
    batch, num_heads, _, head_dim = q.shape
    if head_dim not in HEAD_DIMS:
        fail(NotImplementedError, _OP, "q", f"head_dim in {HEAD_DIMS}", head_dim)
    check_device_type(_OP, "q", q, _DEVICE_TYPES)
    check_rows(_OP, "q", q)
    for name, tensor in (("k", k), ("v", v)):
        check_tensor(_OP, name, tensor, (q.dtype,), _KV, 4)
        check_shape(_OP, name, tensor, (batch, num_heads, k.shape[2], head_dim), _KV)
        check_device(_OP, name, tensor, q.device)
        check_rows(_OP, name, tensor)
    _check_mask(mask, q, k)
    if scale is None:
        scale = head_dim**-0.5
    check_float(_OP, "scale", scale)
    if out is not None:
        check_tensor(_OP, "out", out, (q.dtype,), _Q, 4)
        check_shape(_OP, "out", out, q.shape, _Q)
        check_device(_OP, "out", out, q.device)
        if not out.is_contiguous():
            fail(ValueError, _OP, "out", "a contiguous tensor", f"strides {out.stride()}")
        check_apart(_OP, {"out": out}, {"q": q, "k": k, "v": v, "mask": mask})
    return scale


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    ndim = mask.ndim if isinstance(mask, Tensor) else 0
    check_tensor(_OP, "mask", mask, tuple(_MASKS), " or ".join(_MASKS.values()), ndim)
    sizes: tuple[int, ...] = (q.shape[0], q.shape[2])
    if mask.dtype == torch.bool:
        sizes = (*sizes, k.shape[2])
    names = _MASKS[mask.dtype]
    if len(sizes) - ndim not in (0, 1):
        fail(ValueError, _OP, "mask", names, f"shape {list(mask.shape)}")
    check_shape(_OP, "mask", mask, sizes[-ndim:], names)
    check_device(_OP, "mask", mask, q.device)
    if mask.dtype == torch.bool:
        check_rows(_OP, "mask", mask)


@torch.library.register_fake("lpd_ext::masked_attention")
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("lpd_ext::masked_attention.out")
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, scale: float) -> None:
    return None
