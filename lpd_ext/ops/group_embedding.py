"""The rows of one decode step: context tokens and position queries at the places of an order."""

from functools import partial

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_apart_within,
    check_device,
    check_device_type,
    check_int,
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

_OP = "group_embedding"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_embedding(
    tokens: Tensor,
    order: Tensor,
    token_emb: Tensor,
    query_token: Tensor,
    pos_embed: Tensor,
    norm: tuple[Tensor, Tensor],
    context: tuple[int, int],
    query_end: int,
    *,
    norm_eps: float = 1e-6,
    out: Tensor,
) -> Tensor:
    """Embed decoded tokens and position queries, add their positions, normalise.

    ::

        p = order[:, context[0] : context[1]]                    # context rows
        rows = token_emb[tokens[p]] + pos_embed[p]
        q = order[:, context[1] : query_end]                     # query rows
        rows = rows ++ (query_token + pos_embed[q])
        out = layer_norm(rows, *norm, norm_eps), once for each copy

    Parameters
    ----------
    tokens : Tensor
        int64 ``[batch, seq_len]`` in raster order; -1 (no token) reads as token 0.
    order : Tensor
        int64 ``[batch, seq_len]``, raster positions.
    token_emb : Tensor
        ``[vocab_size, dim]``, contiguous, float32, bfloat16 or float16; dim a multiple of
        16, at most 8192.
    query_token : Tensor
        ``[dim]``, the position query token.
    pos_embed : Tensor
        ``[seq_len, dim]``, contiguous.
    norm : tuple of Tensor
        Weight and bias of the LayerNorm, float32 ``[dim]``.
    context : tuple of int
        Entries of `order`, from and to, that are context.
    query_end : int
        Up to here the entries of `order` after the context are queries.
    norm_eps : float
        Added to the variance.
    out : Tensor
        float32 ``[copies * batch, query_end - context[0], dim]``, dim contiguous: every image
        `copies` times, as the halves of classifier-free guidance want it.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    ValueError
        A wrong shape, stride, device or range.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, a dim that is no multiple of 16 or above 8192, a tensor that
        requires grad.
    RuntimeError
        On the CPU, a position or token outside its table (nothing is written).

    Notes
    -----
    Allocates no tensor. A row's bits depend on nothing but the row, on the CPU also on the
    instruction set (`lpd_ext.cpu_variant`). On CUDA, where asking would make the host wait, a row
    whose position or token is outside its table becomes NaN and reads no table.

    Source: "position query tokens" of arXiv 2507.01957.

    Examples
    --------
    >>> tokens, order = torch.tensor([[5, -1, -1]]), torch.tensor([[0, 2, 1]])
    >>> tables = torch.randn(8, 16), torch.randn(16), torch.randn(3, 16)
    >>> norm = torch.ones(16), torch.zeros(16)
    >>> out = torch.empty(2, 2, 16)
    >>> group_embedding(tokens, order, *tables, norm, (0, 1), 2, out=out).shape
    torch.Size([2, 2, 16])
    """
    arguments = _arguments(
        tokens, order, token_emb, query_token, pos_embed, norm, context, query_end, norm_eps, out
    )
    torch.ops.lpd_ext.group_embedding(*arguments)
    return out


def prepare_group_embedding(
    tokens: Tensor,
    order: Tensor,
    token_emb: Tensor,
    query_token: Tensor,
    pos_embed: Tensor,
    norm: tuple[Tensor, Tensor],
    context: tuple[int, int],
    query_end: int,
    *,
    norm_eps: float = 1e-6,
    out: Tensor,
) -> Launch:
    """Check the arguments of `group_embedding` once; the result runs it on them, time and again."""
    arguments = _arguments(
        tokens, order, token_emb, query_token, pos_embed, norm, context, query_end, norm_eps, out
    )
    return partial(torch.ops.lpd_ext.group_embedding.default, *arguments)


def _arguments(
    tokens: Tensor,
    order: Tensor,
    token_emb: Tensor,
    query_token: Tensor,
    pos_embed: Tensor,
    norm: tuple[Tensor, Tensor],
    context: tuple[int, int],
    query_end: int,
    norm_eps: float,
    out: Tensor,
) -> tuple[Tensor | float, ...]:
    """Return what the operator takes, checked."""
    check_tensor(_OP, "token_emb", token_emb, _DTYPES, "[vocab_size, dim]", 2)
    check_device_type(_OP, "token_emb", token_emb, ("cpu", "cuda"))
    vocab_size, dim = token_emb.shape
    check_norm_dim(_OP, "token_emb", dim)
    if vocab_size == 0:
        fail(ValueError, _OP, "token_emb", "at least one token", "none")
    check_tensor(_OP, "tokens", tokens, (torch.int64,), "[batch, seq_len]", 2)
    batch, seq_len = tokens.shape
    check_tensor(_OP, "order", order, (torch.int64,), "[batch, seq_len]", 2)
    check_shape(_OP, "order", order, (batch, seq_len), "[batch, seq_len]")
    check_tensor(_OP, "query_token", query_token, (token_emb.dtype,), "[dim]", 1)
    check_shape(_OP, "query_token", query_token, (dim,), "[dim]")
    check_tensor(_OP, "pos_embed", pos_embed, (token_emb.dtype,), "[seq_len, dim]", 2)
    check_shape(_OP, "pos_embed", pos_embed, (seq_len, dim), "[seq_len, dim]")
    for name, table in (("token_emb", token_emb), ("pos_embed", pos_embed)):
        if not table.is_contiguous():
            fail(ValueError, _OP, name, "a contiguous table", f"strides {table.stride()}")
    check_norm(_OP, norm, dim, token_emb.device)
    if not isinstance(context, (tuple, list)) or len(context) != 2:
        fail(TypeError, _OP, "context", "(begin, end)", repr(context))
    for name, value in (("context", context[0]), ("context", context[1]), ("query_end", query_end)):
        check_int(_OP, name, value, 0)
    if not context[0] <= context[1] <= query_end <= seq_len:
        wanted = f"context[0] <= context[1] <= query_end <= {seq_len}"
        fail(ValueError, _OP, "context", wanted, f"{context} and query_end {query_end}")
    rows = query_end - context[0]
    names = "[copies * batch, rows, dim]"
    check_tensor(_OP, "out", out, (torch.float32,), names, 3)
    copies = out.shape[0] // batch if batch else 1
    check_shape(_OP, "out", out, (max(copies, 1) * batch, rows, dim), names)
    check_apart_within(_OP, "out", out)
    read = {
        "tokens": tokens,
        "order": order,
        "token_emb": token_emb,
        "query_token": query_token,
        "pos_embed": pos_embed,
        "norm[0]": norm[0],
        "norm[1]": norm[1],
    }
    for name, tensor in (*read.items(), ("out", out)):
        check_device(_OP, name, tensor, token_emb.device)
        check_rows(_OP, name, tensor)
    check_apart(_OP, {"out": out}, read)
    check_norm_eps(_OP, norm_eps)
    tables = (token_emb, query_token, pos_embed)
    return tokens, order, *tables, *norm, *context, query_end, norm_eps, out


@torch.library.register_fake("lpd_ext::group_embedding")
def _(
    tokens: Tensor,
    order: Tensor,
    token_emb: Tensor,
    query_token: Tensor,
    pos_embed: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    context_begin: int,
    context_end: int,
    query_end: int,
    norm_eps: float,
    out: Tensor,
) -> None:
    read = (tokens, order, token_emb, query_token, pos_embed, norm_weight, norm_bias)
    check_one_device(_OP, *read, out)
