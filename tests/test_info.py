"""The report on this machine, and that its verdicts can fall."""

import json

import pytest
import torch

from lpd_ext import _binary, cpu_variant, ops
from lpd_ext.info import info

OPS = (
    "group_attention",
    "token_selection",
    "token_selection_",
    "fused_linear",
    "group_embedding",
    "group_order",
)


def test_versions_and_build():
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


def test_instruction_sets(variant):
    sets = info()["cpu_variants"]
    assert sets == {"in use": variant, "available": list(cpu_variant.cpu_variants())}


def test_ops_are_not_claimed_where_there_is_no_build(monkeypatch):
    build = _binary.host.build_info() | {"cuda": ""}
    monkeypatch.setattr(_binary, "host", FakeHost(build))
    assert {entry["cuda"]["state"] for entry in info()["kernels"].values()} == {"not built"}


def test_a_build_without_a_device_is_not_called_verified(monkeypatch):
    build = _binary.host.build_info() | {"cuda": "13.0"}
    monkeypatch.setattr(_binary, "host", FakeHost(build))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {entry["cuda"]["state"] for entry in info()["kernels"].values()} == {"no device"}


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
    kernels = info()["kernels"]
    assert kernels[op]["cpu"]["state"] == "failed"
    assert "differs from the reference" in kernels[op]["cpu"]["detail"]
    assert [other for other in OPS if kernels[other]["cpu"]["state"] == "failed"] == [op]


def test_nan_is_a_difference(monkeypatch):
    right = ops.group_attention
    monkeypatch.setattr(ops, "group_attention", lambda *args: right(*args) * float("nan"))
    assert info()["kernels"]["group_attention"]["cpu"]["state"] == "failed"


def test_a_written_cache_counts(monkeypatch):
    # Right output, wrong side effect.
    right = ops.group_attention

    def forgets_the_cache(qkv, k_cache, v_cache, *args):
        return right(qkv, k_cache.clone(), v_cache.clone(), *args)

    monkeypatch.setattr(ops, "group_attention", forgets_the_cache)
    assert info()["kernels"]["group_attention"]["cpu"]["state"] == "failed"


def test_an_op_without_a_kernel_is_not_built(monkeypatch):
    def missing(*args, **kwargs):
        raise NotImplementedError("group_order: argument `seeds`: expected device cpu, got cuda")

    monkeypatch.setattr(ops, "group_order", missing)
    entry = info()["kernels"]["group_order"]["cpu"]
    assert entry == {
        "state": "not built",
        "detail": "group_order: argument `seeds`: expected device cpu, got cuda",
    }


class FakeHost:
    def __init__(self, build):
        self._build = build

    def build_info(self):
        return self._build

    def group_sizes(self, seq_len, num_steps):
        assert (seq_len, num_steps) == (42, 6)
        return [1, 4, 7, 9, 10, 11]
