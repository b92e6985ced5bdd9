"""The commands of each phase of the check of a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gpu_report
from gpu_phases import ROOT, Phase, brought_build, has_xdist, hash_binaries

Command: TypeAlias = tuple[list[str], dict[str, str]]
"""A command and what its environment has besides."""

IS_CUDA = 'from lpd_ext import _binary; exit(not _binary.host.build_info()["cuda"])'
PROBE_SECONDS = 60


class RefusedError(Exception):
    """Why a phase cannot run, in a line."""


def commands(
    phase: Phase,
    python: str,
    folder: Path,
    machine: dict[str, Any],
    *,
    lines: Sequence[Path],
    fresh: bool,
) -> Iterator[Command]:
    """Yield the commands of a phase, each to be run once the one before has passed.

    Parameters
    ----------
    phase : Phase
        Of which.
    python : str
        The interpreter.
    folder : Path
        Where results lie.
    machine : dict
        What `gpu_report.machine` says of it.
    lines : Sequence of Path
        Files that take a line when a case has been timed.
    fresh : bool
        Whether cases are timed again.

    Raises
    ------
    RefusedError
        The phase cannot run here.
    """
    junit = f"--junitxml={folder / phase.name}.xml"
    if phase.name == "build":
        yield from _build(phase, python, folder, machine)
    elif phase.name == "kernels":
        yield [python, "tests/cuda_sanitize.py"], {}
    elif phase.group == "sanitize":
        tool = ["compute-sanitizer", "--tool", phase.name, "--error-exitcode", "9"]
        _probe(tool, python)
        # Each tensor has an allocation of its own, so that memcheck knows its end.
        variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        yield [*tool, python, "tests/cuda_sanitize.py", *phase.arguments], variables
    elif phase.group == "test":
        # Torch's compiler brings processes of its own.
        several = ["-n", "6", "--dist", "loadfile"] if phase.name == "test" and has_xdist() else []
        command = [python, "-m", "pytest", "tests", "-m", *phase.arguments, "-q", *several]
        yield [*command, "--continue-on-collection-errors", junit], {}
    else:
        if not gpu_report.has_module("pytest_benchmark"):
            raise RefusedError("the Python module pytest_benchmark is missing")
        variables = {
            "LPD_BENCH_LINES": os.pathsep.join(map(str, lines)),
            "LPD_BENCH_SOURCES": phase.sources,
            "LPD_BENCH_CASES": "|".join(phase.arguments),
            "LPD_BENCH_SLOW": str(int(phase.slow)),
            "LPD_BENCH_FRESH": str(int(fresh)),
        }
        yield [python, "-m", "pytest", phase.file, "-m", "cuda", "-q", junit], variables


def _build(phase: Phase, python: str, folder: Path, machine: dict[str, Any]) -> Iterator[Command]:
    info = [python, "-m", "lpd_ext.cli", "info"]
    # What each build was made of; of one that is seen here first, what lies here now.
    file = folder / "builds.json"
    made_of = json.loads(file.read_text()) if file.exists() else {}
    current = made_of.get(hash_binaries(), phase.sources) == phase.sources
    if current and brought_build() and _succeeds([python, "-c", IS_CUDA]):
        print("taking the CUDA build that lies in lpd_ext/", flush=True)
        gpu_report.write_json(file, made_of | {hash_binaries(): phase.sources})
        yield info, {}
        return
    if lacking := gpu_report.missing_to_build():
        raise RefusedError(f"there is no CUDA build in lpd_ext/, and to make one no "
                           f"{', no '.join(lacking)}")  # fmt: skip
    digits = str(machine["capability"]).removeprefix("sm_")
    architecture = f"{digits[:-1]}.{digits[-1]}"
    variables = {
        "LPD_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "9.0a" if architecture == "9.0" else architecture,
        "NVCC_APPEND_FLAGS": "-lineinfo",  # for the sanitizers and the profiler
    }
    # By force: a build for the CPU may lie there, newer than all sources.
    yield [python, "setup.py", "--quiet", "build_ext", "--inplace", "--force"], variables
    gpu_report.write_json(file, made_of | {hash_binaries(): phase.sources})
    yield info, {}


def _probe(tool: Sequence[str], python: str) -> None:
    """Raise RefusedError where a sanitizer cannot stand the least that there is."""
    if shutil.which(tool[0]) is None:
        raise RefusedError(f"{tool[0]} is not on PATH")
    least = [python, "benchmarks/sanitizer_probe.py"]
    if _succeeds(least) and not _succeeds([*tool, *least]):
        raise RefusedError(f"{tool[0]} refuses the device: what runs without it fails under it")


def _succeeds(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            command, capture_output=True, cwd=ROOT, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
