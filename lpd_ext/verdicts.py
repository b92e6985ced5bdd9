"""What the self-checks said of a device: asked once, then remembered by driver and build."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from threading import RLock
from typing import TypeAlias

import torch

from lpd_ext import _binary
from lpd_ext.files import write_atomically
from lpd_ext.self_check import CHECKS, FAILED, STATES, VERIFIED, Verdict, self_check

Facts: TypeAlias = dict[str, str]
"""What a verdict holds for: device, driver, torch, build."""

TESTED_DEVICES = frozenset({"cpu"})
"""Where the test-suite itself runs the kernels: nothing is left to ask there."""

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class RememberedVerdict(Verdict):
    """A verdict, and where it comes from.

    Parameters
    ----------
    checked : str
        When, in UTC.
    driver : str
        The driver's version, "" where it is not known.
    """

    checked: str
    driver: str


def trusted(op: str, device: torch.device) -> bool:
    """Return whether an op's kernel may be used on a device.

    Parameters
    ----------
    op : str
        One of `lpd_ext.self_check.CHECKS`.
    device : torch.device
        With its index, as tensors have it.

    Returns
    -------
    bool
        True where the test-suite runs the kernels, elsewhere as the self-check found.
    """
    return device.type in TESTED_DEVICES or verdicts(device)[op].state == VERIFIED


def verdicts(device: torch.device) -> dict[str, RememberedVerdict]:
    """Return what the self-check found for every op on a device; its first use runs the check.

    Parameters
    ----------
    device : torch.device
        With its index, as tensors have it.

    Returns
    -------
    dict
        By op.

    Warns
    -----
    RuntimeWarning
        Once in a process for each op that failed.

    Raises
    ------
    RuntimeError
        A kernel left the device unable to run anything: its failure is remembered, the next
        process goes around it.
    torch.OutOfMemoryError
        The device has no room for the check.

    Notes
    -----
    Verdicts are kept in memory and, for a device whose driver is known, in
    ``$XDG_CACHE_HOME/lpd_ext`` (by default ``~/.cache/lpd_ext``), in a file for each device,
    driver, torch and build. A file that cannot be read or written is as good as none. Delete it to
    have the kernels checked again.
    """
    with _lock:
        known = _in_memory.get(device)
        if known is not None:
            return known
        facts = _FACTS.get(device.type, _nothing)(device)
        found = _checked(device, facts)
        _in_memory[device] = found  # before the warnings: some turn them into errors
    for op, verdict in found.items():
        if verdict.state == FAILED:
            warnings.warn(_warning(op, device, facts, verdict), RuntimeWarning, stacklevel=2)
    return found


def driver_version() -> str:
    """Return the version of the NVIDIA driver, "" where it is not known."""
    try:
        text = _DRIVER_FILE.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"^NVRM version:.*?\b(\d+\.[\d.]+)", text, re.MULTILINE)
    return found[1] if found else ""


_lock = RLock()
_in_memory: dict[torch.device, dict[str, RememberedVerdict]] = {}


def _checked(device: torch.device, facts: Facts) -> dict[str, RememberedVerdict]:
    path = _path(facts)
    known = {} if path is None else _read(path, facts)
    missing = [op for op in CHECKS if op not in known]
    if missing:
        _touch(device)  # what is broken already is no kernel's fault
    for op in missing:
        verdict = self_check(op, device)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        known[op] = RememberedVerdict(**asdict(verdict), checked=now, driver=facts["driver"])
        if verdict.state == FAILED and not _answers(device):
            _write(path, facts, known)
            raise RuntimeError(
                f"lpd_ext: {op} left {device} unable to run anything ({verdict.detail}); the next "
                "process uses its reference"
            )
    if missing:
        _write(path, facts, known)
    return {op: known[op] for op in CHECKS}


def _touch(device: torch.device) -> None:
    """Run something simple and wait for it."""
    torch.zeros(1, device=device).sum().cpu()


def _answers(device: torch.device) -> bool:
    """Return whether the device still runs anything: an illegal address ends all work there."""
    try:
        _touch(device)
    except RuntimeError:
        return False
    return True


def _warning(op: str, device: torch.device, facts: Facts, verdict: Verdict) -> str:
    name = f"{facts['device']}, driver {facts['driver'] or 'unknown'}"
    return (
        f"lpd_ext: the kernel of {op} failed its self-check on {device} ({name}): "
        f"{verdict.detail}; decode uses plain torch instead"
    )


def _cuda_facts(device: torch.device) -> Facts:
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "uuid": str(properties.uuid),
        "driver": driver_version(),
        "torch": torch.__version__,
        "build": _build_id(),
    }


def _nothing(device: torch.device) -> Facts:
    return {"device": device.type, "driver": ""}


_FACTS: dict[str, Callable[[torch.device], Facts]] = {"cuda": _cuda_facts}


@cache
def _build_id() -> str:
    """Return a hash of the compiled operators."""
    path = next(Path(_binary.__file__).parent.glob("_C*.so"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _path(facts: Facts) -> Path | None:
    """Return the file of these facts; None where they say too little to be told apart."""
    if not facts["driver"]:
        return None
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:  # a relative path counts as none, says the XDG specification
        root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return root / "lpd_ext" / f"self_check-{digest[:32]}.json"


def _read(path: Path, facts: Facts) -> dict[str, RememberedVerdict]:
    """Return what a file holds for these facts, nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        found = {op: RememberedVerdict(**entry) for op, entry in content["verdicts"].items()}
        sound = content["facts"] == facts and all(
            verdict.state in STATES and all(isinstance(x, str) for x in asdict(verdict).values())
            for verdict in found.values()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return found if sound else {}


def _write(path: Path | None, facts: Facts, found: dict[str, RememberedVerdict]) -> None:
    if path is None:
        return
    entries = {op: asdict(verdict) for op, verdict in found.items()}
    content = json.dumps({"facts": facts, "verdicts": entries}, indent=1) + "\n"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
