"""What runs here: versions, build, devices, and which kernels were seen to be right."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpd_ext import _binary, cpu_variant, ops
from lpd_ext.ops import reference
from lpd_ext.schedule import group_sizes

_DEVICE_TYPES = ("cpu", "cuda")
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def info() -> dict[str, Any]:
    """Report versions, build, devices and the state of every kernel on this machine.

    Returns
    -------
    dict
        ``versions``: of lpd_ext, torch and python. ``build``: as the binary was made (``cuda`` is
        "" for a build without it). ``devices``: a list of dicts with ``device``, ``name`` and
        ``capability``. ``cpu_variants``: instruction sets of the CPU kernels, ``in use`` and
        ``available`` (`lpd_ext.cpu_variant`). ``kernels``: for each op and device type a dict with
        ``state`` (``"verified"``, ``"failed"``, ``"not built"`` or ``"no device"``) and ``detail``.

    Notes
    -----
    "verified" is seen, not remembered: the op has just agreed with its plain-torch reference on
    small inputs, here, on that device, in the instruction set in use. It takes a fraction of a
    second; the tests go further.

    Examples
    --------
    >>> info()["kernels"]["token_selection"]["cpu"]["state"]
    'verified'
    """
    return {
        "versions": versions(),
        "build": dict(_binary.host.build_info()),
        "devices": _devices(),
        "cpu_variants": {
            "in use": cpu_variant.cpu_variant(),
            "available": list(cpu_variant.cpu_variants()),
        },
        "kernels": {
            op: {device_type: _state(check, device_type) for device_type in _DEVICE_TYPES}
            for op, check in _SELF_CHECKS.items()
        },
    }


def versions() -> dict[str, str]:
    """Return the versions an output depends on."""
    return {
        "lpd_ext": _binary.VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _devices() -> list[dict[str, str]]:
    cpu = {
        "device": "cpu",
        "name": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    return [cpu] + [
        {
            "device": f"cuda:{i}",
            "name": torch.cuda.get_device_name(i),
            "capability": "sm_{}{}".format(*torch.cuda.get_device_capability(i)),
        }
        for i in range(torch.cuda.device_count())
    ]


def _state(check: Callable[[torch.device], str], device_type: str) -> dict[str, str]:
    if device_type == "cuda" and not _binary.host.build_info()["cuda"]:
        return {"state": "not built", "detail": "this build has no CUDA kernels"}
    if device_type == "cuda" and not torch.cuda.is_available():
        return {"state": "no device", "detail": "built, but there is no CUDA device to verify it"}
    try:
        detail = check(torch.device(device_type))
    except NotImplementedError as error:
        return {"state": "not built", "detail": str(error)}
    except RuntimeError as error:
        return {"state": "failed", "detail": str(error).splitlines()[0]}
    return {"state": "verified", "detail": detail}


def _check_group_attention(device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in _TOLERANCE.items():
        qkv = torch.randn(2, 9, 3, 2, 64, generator=generator).to(device, dtype)
        k_cache, v_cache = torch.randn(2, 2, 2, 40, 64, generator=generator).to(device, dtype)
        caches = (k_cache.clone(), v_cache.clone())
        out = ops.group_attention(qkv, k_cache, v_cache, 33, 4)
        expected = reference.group_attention(qkv, *caches, 33, 4)
        _expect_close(out, expected, tolerance)
        _expect_close(torch.stack([k_cache, v_cache]), torch.stack(caches), 0)
    return f"agrees with the reference in {', '.join(_names(_TOLERANCE))}"


def _check_token_selection(device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)
    for dtype in _TOLERANCE:
        logits = torch.randn(4, 8, 300, generator=generator).to(device, dtype)
        uniform = torch.rand(2, 8, dtype=torch.float64, generator=generator).to(device)
        options: dict[str, Any] = {
            "cfg_scale": torch.linspace(1, 4, 8, device=device),
            "temperature": torch.tensor([0.0, 0.8], device=device),
            "top_k": torch.tensor([0, 40], device=device),
            "top_p": 0.9,
        }
        ids = ops.token_selection(logits, uniform, **options)
        expected = reference.token_selection(logits, uniform, **options)
        _expect_close(ids, expected, 0)
    return f"same ids as the reference in {', '.join(_names(_TOLERANCE))}"


def _check_token_selection_(device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([[7, 0, 3], [2, 4, 5]], device=device)
    uniform = torch.rand(2, 3, dtype=torch.float64, generator=generator).to(device)
    for dtype in _TOLERANCE:
        logits = torch.randn(2, 3, 300, generator=generator).to(device, dtype)
        tokens = torch.full((2, 8), -7, device=device)
        expected = tokens.clone()
        ops.token_selection_(tokens, positions, logits, uniform)
        reference.token_selection_(expected, positions, logits, uniform)
        _expect_close(tokens, expected, 0)
    return f"same ids as the reference in {', '.join(_names(_TOLERANCE))}"


def _check_fused_linear(device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    norm = (randn(48), randn(48))
    for dtype in (torch.float32, torch.bfloat16):
        tolerance = 8 * _TOLERANCE[dtype]  # sums of 48 products
        weight, bias = randn(40, 48).to(dtype), randn(40)
        packed = ops.pack_linear(weight, bias)
        for epilogue in ("gelu", "add"):
            x, y = randn(2, 5, 48), randn(2, 5, 40)
            options: dict[str, Any] = {"norm": norm, "epilogue": epilogue}
            out = ops.fused_linear(x, packed, **options, out=y.clone())
            expected = reference.fused_linear(x, weight, bias, **options, out=y)
            _expect_close(out, expected, tolerance)
    return "agrees with the reference in float32, bfloat16"


def _check_group_embedding(device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    tokens = torch.tensor([[4, 0, -1, 2], [1, 1, 3, 0]], device=device)
    order = torch.tensor([[3, 0, 2, 1], [0, 1, 2, 3]], device=device)
    norm = (randn(48), randn(48))
    for dtype in _TOLERANCE:
        tables = [randn(*shape).to(dtype) for shape in ((5, 48), (48,), (4, 48))]
        arguments: tuple[Any, ...] = (tokens, order, *tables, norm, (0, 3), 4)
        out = ops.group_embedding(*arguments, out=randn(4, 4, 48))
        expected = reference.group_embedding(*arguments, out=randn(4, 4, 48))
        _expect_close(out, expected, 1e-5)
    return f"agrees with the reference in {', '.join(_names(_TOLERANCE))}"


def _check_group_order(device: torch.device) -> str:
    seeds = torch.tensor([0, -1, 2**40], device=device)
    grid = (6, 7)
    sizes = group_sizes(42, 6)
    order = ops.group_order(seeds, grid, sizes)
    expected = reference.group_order(seeds, grid, sizes)
    _expect_close(order, expected, 0)
    return "same orders as the reference"


def _expect_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((got.double() - expected.double()).abs().max())
    if not error <= tolerance:  # NaN counts as an error
        raise RuntimeError(f"differs from the reference by {error:g} (at most {tolerance:g})")


def _names(dtypes: dict[torch.dtype, float]) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in dtypes]


_SELF_CHECKS: dict[str, Callable[[torch.device], str]] = {
    "group_attention": _check_group_attention,
    "token_selection": _check_token_selection,
    "token_selection_": _check_token_selection_,
    "fused_linear": _check_fused_linear,
    "group_embedding": _check_group_embedding,
    "group_order": _check_group_order,
}
