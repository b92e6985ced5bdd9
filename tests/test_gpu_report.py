"""What the check of a GPU keeps: lines of timed cases, the report made of them, facts, a probe."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_sanitize
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import case_lines
import gpu_report
import report
import sanitizer_probe
from gpu_phases import DEPENDS, hash_sources

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"

CASES = """
import os, signal, pytest
@pytest.mark.parametrize("nth", ["one", "two", "three", "none"])
def test_tiny(versus, nth):
    if nth == "two" and os.environ["KILL"]:
        os.kill(os.getpid(), signal.SIGKILL)
    versus("op", nth, lambda: None, {}, rounds=3)
"""


@pytest.fixture
def time_cases(tmp_path):
    """Time a file of four cases; returns the exit status and the output."""
    pytest.importorskip("pytest_benchmark")
    shutil.copy(BENCHMARKS / "conftest.py", tmp_path)
    (tmp_path / "bench_tiny.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\n")
    files = [tmp_path / "lines", tmp_path / "copy"]

    def run(**told):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)]),
            "LPD_BENCH_LINES": os.pathsep.join(map(str, files)),
            "LPD_BENCH_SOURCES": "these",
            **told,
        }
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    return run


def test_cases_that_ended_survive_a_kill_and_are_not_timed_again(time_cases, tmp_path):
    status, _ = time_cases(KILL="1")
    assert status < 0
    lines, copy = tmp_path / "lines", tmp_path / "copy"
    assert [line["name"] for line in case_lines.read(lines)] == ["test_tiny[one]"]
    assert lines.read_text() == copy.read_text()

    with lines.open("a") as stream:
        stream.write('{"case": "cut sho')
    status, output = time_cases(KILL="", LPD_BENCH_CASES="[three|[two|[one")
    assert status == 0, output
    verdicts = [line.split()[:2] for line in output.splitlines() if "::" in line and "%" in line]
    assert verdicts == [
        ["bench_tiny.py::test_tiny[three]", "PASSED"],
        ["bench_tiny.py::test_tiny[two]", "PASSED"],
        ["bench_tiny.py::test_tiny[one]", "SKIPPED"],
    ]
    timed = case_lines.timed(case_lines.read(lines), "these", slow=False)
    assert [line["extra_info"]["case"] for line in timed.values()] == ["one", "three", "two"]
    assert {line["slow"] for line in timed.values()} == {False}


def line(case, sources="these", slow=False, gpu="Some GPU", median=1.0):
    ours = {"median_us": median, "iqr_us": 0.1}
    return {
        "case": case, "sources": sources, "slow": slow, "name": case,
        "datetime": "2026-01-02T03:04:05", "machine_info": {"gpu": gpu},
        "extra_info": {"op": "op", "case": case, "ours": ours, "baselines": {}},
    }  # fmt: skip


def test_which_cases_count_as_timed(monkeypatch, tmp_path):
    lines = [line("a"), line("b", sources="others"), line("c", slow=True), line("a", median=2.0)]
    assert list(case_lines.timed(lines, "these", slow=False)) == ["a", "c"]
    assert list(case_lines.timed(lines, "these", slow=True)) == ["c"]
    assert case_lines.timed(lines, "these", slow=False)["a"]["extra_info"]["ours"]["median_us"] == 2
    (tmp_path / "lines").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert case_lines.timed_before() == set()
    monkeypatch.setenv("LPD_BENCH_LINES", str(tmp_path / "lines"))
    monkeypatch.setenv("LPD_BENCH_SOURCES", "these")
    assert case_lines.timed_before() == {"a", "c"}
    monkeypatch.setenv("LPD_BENCH_FRESH", "1")
    assert case_lines.timed_before() == set()


def test_measurements_are_those_of_these_sources_machine_by_machine(tmp_path):
    # A second command may get another machine: its cases are neither lost nor the first's.
    sources = hash_sources(DEPENDS["bench"])
    lines = [line("a", sources), line("b", sources), line("b", "others"),
             line("c", sources, gpu="Other GPU")]  # fmt: skip
    (tmp_path / "bench_lines.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    gpu_report.write(tmp_path, ["build"], {})
    first = json.loads((tmp_path / "measurements.json").read_text())
    second = json.loads((tmp_path / "measurements_2.json").read_text())
    assert [b["name"] for b in first["benchmarks"]] == ["a", "b"]
    assert (first["machine_info"], second["machine_info"]) == (
        {"gpu": "Some GPU"},
        {"gpu": "Other GPU"},
    )
    text = report.fill("<!-- report:begin op -->\n<!-- report:end op -->", {"here": first})
    assert "| a | 1.00 us |" in text
    assert json.loads((tmp_path / "gpu_check.json").read_text())["timed"] == 3


JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_a" name="test_b">
<failure message="assert 1 == 2&#10;more"/></testcase>
<testcase classname="tests.test_a" name="test_c"><skipped/></testcase>
<testcase classname="tests.test_a" name="test_d"/>
</testsuite></testsuites>"""


