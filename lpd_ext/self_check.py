"""Every kernel once on small inputs, compared with its plain-torch reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lpd_ext import ops
from lpd_ext.ops import reference
from lpd_ext.ops.group_attention import HEAD_DIMS

VERIFIED, FAILED, NOT_BUILT = "verified", "failed", "not built"
STATES = (VERIFIED, FAILED, NOT_BUILT)

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_DIMS = (48, 1536)  # of rows that a warp of a kernel takes, and of such that take several


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value).removeprefix("torch.") for value in values)


_ALL_DTYPES = _listed(_TOLERANCE)
_HEAD_DIMS = f"head_dim {_listed(HEAD_DIMS)}"


@dataclass(frozen=True)
class Verdict:
    """What a self-check found.

    Parameters
    ----------
    state : str
        ``"verified"``, ``"failed"``, or ``"not built"``: the op has no kernel for the device.
    detail : str
        What agrees, how large the difference is, or what the op said.
    """

    state: str
    detail: str


def self_check(op: str, device: torch.device) -> Verdict:
    """Run an op on small inputs and compare it with its reference.

    Parameters
    ----------
    op : str
        One of `CHECKS`.
    device : torch.device
        Where the op runs.

    Returns
    -------
    Verdict
        What was found.

    Raises
    ------
    torch.OutOfMemoryError
        The device has no room for a few kilobytes, which is not the kernel's fault.

    Notes
    -----
    Inputs are made on the CPU and the reference is run there, on those very values in float64: no
    setting of the device (TF32, autocast) has a say in what is right.
    """
    try:
        return Verdict(VERIFIED, CHECKS[op](device))
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError as error:
        return Verdict(NOT_BUILT, _first_line(error))
    except (RuntimeError, ValueError, TypeError) as error:
        return Verdict(FAILED, _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class _Inputs:
    """Random numbers that are the same everywhere, whatever torch's defaults are."""

    def __init__(self) -> None:
        self._generator = torch.Generator("cpu").manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu")

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, dtype=torch.float64, device="cpu")


