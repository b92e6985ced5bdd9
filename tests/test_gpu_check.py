"""benchmarks/gpu_check.sh with stubs for what it runs: order, verdicts, limits, resumption."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import cuda_sanitize
import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks/gpu_check.sh"

# Stands for the interpreter: writes down its arguments and fails or hangs where it is told to.
# The report alone is written by the real one.
STUB = """#!/bin/sh
echo "$*" >>"{calls}"
case "$*" in
  *gpu_report.py\\ write*) exec "{python}" "$@" ;;
  *$FAILS_ON*) exit 3 ;;
  *$HANGS_ON*) sleep 30 ;;
  *bench_fused_linear*) exit 5 ;;
esac
exit 0
"""


@pytest.fixture
def check(tmp_path):
    """Run the script; returns (exit status, output, calls of the interpreter)."""
    calls, stub = tmp_path / "calls", tmp_path / "stub"
    stub.write_text(STUB.format(calls=calls, python=sys.executable))
    stub.chmod(0o755)
    sanitizer = tmp_path / "bin/compute-sanitizer"
    sanitizer.parent.mkdir()
    sanitizer.write_text('#!/bin/sh\necho "sanitizer $2" >>"' + str(calls) + '"\n')
    sanitizer.chmod(0o755)
    (tmp_path / "out").mkdir()
    # The build phase deletes binaries of this source tree, unless it finds a CUDA build, as the
    # stub always pretends: it must never think that it made one itself.
    results = tmp_path / "results"

    def run(*arguments, fails_on="nothing", hangs_on="nothing", seconds=20):
        assert not (results / "built_here").exists()
        calls.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{sanitizer.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": str(stub),
            "LPD_GPU_FOLDER": str(results),
            "LPD_PHASE_SECONDS": str(seconds),
            "OUT": str(tmp_path / "out"),
            "FAILS_ON": fails_on,
            "HANGS_ON": hangs_on,
        }
        command = ["bash", SCRIPT, *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
        return result.returncode, result.stdout + result.stderr, calls.read_text().splitlines()

    return run


def results(tmp_path):
    report = json.loads((tmp_path / "out/gpu_check.json").read_text())
    return {record["phase"]: record["result"] for record in report["phases"]}


def test_all_phases_then_none_again(check, tmp_path):
    status, output, calls = check()
    assert status == 0, output
    assert set(results(tmp_path).values()) == {"passed"}
    assert [c for c in calls if c.startswith("sanitizer")] == [
        f"sanitizer {tool}" for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
    ]
    benches = {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert {name for name in benches if any(name in call for call in calls)} == benches
    with tarfile.open(tmp_path / "out/gpu_check.tar.gz") as archive:
        assert {"./test.log", "./gpu_check.json"} <= set(archive.getnames())

    status, output, calls = check()
    assert status == 0
    assert output.count("passed before") == 7
    assert [call for call in calls if "write" not in call] == []

    assert "passed before" not in check("--fresh", "test")[1]


def test_a_failure_is_told_and_stops_nothing(check, tmp_path):
    status, output, calls = check("test", "memcheck", "report", fails_on="pytest tests")
    assert status == 1
    assert output.strip().endswith("== not passed: test")
    assert "sanitizer memcheck" in calls
    assert results(tmp_path) == {"test": "failed", "memcheck": "passed"}
    assert check("test")[0] == 0  # what failed is run again


def test_a_hang_ends_at_the_limit(check, tmp_path):
    assert check("test", hangs_on="pytest tests", seconds=1)[0] == 1
    check("report")
    assert results(tmp_path) == {"test": "out of time"}


def test_benchmarks_resume_at_the_one_that_failed(check):
    status, output, calls = check("bench", fails_on="bench_group_order")
    assert status == 1
    assert len(calls) == 1 + len(list((ROOT / "benchmarks").glob("bench_*.py")))
    assert "bench_fused_linear: no benchmark of the GPU" in output
    status, _, calls = check("bench")
    assert status == 0
    again = [call for call in calls if "bench_" in call]
    expected = ("fused_linear", "group_order")
    assert [name in call for name, call in zip(expected, again, strict=True)] == [True] * 2


def test_changed_sources_are_checked_again(check, tmp_path):
    check("test")
    record = tmp_path / "results/test.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps(before | {"sources": "0" * 16}))
    assert "-m pytest" in check("test")[2][-1]


def test_dry_run_only_talks(check, tmp_path):
    status, output, calls = check("--dry-run", "sanitize", "bench")
    assert status == 0
    assert output.count("compute-sanitizer --tool") == 4
    assert not (tmp_path / "results").exists()
    assert calls == []


def test_an_unknown_phase(check):
    status, output, _ = check("tset")
    assert status == 2
    assert "no phase is called 'tset'" in output


def test_a_machine_without_a_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = [sys.executable, "benchmarks/gpu_report.py", "machine"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert "this machine cannot check the GPU: torch" in result.stderr


def test_the_cases_for_the_sanitizers_are_right():
    assert cuda_sanitize.run(torch.device("cpu")) == 44
