"""What the emulated tests would miss: changes a kernel in one place at a time and runs them.

``python tests/mutants.py`` takes every barrier, wait, atomic, lane mask, comparison, conjunction
and bound of every kernel in turn, and lists the mutants that no test catches. Those that are known
stand in survivors.json, each with the reason why it harms nobody; any other survivor, and an
explanation that is no longer needed, fails the run. ``--list`` shows the mutants, ``--only TEXT``
takes those whose description holds it.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulator
from plants import write_kernels

ROOT = Path(__file__).parent.parent
KERNELS, BINDINGS = ROOT / "csrc/cuda", ROOT / "csrc/torch"
SURVIVORS = ROOT / "tests/survivors.json"
QUICK = ("group_attention", "masked_attention", "token_selection")  # to compile in part
LONGEST_RUN = 600  # seconds, after which a mutant counts as caught: it hangs

_OLD = "[](auto* p, auto v) {{ const auto old = *p; *p = {}; return old; }}"
RULES = [  # a pattern, and what it becomes
    (r"__syncthreads\(\);", ";"),
    (r"__syncwarp\([^)]*\);", ";"),
    (r"\w+::cp_async_wait<\d+>\(\);", ";"),
    (r"cp_async_wait<(\d+)>", lambda match: f"cp_async_wait<{int(match[1]) + 1}>"),
    (r"\batomicAdd(?=\()", _OLD.format("old + v")),
    (r"\batomicMax(?=\()", _OLD.format("old > v ? old : v")),
    (r"\batomicMin(?=\()", _OLD.format("old < v ? old : v")),
    (r"\batomicOr(?=\()", _OLD.format("old | v")),
    (r"\b0xffffffffu\b", "0x7fffffffu"),
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r" \+ 1\b(?!\.)", ""),
    (r" - 1\b(?!\.)", ""),
]


@dataclass(frozen=True)
class Mutant:
    """One change of one line."""

    file: str
    number: int  # of the line, from 1
    nth: int  # of the places in the line that the rule fits, from 1
    before: str
    after: str

    def __str__(self):
        place = f" (place {self.nth})" if self.nth > 1 else ""
        return f"{self.file}:{self.number}{place}: {self.before} -> {self.after}"

    @property
    def key(self) -> dict[str, str]:
        """What names it in survivors.json: lines move."""
        return {"file": self.file, "before": self.before, "after": self.after}


def mutants_of(name: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a file; comments, directives and static assertions are left alone."""
    for number, line in enumerate(source.splitlines(), 1):
        code = line.split("//")[0]
        if re.match(r"\s*(#|static_assert)", code):
            continue
        for pattern, becomes in RULES:
            for nth, match in enumerate(re.finditer(pattern, code), 1):
                text = becomes(match) if callable(becomes) else becomes
                changed = line[: match.start()] + text + line[match.end() :]
                yield Mutant(name, number, nth, line.strip(), changed.strip())


def mutated(source: str, mutant: Mutant) -> str:
    """Return the source with the mutant's line in place of the original."""
    lines = source.splitlines(keepends=True)
    assert lines[mutant.number - 1].strip() == mutant.before
    lines[mutant.number - 1] = mutant.after + "\n"
    return "".join(lines)


def tests_of(file: str) -> list[str]:
    """Return the test files of the ops of a file."""
    return sorted(
        str(path)
        for op in ops_of(file)
        for path in ROOT.glob(f"tests/test_{op}*.py")
        if not path.stem.endswith("_planted")  # those change the source themselves
    )


def ops_of(file: str) -> list[str]:
    """Return the op that a file is named after, or else those that use it."""
    ops = ops_with_kernels()
    return [op for op in ops if file.startswith(op)] or [op for op in ops if includes(op, file)]


def includes(op: str, header: str) -> bool:
    """Whether a kernel of an op includes a header itself."""
    return any(f'"{header}"' in path.read_text() for path in KERNELS.glob(f"{op}*"))


def ops_with_kernels() -> list[str]:
    """Return the stems of bindings that have a kernel of the same stem."""
    return [path.stem for path in KERNELS.glob("*.cu") if (BINDINGS / f"{path.stem}.cpp").exists()]


def fate(mutant: Mutant) -> str:
    """Whether a test fails on the mutant, or it does not compile, or is out of time."""
    source = mutated((KERNELS / mutant.file).read_text(), mutant)
    try:
        if any(fails_quickly(mutant.file, source, op) for op in ops_of(mutant.file)):
            return "caught"
        tests = ["-k", "simt or schedule", *tests_of(mutant.file)]
        return "caught" if fails(mutant.file, source, tests) else "survived"
    except subprocess.TimeoutExpired:
        return "hung"


def fails_quickly(file: str, source: str, op: str) -> bool:
    """Whether tests that find planted bugs fail, on fewer instances of the kernels."""
    if op not in QUICK:
        return False
    planted = importlib.import_module(f"test_{op}_planted")
    tests = sorted({f"tests/{plant.test}" for plant in planted.PLANTS})
    return fails(file, source, ["-k", planted.SELECTION, *tests], planted.FEWER_INSTANCES)


def fails(
    file: str, source: str, tests: list[str], replace: Iterable[tuple[str, str]] = ()
) -> bool:
    """Whether tests fail on kernels with another source of one file."""
    with tempfile.TemporaryDirectory() as folder:
        write_kernels(Path(folder), file, source, replace)
        return emulator.run_tests(folder, *tests, timeout=LONGEST_RUN).returncode != 0


def all_mutants() -> list[Mutant]:
    """Return the mutants of the kernels and all they include but what stands for CUDA itself."""
    files = sorted(path for path in KERNELS.iterdir() if path.name != "primitives.cuh")
    return [mutant for path in files for mutant in mutants_of(path.name, path.read_text())]


def main() -> int:
    """Run the mutants and compare the survivors with the known ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="those that hold this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    mutants = [mutant for mutant in all_mutants() if options.only in str(mutant)]
    if options.list:
        print(*mutants, sep="\n")
        return 0

    known = json.loads(SURVIVORS.read_text())
    for file in {mutant.file for mutant in mutants}:
        source = (KERNELS / file).read_text()
        assert not any(fails_quickly(file, source, op) for op in ops_of(file)), f"{file} as it is"
    survivors, unexplained = [], 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, became in zip(mutants, pool.map(fate, mutants), strict=True):
            if became != "survived":
                print(f"{became:8}", mutant, flush=True)
                continue
            survivors.append(mutant.key)
            why = next((entry["why"] for entry in known if mutant.key.items() <= entry.items()), "")
            unexplained += not why
            print("survived", mutant, f"\n         {why or 'NOT EXPLAINED'}", flush=True)
    stale = [entry for entry in known if not any(key.items() <= entry.items() for key in survivors)]
    if not options.only:
        for entry in stale:
            print("explained, but caught or gone:", entry["file"], entry["before"])
    print(f"{len(mutants)} mutants, {len(survivors)} survivors, {unexplained} of them unexplained")
    return 1 if unexplained or (stale and not options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
