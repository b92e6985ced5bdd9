"""What is committed of measurements; needs neither torch nor a build of lpd_ext."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]


def trim(sources: Sequence[Result]) -> Result:
    """Return what is committed of pytest-benchmark's files: no sample lists, four digits."""
    first = sources[0]
    for other in sources[1:]:
        for key in ("machine_info", "commit_info"):
            if other[key] != first[key]:
                raise ValueError(f"cannot merge: `{key}`: {first[key]} and {other[key]}")
    trimmed = {
        "machine_info": first["machine_info"],
        "commit_info": first["commit_info"],
        "date": min(source["datetime"] for source in sources)[:10],
        "benchmarks": [
            {"name": b["name"], "extra_info": b["extra_info"]}
            for source in sources
            for b in source["benchmarks"]
        ],
    }
    untimed = [b["name"] for b in trimmed["benchmarks"] if "ours" not in b["extra_info"]]
    if untimed or not trimmed["benchmarks"]:
        raise ValueError(f"nothing was timed in {untimed or 'this file'}")
    return _rounded(trimmed)  # type: ignore[no-any-return]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