def _integers(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _check_group_attention(device: torch.device) -> str:
    inputs = _Inputs()
    lengths = ("cache_len", "context_len", "q_len")
    ragged = torch.tensor([[33, 301], [4, 0], [9, 17]], dtype=torch.int32, device="cpu")
    many_keys = {"cache_len": 301, "context_len": 20}
    # Copies of two images, and lengths. Few images with many keys are shared out another way than
    # many, and those another way than still more.
    calls: list[tuple[int, dict[str, Any]]] = [
        (1, {"cache_len": 33, "context_len": 4}),
        (1, many_keys),
        (1, dict(zip(lengths, ragged.unbind(), strict=True))),
        (25, many_keys),
        (75, many_keys),
    ]
    for dtype, head_dim in product(_TOLERANCE, HEAD_DIMS):
        qkv = inputs.normal(2, 40, 3, 2, head_dim).to(dtype)
        caches = inputs.normal(2, 2, 2, 330, head_dim).to(dtype)
        for copies, call in calls:
            exact_caches = caches.double()
            expected = reference.group_attention(qkv.double(), *exact_caches, **call)
            k_cache, v_cache = (_copies(cache, copies).to(device) for cache in caches)
            moved: dict[str, Any] = {
                name: x.to(device) if isinstance(x, Tensor) else x for name, x in call.items()
            }
            out = ops.group_attention(_copies(qkv, copies).to(device), k_cache, v_cache, **moved)
            _expect_close(out, _copies(expected, copies), _TOLERANCE[dtype])
            for got, exact in zip((k_cache, v_cache), exact_caches, strict=True):
                _expect_equal(got, _copies(exact.to(dtype), copies))
    images = _listed(2 * copies for copies in dict(calls))
    return (
        f"agrees with the reference in {_ALL_DTYPES}, {_HEAD_DIMS}: 2 images of other lengths; "
        f"{images} images of 2 heads, 40 rows, 73 or 341 keys"
    )


def _check_masked_attention(device: torch.device) -> str:
    inputs = _Inputs()
    lengths = torch.tensor([[0, 3, 300], [1, 33, 132]], dtype=torch.int32, device="cpu")
    masks = [lengths, inputs.uniform(2, 3, 300) < 0.5, inputs.uniform(3, 300) < 0.1]
    for dtype, head_dim in product(_TOLERANCE, HEAD_DIMS):
        q, k, v = (inputs.normal(2, 2, rows, head_dim).to(dtype) for rows in (3, 300, 300))
        for mask in masks:
            out = ops.masked_attention(*(x.to(device) for x in (q, k, v, mask)))
            exact = reference.masked_attention(q.double(), k.double(), v.double(), mask)
            _expect_close(out, exact, _TOLERANCE[dtype])
    return (
        f"agrees with the reference in {_ALL_DTYPES}, {_HEAD_DIMS}: 300 keys, masks of numbers, "
        "of an image and of all"
    )


def _check_token_selection(device: torch.device) -> str:
    inputs = _Inputs()
    options: dict[str, Any] = {
        "cfg_scale": torch.linspace(1, 4, 3, dtype=torch.float32, device="cpu"),
        "temperature": torch.tensor([0.0, 0.8], dtype=torch.float32, device="cpu"),
        "top_k": _integers([0, 40]),
    }
    moved = {name: option.to(device) for name, option in options.items()}
    for dtype in _TOLERANCE:
        for vocab_size in (300, 4000, 16384, 20000, 33000):  # a way to hold a row each
            logits, uniform = inputs.normal(4, 3, vocab_size).to(dtype), inputs.uniform(2, 3)
            for top_p in (0.9, 1.0):
                ids = ops.token_selection(
                    logits.to(device), uniform.to(device), **moved, top_p=top_p
                )
                expected = reference.token_selection(logits, uniform, **options, top_p=top_p)
                _expect_close(ids, expected, 0)
    return (
        f"same ids as the reference in {_ALL_DTYPES}: 300 to 33000 tokens, with guidance, greedy, "
        "top-k, top-p"
    )


def _check_token_selection_(device: torch.device) -> str:
    inputs = _Inputs()
    positions, uniform = _integers([[7, 0, 3], [2, 4, 5]]), inputs.uniform(2, 3)
    for dtype in _TOLERANCE:
        logits = inputs.normal(2, 3, 300).to(dtype)
        expected = _integers([[-7] * 8] * 2)
        tokens = expected.to(device, copy=True)
        ops.token_selection_(tokens, *(x.to(device) for x in (positions, logits, uniform)))
        reference.token_selection_(expected, positions, logits, uniform)
        _expect_close(tokens, expected, 0)
    return f"same ids as the reference in {_ALL_DTYPES}: 300 tokens"


def _check_fused_linear(device: torch.device) -> str:
    inputs = _Inputs()
    norm = (inputs.normal(48), inputs.normal(48))
    moved = (norm[0].to(device), norm[1].to(device))
    for dtype in (torch.float32, torch.bfloat16):
        tolerance = 8 * _TOLERANCE[dtype]  # sums of 48 products
        weight, bias = inputs.normal(40, 48).to(dtype), inputs.normal(40)
        packed = ops.pack_linear(weight.to(device), bias.to(device))
        for epilogue in ("gelu", "add"):
            x, y = inputs.normal(2, 5, 48), inputs.normal(2, 5, 40)
            out = y.to(device, copy=True)
            ops.fused_linear(x.to(device), packed, norm=moved, epilogue=epilogue, out=out)
            expected = reference.fused_linear(
                x.double(), weight, bias, norm=norm, epilogue=epilogue, out=y.double()
            )
            _expect_close(out, expected, tolerance)
    return "agrees with the reference in float32, bfloat16: 48 to 40 features, both epilogues"


def _check_group_embedding(device: torch.device) -> str:
    inputs = _Inputs()
    tokens = _integers([[4, 0, -1, 2], [1, 1, 3, 0]])
    order = _integers([[3, 0, 2, 1], [0, 1, 2, 3]])
    for dtype, dim in product(_TOLERANCE, _DIMS):
        norm = (inputs.normal(dim), inputs.normal(dim))
        moved = (norm[0].to(device), norm[1].to(device))
        tables = [inputs.normal(*shape).to(dtype) for shape in ((5, dim), (dim,), (4, dim))]
        moved_tables = [table.to(device) for table in tables]
        exact_tables = [table.double() for table in tables]
        out = torch.zeros(4, 4, dim, dtype=torch.float32, device=device)
        expected = torch.zeros(4, 4, dim, dtype=torch.float64, device="cpu")
        arguments: Any = (tokens.to(device), order.to(device), *moved_tables, moved, (0, 3), 4)
        ops.group_embedding(*arguments, out=out)
        arguments = (tokens, order, *exact_tables, norm, (0, 3), 4)
        reference.group_embedding(*arguments, out=expected)
        _expect_close(out, expected, 1e-5)
    return f"agrees with the reference in {_ALL_DTYPES}: {_listed(_DIMS)} features"


def _check_add_layer_norm(device: torch.device) -> str:
    inputs = _Inputs()
    for delta_dtype, dtype, dim in product(_TOLERANCE, _TOLERANCE, _DIMS):
        norm = (inputs.normal(dim), inputs.normal(dim))
        moved = (norm[0].to(device), norm[1].to(device))
        x, bias = inputs.normal(2, 5, dim), inputs.normal(dim)
        delta = inputs.normal(2, 5, dim).to(delta_dtype)
        expected = torch.zeros(2, 5, dim, dtype=torch.float64, device="cpu")
        expected_x = x.double()
        exact: Any = {"delta": delta.double(), "bias": bias.double(), "out": expected}
        reference.add_layer_norm(expected_x, norm, **exact)
        x, out = x.to(device), torch.zeros(2, 5, dim, dtype=dtype, device=device)
        ops.add_layer_norm(x, moved, delta=delta.to(device), bias=bias.to(device), out=out)
        _expect_close(x, expected_x, 1e-5)
        _expect_close(out, expected, 2 * _TOLERANCE[dtype])  # values of up to 8
    return f"agrees with the reference in {_ALL_DTYPES}: {_listed(_DIMS)} features"


def _check_bias_gelu(device: torch.device) -> str:
    inputs = _Inputs()
    all_features = (100, 1035)
    for (dtype, tolerance), features in product(_TOLERANCE.items(), all_features):
        x, bias = inputs.normal(3, features).to(dtype), inputs.normal(features)
        expected = torch.zeros(3, features, dtype=torch.float64, device="cpu")
        reference.bias_gelu(x.double(), bias.double(), out=expected)
        moved = x.to(device)
        ops.bias_gelu(moved, bias.to(device), out=moved)
        _expect_close(moved, expected, tolerance)
    return f"agrees with the reference in {_ALL_DTYPES}: {_listed(all_features)} features"


def _check_linear_gelu(device: torch.device) -> str:
    inputs = _Inputs()
    # Few and many rows are shared out in two ways; 140 features end amid a vector.
    all_rows, all_features = (3, 300), (136, 140)
    for dtype, rows, features in product((torch.float16, torch.bfloat16), all_rows, all_features):
        x, bias = inputs.normal(rows, 584).to(dtype), inputs.normal(features)
        weight = (inputs.normal(features, 584) / 584**0.5).to(dtype)
        expected = torch.zeros(rows, features, dtype=torch.float64, device="cpu")
        reference.linear_gelu(x.double(), weight.double(), bias.double(), out=expected)
        out = torch.empty(rows, features, dtype=dtype, device=device)
        ops.linear_gelu(x.to(device), weight.to(device), bias.to(device), out=out)
        _expect_close(out, expected, _TOLERANCE[dtype])
    return (
        f"agrees with the reference in float16, bfloat16: {_listed(all_rows)} rows, 584 to "
        f"{_listed(all_features)} features"
    )


def _check_group_norm_silu(device: torch.device) -> str:
    inputs = _Inputs()
    # Chunks of pixels that are merged, the last one ragged; channels that fill no vector.
    shapes = {(2, 512, 9, 5): 32, (2, 6, 5, 7): 2}
    for shape, num_groups in shapes.items():
        for dtype, tolerance in _TOLERANCE.items():
            x = (inputs.normal(*shape) + 1).to(dtype).contiguous(memory_format=torch.channels_last)
            norm = (inputs.normal(shape[1]), inputs.normal(shape[1]))
            moved, x_moved = (norm[0].to(device), norm[1].to(device)), x.to(device)
            for silu in (True, False):
                out = torch.empty_like(x_moved)
                ops.group_norm_silu(x_moved, num_groups, moved, silu=silu, out=out)
                exact = reference.group_norm_silu(
                    x.double(), num_groups, norm, silu=silu, out=x.double()
                )
                _expect_close(out, exact, 4 * tolerance)  # values of up to 16
    channels = _listed(shape[1] for shape in shapes)
    return f"agrees with the reference in {_ALL_DTYPES}: {channels} channels, with and without SiLU"


def _check_group_order(device: torch.device) -> str:
    seeds = _integers([0, -1, 2**40])
    calls: list[tuple[tuple[int, int], list[int], Tensor | None]] = [
        ((6, 7), [1, 4, 7, 9, 10, 11], None),
        ((6, 7), [2, 4, 6, 9, 10], _Inputs().uniform(3, 42).argsort(dim=1) < 11),
        ((1, 257), [1, 20, 30, 206], None),  # more cells than one warp of the kernel takes,
        ((33, 32), [1, 20, 1035], None),  # and than four
    ]
    for grid, sizes, known in calls:
        moved = None if known is None else known.to(device)
        order = ops.group_order(seeds.to(device), grid, sizes, known=moved)
        _expect_close(order, reference.group_order(seeds, grid, sizes, known=known), 0)
    grids = _listed(f"{height}x{width}" for height, width in dict.fromkeys(c[0] for c in calls))
    return f"same orders as the reference: grids of {grids}, with and without known positions"


def _copies(images: Tensor, count: int) -> Tensor:
    """Return each image several times over, so that the reference need not compute all of them."""
    return images.repeat(count, *[1] * (images.ndim - 1))


def _expect_equal(got: Tensor, expected: Tensor) -> None:
    if not got.cpu().equal(expected):
        _expect_close(got, expected, 0)


def _expect_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    # Fetched to the CPU first: an error of the kernel shows here, where it has a name.
    error = float((got.cpu().double() - expected.double()).abs().max())
    if not error <= tolerance:  # NaN counts as an error
        raise RuntimeError(f"differs from the reference by {error:g} (at most {tolerance:g})")


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "group_attention": _check_group_attention,
    "masked_attention": _check_masked_attention,
    "token_selection": _check_token_selection,
    "token_selection_": _check_token_selection_,
    "add_layer_norm": _check_add_layer_norm,
    "bias_gelu": _check_bias_gelu,
    "linear_gelu": _check_linear_gelu,
    "group_norm_silu": _check_group_norm_silu,
    "fused_linear": _check_fused_linear,
    "group_embedding": _check_group_embedding,
    "group_order": _check_group_order,
}
