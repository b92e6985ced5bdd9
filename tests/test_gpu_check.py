"""benchmarks/gpu_check.sh with stubs for what it runs: order, verdicts, limits, resumption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import case_lines
import gpu_check
import gpu_commands
import gpu_phases
import gpu_report
from gpu_commands import RefusedError
from gpu_phases import PHASES, Phase, choose

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks/gpu_check.sh"
NAMES = [phase.name for phase in PHASES]
SANITIZERS = [phase.name for phase in PHASES if phase.group == "sanitize"]

# Stands for the interpreter: writes down its arguments, then fails, hangs or kills the check where
# it is told to. The check itself runs on the real one.
STUB = """#!/bin/sh
case "$*" in
  *gpu_check.py*) exec "{python}" "$@" ;;
  *gpu_report.py\\ machine*) echo '{{"capability": "sm_90"}}'; echo "$OBSTACLE" >&2
    [ -z "$OBSTACLE" ]; exit ;;
esac
echo "$LPD_BENCH_CASES $TORCH_CUDA_ARCH_LIST $NVCC_APPEND_FLAGS $*" >>"{calls}"
[ "$(wc -l <"{calls}")" != "$KILL_AT" ] || kill -9 $PPID
case "$*" in
  *$FAILS_ON*) exit 3 ;;
  *$HANGS_ON*) echo begun; echo $$ >"{calls}.pid"
    [ -z "$SIGNAL" ] || {{ sleep 0.3; kill -$SIGNAL $PPID; }} &
    exec sleep 30 ;;
esac
exit 0
"""
SANITIZER = """#!/bin/sh
case "$*" in
  *probe*) [ "$2" != "$REFUSES" ]; exit ;;
