"""The CUDA kernels on the CPU: `torch.ops.lpd_ext_simt` runs them in the emulator of tests/simt."""

import ctypes
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from lpd_ext import cuda_variant

ROOT = Path(__file__).parent.parent
STATS = (  # in the order of simt::Stats
    *("launches", "accesses", "switches", "barriers"),
    *("mma", "async_copies", "ldmatrix_phases", "bank_conflicts"),
)
ORDERS = ("forward", "reverse", "random")  # of threads and blocks
SCHEDULES = [("forward", 1), ("reverse", 1), ("random", 1), ("random", 2)]  # order, seed


@cache
def load():
    """Build and load the emulated operators."""
    from simt.build import build  # needs torch's headers, which few tests do

    path = build()
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.simt_configure(ORDERS.index("random"), ctypes.c_uint64(1), 0)
    return library


def configure(order="random", seed=1):
    """Set the schedule of the launches that follow."""
    load().simt_configure(ORDERS.index(order), ctypes.c_uint64(seed), 0)


def assert_bits_equal_on_schedules(function):
    """Assert that a function's tensors are the same on each of the schedules."""
    first = None
    try:
        for order, seed in SCHEDULES:
            configure(order, seed)
            result = function()
            first = result if first is None else first
            torch.testing.assert_close(result, first, rtol=0, atol=0, equal_nan=True)
    finally:
        configure()


def stats():
    """Return what the emulator has counted so far."""
    counts = (ctypes.c_uint64 * len(STATS))()
    assert load().simt_stats(counts, len(STATS)) == len(STATS)
    return dict(zip(STATS, counts, strict=True))


def variant():
    """Return the variant of the CUDA kernels in use (`lpd_ext.cuda_variant`)."""
    return cuda_variant.VARIANTS[load().lpd_ext_cuda_variant()]


def set_variant(name):
    """Use another one."""
    load().lpd_ext_set_cuda_variant(cuda_variant.VARIANTS.index(name))


def use(monkeypatch):
    """Let the public functions of ops run their emulated CUDA kernels for the rest of a test."""
    load()
    monkeypatch.setattr(torch.ops, "lpd_ext", torch.ops.lpd_ext_simt)


def run_tests(kernels, *arguments, timeout=None):
    """Run pytest in a process of its own, with the kernels of another folder; return the result."""
    environment = os.environ | {"LPD_SIMT_CUDA": str(kernels), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    if result.returncode > 2:  # neither passed, failed nor stopped; negative: a crash
        raise RuntimeError(f"the tests did not run\n{result.stdout}{result.stderr}")
    return result