def test_failures_stand_in_the_report(tmp_path):
    (tmp_path / "test.xml").write_text(JUNIT)
    assert gpu_report.tests(tmp_path / "test.xml") == {
        "tests": 3, "failures": 1, "errors": 0, "skipped": 1,
        "failed": ["tests.test_a::test_b: assert 1 == 2"],
    }  # fmt: skip
    (tmp_path / "test.xml").write_text(JUNIT[:90])
    assert gpu_report.tests(tmp_path / "test.xml") == {}  # cut short
    assert gpu_report.tests(tmp_path / "none.xml") == {}


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["needs a GPU", "needs a GPU"], "all tests were skipped: needs a GPU"),
        (["needs a GPU", None], ""),
        (["timed before", "timed before"], ""),
        ([], ""),
    ],
)
def test_a_run_that_skips_everything_proves_nothing(tmp_path, reasons, told):
    skips = [f'<skipped message="{reason}"/>' if reason else "" for reason in reasons]
    cases = "".join(f"<testcase>{skip}</testcase>" for skip in skips)
    (tmp_path / "test.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert gpu_report.only_skipped(tmp_path / "test.xml") == told


def test_an_interpreter_without_torch_says_so(monkeypatch):
    found = gpu_report.has_module
    monkeypatch.setattr(gpu_report, "has_module", lambda name: name != "torch" and found(name))
    assert gpu_report.obstacles() == ["the Python module torch is missing"]
    facts = gpu_report.machine()
    assert (facts["torch"], facts["gpu"]) == (None, None)
    assert facts["missing"]["required"] == ["torch"]


def test_the_probe_ends_at_the_call_that_fails(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="no CUDA driver"):
        sanitizer_probe.main("libnothing-like-this.so")

    class Driver:
        def __init__(self, failing):
            self._failing = failing

        def __getattr__(self, name):
            return lambda *_: 999 * (name == self._failing)

    def driver(failing):
        monkeypatch.setattr(sanitizer_probe.ctypes, "CDLL", lambda name: Driver(failing))

    driver("cuMemAlloc_v2")  # as where a sanitizer refuses the device
    with pytest.raises(SystemExit, match="cuMemAlloc_v2: CUDA error 999"):
        sanitizer_probe.main()
    driver("none")
    sanitizer_probe.main()
    assert capsys.readouterr().out == "the driver answers\n"


def test_the_cases_for_the_sanitizers_are_right():
    assert cuda_sanitize.run(torch.device("cpu")) == 44


def test_part_of_the_cases_for_the_sanitizers(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(cuda_sanitize, "run", lambda *arguments: asked.update(run=arguments) or 7)
    cuda_sanitize.main(["--head-dim", "64", "--dtype", "bfloat16"])
    assert asked["run"] == (torch.device("cuda"), [64], [torch.bfloat16])
    assert capsys.readouterr().out == "7 cases agree with the reference\n"


def test_what_compiles_is_marked(request):
    # By conftest.py, for all tests; here of an item that looks like one.
    def compiles():
        torch.compile(print)

    def uses_regular_expressions():
        import re

        re.compile("")

    marked = []
    items = [
        SimpleNamespace(function=function, add_marker=lambda mark, f=function: marked.append(f))
        for function in (compiles, uses_regular_expressions)
    ]
    (plugin,) = [p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "Place")]
    plugin.pytest_collection_modifyitems(items)
    assert marked == [compiles]
