"""Tables and chart say what was measured, all of it, and nothing else."""

import copy
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import report
from speed_chart import loses, speed_chart
from stage_report import stage_chart

ROOT = Path(__file__).parent.parent
COMMITTED = sorted(report.RESULTS.glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"
REGION = "<!-- report:begin {0} -->\n{1}<!-- report:end {0} -->"


def contender(median, **more):
    return {"median_us": median, "iqr_us": median / 10} | more


def measured():
    """A file of pytest-benchmark: one case won, one lost, one with nothing to compare with."""
    rows = [
        ("op", "won", 47.04, {"a": contender(98.6, ratio=2.1), "b": contender(470, ratio=10.02)}),
        ("op", "lost", 2000, {"a": contender(1000, ratio=0.5)}),
        ("alone", "case <1>", 3.2e6, {}),
    ]
    return {
        "machine_info": {
            "cpu": "Some CPU", "cpu_flags": ["avx2"], "cores": 4, "threads": 2,
            "cpu_variant": "avx2", "torch": "2.13.0", "python": "3.11", "system": "Linux x86_64",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-02T03:04:05",
        "version": "5.0",
        "benchmarks": [
            {
                "name": f"test[{case}]",
                "fullname": "somewhere",
                "stats": {"data": [1.0] * 99},
                "extra_info": {
                    "op": op, "case": case, "ours": contender(ours), "baselines": rivals,
                },
            }
            for op, case, ours, rivals in rows
        ],
    }  # fmt: skip


@pytest.fixture
def results():
    return {"here": report.trim([measured()])}


def test_table(results):
    text = report.fill(REGION.format("op", "stale\n"), results)
    assert text.splitlines() == [
        "<!-- report:begin op -->",
        "| case | ours | `a` | `b` |",
        "| --- | --: | --: | --: |",
        "| won | 47.0 us | 98.6 us (2.10x) | 470 us (10x) |",
        "| lost | 2.00 ms | 1.00 ms (**0.50x, slower**) |  |",
        "| geometric mean |  | 1.02x | 10x |",
        "<!-- report:end op -->",
    ]


def test_filling_twice_changes_nothing(results):
    text = "before\n" + "\n\n".join(REGION.format(n, "") for n in ("op", "figure", "machine"))
    once = report.fill(text + "\nafter", results)
    assert report.fill(once, results) == once
    assert once.startswith("before\n<!--")
    assert once.endswith("-->\nafter")


def test_caption_names_machine_commit_and_command(results):
    text = report.fill(REGION.format("machine", ""), results)
    for fact in ("Some CPU with avx2", "2 threads on 4 cores", "kernels for avx2", "torch 2.13.0",
                 "commit 0123456,", "2026-01-02", "`make bench`", "at most 10 %"):  # fmt: skip
        assert fact in text
    results["here"]["commit_info"]["dirty"] = True
    assert "uncommitted changes" in report.fill(REGION.format("machine", ""), results)


def test_two_machines_stand_apart(results):
    results["there"] = copy.deepcopy(results["here"])
    text = report.fill(REGION.format("op", "") + REGION.format("machine", ""), results)
    assert text.count("**here**") == text.count("**there**") == 1
    assert text.count("| won |") == 2
    assert "**there:** Some CPU" in text


def on_gpu(result):
    """The same measurements, those of `op` taken on a GPU too."""
    more = copy.deepcopy(result["benchmarks"][:2])
    for benchmark in more:
        benchmark["extra_info"] |= {"device": "cuda"}
        benchmark["extra_info"]["ours"] |= {"cupy_us": 50.0}
        benchmark["extra_info"]["baselines"]["a"]["ratio"] = 4.0
    gpu = {"gpu": "Some GPU", "driver": "580.65.06", "cuda": "13.0"}
    return result | {
        "machine_info": result["machine_info"] | gpu,
        "benchmarks": [*result["benchmarks"], *more],
    }


def test_times_on_the_gpu_stand_apart(results):
    # One mean over both devices, or a GPU's time under the name of the CPU, would mislead.
    both = {"here": report.trim([on_gpu(measured())])}
    alone = report.fill(REGION.format("op", ""), results).splitlines()
    lines = report.fill(REGION.format("op", ""), both).splitlines()
    assert lines[: len(alone) - 1] == alone[:-1]
    assert lines[len(alone) : len(alone) + 2] == ["**times on the GPU**", ""]
    assert [line for line in lines if "geometric mean" in line] == [
        "| geometric mean |  | 1.02x | 10x |",
        "| geometric mean |  | 4.00x | 10x |",
    ]


def test_a_machine_with_times_on_the_gpu_only(results):
    gpu = on_gpu(measured())
    gpu["benchmarks"] = gpu["benchmarks"][-2:]
    results["there"] = report.trim([gpu])
    text = report.fill(REGION.format("op", ""), results)
    assert text.count("**here**") == text.count("**there, times on the GPU**") == 1
    assert "**there**" not in text
    caption = report.fill(REGION.format("machine", ""), {"there": results["there"]})
    assert "Some GPU, driver 580.65.06, CUDA 13.0; Some CPU" in caption
    assert "CUDA graphs" in caption
    assert "CUDA" not in report.fill(REGION.format("machine", ""), {"here": results["here"]})


def test_a_gpu_that_was_not_timed_is_not_claimed():
    # The CPU's benchmarks alone, run on a machine that has one.
    result = on_gpu(measured())
    result["benchmarks"] = result["benchmarks"][:3]
    text = report.fill(REGION.format("machine", ""), {"here": report.trim([result])})
    assert "Some GPU" not in text


def test_chart_of_times_on_the_gpu():
    results = {"here": report.trim([on_gpu(measured())])}
    root = ElementTree.fromstring(speed_chart(results))
    titles = [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "op"]
    assert titles == ["op", "op, times on the GPU"]


def many_on_gpu():
    """Invented times of `group_attention` as on a GPU: two batch sizes, one case lost."""
    sdpa, flex, simple = "sdpa_dense_mask", "flex_attention", "simple_kernel"
    cases = [  # images, ours, ratios
        (1, 4.0, {sdpa: 3.0, simple: 0.5}),
        (1, 10.0, {sdpa: 4.0, flex: 2.0, simple: 1.0}),
        (64, 80.0, {sdpa: 1.25, flex: 0.8, simple: 4.0}),
    ]
    result = measured()
    result["machine_info"] |= {"gpu": "Some GPU", "driver": "580.65.06", "cuda": "13.0"}
    result["benchmarks"] = [
        {
            "name": f"test[{i}]",
            "extra_info": {
                "op": "group_attention",
                "case": f"case {i}",
                "device": "cuda",
                "images": images,
                "floor_us": 40.0 if images == 64 else 0.2,
                "ceilings": "Some GPU taken at 1 TB/s",
                "left_out": {"flashinfer": "not installed"},
                "ours": contender(ours),
                "baselines": {n: contender(ours * r, ratio=r) for n, r in ratios.items()},
            },
        }
        for i, (images, ours, ratios) in enumerate(cases)
    ]
    return {"here": report.trim([result])}


def test_floors_and_the_best_baseline_of_each_case():
    # The means by batch are what a goal is stated in; a kernel of ours is nobody's baseline.
    text = report.fill(REGION.format("group_attention", ""), many_on_gpu())
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert table == [
        "| case | ours | of the floor | over the best baseline | `sdpa_dense_mask` | "
        "`simple_kernel` | `flex_attention` |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| case 0 | 4.00 us | 5 % | 3.00x | 12.0 us (3.00x) | 2.00 us (**0.50x, slower**) |  |",
        "| case 1 | 10.0 us | 2 % | 2.00x | 40.0 us (4.00x) | 10.0 us (1.00x) | 20.0 us (2.00x) |",
        "| case 2 | 80.0 us | 50 % | **0.80x, slower** | 100 us (1.25x) | 320 us (4.00x) | "
        "64.0 us (**0.80x, slower**) |",
        "| geometric mean, batch 1 |  | 3.2 % | 2.45x | 3.46x | **0.71x, slower** | 2.00x |",
        "| geometric mean, batch 64 |  | 50 % | **0.80x, slower** | 1.25x | 4.00x | "
        "**0.80x, slower** |",
        "| geometric mean |  | 7.9 % | 1.69x | 2.47x | 1.26x | 1.26x |",
    ]
    assert "Floors: work as `benchmarks/roofline.py` counts it, Some GPU taken at 1 TB/s." in text
    assert "Left out: `flashinfer` in 3 cases (not installed)." in text
    assert "`simple_kernel`: our own kernel" in text
    machine = report.fill(REGION.format("machine", ""), many_on_gpu())
    assert "`bash benchmarks/gpu_check.sh`" in machine


def test_a_card_without_known_ceilings_has_no_share_of_a_floor():
    results = many_on_gpu()
    for benchmark in results["here"]["benchmarks"]:
        del benchmark["extra_info"]["floor_us"], benchmark["extra_info"]["ceilings"]
    text = report.fill(REGION.format("group_attention", ""), results)
    assert "loor" not in text
    assert "| case 0 | 4.00 us | 3.00x |" in text


def test_chart_of_many_cases_has_a_bar_for_the_best_baseline():
    root = ElementTree.fromstring(speed_chart(many_on_gpu()))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"3.00x", "2.00x", "0.80x slower", "vs the best baseline"} <= set(words)
    assert "4.00x" not in words


def test_errors_of_the_logits_are_shown(results):
    row = results["here"]["benchmarks"][0]["extra_info"]
    row |= {"logits_error": {"plan": {"max": 0.123, "mean": 0.0456}}, "logits_std": 2.5}
    row["entropy_nats"] = 6.04
    text = report.fill(REGION.format("op", ""), results)
    assert "`plan` 0.12 / 0.046 (logits of standard deviation 2.5, entropy 6.0 nats)" in text


def test_what_was_not_measured_is_not_claimed(results):
    assert "Not measured yet" in report.fill(REGION.format("other", "| 1 |\n"), results)


def test_region_without_an_end(results):
    with pytest.raises(ValueError, match="no end"):
        report.fill("<!-- report:begin op -->\n<!-- report:end other -->", results)


@pytest.mark.parametrize(
    ("microseconds", "words"),
    [(0.5, "0.500 us"), (47, "47.0 us"), (999.4, "999 us"), (999.6, "1.00 ms"), (1e4, "10.0 ms"),
     (9.996e5, "1.00 s"), (4.2e6, "4.20 s")],
)  # fmt: skip
def test_duration(microseconds, words):
    assert report.duration(microseconds) == words


def test_trimming_keeps_what_the_report_reads():
    trimmed = report.trim([measured()])
    assert trimmed.keys() == {"machine_info", "commit_info", "date", "benchmarks"}
    assert all(b.keys() == {"name", "extra_info"} for b in trimmed["benchmarks"])
    assert trimmed["benchmarks"][0]["extra_info"]["ours"]["median_us"] == 47.04
    assert json.loads(json.dumps(trimmed)) == trimmed


def test_trimming_merges_runs_of_one_commit_only():
    whole, first, second = measured(), measured(), measured()
    first["benchmarks"], second["benchmarks"] = whole["benchmarks"][:1], whole["benchmarks"][1:]
    assert report.trim([first, second]) == report.trim([whole])
    second["commit_info"]["id"] = "other"
    with pytest.raises(ValueError, match="commit_info"):
        report.trim([first, second])


def test_trimming_refuses_a_run_that_timed_nothing():
    untimed = measured()
    del untimed["benchmarks"][1]["extra_info"]["ours"]
    with pytest.raises(ValueError, match="lost"):
        report.trim([untimed])


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(REGION.format("op", ""))
    (tmp_path / "bench.json").write_text(json.dumps(measured()))
    report.main(["--trim", str(tmp_path / "bench.json"), str(tmp_path / "cpu.json")])
    report.main([str(tmp_path / "cpu.json")])
    assert "| won |" in (tmp_path / "README.md").read_text()
    for chart in ("speed", "stages"):
        ElementTree.fromstring((tmp_path / f"docs/{chart}.svg").read_text())


def test_chart_has_a_bar_for_every_comparison(results):
    root = ElementTree.fromstring(speed_chart(results))
    one = next(line for line in root.iter(f"{SVG}line") if line.get("class") == "one")
    bars = [
        r for r in root.iter(f"{SVG}rect") if r.get("height") == "10" and r.get("width") != "10"
    ]
    right = [bar for bar in bars if bar.get("x") == one.get("x1")]
    left = [bar for bar in bars if float(bar.get("x")) < float(one.get("x1"))]
    assert (len(right), len(left)) == (2, 1)
    assert left[0].get("fill") == "none"  # a losing case is seen at a glance
    assert float(left[0].get("x")) + float(left[0].get("width")) == float(one.get("x1"))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"2.10x", "10x", "0.50x slower", "won", "lost"} <= set(words)
    assert "case <1>" not in words  # nothing to compare with


def test_chart_of_special_characters(results):
    for benchmark in results["here"]["benchmarks"]:
        benchmark["extra_info"]["case"] = 'a < b & "c"'
    root = ElementTree.fromstring(speed_chart(results))
    assert 'a < b & "c"' in [text.text for text in root.iter(f"{SVG}text")]


def test_a_case_that_rounds_to_one_is_no_loss():
    assert [ratio for ratio in (0.9, 0.994, 0.996, 1.0, 2.0) if loses(ratio)] == [0.9, 0.994]


def test_readme_and_chart_are_what_was_measured():
    # A number typed by hand, or a file of measurements without its tables.
    assert COMMITTED
    results = report.load(COMMITTED)
    readme = (ROOT / "README.md").read_text()
    assert report.fill(readme, results) == readme
    assert speed_chart(results) == (ROOT / report.CHART).read_text()
    assert stage_chart(results) == (ROOT / report.STAGES).read_text()
    shown = re.findall(r"<!-- report:begin (\w+) -->", readme)
    measured = {b["extra_info"]["op"] for r in results.values() for b in r["benchmarks"]}
    assert measured | {"machine"} <= set(shown)
