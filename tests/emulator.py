"""The CUDA kernels on the CPU: `torch.ops.lpd_ext_simt` runs them in the emulator of tests/simt."""

import ctypes
from functools import cache

import torch

ORDERS = ("forward", "reverse", "random")  # of threads and blocks


@cache
def load():
    """Build and load the emulated operators."""
    from simt.build import build  # needs torch's headers, which few tests do

    path = build()
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


def configure(order, seed=1):
    """Set the schedule of the launches that follow."""
    load().simt_configure(ORDERS.index(order), ctypes.c_uint64(seed), 0)


def use(monkeypatch):
    """Let the public functions of ops run their emulated CUDA kernels for the rest of a test."""
    load()
    monkeypatch.setattr(torch.ops, "lpd_ext", torch.ops.lpd_ext_simt)
