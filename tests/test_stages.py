"""Time by stage: floors of launches, names of a plan's launches, the benchmark, table and chart."""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from test_decode import SIZES
from tiny_pipeline import tiny_pipeline

from lpd_ext import DecodePlan, LPDConfig, group_sizes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import bench_stages
import roofline
import stage_report
from plan_stages import named_launches
from report import trim
from roofline import H200, Gpu, Step, Work
from roofline_stages import (
    ALL,
    DEPENDENT,
    STAGES,
    decode_stages,
    launch_work,
    launches,
    predicted,
    stage_floor,
)
from stage_report import stage_chart, stage_table

L = LPDConfig.named("lpd-l-256")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline().model


def test_launches_are_those_of_a_plan(model):
    # From the plan: a launch that it gains, loses or moves must be counted, too.
    plan = DecodePlan(model, 2, SIZES, dtype=torch.bfloat16, products="torch")
    assert [name for name, _ in named_launches(plan)] == list(launches(model.config)) * len(SIZES)


def test_launches_named_are_those_that_run(model):
    plan = DecodePlan(model, 2, SIZES, dtype=torch.bfloat16, products="torch")
    planned = [x for step in plan._steps for x in (step.embed, *step.transform, step.select)]
    assert [launch for _, launch in named_launches(plan)] == planned


def test_own_products_have_names_as_well(model):
    plan = DecodePlan(model, 2, SIZES, products="own")
    counted = Counter(name for name, _ in named_launches(plan))
    of_layers = dict.fromkeys(("qkv", "attention", "proj", "fc1", "fc2"), model.config.depth)
    expected = of_layers | dict.fromkeys(("embedding", "blocks", "head", "selection"), 1)
    assert counted == {name: count * len(SIZES) for name, count in expected.items()}


def test_a_launch_without_a_name_is_an_error(model):
    plan = DecodePlan(model, 2, SIZES, dtype=torch.bfloat16, products="torch")
    plan._steps[1].transform.insert(3, lambda: torch.empty(1).fill_(0))
    with pytest.raises(LookupError, match=r"aten\.fill_\.Scalar.* of which stage"):
        list(named_launches(plan))


@pytest.mark.parametrize("images", [1, 64])
@pytest.mark.parametrize("num_steps", [20, 32])
def test_launches_add_up_to_the_work_of_a_step(images, num_steps):
    # Weights, K/V and operations exactly; beside them the gathered rows of embeddings.
    for step in roofline.steps(group_sizes(256, num_steps)):
        large_l2 = Gpu("", bandwidth=1, arithmetic=1, l2_share=1e12)
        parts = roofline.step_work(L, step, 2 * images, large_l2)
        work = [launch_work(name, L, step, 2 * images, large_l2) for name in launches(L)]
        total, of_step = sum(work, Work()), sum(parts.values(), Work())
        assert total.operations == of_step.operations
        gathered = 2 * L.dim * 2 * images * step.rows * 2
        assert total.num_bytes == of_step.num_bytes + gathered


def test_activations_by_hand():
    # 2 sequences of 3 + 5 rows of 64 numbers, nothing in L2; a hidden row has 4 times as many.
    config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=7, num_classes=3)
    step, no_l2, large_l2 = Step(3, 5, 4), Gpu("", 1, 1, 0), Gpu("", 1, 1, 1e12)
    row, rows, queries = 64 * 2, 2 * 8, 2 * 5
    moved = {
        "embedding": 2 * row * rows,  # float32
        "norm": (2 + 2 + 1 + 1) * row * rows,  # float32 in and out, a product in, rows out
        "qkv": (1 + 3) * row * rows,
        "attention": (3 + 1) * row * rows,
        "proj": (1 + 1) * row * rows,
        "fc1": (1 + 4) * row * rows,
        "fc2": (4 + 1) * row * rows,
        "last norm": 6 * row * queries,
        "head": row * queries + 7 * 2 * queries,
        "selection": 7 * 2 * queries,
    }
    for stage in STAGES:
        work = [launch_work(stage, config, step, 2, gpu).num_bytes for gpu in (no_l2, large_l2)]
        assert work[0] - work[1] == moved[stage], stage


