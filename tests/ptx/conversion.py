"""Conversions between types."""

import numpy as np

from .arithmetic import apply
from .floats import NAN_F32, bf16_bits, f16_bits, f16_values
from .operands import DTYPES
from .registry import instruction
from .syntax import BYTES


@instruction(r"cvt\.([us](?:8|16|32|64))\.([us](?:8|16|32|64))")
def between_integers(names, modifiers, operands):
    target, source = modifiers
    dtype = DTYPES[target]
    return apply(names, operands, target, (source,), lambda x: x.astype(dtype))


@instruction(r"cvt\.rn\.(f32|f64)\.([us](?:16|32|64))")
@instruction(r"cvt\.rn\.(f32)\.(f64)")
@instruction(r"cvt\.(f64)\.(f32)")
def to_float(names, modifiers, operands):
    target, source = modifiers
    dtype = DTYPES[target]
    return apply(names, operands, target, (source,), lambda x: canonical(x.astype(dtype)))


def canonical(x):
    """The values with the one NaN that float32 has for an instruction."""
    return x if x.itemsize > 4 else np.where(np.isnan(x), NAN_F32.view(np.float32), x)


@instruction(r"cvt\.(rni|rzi)\.([us](?:32|64))\.(f32|f64)")
def to_integer(names, modifiers, operands):
    rounding, target, source = modifiers
    rounded = {"rni": np.rint, "rzi": np.trunc}[rounding]
    limits = np.iinfo(DTYPES[target])
    no_number = 1 << (8 * BYTES[target] - 1) if "64" in target + source else 0

    def function(x):
        whole = rounded(x.astype(np.float64))
        # The largest integer is no double where it has 64 bits: what reaches it is that.
        low, high = whole <= float(limits.min), whole >= float(limits.max)
        inside = np.where(low | high | np.isnan(whole), 0, whole).astype(DTYPES[target])
        result = np.where(low, limits.min, np.where(high, limits.max, inside))
        nan = np.uint64(no_number).astype(DTYPES[f"u{8 * BYTES[target]}"]).view(DTYPES[target])
        return np.where(np.isnan(whole), nan, result.astype(DTYPES[target]))

    return apply(names, operands, target, (source,), function)


@instruction(r"cvt\.f32\.f16")
def widen_half(names, modifiers, operands):
    return apply(names, operands, "f32", ("b16",), lambda x: canonical(f16_values(x)))


@instruction(r"cvt\.rn\.f16\.f32")
def narrow_to_half(names, modifiers, operands):
    return apply(names, operands, "b16", ("f32",), f16_bits)


@instruction(r"cvt\.rn\.(bf16|f16)x2\.f32")
def narrow_pair(names, modifiers, operands):
    """The first source becomes the upper half."""
    bits = {"bf16": bf16_bits, "f16": f16_bits}[modifiers[0]]

    def function(high, low):
        return bits(high).astype(np.uint32) << np.uint32(16) | bits(low)

    return apply(names, operands, "b32", ("f32", "f32"), function)
