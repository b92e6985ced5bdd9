"""What a number was measured on: processor, GPU, torch, threads; no host name, no path."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from lpd_ext.cpu_variant import cpu_variant
from lpd_ext.verdicts import driver_version

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")


def machine() -> dict[str, Any]:
    """Return the facts that stand beside every number."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = set(_field(text, "flags").split())
    return {
        "cpu": cpu_name(text),
        "cpu_flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_variant": cpu_variant(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **gpu_facts(),
    }


def gpu_facts() -> dict[str, str]:
    """Return the facts of the current GPU, {} where there is none."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver_version() or "unknown",
        "cuda": str(torch.version.cuda),
    }


def cpu_name(cpuinfo: str) -> str:
    """Return the processor's name; with family and model where a virtual machine hides it."""
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", " ", _field(cpuinfo, "model name"))
    name = " ".join(name.split()) or platform.processor() or platform.machine()
    family, model = _field(cpuinfo, "cpu family"), _field(cpuinfo, "model")
    if family and not re.search(r"\d", name):
        name += f" (family {family}, model {model})"
    return name


def _field(cpuinfo: str, key: str) -> str:
    found = re.search(rf"^{key}\s*: (.*)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else ""