def test_a_launch_is_predicted_by_hand():
    # Of few rows the wait, what is the kernel's own, the floor; of many the floor by its share.
    bytes_of_20_us, operations_of_1_ms = 20e-6 * H200.bandwidth, 1e-3 * H200.arithmetic
    least, most = predicted("norm", Work(num_bytes=bytes_of_20_us), H200)
    assert (least, most) == pytest.approx((22e-6, 23e-6))
    assert predicted("fc2", Work(num_bytes=bytes_of_20_us), H200)[0] == pytest.approx(25e-6)
    assert predicted("attention", Work(num_bytes=bytes_of_20_us), H200) == pytest.approx(
        (4e-6 + 20e-6 / 0.47, 5e-6 + 20e-6 / 0.40)
    )
    assert predicted("fc1", Work(num_bytes=bytes_of_20_us), H200)[0] == pytest.approx(23e-6)
    assert predicted("fc1", Work(0, operations_of_1_ms), H200)[0] == pytest.approx(
        3e-6 + 1e-3 / 0.59
    )


def test_predictions_of_a_decode():
    few, many = (decode_stages(L, group_sizes(256, 20), images, H200) for images in (1, 64))
    assert few["norm"].launches == many["norm"].launches == 2 * 24 * 20
    for seconds, least in zip((few["norm"].least, few["norm"].most), DEPENDENT, strict=True):
        assert seconds == pytest.approx(least * 960 + few["norm"].floor)
    for stage in (*few.values(), *many.values()):
        assert stage.floor < stage.least < stage.most
    # 480 layers of 28 to 35 us, and what stands before and behind them.
    whole = [sum(getattr(stage, end) for stage in few.values()) for end in ("least", "most")]
    assert [round(1e3 * seconds) for seconds in whole] == [14, 17]


def test_the_floor_of_the_loop_is_that_of_its_steps():
    sizes = group_sizes(256, 20)
    work = roofline.decode_work(L, sizes, 64, H200)
    assert stage_floor(L, sizes, 64, ALL, H200) == roofline.decode_floor(work, H200)
    assert stage_floor(L, sizes, 64, "fc1", H200) == decode_stages(L, sizes, 64, H200)["fc1"].floor


def test_benchmark_of_a_stage_on_the_cpu(monkeypatch):
    config = LPDConfig(grid=(4, 4), dim=64, depth=2, num_heads=2, vocab_size=99, num_classes=3)
    monkeypatch.setattr(LPDConfig, "named", staticmethod({"tiny": config}.__getitem__))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    bench_stages.prepared.cache_clear()
    shown = {}

    def versus(op, case, ours, baselines, *, stage, **notes):
        assert (op, baselines) == ("stages", {})
        ours()
        shown[stage] = notes
        assert stage in case

    for stage in (*STAGES, ALL):
        bench_stages.time_stage(versus, torch.device("cpu"), "tiny", 5, 2, stage)
    of_all = shown.pop(ALL)
    assert (
        sum(notes["launches"] for notes in shown.values()) == of_all["launches"] == 5 * (7 * 2 + 4)
    )
    assert shown["qkv"]["launches"] == 5 * 2
    assert all(notes["floor_us"] >= 0 for notes in shown.values())
    assert of_all["floor_us"] > 0
    bench_stages.prepared.cache_clear()


def test_a_stage_without_a_floor_is_not_timed(monkeypatch):
    config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=99, num_classes=3)
    monkeypatch.setattr(LPDConfig, "named", staticmethod({"tiny": config}.__getitem__))
    monkeypatch.setattr(bench_stages, "STAGES", STAGES[1:])
    bench_stages.prepared.cache_clear()
    with pytest.raises(AssertionError, match="without a floor"):
        bench_stages.prepared("tiny", 5, 1, torch.device("cpu"))


def measured(factor=2.0, skip=()):
    """Invented times: each stage `factor` times as long as predicted at best, the loop in 6 ms."""
    rows = []
    for images in stage_report.BATCHES:
        stages = decode_stages(L, group_sizes(256, 20), images, H200)
        times = {name: 1e6 * factor * stage.least for name, stage in stages.items()}
        for stage, time in (times | {ALL: 6e3 * images}).items():
            ours = {"median_us": time, "iqr_us": 0.0}
            info = {"op": "stages", "batch": images, "stage": stage, "ours": ours, "baselines": {}}
            rows.append({"name": stage, "extra_info": info | {"device": "cuda"}})
    result = {
        "machine_info": {"gpu": "Some <GPU>"},
        "commit_info": {},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [row for row in rows if row["name"] not in skip],
    }
    return {"here": trim([result])}


