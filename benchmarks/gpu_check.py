"""Runs the phases of the check of a GPU; `gpu_check.sh` says how it is called."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import gpu_commands
import gpu_process
import gpu_report
from gpu_commands import Command, RefusedError
from gpu_phases import (
    FIRST,
    GROUPS,
    NAMES,
    PHASES,
    ROOT,
    SECOND,
    Phase,
    choose,
    hash_binaries,
    table,
)
from gpu_process import StoppedError

FOLDER = Path(os.environ.get("LPD_GPU_FOLDER") or ROOT / "out/gpu_check").resolve()
OUT = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
PYTHON = os.environ.get("PYTHON") or sys.executable
MACHINE_SECONDS = 120
SHOWN = 3000  # characters of a failed build
LINES, LOG = "bench_lines.jsonl", "gpu_check.log"  # in OUT, the latter only there
PASSED, NOT_HERE = "passed", "not available here"
NOT_RUN, FAILED, LATE = "not run", "failed", "out of time"
CUT_OFF = "cut off"  # by the time of all, or by somebody
LEFT = (PASSED, NOT_HERE, CUT_OFF)  # no failures


class Check:
    """One call of the script.

    Parameters
    ----------
    end : float
        Until when, by time.monotonic().
    fresh : bool
        Whether what passed before is run again.
    """

    def __init__(self, end: float, *, fresh: bool) -> None:
        self._end, self._fresh = end, fresh
        self._results: dict[str, str] = {}
        for folder in (FOLDER, *([] if OUT is None else [OUT])):
            folder.mkdir(parents=True, exist_ok=True)
        if OUT is not None and (FOLDER / LINES).exists():
            shutil.copy(FOLDER / LINES, OUT / LINES)
        self._predicted = {phase.name: phase.predicted for phase in PHASES}  # as it is now
        self._machine, self.obstacle = _machine()
        gpu_report.write_json(FOLDER / "machine.json", self._machine)

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def within(self, phases: Sequence[Phase]) -> list[Phase]:
        """Run what fits, in order; return what is left."""
        if not self.obstacle:
            print(f"== within {self.left:.0f} s", flush=True)
        todo = list(phases)
        while fitting := choose(todo, self.left):
            phase = fitting[0][0]
            todo.remove(phase)
            self.run(phase)
        return todo

    def run(self, phase: Phase) -> None:
        """Run a phase, unless it has passed."""
        if gpu_process.asked_to_stop:
            raise StoppedError
        if not self._fresh and passed(phase):
            print(f"== {phase.name}: {PASSED} before", flush=True)
            return
        if self.obstacle:
            self._results[phase.name] = NOT_RUN
            if not passed(phase):
                self._record(phase, NOT_RUN, 0, self.obstacle)
            return
        print(f"== {phase.name}", flush=True)
        begin, why = time.monotonic(), ""
        try:
            (FOLDER / f"{phase.name}.xml").unlink(missing_ok=True)
            result = self._verdict(phase)
            if result == PASSED and (why := gpu_report.only_skipped(FOLDER / f"{phase.name}.xml")):
                result = FAILED
        except RefusedError as refusal:
            result, why = (NOT_HERE if phase.group == "sanitize" else FAILED), str(refusal)
        except StoppedError:
            self._record(phase, CUT_OFF, time.monotonic() - begin)
            self.report()
            raise
        self._results[phase.name] = result
        self._record(phase, result, time.monotonic() - begin, why)
        print(f"== {phase.name}: {result}{why and ': '}{why}", flush=True)
        self.report()
        if phase.name == "build" and result != PASSED:
            self.obstacle = f"the build {result}{why and ': '}{why}"

    def report(self) -> None:
        """Write the report and hand it over, with all that it is made of."""
        gpu_report.write(FOLDER, [phase.name for phase in PHASES], self._machine)
        archive = FOLDER.with_suffix(".tar.gz.part")
        with tarfile.open(archive, "w:gz") as tar:
            for file in sorted(FOLDER.iterdir()):
                if file.name != "gpu_check.tar.gz":
                    tar.add(file, f"./{file.name}")
        archive.replace(FOLDER / "gpu_check.tar.gz")
        if OUT is not None:
            for file in (*FOLDER.glob("gpu_check.*"), *FOLDER.glob("measurements*.json")):
                shutil.copy(file, OUT / "part")
                (OUT / "part").replace(OUT / file.name)

    def summary(self, left: Sequence[Phase] = ()) -> int:
        """Say how all of it went; return the exit status."""
        by_result: dict[str, list[str]] = {}
        for name, result in self._results.items():
            by_result.setdefault(result, []).append(name)
        by_result["left for later"] = [phase.name for phase in left]
        words = [f"{result}: {', '.join(names)}" for result, names in by_result.items() if names]
        if self.obstacle:
            words = [f"{NOT_RUN}: {self.obstacle}"]
        print(f"== {'; '.join(words) or 'all of it has passed'}")
        return int(any(result not in LEFT for result in self._results.values()))

    def _record(self, phase: Phase, result: str, seconds: float, why: str = "") -> None:
        record = {
            "phase": phase.name,
            "result": result,
            "seconds": round(seconds, 1),
            "predicted": self._predicted[phase.name],
            "sources": phase.sources,
        }
        record |= {"why": why} if why else {}
        record |= {"binaries": hash_binaries()} if phase.name == "build" else {}
        gpu_report.write_json(FOLDER / f"{phase.name}.json", record)

    def _verdict(self, phase: Phase) -> str:
        limit = float(os.environ.get("LPD_PHASE_SECONDS") or phase.limit)
        end = min(self._end, time.monotonic() + limit)
        quiet = phase.name == "build"  # a compiler's commands would leave no room for the rest
        with _logs(phase, quiet=quiet) as logs:
            for command, variables in self._commands(phase):
                print("+", " ".join([*(f"{k}={v}" for k, v in variables.items()), *command]),
                      flush=True)  # fmt: skip
                status = gpu_process.run(
                    command, logs, seconds=end - time.monotonic(), folder=ROOT,
                    environment={**os.environ, **variables},
                )  # fmt: skip
                if status is None:
                    return CUT_OFF if end == self._end else LATE
                if status:
                    if quiet:
                        print((FOLDER / f"{phase.name}.log").read_text()[-SHOWN:])
                    return FAILED
        return PASSED

    def _commands(self, phase: Phase) -> Iterator[Command]:
        files = [FOLDER / LINES] + ([] if OUT is None else [OUT / LINES])
        return gpu_commands.commands(
            phase, PYTHON, FOLDER, self._machine, lines=files, fresh=self._fresh
        )


def told(phase: Phase) -> dict[str, Any]:
    """Return what is on record of a phase, {} where there is nothing."""
    record = FOLDER / f"{phase.name}.json"
    return json.loads(record.read_text()) if record.exists() else {}


def passed(phase: Phase) -> bool:
    """Return whether a phase has passed with these sources; a build must still be the same."""
    record = told(phase)
    same_build = phase.name != "build" or record.get("binaries") == hash_binaries()
    same_sources = record.get("sources") == phase.sources
    return record.get("result") == PASSED and same_sources and same_build


def in_turn(phases: Sequence[Phase], *, fresh: bool = False) -> list[Phase]:
    """Return what has not passed: what failed comes last, once everything else has had its turn."""
    todo = [phase for phase in phases if fresh or not passed(phase)]
    behind = (FAILED, LATE, NOT_HERE)
    return sorted(todo, key=lambda p: p.name != "build" and told(p).get("result") in behind)


def plan(seconds: Sequence[float]) -> None:
    """Print what calls of so many seconds would run, one after the other."""
    todo = in_turn(PHASES)
    before = [phase.name for phase in PHASES if phase not in todo]
    print("Predicted for one H200 beside 16 cores; no GPU has run it.")
    if before:
        print(f"Passed before: {', '.join(before)}.")
    for given in seconds:
        chosen = choose(todo, given)
        print(f"within {given:g}:", *table(chosen), sep="\n")
        todo = [phase for phase in todo if (phase, phase.predicted) not in chosen]
    rest = sum(phase.predicted for phase in todo)
    print(f"left for later ({rest} s): {', '.join(phase.name for phase in todo) or 'nothing'}")


def _machine() -> tuple[dict[str, Any], str]:
    """Return the facts of this machine, and in a line why nothing can run here."""
    command = [PYTHON, "benchmarks/gpu_report.py", "machine"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=MACHINE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, f"the machine was not known after {MACHINE_SECONDS} s: torch or the driver hangs"
    facts = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    if done.returncode == 0:
        return facts, ""
    last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return facts, last


@contextmanager
def _logs(phase: Phase, *, quiet: bool) -> Iterator[list[IO[bytes]]]:
    """Yield where output goes: a log of the phase, one of all in OUT, the terminal if not quiet."""
    files = [(FOLDER / f"{phase.name}.log").open("wb")]
    files += [] if OUT is None else [(OUT / LOG).open("ab")]
    try:
        yield files if quiet else [sys.stdout.buffer, *files]
    finally:
        for file in files:
            file.close()


def named(words: Sequence[str]) -> list[Phase]:
    """Return the phases of names and groups, and before them the build that they need."""
    found = [
        phase for word in words for phase in PHASES if word in (phase.name, phase.group, "all")
    ]
    build = NAMES["build"]
    return list(dict.fromkeys([build, *found] if not passed(build) else found))


def main(words: Sequence[str]) -> int:
    """Do what the command line says; return the exit status."""
    fresh = "--fresh" in words
    words = [word for word in words if word != "--fresh"]
    numbers = [float(word) for word in words[1:] if word.replace(".", "", 1).isdigit()]
    if words[:1] == ["plan"] and len(numbers) == len(words) - 1 <= 1:
        plan(numbers or (FIRST, SECOND))
        return 0
    if words[:1] == ["within"] and len(numbers) == len(words) - 1 == 1:
        return run(in_turn(PHASES, fresh=fresh), numbers[0], fresh=fresh)
    if not words:
        begun = any(
            told(phase).get("sources") == phase.sources and told(phase)["result"] != NOT_RUN
            for phase in PHASES
            if phase.name != "build"
        )
        return run(in_turn(PHASES, fresh=fresh), SECOND if begun else FIRST, fresh=fresh)
    known = [*NAMES, *GROUPS, "all", "report"]
    if unknown := [word for word in words if word not in known]:
        print(f"gpu_check.sh: no phase is called {unknown[0]!r}; there are: "
              f"{', '.join(dict.fromkeys(known))}, within SECONDS, plan [SECONDS]",
              file=sys.stderr)  # fmt: skip
        return 2
    if words == ["report"]:
        return report()
    return run(named(words), None, fresh=fresh)


def run(phases: Sequence[Phase], seconds: float | None, *, fresh: bool) -> int:
    """Run phases, as many as fit into the seconds; return the exit status."""
    check = Check(time.monotonic() + (seconds or float("inf")), fresh=fresh)
    left: Sequence[Phase] = ()
    try:
        if seconds is None:
            for phase in phases:
                check.run(phase)
        else:
            left = check.within(phases)
    except StoppedError:
        print("== interrupted; what ended is kept, and the same command goes on")
        return 130
    check.report()
    return check.summary(left)


def report() -> int:
    """Sum up what ran before; return the exit status."""
    check = Check(float("inf"), fresh=False)
    check.report()
    ran = [p.name for p in PHASES if told(p).get("result", NOT_RUN) != NOT_RUN]
    if not ran:
        print(f"== nothing has run yet{check.obstacle and ': '}{check.obstacle}")
        return 1
    print(f"== a report of {', '.join(ran)}")
    return 0


if __name__ == "__main__":
    gpu_process.stop_at([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    sys.exit(main(sys.argv[1:]))
