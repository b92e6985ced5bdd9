"""Facts and verdicts of `gpu_check.sh`.

    python benchmarks/gpu_report.py machine         # is all there that the check needs?
    python benchmarks/gpu_report.py write FOLDER    # sums up what lies in FOLDER

Writes ``gpu_check.json`` (machine, versions, verdicts), kept as `results/gpu/MACHINE.json`, and,
where something was timed, ``measurements.json``, kept as `results/MACHINE.json`. Neither holds a
host name or a path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from report import trim

ROOT = Path(__file__).parent.parent
REQUIRED = ["torch", "numpy", "safetensors", "PIL", "tqdm", "pybind11", "setuptools", "pytest"]
OPTIONAL = ["ninja", "hypothesis", "pytest_benchmark", "cupy", "triton", "flashinfer", "sklearn",
            "scipy"]  # fmt: skip
TOOLS = ["nvcc", "g++", "compute-sanitizer", "nvidia-smi"]


def missing() -> dict[str, list[str]]:
    """Return what is not there: modules the check cannot do without, others, tools."""
    return {
        "required": [name for name in REQUIRED if importlib.util.find_spec(name) is None],
        "optional": [name for name in OPTIONAL if importlib.util.find_spec(name) is None],
        "tools": [name for name in TOOLS if shutil.which(name) is None],
    }


def obstacles() -> list[str]:
    """Return why nothing of this project can run on a GPU here, in sentences."""
    found = [f"the Python module {name} is missing" for name in missing()["required"]]
    release = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if release is None or tuple(map(int, release.groups())) < (2, 11):
        found.append(f"torch {torch.__version__} is older than 2.11")
    if torch.version.cuda is None:
        found.append(f"torch {torch.__version__} is no CUDA build")
    elif not torch.cuda.is_available():
        found.append("torch sees no CUDA device")
    return found


def machine() -> dict[str, Any]:
    """Return the facts that stand beside every verdict."""
    facts = {
        "gpu": None,
        "capability": None,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _match(r"\bV([\d.]+)", _output("nvcc", "--version")),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "missing": missing(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["capability"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
        facts["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return facts


def commit() -> dict[str, Any]:
    """Return what tells the code; a copy without its history gets the name from LPD_COMMIT."""
    if (ROOT / ".git").exists():
        changed = _output("git", "status", "--porcelain", "--untracked-files=no")
        return {"id": _first_line("git", "rev-parse", "HEAD"), "dirty": bool(changed.strip())}
    return {"id": os.environ.get("LPD_COMMIT", "unknown"), "dirty": None}


def tests(folder: Path) -> dict[str, int]:
    """Return the counts of the test run, if there was one."""
    file = folder / "test.xml"
    if not file.exists():
        return {}
    names = ("tests", "failures", "errors", "skipped")
    suites = list(ElementTree.parse(file).iter("testsuite"))
    return {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}


def measurements(folder: Path) -> dict[str, Any] | None:
    """Return everything timed, in the form of `report.py`; None if nothing was."""
    files = [file for file in sorted(folder.glob("bench_*.json")) if file.stat().st_size]
    runs = [run for file in files if (run := json.loads(file.read_text()))["benchmarks"]]
    return trim(runs) | {"commit_info": commit()} if runs else None


def write(folder: Path) -> None:
    """Write gpu_check.json and measurements.json."""
    phases = ("build", "test", "memcheck", "racecheck", "synccheck", "initcheck", "bench")
    records = [folder / f"{phase}.json" for phase in phases]
    report = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "commit": commit(),
        "phases": [json.loads(record.read_text()) for record in records if record.exists()],
        "tests": tests(folder),
    }
    (folder / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    if timed := measurements(folder):
        (folder / "measurements.json").write_text(json.dumps(timed, indent=1) + "\n")


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout


def _first_line(*command: str) -> str | None:
    return _match(r"(.+)", _output(*command))


def _match(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def main(arguments: Sequence[str]) -> None:
    """Run one of the two commands."""
    if list(arguments[:1]) == ["machine"] and len(arguments) == 1:
        print(json.dumps(machine(), indent=1))
        if found := obstacles():
            sys.exit(f"this machine cannot check the GPU: {'; '.join(found)}")
    elif list(arguments[:1]) == ["write"] and len(arguments) == 2:
        write(Path(arguments[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
