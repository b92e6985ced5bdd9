"""The choice of an instruction set: what the machine has, what the environment forces."""

import subprocess
import sys

import pytest

from lpd_ext import cpu_variant


def in_a_process(value: str | None) -> subprocess.CompletedProcess[str]:
    program = "from lpd_ext import cpu_variant; print(cpu_variant.cpu_variant())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": ""} | ({} if value is None else {"LPD_CPU_VARIANT": value}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_best_variant_is_used_where_nothing_is_forced():
    assert in_a_process(None).stdout.strip() == cpu_variant.cpu_variants()[-1]


def test_plain_runs_anywhere_and_variants_grow():
    available = cpu_variant.cpu_variants()
    assert available == cpu_variant.VARIANTS[: len(available)]
    assert available[0] == "plain"


def test_each_variant_can_be_chosen(variant):
    assert cpu_variant.cpu_variant() == variant


@pytest.mark.parametrize("name", ["", "avx", "AMX", "sve"])
def test_an_unknown_variant_is_refused_and_changes_nothing(name):
    before = cpu_variant.cpu_variant()
    with pytest.raises(ValueError, match=r"argument `name`: expected one of .*'plain'"):
        cpu_variant.set_cpu_variant(name)
    assert cpu_variant.cpu_variant() == before


def test_the_environment_forces_a_variant():
    assert in_a_process("plain").stdout == "plain\n"


def test_a_wrong_environment_is_named():
    result = in_a_process("avx9")
    assert result.returncode != 0
    assert "environment variable LPD_CPU_VARIANT: expected one of" in result.stderr
    assert "got 'avx9'" in result.stderr
