"""What `gpu_check.py` runs, in order of worth, how long each is predicted to take, and what fits.

Seconds are predicted for one H200 beside 16 cores; no GPU has run any of it. They come from counts
of cases, launches and compilations, and from the same cases timed on a CPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST, SECOND = 400, 260  # seconds of the two commands that a card borrowed for 12 minutes gets
LEAST_PART = 30  # seconds, from which on a phase is begun that loses nothing when it is cut off
FOUND_BUILD = 12  # seconds to look at a build that was brought
WITHOUT_XDIST = 230  # seconds of the tests in a single process

# Sources that a result depends on: what is changed elsewhere leaves it as it is.
BINARY = ("csrc", "setup.py", "pyproject.toml")
DEPENDS = {
    "build": (*BINARY, "lpd_ext/_binary.py"),
    "test": (*BINARY, "lpd_ext", "tests"),
    "sanitize": (*BINARY, "lpd_ext", "tests/cuda_sanitize.py"),
    "bench": (*BINARY, "lpd_ext", "benchmarks"),
}
UNTIMED = {"gpu_check.py", "gpu_commands.py", "gpu_phases.py", "gpu_process.py", "gpu_report.py",
           "sanitizer_probe.py", "report.py", "speed_chart.py", "stage_report.py", "svg.py",
           "trimmed.py"}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """One run of something, with a verdict of its own.

    Parameters
    ----------
    name, group : str
        What it is called, and with which others.
    seconds : int
        Predicted.
    shows : str
        In a few words.
    arguments : tuple of str
        Of the program; of a benchmark parts of the ids of its cases, first ones first.
    file : str
        A benchmark's.
    slow : bool
        Whether baselines that compile for minutes take part.
    """

    name: str
    group: str
    seconds: int
    shows: str
    arguments: tuple[str, ...] = ()
    file: str = ""
    slow: bool = False

    @property
    def predicted(self) -> int:
        """Seconds, by what there is here."""
        if self.name == "build" and brought_build() and b"libcudart" in binaries()[0].read_bytes():
            return FOUND_BUILD
        if self.name == "test" and not has_xdist():
            return WITHOUT_XDIST
        return self.seconds

    @property
    def limit(self) -> int:
        """Seconds after which it hangs."""
        return 2 * self.predicted + 60

    @property
    def sources(self) -> str:
        """A hash of all that its result depends on."""
        return hash_sources(DEPENDS[self.group])


def bench(stem: str, seconds: int, shows: str, *parts: str, **options: str | bool) -> Phase:
    """Return a phase that times the file of that stem."""
    name, slow = str(options.get("name", stem)), bool(options.get("slow"))
    return Phase(name, "bench", seconds, shows, parts, f"benchmarks/bench_{stem}.py", slow)


ONE_HEAD_DIM = ("--head-dim", "64", "--dtype", "bfloat16")
PHASES = (
    # The first command.
    Phase("build", "build", 100, "the extension for this card; a build that was brought is taken"),
    Phase("kernels", "test", 20, "every kernel once against its reference"),
    Phase("test", "test", 50, "pytest -m cuda, but for what compiles", ("cuda and not compiles",)),
    bench("stages", 90, "a planned decode by stage", "[1-all", "[1-", "[64-all", "[64-"),
    bench("linear_gelu", 40, "one launch against two"),
    bench("token_selection", 25, "draws against chains of calls", "[1-", "[256-"),
    bench("group_order", 10, "orders"),
    bench("group_norm_silu", 20, "norms of the tokenizer"),
    bench("decode", 70, "LPD-L, whole decodes of 1 and 64 images", "lpd-l-256-1-", "lpd-l-256-64-"),
    # The second.
    Phase("memcheck", "sanitize", 90, "bad accesses"),
    bench("group_attention", 30, "LPD-L, without FlexAttention", "lpd-l-256"),
    Phase("racecheck", "sanitize", 60, "races in shared memory; one head_dim", ONE_HEAD_DIM),
    Phase("compiles", "test", 75, "opcheck and torch.compile", ("cuda and compiles",)),
    # Where there is more time.
    Phase("initcheck", "sanitize", 90, "reads of what nobody wrote"),
    Phase("synccheck", "sanitize", 90, "barriers that some threads miss"),
    bench("decode_images", 60, "tokens and images", name="images"),
    bench("decode", 120, "all of LPD-L and LPD-XL at 256 px", name="decode_all"),
    bench("group_attention", 60, "all cases at 256 px", name="attention_all"),
    bench("group_attention_512", 90, "all cases at 512 px", name="attention_512"),
    bench("decode_more", 600, "other steps, 512 px", name="decode_more"),
    bench("group_attention", 200, "FlexAttention too", slow=True, name="attention_slow"),
    bench("decode", 300, "the published loop compiled", "-1-", slow=True, name="decode_slow"),
)  # fmt: skip
NAMES = {phase.name: phase for phase in PHASES}
GROUPS = tuple(dict.fromkeys(phase.group for phase in PHASES))


@cache
def hash_sources(names: tuple[str, ...]) -> str:
    """Return a hash of files and folders of this project."""
    digest = hashlib.sha256()
    for file in sorted(file for name in names for file in _files(ROOT / name)):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    for file in [path] if path.is_file() else path.rglob("*"):
        timed = file.parent != ROOT / "benchmarks" or file.name not in UNTIMED
        kept = file.suffix not in (".so", ".pyc", ".sh", ".md") and "results" not in file.parts
        if file.is_file() and kept and timed:
            yield file


def binaries() -> list[Path]:
    """Return the two modules of a build for this interpreter; fewer where one is missing."""
    folder, suffix = ROOT / "lpd_ext", sysconfig.get_config_var("EXT_SUFFIX")
    return [*sorted(folder.glob("_C*.so"))[:1], *folder.glob(f"_host*{suffix}")]


def brought_build() -> bool:
    """Return whether there is a build that this interpreter could load."""
    return len(binaries()) == 2


def hash_binaries() -> str:
    """Return a hash of those modules."""
    digest = hashlib.sha256()
    for file in binaries():
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def has_xdist() -> bool:
    """Return whether tests can run in several processes."""
    return importlib.util.find_spec("xdist") is not None


def choose(phases: Sequence[Phase], seconds: float) -> list[tuple[Phase, float]]:
    """Return the phases that fit, in order, each with its seconds.

    One that does not fit as a whole is passed over; a benchmark, which keeps each case, gets what
    is left.
    """
    chosen = []
    for phase in phases:
        share = min(phase.predicted, seconds)
        least = LEAST_PART if phase.group == "bench" else phase.predicted
        if share >= min(phase.predicted, least):
            chosen.append((phase, share))
            seconds -= share
    return chosen


def table(chosen: Sequence[tuple[Phase, float]]) -> list[str]:
    """Return the lines of a plan."""
    lines, end = [], 0.0
    for phase, share in chosen:
        end += share
        part = "" if share == phase.predicted else f" (of {phase.predicted} s: in part)"
        lines.append(f"  {phase.name:<16}{share:5.0f} s, until {end:4.0f}   {phase.shows}{part}")
    return lines
