"""Facts and verdicts of `gpu_check.py`; needs no build of lpd_ext, and to begin with no torch.

    python benchmarks/gpu_report.py machine    # is all there that the check needs?

`write` sums up what lies in a folder: ``gpu_check.json`` (machine, versions, verdicts), kept as
`results/gpu/MACHINE.json`, and, where something was timed, ``measurements.json``, kept as
`results/MACHINE.json`, one for each machine. Neither holds a host name or a path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import case_lines
from gpu_phases import DEPENDS, ROOT, hash_sources
from trimmed import trim

REQUIRED = ["torch", "numpy", "safetensors", "PIL", "tqdm", "pytest"]
TO_BUILD = ["pybind11", "setuptools"]
OPTIONAL = ["ninja", "hypothesis", "pytest_benchmark", "xdist", "cupy", "triton", "flashinfer",
            "sklearn", "scipy"]  # fmt: skip
TOOLS = ["nvcc", "g++", "compute-sanitizer", "nvidia-smi"]
MOST_TOLD = 50  # failures in the report; the archive has all


def has_module(name: str) -> bool:
    """Return whether it can be imported, without doing so."""
    return importlib.util.find_spec(name) is not None


def missing() -> dict[str, list[str]]:
    """Return what is not there: modules the check cannot do without, others, tools."""
    return {
        "required": [name for name in REQUIRED if not has_module(name)],
        "optional": [name for name in OPTIONAL if not has_module(name)],
        "to_build": missing_to_build(),
        "tools": [name for name in TOOLS if shutil.which(name) is None],
    }


def missing_to_build() -> list[str]:
    """Return what a build of the extension needs and does not find."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return [
        *(name for name in ("nvcc", "g++") if shutil.which(name) is None),
        *(name for name in TO_BUILD if not has_module(name)),
        *([] if headers.exists() else [f"Python.h (headers of Python {sys.version.split()[0]})"]),
    ]


def obstacles() -> list[str]:
    """Return why nothing of this project can run on a GPU here, in sentences."""
    found = [f"the Python module {name} is missing" for name in missing()["required"]]
    if not has_module("torch"):
        return found
    import torch

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
        "torch": None,
        "cuda": None,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "missing": missing(),
    }
    if not has_module("torch"):
        return facts
    import torch

    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["capability"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
        facts["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return facts


@cache
def commit() -> dict[str, Any]:
    """Return what tells the code; a copy without its history gets the name from LPD_COMMIT."""
    if (ROOT / ".git").exists():
        changed = _output("git", "status", "--porcelain", "--untracked-files=no")
        return {"id": _first_line("git", "rev-parse", "HEAD"), "dirty": bool(changed.strip())}
    return {"id": os.environ.get("LPD_COMMIT", "unknown"), "dirty": None}


def tests(file: Path) -> dict[str, Any]:
    """Return the counts of a test run and what failed in it, {} if there was none."""
    try:
        root = ElementTree.parse(file).getroot()
    except (FileNotFoundError, ElementTree.ParseError):
        return {}
    names = ("tests", "failures", "errors", "skipped")
    suites = list(root.iter("testsuite"))
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    failed = [
        f"{case.get('classname')}::{case.get('name')}: {_first_words(problem.get('message'))}"
        for case in root.iter("testcase")
        for problem in [*case.iter("failure"), *case.iter("error")]
    ]
    return counts | ({"failed": failed[:MOST_TOLD]} if failed else {})


def only_skipped(file: Path) -> str:
    """Return why every test of a run was skipped, "" where one ran or had run before."""
    if not tests(file):
        return ""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    reasons = [skip.get("message", "") for case in cases for skip in case.iter("skipped")]
    ran = len(reasons) < len(cases) or case_lines.TIMED_BEFORE in reasons
    return "" if ran or not cases else f"all tests were skipped: {_first_words(reasons[0])}"


def measurements(folder: Path, sources: str) -> Iterator[dict[str, Any]]:
    """Yield everything timed with these sources, in the form of `report.py`, machine by machine."""
    lines = case_lines.timed(case_lines.read(folder / "bench_lines.jsonl"), sources, slow=False)
    machines: dict[str, list[dict[str, Any]]] = {}
    for line in lines.values():
        machines.setdefault(json.dumps(line["machine_info"]), []).append(line)
    for of_machine in sorted(machines.values(), key=len, reverse=True):
        yield trim(
            [{
                "machine_info": of_machine[0]["machine_info"],
                "commit_info": commit(),
                "datetime": min(line["datetime"] for line in of_machine),
                "benchmarks": of_machine,
            }]
        )  # fmt: skip


def write(folder: Path, phases: Sequence[str], facts: dict[str, Any]) -> None:
    """Write gpu_check.json and measurements.json."""
    records = [folder / f"{phase}.json" for phase in phases]
    timed = list(measurements(folder, hash_sources(DEPENDS["bench"])))
    report = {
        "date": date.today().isoformat(),
        "machine": facts,
        "commit": commit(),
        "phases": [json.loads(record.read_text()) for record in records if record.exists()],
        "tests": {name: tests(folder / f"{name}.xml") for name in ("test", "compiles")},
        "timed": sum(len(measured["benchmarks"]) for measured in timed),
    }
    write_json(folder / "gpu_check.json", report)
    for number, measured in enumerate(timed):
        write_json(folder / f"measurements{f'_{number + 1}' * (number > 0)}.json", measured)


def write_json(file: Path, content: Any) -> None:
    """Write a file that is there as a whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(file)


def _first_words(message: str | None) -> str:
    return (message or "").split("\n")[0][:200]


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
    """Print the facts, and exit with what is in the way."""
    if list(arguments) != ["machine"]:
        sys.exit(__doc__)
    print(json.dumps(machine(), indent=1))
    if found := obstacles():
        sys.exit(f"this machine cannot check a GPU: {'; '.join(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
