"""What runs here: versions, build, devices, and which kernels were seen to be right."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from lpd_ext import _binary, cpu_variant
from lpd_ext.ops.launch import device_types
from lpd_ext.self_check import CHECKS, NOT_BUILT, Verdict, self_check
from lpd_ext.verdicts import driver_version, verdicts

RUN_ON: Mapping[str, tuple[str, ...]] = {
    "group_attention": (),
    "masked_attention": (),
    "group_order": (),
    "token_selection": (),
    "token_selection_": (),
    "add_layer_norm": (),
    "bias_gelu": (),
    "linear_gelu": (),
    "group_norm_silu": (),
    "group_embedding": (),
}
"""Ops that have a CUDA kernel, and the GPUs on which the project itself has run its tests."""


def info() -> dict[str, Any]:
    """Report versions, build, devices and the state of every kernel on this machine.

    Returns
    -------
    dict
        ``versions``: of lpd_ext, torch and python. ``build``: as the binary was made (``cuda`` is
        "" for a build without it). ``devices``: a list of dicts with ``device``, ``name`` and
        ``capability``, GPUs also with ``driver``. ``cpu_variants``: instruction sets of the CPU
        kernels, ``in use`` and ``available`` (`lpd_ext.cpu_variant`). ``kernels``: for each op and
        device (``"cuda"`` where there is none) a dict with ``state`` (``"verified"``,
        ``"failed"``, ``"not built"``, ``"no device"`` or ``"unchecked"``: the check could not run)
        and ``detail``, for a GPU also when it was ``checked`` and with which ``driver``.
        ``cuda_kernels``: for each op, on which GPUs the project has run its CUDA kernel.

    Notes
    -----
    "verified" means that the op agreed with its plain-torch reference on small inputs on that
    device: on the CPU just now, in the instruction set in use; on a GPU at its first use with this
    driver and build (`lpd_ext.verdicts`), which may be now. The tests go further.

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
        "kernels": _kernels(),
        "cuda_kernels": {op: _record(op) for op in CHECKS},
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
            "driver": driver_version() or "unknown",
        }
        for i in range(torch.cuda.device_count())
    ]


def _kernels() -> dict[str, dict[str, dict[str, str]]]:
    """Return what is known of every op, by op and device."""
    cpu = torch.device("cpu")
    kernels = {op: {"cpu": asdict(self_check(op, cpu))} for op in CHECKS}
    for device in [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]:
        on_device = _on_gpu(device) if ":" in device else _on_no_gpu()
        for op, by_device in kernels.items():
            by_device[device] = on_device[op]
    return kernels


def _on_gpu(device: str) -> dict[str, dict[str, str]]:
    try:
        return {op: asdict(verdict) for op, verdict in verdicts(torch.device(device)).items()}
    except RuntimeError as error:  # out of memory, or nothing runs there
        unchecked = asdict(Verdict("unchecked", str(error).partition("\n")[0]))
        return dict.fromkeys(CHECKS, unchecked)


def _on_no_gpu() -> dict[str, dict[str, str]]:
    absent = Verdict("no device", "built, but there is no CUDA device to verify it")
    if _binary.host.build_info()["cuda"]:
        missing = Verdict(NOT_BUILT, "there is no CUDA kernel of it yet")
    else:
        missing = Verdict(NOT_BUILT, "this build has no CUDA kernels")
    return {op: asdict(absent if "cuda" in device_types(op) else missing) for op in CHECKS}


def _record(op: str) -> str:
    if op not in RUN_ON:
        return "none yet"
    return f"run on {', '.join(RUN_ON[op])}" if RUN_ON[op] else "not yet run on a GPU"
