"""The report on this machine, and that its verdicts can fall."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from lpd_ext import _binary, cpu_variant, ops
from lpd_ext.cli import main
from lpd_ext.info import RUN_ON, info
from lpd_ext.ops.launch import device_types
from lpd_ext.self_check import Verdict, self_check
from lpd_ext.verdicts import RememberedVerdict

ROOT = Path(__file__).parent.parent
info_module = sys.modules["lpd_ext.info"]  # the package's name of it is the function

OPS = (
    "group_attention",
    "masked_attention",
    "token_selection",
    "token_selection_",
    "add_layer_norm",
    "bias_gelu",
    "linear_gelu",
    "group_norm_silu",
    "fused_linear",
    "group_embedding",
    "group_order",
)


@pytest.fixture
def no_checks(monkeypatch):
    """The report without what takes a second in it."""
    checked = Verdict("verified", "not looked at here")
    monkeypatch.setattr(info_module, "self_check", lambda op, device: checked)


def test_versions_and_build(no_checks):
    report = info()
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["lpd_ext"] == _binary.VERSION == report["build"]["version"]
    assert report["build"].keys() == {"version", "compiler", "flags", "torch", "cuda"}
    assert report["devices"][0]["device"] == "cpu"
    assert json.loads(json.dumps(report)) == report


def test_every_op_is_verified_on_the_cpu(variant):
    # In each instruction set: the report is of the one in use.
    kernels = info()["kernels"]
    assert tuple(kernels) == OPS
    assert {op: kernels[op]["cpu"]["state"] for op in OPS} == dict.fromkeys(OPS, "verified")


def test_instruction_sets(variant, no_checks):
    sets = info()["cpu_variants"]
    assert sets == {"in use": variant, "available": list(cpu_variant.cpu_variants())}


def test_ops_are_not_claimed_where_there_is_no_build(monkeypatch, no_checks):
    build = _binary.host.build_info() | {"cuda": ""}
    monkeypatch.setattr(_binary, "host", FakeHost(build))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(info_module, "device_types", lambda op: ("cpu",))
    assert {entry["cuda"]["state"] for entry in info()["kernels"].values()} == {"not built"}


def test_a_build_without_a_device_is_not_called_verified(monkeypatch, no_checks):
    # Nor is an op that has no CUDA kernel called built.
    build = _binary.host.build_info() | {"cuda": "13.0"}
    monkeypatch.setattr(_binary, "host", FakeHost(build))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    built = {"group_attention": ("cpu", "cuda")}
    monkeypatch.setattr(info_module, "device_types", lambda op: built.get(op, ("cpu",)))
    kernels = info()["kernels"]
    expected = dict.fromkeys(OPS, "not built") | {"group_attention": "no device"}
    assert {op: kernels[op]["cuda"]["state"] for op in OPS} == expected


def test_the_dispatcher_knows_what_is_built():
    assert device_types("fused_linear") == ("cpu",)  # in a build for CUDA, too
    with torch.library._scoped_library("lpd_ext", "IMPL") as library:
        library.impl("fused_linear", lambda *args: None, "CUDA")
        assert device_types("fused_linear") == ("cpu", "cuda")


@pytest.fixture
def two_gpus(monkeypatch, no_checks):
    """Two GPUs, as the report sees them."""
    remembered = RememberedVerdict("verified", "agrees", "2026-01-02T03:04:05+00:00", "580.65.06")
    failed = dataclasses.replace(remembered, state="failed", detail="differs by 7")

    def verdicts(device):
        found = dict.fromkeys(OPS, remembered)
        return found | {"group_attention": failed} if device.index == 1 else found

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, i))
    monkeypatch.setattr(info_module, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(info_module, "verdicts", verdicts)


def test_every_gpu_has_its_verdicts(two_gpus):
    report = info()
    assert report["devices"][2] == {
        "device": "cuda:1",
        "name": "GPU 1",
        "capability": "sm_91",
        "driver": "580.65.06",
    }
    kernels = report["kernels"]
    assert kernels["group_attention"].keys() == {"cpu", "cuda:0", "cuda:1"}
    assert kernels["group_attention"]["cuda:0"]["state"] == "verified"
    assert kernels["token_selection"]["cuda:1"]["state"] == "verified"
    assert kernels["group_attention"]["cuda:1"] == {
        "state": "failed",
        "detail": "differs by 7",
        "checked": "2026-01-02T03:04:05+00:00",
        "driver": "580.65.06",
    }


def test_the_command_line_shows_when_a_gpu_was_checked(two_gpus, capsys):
    assert main(["info"]) == 1  # one has failed
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "cuda:1" in line and "group_attention" in line]
    assert "failed" in line
    assert "2026-01-02T03:04:05+00:00, driver 580.65.06" in line
    record = info()["cuda_kernels"]["group_attention"]
    assert f"  group_attention  {record}" in lines


def test_a_gpu_on_which_nothing_runs_is_reported(two_gpus, monkeypatch):
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to")

    monkeypatch.setattr(info_module, "verdicts", full)
    entry = info()["kernels"]["group_attention"]["cuda:0"]
    assert entry == {"state": "unchecked", "detail": "CUDA out of memory."}


def test_what_no_gpu_has_run_says_so(monkeypatch, no_checks):
    monkeypatch.setattr(info_module, "RUN_ON", {"group_attention": (), "group_order": ("A", "B")})
    record = info()["cuda_kernels"]
    assert record["group_attention"] == "not yet run on a GPU"
    assert record["group_order"] == "run on A, B"
    assert record["token_selection"] == "none yet"


def unproven(run_on, sources, results):
    """Kernels without a line in RUN_ON, and GPUs in it without a committed measurement."""
    unlisted = {stem for stem in sources if not any(stem.startswith(op) for op in run_on)}
    measured = {result["machine_info"].get("gpu") for result in results}
    return unlisted | {gpu for gpus in run_on.values() for gpu in gpus if gpu not in measured}


def test_the_record_of_gpus_can_be_proven():
    results = [json.loads(p.read_text()) for p in (ROOT / "benchmarks/results").glob("*.json")]
    sources = [path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")]
    assert not unproven(RUN_ON, sources, results)
    planted = {"group_attention": ("No GPU",)}
    assert unproven(planted, ["other", "group_attention_sm90"], results) == {"No GPU", "other"}


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_kernel_is_found(monkeypatch, op):
    # A self-check that cannot fail would be worth nothing.
    right = getattr(ops, op)

    def wrong(*args, **kwargs):
        out = right(*args, **kwargs)
        written = args[0] if out is None else out
        written[0, -1] += 1
        return out

    monkeypatch.setattr(ops, op, wrong)
    verdict = self_check(op, torch.device("cpu"))
    assert verdict.state == "failed"
    assert "differs from the reference" in verdict.detail


def test_a_report_names_the_wrong_kernel(monkeypatch):
    right = ops.bias_gelu
    monkeypatch.setattr(ops, "bias_gelu", lambda x, bias, out: right(x, bias, out=out.mul_(2)))
    states = {op: entry["cpu"]["state"] for op, entry in info()["kernels"].items()}
    assert states == dict.fromkeys(OPS, "verified") | {"bias_gelu": "failed"}


def test_nan_is_a_difference(monkeypatch):
    right = ops.group_attention
    monkeypatch.setattr(ops, "group_attention", lambda *a, **k: right(*a, **k) * float("nan"))
    verdict = self_check("group_attention", torch.device("cpu"))
    assert verdict == Verdict("failed", "differs from the reference by nan (at most 1e-05)")


@pytest.mark.parametrize("forgotten", [0, 1], ids=["k_cache", "v_cache"])
def test_a_written_cache_counts(monkeypatch, forgotten):
    # Right output, wrong side effect.
    right = ops.group_attention

    def forgets_a_cache(qkv, *caches, **lengths):
        caches = [cache.clone() if i == forgotten else cache for i, cache in enumerate(caches)]
        return right(qkv, *caches, **lengths)

    monkeypatch.setattr(ops, "group_attention", forgets_a_cache)
    verdict = self_check("group_attention", torch.device("cpu"))
    assert verdict.state == "failed"
    assert re.fullmatch(r"differs from the reference by \d.* \(at most 0\)", verdict.detail)


def test_an_op_without_a_kernel_is_not_built(monkeypatch):
    def missing(*args, **kwargs):
        raise NotImplementedError("group_order: argument `seeds`: expected device cpu, got cuda")

    monkeypatch.setattr(ops, "group_order", missing)
    assert self_check("group_order", torch.device("cpu")) == Verdict(
        "not built", "group_order: argument `seeds`: expected device cpu, got cuda"
    )


class FakeHost:
    def __init__(self, build):
        self._build = build

    def build_info(self):
        return self._build
