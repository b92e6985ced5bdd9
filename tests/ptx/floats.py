"""Arithmetic of floats where numpy's is not the GPU's."""

import numpy as np

NAN_F32 = np.uint32(0x7FFFFFFF)  # what instructions make of any NaN
NAN_16 = np.uint16(0x7FFF)
HALFWAY = np.int64(1) << 28  # of the bits that a double has beyond a float


def fma(a, b, c):
    """a * b + c of float32, rounded once."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    wide = c.astype(np.float64)
    total = product + wide
    # Rounded to double and then to float, a sum may fall to the wrong side of a tie.
    bits = total.view(np.int64)
    tie = (bits & (2 * HALFWAY - 1)) == HALFWAY
    small = np.abs(total) < 2.0**-125  # subnormal floats have ties elsewhere
    if tie.any() or small.any():
        back = total - product
        error = (product - (total - back)) + (wide - back)
        odd = (bits & 1) != 0
        wrong = np.isfinite(total) & (error != 0) & ~odd
        toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        total = np.where(wrong, toward, total)
    return total.astype(np.float32)


def flush(x):
    """float32 with subnormal numbers as zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def larger(x, y):
    """The larger number, whichever is one; +0 is larger than -0."""
    bits = np.where(x == y, x.view(f"u{x.itemsize}") & y.view(f"u{y.itemsize}"), 0)
    return np.where(x == y, bits.astype(f"u{x.itemsize}").view(x.dtype), np.fmax(x, y))


def smaller(x, y):
    """The smaller number, likewise."""
    return -larger(-x, -y)


def bf16_bits(x):
    """float32 rounded to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), NAN_16, rounded.astype(np.uint16))


def f16_bits(x):
    """float32 rounded to float16, to nearest even."""
    return np.where(np.isnan(x), NAN_16, x.astype(np.float16).view(np.uint16))


def bf16_values(bits):
    """bfloat16 as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f16_values(bits):
    """float16 as float32."""
    return bits.view(np.float16).astype(np.float32)
