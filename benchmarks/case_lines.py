"""Timed cases, a line of JSON each: what ends a run early loses none that had ended.

`gpu_check.py` says by the environment what `conftest.py` does with them:

- ``LPD_BENCH_LINES``: files, ``os.pathsep`` between, that take a line when a case has been timed.
  A case that the first of them has is not timed again.
- ``LPD_BENCH_SOURCES``: a name of the code. A case timed with another name is timed again.
- ``LPD_BENCH_CASES``: parts of ids, ``|`` between. Cases with none of them are left out, the others
  come in the order of the parts.
- ``LPD_BENCH_SLOW=1``: baselines that compile for minutes take part. A case timed without them is
  timed again.
- ``LPD_BENCH_FRESH=1``: every case is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]

TIMED_BEFORE = "timed before"  # why a case is skipped
SLOW = "compiles for minutes, not asked for"  # why a baseline is left out


def slow_baselines() -> bool:
    """Return whether baselines that compile for minutes take part."""
    return os.environ.get("LPD_BENCH_SLOW") == "1"


def in_order(ids: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Return the ids that contain one of the parts, in the order of the parts; all without any."""
    if not parts:
        return list(ids)
    return list(dict.fromkeys(i for part in parts for i in ids if part in i))


def asked_parts() -> list[str]:
    """Return the parts of ids that the environment asks for."""
    return [part for part in os.environ.get("LPD_BENCH_CASES", "").split("|") if part]


def read(file: Path) -> list[Line]:
    """Return the lines of a file; one that a kill cut short is no line."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def timed(lines: Sequence[Line], sources: str, *, slow: bool) -> dict[str, Line]:
    """Return the newest line of each case that these sources have timed."""
    return {
        line["case"]: line
        for line in lines
        if line["sources"] == sources and (line["slow"] or not slow)
    }


def timed_before() -> set[str]:
    """Return the ids of cases that the environment's file has."""
    files = _files()
    if not files or os.environ.get("LPD_BENCH_FRESH") == "1":
        return set()
    return set(timed(read(files[0]), _sources(), slow=slow_baselines()))


def write(case: str, facts: Mapping[str, Any]) -> None:
    """Append what was measured of a case to the environment's files."""
    line = {"case": case, "sources": _sources(), "slow": slow_baselines(), **facts}
    for file in _files():
        cut_short = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
        with file.open("a") as stream:
            stream.write("\n" * cut_short + json.dumps(line) + "\n")


def _files() -> list[Path]:
    return [Path(name) for name in os.environ.get("LPD_BENCH_LINES", "").split(os.pathsep) if name]


def _sources() -> str:
    return os.environ.get("LPD_BENCH_SOURCES", "")
