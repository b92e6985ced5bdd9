"""Token selection: from the logits of a group to one token per position query."""

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
    check_range,
    check_shape,
    check_tensor,
    fail,
)
from lpd_ext.ops.launch import Launch, device_types

_DEVICE_TYPES = device_types("token_selection")
_MAX_VOCAB_SIZE = 2**22  # 2^40 a token must sum up inside 64 bits
_MAX_FLOAT32 = torch.finfo(torch.float32).max


def token_selection(
    logits: Tensor,
    uniform: Tensor,
    *,
    cfg_scale: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> Tensor:
    """Select one token per row by guidance, temperature, top-k, top-p and inverse-CDF sampling.

    ::

        x = uncond + cfg_scale * (cond - uncond), or logits; -inf where cond is: a masked token
        temperature 0: return argmax(x), lowest id on ties
        y = x / temperature; keep y >= k-th largest y
        p = softmax(kept y); keep while the mass strictly above, by value, is <= top_p
        return the first kept token, in vocabulary order, at which cumsum(p) > uniform * sum(p)

    Parameters
    ----------
    logits : Tensor
        ``[batch, group_size, vocab_size]``, or ``[2 * batch, group_size, vocab_size]`` with
        ``cfg_scale``: the conditional rows, then the unconditional ones. float32, bfloat16 or
        float16, CPU or CUDA; the vocabulary (1 to 2^22 tokens) contiguous, other strides any. -inf
        masks a token.
    uniform : Tensor
        ``[batch, group_size]``, float64, in [0, 1), any strides.
    cfg_scale : Tensor, optional
        ``[group_size]`` or ``[batch, group_size]``, float32, any strides.
    temperature : float or Tensor
        At least 0 and finite; a tensor is ``[batch]``, float32.
    top_k : int or Tensor
        Number of values to keep, equal ones together; 0 or ``vocab_size`` and more keep all. A
        tensor is ``[batch]``, int64; a negative value in it keeps all.
    top_p : float or Tensor
        In [0, 1], 1 keeps all, 0 the largest value; a tensor is ``[batch]``, float32; a value
        above 1 in it keeps all.

    Returns
    -------
    Tensor
        ``[batch, group_size]``, int64: token ids. -1 for a row without a distribution: a NaN or
        +inf logit (in either half, or after guidance), nothing but -inf, a ``uniform`` that is NaN
        or outside [0, 1), or, in a tensor, a temperature that is NaN, negative or infinite or a
        top_p that is NaN or negative. Other rows are unharmed.

    Raises
    ------
    ValueError
        A wrong shape, stride or device, or a number out of range.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, or a tensor that requires grad.

    Notes
    -----
    A pure function of its arguments, and of a row's alone: the same row gives the same id at any
    place in any batch, on the CPU and on a GPU. The arithmetic is specified to the bit: x and y in
    float32, probabilities as integers of 2^-40 of the row's largest, from one polynomial; a token
    below 2^-41 of the largest is never drawn. A temperature so small that y overflows acts as 0.
    Values in tensors are judged inside the kernel, never on the host, so that a captured graph can
    change them.

    Source: arXiv 2507.01957; the chain of guidance, top-k and top-p as in mit-han-lab/lpd@f447b83
    (models/sampling.py), but for ties under top-p, which stay or go together.

    Examples
    --------
    >>> token_selection(torch.tensor([[[0.0, 2.0, 1.0]]]), torch.tensor([[0.5]]).double())
    tensor([[1]])
    """
    arguments = _checked("token_selection", logits, uniform, cfg_scale, temperature, top_k, top_p)
    ids: Tensor = torch.ops.lpd_ext.token_selection(*arguments)
    return ids


@torch.library.register_fake("lpd_ext::token_selection")
def _(
    logits: Tensor,
    uniform: Tensor,
    cfg_scale: Tensor | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
) -> Tensor:
    return torch.empty_like(uniform, dtype=torch.int64, memory_format=torch.contiguous_format)


def token_selection_(
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    uniform: Tensor,
    *,
    cfg_scale: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> None:
    """Select as `token_selection` does and write the ids to their positions.

    ::

        ids = token_selection(logits, uniform, ...)
        tokens[image, positions[image, j]] = ids[image, j]

    Parameters
    ----------
    tokens : Tensor
        ``[batch, seq_len]``, int64, device of ``logits``, any strides. Written in place, and only
        at ``positions``.
    positions : Tensor
        ``[batch, group_size]``, int64, in [0, seq_len), any strides: raster positions, those of an
        image distinct. Its memory range must not overlap that of ``tokens``. On CUDA a row whose
        position is out of range writes nothing, and nothing is raised.
    logits, uniform, cfg_scale, temperature, top_k, top_p
        As `token_selection` takes them.

    Raises
    ------
    ValueError
        A wrong shape, stride or device, a number or (on the CPU) a position out of range, tensors
        that overlap. Nothing has been written then.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, or a tensor that requires grad.

    Notes
    -----
    With tensors for temperature, top_k and top_p nothing is allocated. A row without a distribution
    writes -1. Equal positions in one image are not looked for: the id of one of the rows stays, of
    which is undefined. In a compiled graph on the CPU a position out of range is a RuntimeError; on
    CUDA nobody waits for the positions, so that a graph can be captured.

    Source: arXiv 2507.01957.

    Examples
    --------
    >>> tokens = torch.zeros(1, 4, dtype=torch.int64)
    >>> positions = torch.tensor([[3, 1]])
    >>> logits = torch.tensor([[[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]])
    >>> token_selection_(tokens, positions, logits, torch.full((1, 2), 0.5).double())
    >>> tokens
    tensor([[0, 2, 0, 1]])
    """
    options = (cfg_scale, temperature, top_k, top_p)
    arguments = _arguments_(tokens, positions, logits, uniform, *options)
    try:
        torch.ops.lpd_ext.token_selection_(*arguments)
    except RuntimeError as error:
        refusal = error
    else:
        return
    # The operator looks at every position before it writes; a second look, which allocates, is for
    # the type of the error only.
    check_range("token_selection_", "positions", positions, 0, tokens.shape[1])
    raise refusal


def prepare_token_selection_(
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    uniform: Tensor,
    *,
    cfg_scale: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> Launch:
    """Check all but the positions once; the result runs `token_selection_` time and again."""
    options = (cfg_scale, temperature, top_k, top_p)
    arguments = _arguments_(tokens, positions, logits, uniform, *options)
    return partial(torch.ops.lpd_ext.token_selection_.default, *arguments)


def _arguments_(
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    uniform: Tensor,
    cfg_scale: Tensor | None,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
) -> tuple[Tensor | None, ...]:
    """Return what the operator takes, checked but for the values of the positions."""
    op = "token_selection_"
    arguments = _checked(op, logits, uniform, cfg_scale, temperature, top_k, top_p)
    check_tensor(op, "tokens", tokens, (torch.int64,), "[batch, seq_len]", 2)
    seq_len = tokens.shape[1]
    check_shape(op, "tokens", tokens, (uniform.shape[0], seq_len), "[batch, seq_len]")
    check_device(op, "tokens", tokens, logits.device)
    check_apart_within(op, "tokens", tokens)
    check_tensor(op, "positions", positions, (torch.int64,), "[batch, group_size]", 2)
    check_shape(op, "positions", positions, uniform.shape, "[batch, group_size]")
    check_device(op, "positions", positions, logits.device)
    check_apart(op, {"positions": positions}, {"tokens": tokens})
    return tokens, positions, *arguments


@torch.library.register_fake("lpd_ext::token_selection_")
def _(
    tokens: Tensor,
    positions: Tensor,
    logits: Tensor,
    uniform: Tensor,
    cfg_scale: Tensor | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
) -> None:
    return None


def _checked(
    op: str,
    logits: Tensor,
    uniform: Tensor,
    cfg_scale: Tensor | None,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Return the arguments that both operators share, numbers as tensors."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    check_tensor(op, "logits", logits, dtypes, "[batch, group_size, vocab_size]", 3)
    check_device_type(op, "logits", logits, _DEVICE_TYPES)
    rows, group_size, vocab_size = logits.shape
    if not 1 <= vocab_size <= _MAX_VOCAB_SIZE:
        fail(ValueError, op, "logits", f"a vocabulary of 1 to {_MAX_VOCAB_SIZE}", vocab_size)
    if vocab_size > 1 and logits.stride(2) != 1:
        strides = f"strides {list(logits.stride())}"
        fail(ValueError, op, "logits", "a contiguous vocabulary (stride 1)", strides)
    batch = rows
    if cfg_scale is not None:
        if rows % 2:
            fail(ValueError, op, "logits", "an even first size, [cond; uncond]", rows)
        batch = rows // 2
        _check_cfg_scale(op, cfg_scale, logits, batch)
    check_tensor(op, "uniform", uniform, (torch.float64,), "[batch, group_size]", 2)
    check_shape(op, "uniform", uniform, (batch, group_size), "[batch, group_size]")
    check_device(op, "uniform", uniform, logits.device)
    if not isinstance(temperature, Tensor):
        check_float(op, "temperature", temperature)
        if not 0 <= temperature <= _MAX_FLOAT32:
            fail(ValueError, op, "temperature", "a finite number of at least 0", temperature)
    if not isinstance(top_k, Tensor):
        check_int(op, "top_k", top_k, 0)
        top_k = min(top_k, vocab_size)
    if not isinstance(top_p, Tensor):
        check_float(op, "top_p", top_p)
        if not 0 <= top_p <= 1:
            fail(ValueError, op, "top_p", "a number in [0, 1]", top_p)
    return (
        logits,
        uniform,
        cfg_scale,
        _per_image(op, "temperature", temperature, torch.float32, batch, logits.device),
        _per_image(op, "top_k", top_k, torch.int64, batch, logits.device),
        _per_image(op, "top_p", top_p, torch.float32, batch, logits.device),
    )


def _check_cfg_scale(op: str, cfg_scale: Tensor, logits: Tensor, batch: int) -> None:
    names = "[group_size] or [batch, group_size]"
    per_image = isinstance(cfg_scale, Tensor) and cfg_scale.ndim == 2
    group_size = logits.shape[1]
    shape = (batch, group_size) if per_image else (group_size,)
    check_tensor(op, "cfg_scale", cfg_scale, (torch.float32,), names, len(shape))
    check_shape(op, "cfg_scale", cfg_scale, shape, names)
    check_device(op, "cfg_scale", cfg_scale, logits.device)


def _per_image(
    op: str,
    name: str,
    value: float | Tensor,
    dtype: torch.dtype,
    batch: int,
    device: torch.device,
) -> Tensor:
    """One value an image: a checked tensor as it is, a number broadcast."""
    if not isinstance(value, Tensor):
        return torch.full((batch,), value, dtype=dtype, device=device)
    check_tensor(op, name, value, (dtype,), "[batch]", 1)
    check_shape(op, name, value, (batch,), "[batch]")
    check_device(op, name, value, device)
    return value
