"""The kernels as nvcc compiles them, run by the interpreter against the references."""

import dataclasses
import json
import re

import cuda_static
import pytest
import torch

from lpd_ext import self_check
from lpd_ext.info import RUN_ON

from . import build, host, results, syntax
from .cases import BY_NAME, CASES
from .program import is_known

pytestmark = pytest.mark.skipif(cuda_static.nvcc_version() is None, reason="nvcc is missing")


@pytest.fixture(scope="module")
def outcome(request):
    """Results of the cases that the selected tests ask for."""
    tests = [item for item in request.session.items if item.module is request.module]
    asked = [getattr(item, "callspec", None) for item in tests if "outcome" in item.fixturenames]
    if None in asked:  # a test of all of them is among these
        return results.run(list(BY_NAME))
    return results.run([spec.params["case"].name for spec in asked])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(outcome, case):
    result = outcome[case.name]
    assert result["error"] is None, result["error"]
    assert result["launches"]


def test_every_kernel_is_launched(outcome):
    launched = {kernel for result in outcome.values() for kernel, *_ in result["launches"]}
    names = [
        name for cubin in build.compiled().values() for name in syntax.parse(cubin.ptx.read_text())
    ]
    assert launched == set(cuda_static.readable(names))


def test_every_kernel_file_has_a_case():
    with_kernels = {path.stem for path in cuda_static.sources() if "__global__" in path.read_text()}
    assert with_kernels == {case.stem for case in CASES}


def test_every_instruction_is_known():
    for cubin in build.compiled().values():
        code = re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.]*)\s.*;", cubin.ptx.read_text(), re.M)
        assert all(map(is_known, set(code)))


def test_counts_are_those_of_the_table(outcome):
    """`PYTHONPATH=tests python -m ptx.results` rewrites it: read the diff."""
    table = json.loads(results.TABLE.read_text())
    if table["nvcc"] != cuda_static.nvcc_version():
        pytest.skip(f"the table is of nvcc {table['nvcc']}")
    assert results.table_of(outcome) == table["launches"]


def test_the_self_check_of_a_gpu_launches_every_kernel(monkeypatch):
    # What it does not launch would be called verified unseen.
    for compare in ("_expect_close", "_expect_equal"):
        monkeypatch.setattr(self_check, compare, lambda *_: None)
    interpreter, launched = host.load(), set()
    monkeypatch.setattr(interpreter, "_run", lambda asked: launched.add(asked.kernel.decode()))
    with interpreter.running():
        for op in RUN_ON:
            self_check.CHECKS[op](torch.device("cpu"))
    kernels = {
        host.readable(name) for stem in build.compiled() for name in interpreter.kernels(stem)
    }
    never = {name for name in kernels if re.match(r"\w+_attention_simple_kernel<B?Float16", name)}
    assert len(never) == 20  # on request alone: lpd_ext.cuda_variant
    assert set(map(host.readable, launched)) == kernels - never


@pytest.mark.parametrize("name", ["linear_gelu few_ends bf16", "group_order 5x7 13 known"])
def test_the_order_of_warps_changes_no_count(name):
    first, *others = [
        dataclasses.replace(BY_NAME[name], seed=seed).run(host.load()) for seed in (None, 1, 2)
    ]
    assert first
    assert all(other == first for other in others)