def rows_of(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_what_is_predicted_says_so():
    for results in ({}, {"cpu": {"benchmarks": [{"extra_info": {"op": "decode"}}]}}):
        text = stage_table(results)
        assert ": ms an image by stage, predicted, no GPU has run this**" in text
        assert "a launch that waits for another takes 2 to 3 us" in text
        assert "easured" not in text
        assert "predicted, no GPU has run this" in stage_chart(results)
    rows = rows_of(text)
    assert rows.keys() == {"stage", "---", *STAGES, "sum", "the loop"}
    assert rows["norm"] == ["960", "0.001", "1.92 to 2.88", "0.126", "0.16 to 0.17"]
    assert rows["fc2"][:3] == ["480", "0.936", "**3.34 to 3.82**"]
    assert rows["the loop"][1] == "3.048"  # as `roofline.py` has it
    assert float(rows["sum"][2].split()[0]) == pytest.approx(
        sum(float(rows[stage][2].strip("*").split()[0]) for stage in STAGES), abs=0.05
    )
    words = [text.text for text in ElementTree.fromstring(stage_chart({})).iter(f"{SVG}text")]
    assert "batch 1: 13.96 to 17.43 ms predicted, floor 3.05 ms" in words
    assert "1.92 to 2.88 ms (floor 0.001)" in words


def test_what_is_measured_stands_beside_it():
    text, chart = stage_table(measured()), stage_chart(measured())
    assert "no GPU" not in text + chart
    assert ": ms an image by stage, measured: here (Some <GPU>)**" in text
    rows = rows_of(text)
    assert rows["norm"][:4] == ["960", "0.001", "1.92 to 2.88", "3.843"]
    assert rows["fc2"][:4] == ["480", "0.936", "3.34 to 3.82", "**6.673**"]
    assert rows["the loop"][3] == rows["the loop"][-1] == "6.000"
    words = [text.text for text in ElementTree.fromstring(chart).iter(f"{SVG}text")]
    assert "here (Some <GPU>) batch 1: 6.000 ms measured, floor 3.05 ms" in words
    assert "3.843 ms (floor 0.001)" in words


def test_the_widest_gap_is_bold():
    rows = rows_of(stage_table(measured()))
    for images, column in zip(stage_report.BATCHES, (3, -1), strict=True):
        stages = decode_stages(L, group_sizes(256, 20), images, H200)
        gaps = {name: 2 * stage.least - stage.floor for name, stage in stages.items()}
        bold = [stage for stage in STAGES if "**" in rows[stage][column]]
        assert bold == [max(gaps, key=gaps.get)]


def test_a_stage_that_was_not_measured_is_left_blank():
    rows = rows_of(stage_table(measured(skip=("proj", ALL))))
    assert rows["proj"][3] == ""
    assert rows["sum"][3] == ""
    assert rows["qkv"][3] != ""


@pytest.mark.parametrize("results", [{}, measured()], ids=["predicted", "measured"])
def test_chart_has_two_bars_a_stage(results):
    root = ElementTree.fromstring(stage_chart(results))
    bars = [r for r in root.iter(f"{SVG}rect") if r.get("x") == str(stage_report.LABELS)]
    assert len(bars) == 2 * 2 * len(STAGES)
    solid = [bar for bar in bars if bar.get("fill") != "none"]
    hollow = [bar for bar in bars if bar.get("fill") == "none"]
    for floor, told in zip(solid, hollow, strict=True):
        assert float(floor.get("width")) <= float(told.get("width"))
        assert floor.get("y") == told.get("y")
    height = float(root.get("height"))
    assert all(float(bar.get("y")) + 10 < height for bar in bars)
    widest = stage_report.WIDTH - stage_report.RIGHT - stage_report.LABELS
    assert max(float(bar.get("width")) for bar in bars) == widest
