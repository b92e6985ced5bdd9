"""A linear layer of few rows, fused with the LayerNorm before and the GELU or addition after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_apart,
    check_apart_within,
    check_device,
    check_device_type,
    check_norm,
    check_norm_eps,
    check_one_device,
    check_rows,
    check_shape,
    check_tensor,
    fail,
)
from lpd_ext.ops.huge_pages import zeros_in_huge_pages
from lpd_ext.ops.launch import Launch

_OP = "fused_linear"
_PANEL = 32  # output features side by side in a packed weight
_TILE = 16
_DTYPES = (torch.float32, torch.bfloat16)
_EPILOGUES = ("none", "gelu", "add")
_BLOCK = 32  # features of rows that lie in blocks
_ROWS = "[batch, num_rows, features]"
_BLOCKS = f"[features / {_BLOCK}, batch, num_rows, {_BLOCK}]"


@dataclass(frozen=True)
class PackedLinear:
    """Weight and bias of a linear layer in the order in which `fused_linear` reads them.

    Parameters
    ----------
    weight : Tensor
        float32 ``[panels, in_features, 32]`` or bfloat16
        ``[panels, ceil(in_features / 32), 2, 16, 16, 2]``, panels of 32 output features.
    bias : Tensor
        float32 ``[panels * 32]``.
    in_features, out_features : int
        Of the layer.
    """

    weight: Tensor
    bias: Tensor
    in_features: int
    out_features: int


def pack_linear(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    into: PackedLinear | None = None,
) -> PackedLinear:
    """Pack a linear layer for `fused_linear`.

    Parameters
    ----------
    weight : Tensor
        ``[out_features, in_features]`` as in `torch.nn.Linear`, any float dtype, any strides;
        in_features a multiple of 16.
    bias : Tensor, optional
        ``[out_features]``, any float dtype; none adds nothing.
    dtype : torch.dtype, optional
        float32 or bfloat16, of the packed weight; by default that of `weight`.
    into : PackedLinear, optional
        Packed before from a layer of this shape and dtype: written again in place.

    Returns
    -------
    PackedLinear
        A copy: later changes of `weight` do not reach it.

    Raises
    ------
    ValueError
        A wrong shape, or `into` is another layer's.
    TypeError
        A dtype that is neither float32 nor bfloat16.
    NotImplementedError
        in_features that are no multiple of 16.

    Notes
    -----
    The copy takes the memory of the weight once more, in `dtype`, rounded up to 32 outputs.

    Source: the tiles are those of Intel's AMX.

    Examples
    --------
    >>> pack_linear(torch.randn(40, 64)).weight.shape
    torch.Size([2, 64, 32])
    """
    op = "pack_linear"
    for name, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            fail(TypeError, op, name, "a tensor", type(tensor).__name__)
        if not tensor.is_floating_point():
            fail(TypeError, op, name, "a float dtype", tensor.dtype)
    if weight.ndim != 2:
        fail(ValueError, op, "weight", "[out_features, in_features]", list(weight.shape))
    dtype = weight.dtype if dtype is None else dtype
    if dtype not in _DTYPES:
        fail(TypeError, op, "dtype", "torch.float32 or torch.bfloat16", dtype)
    out_features, in_features = weight.shape
    if out_features == 0:
        fail(ValueError, op, "weight", "at least one output feature", "none")
    if in_features == 0 or in_features % _TILE:
        wanted = f"in_features that are a multiple of {_TILE}"
        fail(NotImplementedError, op, "weight", wanted, in_features)
    if bias is not None:
        check_shape(op, "bias", bias, (out_features,), "[out_features]")
        check_device(op, "bias", bias, weight.device)
    if into is None:
        into = _empty(out_features, in_features, dtype, weight.device)
    elif not isinstance(into, PackedLinear):
        fail(TypeError, op, "into", "a PackedLinear", type(into).__name__)
    elif (into.out_features, into.in_features) != tuple(weight.shape) or into.weight.dtype != dtype:
        wanted = f"a layer of {list(weight.shape)} in {dtype}"
        got = f"[{into.out_features}, {into.in_features}] in {into.weight.dtype}"
        fail(ValueError, op, "into", wanted, got)
    else:
        check_device(op, "into", into.weight, weight.device)
    with torch.no_grad():
        _copy_panels(into.weight, weight)
        if bias is None:
            into.bias.zero_()
        else:
            into.bias[:out_features].copy_(bias)
    return into


def _empty(
    out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
) -> PackedLinear:
    panels = -(-out_features // _PANEL)
    shape: tuple[int, ...] = (panels, in_features, _PANEL)
    if dtype == torch.bfloat16:
        shape = (panels, -(-in_features // 32), 2, _TILE, _TILE, 2)
    weight = zeros_in_huge_pages(shape, dtype=dtype, device=device)
    bias = torch.zeros(panels * _PANEL, dtype=torch.float32, device=device)
    return PackedLinear(weight, bias, in_features, out_features)


def _copy_panels(packed: Tensor, weight: Tensor) -> None:
    """Write the features there are; what pads them to whole panels and blocks stays zero."""
    in_features = weight.shape[1]
    if packed.ndim == 3:
        unpacked = packed.transpose(1, 2)  # [panels, 32, in_features]
        for panel, rows in enumerate(weight.split(_PANEL)):
            unpacked[panel, : len(rows)].copy_(rows)
        return
    # [panel, block, tile, pair, output, input of the pair] as [panel, tile, output, block, pair, 2]
    unpacked = packed.permute(0, 2, 4, 1, 3, 5)
    whole = in_features // 32
    for panel, rows in enumerate(weight.split(_PANEL)):
        for tile, outputs in enumerate(rows.split(_TILE)):
            target = unpacked[panel, tile, : len(outputs)]
            target[:, :whole].copy_(outputs[:, : whole * 32].unflatten(1, (whole, _TILE, 2)))
            if whole * 32 < in_features:
                target[:, whole, : _TILE // 2].copy_(outputs[:, whole * 32 :].unflatten(1, (-1, 2)))


def fused_linear(
    x: Tensor,
    packed: PackedLinear,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    norm_eps: float = 1e-6,
    epilogue: str = "none",
    out: Tensor,
) -> Tensor:
    """Write a linear layer of `x`, or of its LayerNorm, to `out`, through GELU or added to it.

    ::

        a = layer_norm(x, *norm, norm_eps) if norm else x
        y = a @ weight.T + bias                                # sums in float32
        out = {"none": y, "gelu": gelu(y), "add": out + y}[epilogue]

    Parameters
    ----------
    x : Tensor
        ``[batch, num_rows, in_features]``, or in blocks
        ``[in_features / 32, batch, num_rows, 32]``, CPU, the last dimension contiguous: float32
        with `norm`, else in the dtype of the weight.
    packed : PackedLinear
        From `pack_linear`: float32 or bfloat16.
    norm : tuple of Tensor, optional
        Weight and bias of a LayerNorm, float32 ``[in_features]``.
    norm_eps : float
        Added to the variance.
    epilogue : str
        ``"none"``, ``"gelu"`` (exact, with erf) or ``"add"``.
    out : Tensor
        ``[batch, num_rows, out_features]``, or in blocks
        ``[out_features / 32, batch, num_rows, 32]``, float32 or bfloat16, the last dimension
        contiguous; memory apart from `x`.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    ValueError
        A wrong shape, stride, device or epilogue, or `out` overlaps `x`.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, or a tensor that requires grad.

    Notes
    -----
    Rows between two layers are best kept in blocks: the first writes them, and the second reads
    them, in the order of its work.

    Allocates no tensor. A row's bits depend neither on other rows, their number or layout, nor on
    the number of threads; they do depend on the instruction set (`lpd_ext.cpu_variant`). AMX
    multiplies bfloat16 by bfloat16 and rounds normalised rows to it (subnormal numbers count as 0
    there); all other variants multiply float32. `out` is bfloat16 or float32 whatever the weight
    is.

    Source: the layers of arXiv 2507.01957; what is fused is our choice.

    Examples
    --------
    >>> layer = torch.nn.Linear(32, 8)
    >>> packed = pack_linear(layer.weight.detach(), layer.bias.detach())
    >>> fused_linear(torch.randn(1, 5, 32), packed, epilogue="gelu", out=torch.empty(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """
    torch.ops.lpd_ext.fused_linear(*_arguments(x, packed, norm, norm_eps, epilogue, out))
    return out


def prepare_fused_linear(
    x: Tensor,
    packed: PackedLinear,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    norm_eps: float = 1e-6,
    epilogue: str = "none",
    out: Tensor,
) -> Launch:
    """Check the arguments of `fused_linear` once; the result runs it on them, time and again."""
    arguments = _arguments(x, packed, norm, norm_eps, epilogue, out)
    return partial(torch.ops.lpd_ext.fused_linear.default, *arguments)


def _arguments(
    x: Tensor,
    packed: PackedLinear,
    norm: tuple[Tensor, Tensor] | None,
    norm_eps: float,
    epilogue: str,
    out: Tensor,
) -> tuple[Tensor | float | None, ...]:
    """Return what the operator takes, checked."""
    if not isinstance(packed, PackedLinear):
        fail(TypeError, _OP, "packed", "a PackedLinear", type(packed).__name__)
    weight, bias = packed.weight, packed.bias
    in_blocks = _check_rows("x", x, _DTYPES if norm is None else (torch.float32,))
    check_device_type(_OP, "x", x, ("cpu",))
    batch, num_rows, in_features = (*x.shape[1:3], len(x) * _BLOCK) if in_blocks else x.shape
    if in_features != packed.in_features:
        fail(ValueError, _OP, "x", f"{packed.in_features} features", in_features)
    if norm is None and x.dtype != weight.dtype:
        fail(TypeError, _OP, "x", f"{weight.dtype}, as the weight", x.dtype)
    check_device(_OP, "packed", weight, x.device)
    check_device(_OP, "packed", bias, x.device)
    if _check_rows("out", out, _DTYPES):
        if packed.out_features % _BLOCK:
            wanted = f"whole rows, as {packed.out_features} features are no whole blocks"
            fail(ValueError, _OP, "out", wanted, f"shape {list(out.shape)}")
        blocks = (packed.out_features // _BLOCK, batch, num_rows, _BLOCK)
        check_shape(_OP, "out", out, blocks, _BLOCKS)
    else:
        check_shape(_OP, "out", out, (batch, num_rows, packed.out_features), _ROWS)
    check_device(_OP, "out", out, x.device)
    check_apart_within(_OP, "out", out)
    norm_weight, norm_bias = None, None
    if norm is not None:
        check_norm(_OP, norm, in_features, x.device)
        norm_weight, norm_bias = norm
    read = {"x": x, "packed.weight": weight, "packed.bias": bias}
    if norm is not None:
        read |= {"norm[0]": norm[0], "norm[1]": norm[1]}
    check_apart(_OP, {"out": out}, read)
    check_norm_eps(_OP, norm_eps)
    if epilogue not in _EPILOGUES:
        fail(ValueError, _OP, "epilogue", f"one of {_EPILOGUES}", repr(epilogue))
    index = _EPILOGUES.index(epilogue)
    return x, weight, bias, norm_weight, norm_bias, norm_eps, index, out


def _check_rows(argument: str, rows: Tensor, dtypes: Sequence[torch.dtype]) -> bool:
    """Demand rows of one of the dtypes; return whether they lie in blocks."""
    in_blocks = isinstance(rows, Tensor) and rows.ndim == 4
    check_tensor(_OP, argument, rows, dtypes, f"{_ROWS} or {_BLOCKS}", 4 if in_blocks else 3)
    if in_blocks and rows.shape[3] != _BLOCK:
        fail(ValueError, _OP, argument, _BLOCKS, f"shape {list(rows.shape)}")
    check_rows(_OP, argument, rows)
    return in_blocks


@torch.library.register_fake("lpd_ext::fused_linear")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    epilogue: int,
    out: Tensor,
) -> None:
    check_one_device(_OP, x, weight, bias, norm_weight, norm_bias, out)
