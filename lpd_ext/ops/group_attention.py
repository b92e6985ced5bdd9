"""Attention of one decode step: context tokens, then position queries."""

from functools import partial

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_apart_within,
    check_device,
    check_device_type,
    check_float,
    check_int,
    check_shape,
    check_tensor,
    fail,
)
from lpd_ext.ops.launch import Launch, device_types

_OP = "group_attention"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DEVICE_TYPES = device_types(_OP)
HEAD_DIMS = (32, 64, 80, 96, 128)
_QKV = "[batch, q_len, 3, num_heads, head_dim]"
_OUT = "[batch, q_len, num_heads * head_dim]"
_CACHE = "[batch, num_heads, max_kv_len, head_dim]"


def group_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_len: int | Tensor,
    context_len: int | Tensor,
    *,
    q_len: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Append the context rows to the caches and attend, context rows blind to the queries.

    ::

        q, k, v = qkv.unbind(2)
        k_cache[:, :, cache_len : cache_len + context_len] = k[:, :context_len]   # and v_cache
        keys = k_cache[:, :, : cache_len + context_len] ++ k[:, context_len:]     # and values
        context rows see keys[: cache_len + context_len], query rows all keys
        out = softmax(scale * q @ keys.T) @ values

    Parameters
    ----------
    qkv : Tensor
        ``[batch, q_len, 3, num_heads, head_dim]``, float32, bfloat16 or float16, CPU or (in a CUDA
        build) CUDA; any batch and row stride, the last three dimensions contiguous, as the
        projection left it. Context tokens first, then position queries; any ``q_len``. head_dim:
        32, 64, 80, 96 or 128.
    k_cache, v_cache : Tensor
        ``[batch, num_heads, max_kv_len, head_dim]``, dtype and device of ``qkv``, head_dim
        contiguous. Written in place at ``[cache_len, cache_len + context_len)``; nothing from
        ``cache_len`` on is read. The memory ranges of the three tensors must not overlap, not even
        interleaved.
    cache_len : int or Tensor
        Keys in the caches before this step.
    context_len : int or Tensor
        Number of context rows, 0 (only queries) to ``q_len`` (prefill).
    q_len : Tensor, optional
        The ragged form, for images at different steps: ``cache_len``, ``context_len`` and ``q_len``
        are int32 tensors ``[batch]``, contiguous, on the device of ``qkv``, and an image has
        ``q_len`` rows of those given. The rest is padding: 0 in the result. An image whose lengths
        do not fit (negative, ``context_len`` over ``q_len``, ``q_len`` over the rows given, a cache
        too small) gets NaN in all its rows and an untouched cache: lengths are data, no device is
        asked to wait for them.
    scale : float, optional
        Factor of the scores, by default ``head_dim ** -0.5``.
    out : Tensor, optional
        ``[batch, q_len, num_heads * head_dim]``, contiguous, dtype and device of ``qkv``, apart
        from the memory ranges of the others: written and returned. By default a new tensor.

    Returns
    -------
    Tensor
        ``[batch, q_len, num_heads * head_dim]``, contiguous, dtype of ``qkv``.

    Raises
    ------
    ValueError
        A wrong shape, stride or device, tensors that overlap, and of the numbers a cache too small
        or ``context_len`` over ``q_len``.
    TypeError
        A wrong dtype or type, numbers and tensors of lengths mixed.
    NotImplementedError
        Another head_dim, a device without a kernel, or a tensor that requires grad.

    Notes
    -----
    Sums are float32. An image's bits depend neither on the rest of the batch nor on the number of
    threads; both forms give the same. Position queries leave nothing in the caches. The CUDA kernel
    has not yet run on a GPU. Compiled with torch 2.11, give each cache a storage of its own: its
    Inductor reads mutated views at an offset wrongly (2.13 does not).

    Source: arXiv 2507.01957, parallel decoding with position query tokens; the mask as in
    mit-han-lab/lpd@f447b83.

    Examples
    --------
    >>> k_cache, v_cache = torch.zeros(2, 1, 4, 8, 32)
    >>> group_attention(torch.randn(1, 5, 3, 4, 32), k_cache, v_cache, 0, 2).shape
    torch.Size([1, 5, 128])
    """
    options = _checked(qkv, k_cache, v_cache, cache_len, context_len, q_len, scale, out)
    op = torch.ops.lpd_ext.group_attention
    if out is None:
        function = op.default if q_len is None else op.ragged
        result: Tensor = function(qkv, k_cache, v_cache, *options)
        return result
    function = op.out if q_len is None else op.ragged_out
    function(qkv, k_cache, v_cache, out, *options)
    return out


def prepare_group_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_len: int,
    context_len: int,
    *,
    scale: float | None = None,
    out: Tensor,
) -> Launch:
    """Check the arguments of `group_attention` once; the result runs it on them again and again."""
    options = _checked(qkv, k_cache, v_cache, cache_len, context_len, None, scale, out)
    return partial(torch.ops.lpd_ext.group_attention.out, qkv, k_cache, v_cache, out, *options)


def _checked(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_len: int | Tensor,
    context_len: int | Tensor,
    q_len: Tensor | None,
    scale: float | None,
    out: Tensor | None,
) -> tuple[int | float | Tensor, ...]:
    """Return what the operator takes behind the tensors: the lengths and the scale."""
    check_tensor(_OP, "qkv", qkv, _DTYPES, _QKV, 5)
    batch, rows, three, num_heads, head_dim = qkv.shape
    if three != 3:
        fail(ValueError, _OP, "qkv", _QKV, f"shape {list(qkv.shape)}")
    if head_dim not in HEAD_DIMS:
        fail(NotImplementedError, _OP, "qkv", f"head_dim in {HEAD_DIMS}", head_dim)
    check_device_type(_OP, "qkv", qkv, _DEVICE_TYPES)
    if qkv.numel() and not qkv[0, 0].is_contiguous():
        fail(ValueError, _OP, "qkv", "last three dimensions contiguous", f"strides {qkv.stride()}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_tensor(_OP, name, cache, (qkv.dtype,), _CACHE, 4)
        check_shape(_OP, name, cache, (batch, num_heads, k_cache.shape[2], head_dim), _CACHE)
        check_device(_OP, name, cache, qkv.device)
        _check_cache_strides(name, cache)
    check_apart(_OP, {"k_cache": k_cache, "v_cache": v_cache}, {"qkv": qkv})
    lengths = _checked_lengths(qkv, k_cache, cache_len, context_len, q_len)
    if scale is None:
        scale = head_dim**-0.5
    check_float(_OP, "scale", scale)
    if out is not None:
        check_tensor(_OP, "out", out, (qkv.dtype,), _OUT, 3)
        check_shape(_OP, "out", out, (batch, rows, num_heads * head_dim), _OUT)
        check_device(_OP, "out", out, qkv.device)
        if not out.is_contiguous():
            fail(ValueError, _OP, "out", "a contiguous tensor", f"strides {out.stride()}")
        check_apart(_OP, {"out": out}, {"qkv": qkv, "k_cache": k_cache, "v_cache": v_cache})
    return *lengths, scale


def _checked_lengths(
    qkv: Tensor,
    k_cache: Tensor,
    cache_len: int | Tensor,
    context_len: int | Tensor,
    q_len: Tensor | None,
) -> tuple[int | Tensor, ...]:
    """Return the lengths of one form: two numbers, or three tensors whose values nobody checks."""
    if isinstance(cache_len, Tensor) or isinstance(context_len, Tensor) or q_len is not None:
        tensors = []
        named = {"cache_len": cache_len, "context_len": context_len, "q_len": q_len}
        for name, lengths in named.items():
            if not isinstance(lengths, Tensor):
                wanted = "an int32 tensor [batch], as other lengths are tensors"
                fail(TypeError, _OP, name, wanted, type(lengths).__name__)
            check_tensor(_OP, name, lengths, (torch.int32,), "[batch]", 1)
            check_shape(_OP, name, lengths, qkv.shape[:1], "[batch]")
            check_device(_OP, name, lengths, qkv.device)
            if not lengths.is_contiguous():
                fail(ValueError, _OP, name, "a contiguous tensor", f"strides {lengths.stride()}")
            tensors.append(lengths)
        return tuple(tensors)
    check_int(_OP, "cache_len", cache_len, 0)
    check_int(_OP, "context_len", context_len, 0)
    if context_len > qkv.shape[1]:
        fail(ValueError, _OP, "context_len", f"at most q_len = {qkv.shape[1]}", context_len)
    if cache_len + context_len > k_cache.shape[2]:
        fail(
            ValueError,
            _OP,
            "k_cache",
            f"max_kv_len of at least cache_len + context_len = {cache_len + context_len}",
            k_cache.shape[2],
        )
    return cache_len, context_len


def _check_cache_strides(name: str, cache: Tensor) -> None:
    if cache.numel() == 0:
        return
    if cache.stride(3) != 1:
        fail(ValueError, _OP, name, "contiguous head_dim", f"strides {cache.stride()}")
    check_apart_within(_OP, name, cache)


@torch.library.register_fake("lpd_ext::group_attention")
def _(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_len: int,
    context_len: int,
    scale: float,
) -> Tensor:
    return _new_out(qkv)


@torch.library.register_fake("lpd_ext::group_attention.ragged")
def _(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_len: Tensor,
    context_len: Tensor,
    q_len: Tensor,
    scale: float,
) -> Tensor:
    return _new_out(qkv)


def _new_out(qkv: Tensor) -> Tensor:
    batch, rows, _, num_heads, head_dim = qkv.shape
    return qkv.new_empty((batch, rows, num_heads * head_dim))


@torch.library.register_fake("lpd_ext::group_attention.out")
@torch.library.register_fake("lpd_ext::group_attention.ragged_out")
def _(qkv: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, *options: object) -> None:
    return None
