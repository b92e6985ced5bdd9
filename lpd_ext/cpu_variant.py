"""Which instruction set the CPU kernels use; environment variable LPD_CPU_VARIANT forces one."""

import os

from lpd_ext._binary import ops_library
from lpd_ext.checks import fail

VARIANTS = ("plain", "avx2", "avx512", "amx")
"""From C++ alone to tiles of bfloat16; each includes those before it (csrc/include/lpd)."""

ENVIRONMENT_VARIABLE = "LPD_CPU_VARIANT"


def cpu_variants() -> tuple[str, ...]:
    """Return the variants that this machine can run, the best one last."""
    return VARIANTS[: ops_library.lpd_ext_best_cpu_variant() + 1]


def cpu_variant() -> str:
    """Return the variant in use."""
    return VARIANTS[ops_library.lpd_ext_cpu_variant()]


def set_cpu_variant(name: str) -> None:
    """Use another variant from now on, in the whole process; calls under way may change over.

    Parameters
    ----------
    name : str
        One of `cpu_variants`.

    Raises
    ------
    ValueError
        The machine cannot run it, or there is no such variant.
    """
    if name not in cpu_variants():
        fail(ValueError, "set_cpu_variant", "name", f"one of {cpu_variants()}", repr(name))
    ops_library.lpd_ext_set_cpu_variant(VARIANTS.index(name))


def _obey_environment() -> None:
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name is None:
        return
    if name not in cpu_variants():
        raise ValueError(
            f"lpd_ext: environment variable {ENVIRONMENT_VARIABLE}: expected one of "
            f"{cpu_variants()} on this machine, got {name!r}"
        )
    set_cpu_variant(name)


_obey_environment()
