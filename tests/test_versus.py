"""The harness of the benchmarks: what it times, what it says, and what it keeps to itself."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lpd_ext import LPDConfig, group_attention, group_sizes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import attention_baselines
import attention_duel
import decode_duel
from attention_duel import Case, Verifier
from bench_decode import ROUNDS, duel
from case_lines import SLOW
from contender import Contender, fastest, summary
from machine import cpu_name, machine
from report import BASELINES, fill, trim
from roofline import Step, steps

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def clock(seconds):
    """A contender whose calls take `seconds` each by a clock of its own."""
    now = [0.0]

    def call(*_):
        now[0] += seconds

    return Contender(call, timer=lambda: now[0])


def test_short_calls_are_timed_in_blocks():
    # A clock's tick over one call of a microsecond would be all that is measured.
    rival = clock(1e-6)
    assert rival.calibrate(2e-3) >= 2e-3
    assert rival.calls >= 2000
    assert rival.seconds == []
    assert rival.time_block() == pytest.approx(1e-6)
    long = clock(5.0)
    assert long.calibrate(2e-3) == 5
    assert long.calls == 1


def test_inputs_take_turns():
    # The same buffers again and again would be hot in L1.
    seen = []
    rival = Contender(seen.append, [(1,), (2,), (3,)], calls=4)
    rival.time_block()
    rival.time_block()
    rival.next()
    assert seen == [1, 2, 3, 1, 2, 3, 1, 2, 3]


def test_a_baseline_is_the_best_of_its_variants():
    variants = {"slow": clock(3.0), "fast": clock(2.0), "slower": clock(4.0)}
    assert fastest(variants) == "fast"
    assert variants["fast"].seconds == []  # the choice is no measurement


def test_a_ratio_is_taken_within_rounds():
    # Half of the rounds on a machine three times as slow: medians apart would invent a speed-up.
    ours = [1.0, 1.0, 1.0, 3.0, 3.0]
    theirs = [2.0, 2.0, 6.0, 6.0, 6.0]
    result = summary(ours, {"theirs": theirs})
    assert result["ours"]["median_us"] == 1e6
    assert result["baselines"]["theirs"]["median_us"] == 6e6
    assert result["baselines"]["theirs"]["ratio"] == 2
    assert result["ours"]["iqr_us"] == 2e6


@pytest.mark.parametrize(
    ("name", "family", "wanted"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 6, "Intel Xeon Platinum 8481C"),
        ("Intel(R) Xeon(R) Processor", 6, "Intel Xeon (family 6, model 143)"),
        ("AMD EPYC 9R14", 25, "AMD EPYC 9R14"),
    ],
)
def test_cpu_name(name, family, wanted):
    text = f"vendor_id\t: X\ncpu family\t: {family}\nmodel\t\t: 143\nmodel name\t: {name}\n"
    assert cpu_name(text) == wanted


def test_cpu_name_where_there_is_no_cpuinfo():
    assert cpu_name("")


def pytest_run(*arguments, cwd):
    pytest.importorskip("pytest_benchmark")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(BENCHMARKS)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


TINY = """
import time
def test_tiny(versus):
    slow = {"much": lambda x: time.sleep(3e-3), "less": lambda x: time.sleep(2e-3)}
    baselines = {"slow": slow, "equal": lambda x: time.sleep(1e-3)}
    versus("op", "case", lambda x: time.sleep(1e-3), baselines, inputs=[(1,), (2,)], rounds=5,
           entropy_nats=6.5)
"""


def test_a_duel_from_fixture_to_report(tmp_path):
    shutil.copy(BENCHMARKS / "conftest.py", tmp_path)
    (tmp_path / "bench_tiny.py").write_text(TINY)
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\n")
    pytest_run("--benchmark-json=bench.json", cwd=tmp_path)
    text = (tmp_path / "bench.json").read_text()
    for secret in (platform.node(), str(tmp_path), str(ROOT), sys.prefix):
        assert len(secret) < 4 or secret not in text, "a host name or a path would be committed"
    result = json.loads(text)
    assert result["machine_info"] == machine() | {"threads": 1}
    assert result["commit_info"].keys() == {"id", "dirty"}
    info = result["benchmarks"][0]["extra_info"]
    assert (info["op"], info["case"], info["rounds"], info["entropy_nats"]) == (
        "op",
        "case",
        5,
        6.5,
    )
    assert info["baselines"].keys() == {"slow", "equal"}
    assert info["baselines"]["slow"]["variant"] == "less"
    assert info["baselines"]["slow"]["ratio"] > 1
    assert result["benchmarks"][0]["stats"]["median"] * 1e6 == info["ours"]["median_us"]
    region = "<!-- report:begin op -->\n<!-- report:end op -->"
    assert "| case | " in fill(region, {"here": trim([result])})


FAKE_GPU = """
import gpu_timer
class FakeGpu:
    # Every call takes 10 us, the one named "slow" 30 us; a flush takes long.
    now = 0.0
    def capture(self, run):
        return run
    def flush(self):
        FakeGpu.now += 1.0
    def seconds(self, run):
        begin = FakeGpu.now
        run()
        return FakeGpu.now - begin
    def synchronize(self):
        pass