esac
echo "sanitizer $*" >>"{calls}"
"""
NEVER = "nothing like this"


@pytest.fixture
def check(tmp_path):
    """Run the script; returns (exit status, output, calls of the interpreter)."""
    calls, stub = tmp_path / "calls", tmp_path / "stub"
    sanitizer = tmp_path / "bin/compute-sanitizer"
    for folder in (sanitizer.parent, tmp_path / "out"):
        folder.mkdir()
    for program, text in ((stub, STUB), (sanitizer, SANITIZER)):
        program.write_text(text.format(calls=calls, python=sys.executable))
        program.chmod(0o755)

    def run(*arguments, **told):
        calls.write_text("")
        environment = {
            **os.environ,
            "FAILS_ON": told.get("fails_on", NEVER),
            "HANGS_ON": told.get("hangs_on", NEVER),
            "KILL_AT": str(told.get("kill_at", "never")),
            "SIGNAL": str(told.get("signal", "")),
            "PATH": f"{sanitizer.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": str(stub),
            "LPD_GPU_FOLDER": str(tmp_path / "results"),
            "LPD_PHASE_SECONDS": str(told.get("seconds", 20)),
            "OUT": str(tmp_path / "out"),
            "OBSTACLE": told.get("obstacle", ""),
            "REFUSES": told.get("refuses", ""),
        }
        result = subprocess.run(
            ["bash", SCRIPT, *map(str, arguments)],
            capture_output=True, text=True, env=environment, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as behind `&`
        )  # fmt: skip
        return result.returncode, result.stdout + result.stderr, calls.read_text().splitlines()

    return run


def report(tmp_path):
    return json.loads((tmp_path / "out/gpu_check.json").read_text())


def results(tmp_path):
    return {record["phase"]: record["result"] for record in report(tmp_path)["phases"]}


def last_line(output):
    return output.strip().splitlines()[-1]


def test_all_phases_then_none_again(check, tmp_path):
    status, output, calls = check("all")
    assert status == 0, output
    assert results(tmp_path) == dict.fromkeys(NAMES, "passed")
    ran = [call.split()[2] for call in calls if call.startswith("sanitizer")]
    assert ran == SANITIZERS
    benches = [p for p in (ROOT / "benchmarks").glob("bench_*.py") if "mark.cuda" in p.read_text()]
    assert all(any(bench.name in call for call in calls) for bench in benches)
    with tarfile.open(tmp_path / "out/gpu_check.tar.gz") as archive:
        assert {"./test.log", "./gpu_check.json"} <= set(archive.getnames())
    assert len(list((tmp_path / "out").iterdir())) <= 8  # as much as a lent machine gives back

    status, output, calls = check("all")
    assert status == 0
    assert output.count("passed before") == len(NAMES)
    assert calls == []

    assert "passed before" not in check("--fresh", "test")[1]


def test_a_failure_is_told_and_stops_nothing(check, tmp_path):
    status, output, _ = check("test", "memcheck", fails_on="cuda and not")
    assert status == 1
    assert (
        output.strip().splitlines()[-1]
        == "== passed: build, kernels, compiles, memcheck; failed: test"
    )
    assert results(tmp_path)["test"] == "failed"
    assert check("test")[0] == 0  # what failed is run again


def test_a_phase_needs_the_build_and_gets_it(check):
    assert "lpd_ext.cli info" in check("memcheck")[2][1]
    status, output, calls = check("--fresh", "build", "test", fails_on="lpd_ext.cli")
    assert status == 1
    assert last_line(output) == "== not run: the build failed"
    assert not any("pytest" in call for call in calls)


def test_a_hang_ends_at_the_limit_by_sigint(check, tmp_path):
    begin = time.monotonic()
    assert check("kernels", hangs_on="cuda_sanitize.py", seconds=1)[0] == 1
    assert time.monotonic() - begin < 10  # SIGKILL would come after 20 s
    assert results(tmp_path)["kernels"] == "out of time"
    assert (tmp_path / "results/kernels.log").read_text() == "begun\n"
    assert (tmp_path / "out/gpu_check.log").read_text().endswith("begun\n")


def test_killed_again_and_again_nothing_that_ended_is_lost(check, tmp_path):
    # With SIGKILL amid a phase, so that nothing can be put in order, until all has passed.
    ended = []
    for _ in range(len(NAMES)):
        status, output, _ = check("all", kill_at=5)
        lines = output.splitlines()
        again = [line for line in lines if line.endswith(": passed before")]
        assert again == [f"== {name}: passed before" for name in ended]
        ended += [line.split()[1][:-1] for line in lines if line.endswith(": passed")]
        assert results(tmp_path) == dict.fromkeys(ended, "passed")
        if len(ended) == len(NAMES):
            break
        assert status == -signal.SIGKILL
    assert ended == NAMES


def test_what_ran_does_not_go_on_without_the_check(check, tmp_path):
    # It would hold the GPU while the next command times something.
    status, _, _ = check("kernels", hangs_on="cuda_sanitize.py", signal=9)
    assert status == -signal.SIGKILL
    stat = Path("/proc", (tmp_path / "calls.pid").read_text().strip(), "stat")
    end = time.monotonic() + 5
    while stat.exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_what_runs_and_reports(check, tmp_path, number):
    # As by Ctrl-C, or by the `timeout` around a command.
    begin = time.monotonic()
    status, output, _ = check("kernels", hangs_on="cuda_sanitize.py", signal=int(number))
    assert status == 130, output
    assert time.monotonic() - begin < 10
    assert "interrupted" in last_line(output)
    assert results(tmp_path) == {"build": "passed", "kernels": "cut off"}


def test_within_some_seconds_runs_what_fits(check, tmp_path):
    status, output, _ = check("within", 60)
    assert status == 0, output
    fits = [p.name for p in PHASES if p.group == "bench" or p.predicted <= 50]
    assert list(results(tmp_path)) == fits
    assert set(last_line(output).partition("left for later: ")[2].split(", ")) == {
        name for name in NAMES if name not in fits
    }


def test_what_failed_waits_for_what_has_not_run(check):
    check("within", 60, fails_on="bench_stages")
    _, output, _ = check("plan", 1000)
    first = [line.split()[0] for line in output.splitlines() if " s, until " in line]
    assert first[-1] == "stages"


def test_the_end_of_the_time_is_no_failure(tmp_path, monkeypatch):
    # Of all, in difference to that of a phase.
    for name, value in {"FOLDER": tmp_path / "results", "OUT": None, "PYTHON": "true"}.items():
        monkeypatch.setattr(gpu_check, name, value)
    stages = gpu_phases.NAMES["stages"]
    monkeypatch.setattr(gpu_check.gpu_commands, "commands", lambda *_, **__: [(["sleep", "9"], {})])
    check = gpu_check.Check(time.monotonic() + 0.1, fresh=False)
    check.run(stages)
    assert gpu_check.told(stages)["result"] == "cut off"
    assert check.summary() == 0
    assert gpu_check.in_turn(PHASES).index(stages) == PHASES.index(stages)  # goes on in its place


def test_the_two_commands(check):
    _, output, calls = check("plan")
    assert calls == []
    assert output.startswith("Predicted")
    within = [line for line in output.splitlines() if line.startswith("within")]
    assert within == ["within 400:", "within 260:"]
    planned = output.partition("left for later")[0]
    assert "stages" in planned
    assert "decode_more" not in planned
    check("build")
    assert "== within 400 s\n" in check()[1]
    assert "== within 260 s\n" in check()[1]
    assert "== kernels: passed\n" in check("--fresh", "within", 60)[1]
    for name in ("test", "memcheck"):
        check("--fresh", name, fails_on="cuda and not")
    _, plan, _ = check("plan", 400)
    assert "Passed before: build, kernels, " in plan


def test_phases_fit_the_two_commands():
    # On the machine they are predicted for, with a build that was brought and xdist.
    there = [
        replace(phase, seconds=gpu_phases.FOUND_BUILD) if phase.name == "build" else phase
        for phase in PHASES
    ]
    seconds = {phase.name: phase.seconds for phase in there}
    first = NAMES[: NAMES.index("memcheck")]
    second = NAMES[NAMES.index("memcheck") : NAMES.index("initcheck")]
    assert sum(seconds[name] for name in first) <= gpu_phases.FIRST
    assert sum(seconds[name] for name in second) <= gpu_phases.SECOND
    assert second[-1] == "compiles"


def test_what_is_chosen():
    whole, part = Phase("whole", "test", 50, ""), Phase("part", "bench", 90, "")
    late = Phase("late", "test", 20, "")
    phases = (whole, part, late)
    assert choose(phases, 200) == [(whole, 50), (part, 90), (late, 20)]
    assert choose(phases, 81) == [(whole, 50), (part, 31)]
    assert choose(phases, 79) == [(whole, 50), (late, 20)]
    assert choose(phases, 10) == []
    assert "in part" in gpu_phases.table(choose(phases, 81))[1]


def test_every_case_is_in_a_phase_and_every_part_has_a_case():
    command = [sys.executable, "-m", "pytest", "benchmarks", "-m", "cuda", "-q", "--collect-only"]
    pytest.importorskip("pytest_benchmark")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ids = [line for line in done.stdout.splitlines() if line.startswith("benchmarks/")]
    assert len(ids) > 100
    taken = set()
    for phase in PHASES:
        of_file = [i for i in ids if i.startswith(f"{phase.file}::")] if phase.file else []
        assert bool(of_file) == (phase.group == "bench")
        assert all(any(part in i for i in of_file) for part in phase.arguments if phase.file)
        taken |= set(case_lines.in_order(of_file, phase.arguments))
    assert taken == set(ids)


def test_changed_sources_are_checked_again(check, tmp_path):
    check("test")
    record = tmp_path / "results/test.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps(before | {"sources": "0" * 16}))
    _, output, calls = check("test")
    assert len(calls) == 1
    assert "-m pytest tests -m cuda and not compiles" in calls[0]
    assert "== kernels: passed before" in output


def test_a_build_that_was_brought_is_taken_unless_it_is_old(check, tmp_path):
    _, output, calls = check("build")
    assert "taking the CUDA build" in output
    assert not any("setup.py" in call for call in calls)
    made_of = tmp_path / "results/builds.json"
    made_of.write_text(made_of.read_text().replace(gpu_phases.NAMES["build"].sources, "0" * 16))
    _, output, calls = check("--fresh", "build")
    assert "taking" not in output
    assert any("setup.py" in call for call in calls)
    assert "taking the CUDA build" in check("--fresh", "build")[1]  # for the stub has built it


def test_what_a_build_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: None if name == "nvcc" else name)
    monkeypatch.setattr(gpu_report.sysconfig, "get_path", lambda name: str(tmp_path))
    build = gpu_commands.commands(
        gpu_phases.NAMES["build"], "false", tmp_path, {}, lines=[], fresh=False
    )
    with pytest.raises(RefusedError, match=r"to make one no nvcc, no Python\.h"):
        next(build)


def test_a_build_of_sources(check):
    _, _, calls = check("build", fails_on="_binary")
    (build,) = [call for call in calls if "setup.py" in call]
    assert "setup.py" not in check("build")[2]  # what was built lies there now
    assert build.split()[:2] == ["9.0a", "-lineinfo"]
    assert build.endswith("build_ext --inplace --force")


def test_a_sanitizer_that_the_device_refuses_is_no_failure(check, tmp_path):
    status, output, calls = check("memcheck", "racecheck", refuses="memcheck")
    assert status == 0
    assert last_line(output) == "== passed: build, racecheck; not available here: memcheck"
    assert [call.split()[2] for call in calls if call.startswith("sanitizer")] == ["racecheck"]
    (record,) = [r for r in report(tmp_path)["phases"] if r["phase"] == "memcheck"]
    assert "refuses the device" in record["why"]


def test_a_phase_in_the_way_of_nothing(check, tmp_path):
    # One line, a failure, a report: for each phase and for all.
    for words in (["build"], ["test"], ["sanitize"], ["bench"], ["all"], [], ["within", 100],
                  ["report"]):  # fmt: skip
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        status, output, calls = check(*words, obstacle="torch sees no CUDA device")
        assert status == 1
        assert output.count("\n") == 1, output
        assert "torch sees no CUDA device" in output
        assert set(results(tmp_path).values()) <= {"not run"}
        assert calls == []


def test_an_obstacle_leaves_what_has_passed(check, tmp_path):
    check("kernels")
    assert check("kernels", obstacle="torch sees no CUDA device")[0] == 0
    assert results(tmp_path) == {"build": "passed", "kernels": "passed"}


def test_an_interpreter_without_packages_plans_and_says_what_is_missing(tmp_path):
    # With -S it has what comes with Python and no more.
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    environment |= {"PYTHON": str(bare), "LPD_GPU_FOLDER": str(tmp_path / "results")}
    plan, run = (
        subprocess.run(
            ["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, check=False
        )
        for words in (["plan", "400"], ["within", "400"])
    )
    assert plan.returncode == 0
    assert "within 400:\n  build " in plan.stdout
    assert run.returncode == 1
    assert run.stdout.startswith(
        "== not run: this machine cannot check a GPU: the Python module torch"
    )
    assert run.stdout.count("\n") == 1
    assert (tmp_path / "results/gpu_check.json").exists()


def test_an_unknown_phase(check):
    status, output, _ = check("tset")
    assert status == 2
    assert "no phase is called 'tset'" in output


def test_a_tree_without_binaries_says_so(tmp_path):
    # A fresh clone: nothing of the package can be imported before it is built.
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for folder in ("benchmarks", "lpd_ext", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unbuilt)
    for file in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    environment |= {"PYTHON": sys.executable, "LPD_GPU_FOLDER": str(tmp_path / "results")}
    command = ["bash", "benchmarks/gpu_check.sh"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("== not run: this machine cannot check a GPU: torch ")
    assert done.stderr == ""
    report = json.loads((tmp_path / "results/gpu_check.json").read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert {record["result"] for record in report["phases"]} == {"not run"}