gpu_timer.current_gpu = FakeGpu
def call(x):
    FakeGpu.now += 10e-6
def slow(x):
    FakeGpu.now += 30e-6
def test_tiny(versus):
    versus("op", "case", call, {"slow": slow}, inputs=[(1,), (2,)], rounds=5, device="cuda")
def test_devices(device):
    pass
"""


def test_a_duel_on_the_gpu_keeps_both_times(tmp_path):
    shutil.copy(BENCHMARKS / "conftest.py", tmp_path)
    (tmp_path / "bench_tiny.py").write_text(FAKE_GPU)
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\n")
    pytest_run("--benchmark-json=bench.json", "--strict-markers", cwd=tmp_path)
    (benchmark,) = json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    info = benchmark["extra_info"]
    assert info["device"] == "cuda"
    assert info["ours"]["median_us"] == pytest.approx(10)
    assert info["baselines"]["slow"]["median_us"] == pytest.approx(30)
    assert info["baselines"]["slow"]["ratio"] == pytest.approx(3)
    # The host's own time is pytest-benchmark's, another one.
    assert 0 < benchmark["stats"]["median"] * 1e6 != pytest.approx(10, rel=1e-6)


def test_benchmarks_of_ops_run_and_verify():
    # Their smallest cases, untimed: a benchmark nobody runs rots.
    smallest = "256-0-2 or unfiltered or (one and 16x16)"
    pytest_run(str(BENCHMARKS), "--benchmark-disable", "-k", smallest, cwd=ROOT)


SMALL_STEP = Step(context_len=2, num_queries=3, cache_len=5)


def small_case(num_sequences=3):
    return Case(SMALL_STEP, num_sequences, 2, 32, 17, torch.float32, torch.device("cpu"))


def leaking(qkv, k_cache, v_cache, cache_len, context_len):
    """Context rows see the queries."""
    return group_attention(qkv, k_cache, v_cache, cache_len, 0)


def test_a_wrong_kernel_is_not_timed():
    verifier = Verifier(small_case(70).layers()[0])  # more sequences than are computed at once
    assert verifier.agrees(group_attention)
    assert not verifier.agrees(leaking)
    assert not verifier.agrees(lambda *a: group_attention(*a) * torch.nan)

    def right_but_for_the_last(*arguments):
        out = group_attention(*arguments)
        out[-1, -1, -1] += 0.01
        return out

    assert not verifier.agrees(right_but_for_the_last)
    with pytest.raises(AssertionError, match="mine: leaking is wrong"):
        attention_duel.duel(None, "case", small_case(), {"mine": {"variant": leaking}}, {})


def test_what_does_not_work_here_is_left_out_with_a_reason():
    def absent(*_):
        raise ModuleNotFoundError("No module named 'absent'")

    def broken(*_):
        raise RuntimeError("ptxas failed: /home/somebody/x.ptx")

    prepared = {"good": lambda *_: group_attention, "absent": absent, "broken": broken,
                "wrong": lambda *_: leaking}  # fmt: skip
    verifier = Verifier(small_case().layers()[0])
    with pytest.warns(UserWarning, match=r"broken: .*ptxas failed"):
        calls, left_out = attention_duel.admit(prepared, verifier)
    assert calls == {"good": group_attention}
    # The JSON is committed: no path of a machine.
    assert left_out == {
        "absent": "not installed", "broken": "RuntimeError", "wrong": "wrong result"
    }  # fmt: skip


def test_on_a_gpu_a_replay_is_what_is_verified(monkeypatch):
    # A graph that missed a launch, one on another stream say, gives stale results, fast.
    class Gpu:
        def capture(self, run):
            run()
            return lambda: None

    monkeypatch.setattr(attention_duel, "current_gpu", Gpu)
    somewhere = SimpleNamespace(device=torch.device("cuda"))
    assert attention_duel._run_as_timed(lambda x: torch.ones(3), (somewhere,)).sum() == 0


def test_layers_fit_into_memory(monkeypatch):
    bytes_of_one = sum(tensor.nbytes for tensor in small_case().layers()[0][:3])
    for limit, count in [(10**9, 24), (3 * bytes_of_one, 3), (bytes_of_one - 1, 1)]:
        monkeypatch.setitem(attention_duel.MOST_BYTES, "cpu", limit)
        layers = small_case().layers()
        assert len(layers) == count
        assert len({layer[1].data_ptr() for layer in layers}) == count


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("card", "number", "slow"),
    [("NVIDIA H200", 4, "1"), ("Some GPU", 4, "0"), ("Some GPU", 0, "1")],
)
def test_benchmark_of_a_gpu_on_the_cpu(monkeypatch, card, number, slow):
    # A tiny model; neither a GPU nor a compiler nor tensor cores, but every contender runs.
    monkeypatch.setenv("LPD_BENCH_SLOW", slow)
    config = LPDConfig(grid=(8, 8), dim=64, depth=1, num_heads=2)
    monkeypatch.setattr(LPDConfig, "named", staticmethod({"tiny": config}.__getitem__))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setattr(attention_baselines, "cuda_variant", lambda: "tensor_cores")
    monkeypatch.setattr(attention_baselines, "set_cuda_variant", lambda name: None)
    shown = {}

    def versus(op, title, ours, baselines, *, inputs, device, rounds, **notes):
        shown.update(notes, op=op, title=title, names=set(baselines))
        assert baselines.keys() <= BASELINES.keys()
        assert {len(i) for i in inputs} == {5}

    attention_duel.duel_on_gpu(versus, torch.device("cpu"), "tiny", 8, number, 3)
    always = {"sdpa_dense_mask", "sdpa_two_slices", "simple_kernel"}
    step = list(steps(group_sizes(64, 8)))[number]
    assert shown["title"] == (
        f"tiny, step {number + 1} of 8: {step.rows} rows x {step.keys} keys, batch 3 x 2"
    )
    assert (shown["op"], shown["images"]) == ("group_attention", 3)
    absent = {} if number == 0 or slow == "1" else {"flex_attention": SLOW}
    assert shown["left_out"] == absent | {"flashinfer": "not installed"}
    assert shown["names"] == always | ({"flex_attention"} if number and not absent else set())
    if card == "NVIDIA H200":
        # Two sequences an image, two heads of 32, each row and key two bytes a number.
        moved = 4 * step.rows + 2 * (step.cache_len + step.context_len)
        assert shown["floor_us"] == pytest.approx(moved * 6 * 64 * 2 / 4.3e12 * 1e6)
    else:
        assert "floor_us" not in shown


def test_benchmark_of_a_generation_verifies_and_runs():
    # On a tiny model: the plan and the loops still take these arguments and agree.
    config = LPDConfig(grid=(8, 8), dim=64, depth=2, num_heads=2, vocab_size=1024, num_classes=9)
    shown = {}

    def versus(op, case, ours, baselines, *, rounds, **notes):
        loops = {"plan": ours} | baselines
        shown.update(notes, op=op, tokens={name: loop() for name, loop in loops.items()})
        assert baselines.keys() <= BASELINES.keys()  # the report can say what they are

    duel(versus, config, batch=2, rounds=ROUNDS[4])
    assert shown["op"] == "decode"
    assert {tuple(tokens.shape) for tokens in shown["tokens"].values()} == {(2, 64)}
    assert shown["logits_error"].keys() == shown["tokens"].keys()
    assert all(0 < error["mean"] < 0.1 for error in shown["logits_error"].values())


def test_benchmark_of_a_generation_on_a_gpu_on_the_cpu(monkeypatch):
    config = LPDConfig(grid=(8, 8), dim=64, depth=2, num_heads=2, vocab_size=1024, num_classes=9)
    monkeypatch.setattr(LPDConfig, "named", staticmethod({"tiny": config}.__getitem__))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    captured = SimpleNamespace(capture=lambda run: run)
    monkeypatch.setattr(decode_duel, "current_gpu", lambda: captured)

    def no_compiler(function):
        return lambda *args, **options: refuse()

    def refuse():
        raise ImportError

    monkeypatch.setattr(torch, "compile", no_compiler)
    shown = {}

    def versus(op, case, ours, baselines, *, rounds, device, loop, **notes):
        loops = {"plan": ours} | baselines
        shown.update(notes, tokens={name: tuple(call().shape) for name, call in loops.items()})
        assert (op, device, loop) == ("decode", "cpu", True)
        assert baselines.keys() <= BASELINES.keys()

    decode_duel.duel_on_gpu(versus, torch.device("cpu"), "tiny", 8, 1)
    assert shown["left_out"] == {"published_loop_compiled": SLOW}
    monkeypatch.setenv("LPD_BENCH_SLOW", "1")
    with pytest.warns(UserWarning, match="published_loop_compiled: ImportError"):
        decode_duel.duel_on_gpu(versus, torch.device("cpu"), "tiny", 8, 1)
    assert shown["tokens"] == dict.fromkeys(["plan", "sdpa_graph", "published_loop"], (1, 64))
    assert shown["left_out"] == {"published_loop_compiled": "ImportError"}
    assert shown["floor_us"] > 0
    decode_duel.duel_on_gpu(versus, torch.device("cpu"), "tiny", 8, 6)
    assert shown["images"] == 6
    assert shown["logits_error"].keys() == {"plan", "sdpa_graph", "published_loop"}
    assert 4 < shown["entropy_nats"] < 8  # beside the errors in the report
    assert shown["logits_std"] > 0
