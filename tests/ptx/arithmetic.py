"""Arithmetic, comparisons and bits."""

import numpy as np

from .fault import check
from .floats import NAN_F32, flush, fma, larger, smaller
from .operands import DTYPES
from .registry import instruction
from .syntax import BYTES

INTEGER = "[us](?:16|32|64)"
FLOAT = "f32|f64"


def apply(names, operands, result, sources, function):
    """Instruction that sets its first operand, of one type, to a function of the others."""
    write = names.writer(operands[0], result)
    reads = [names.reader(*pair) for pair in zip(operands[1:], sources, strict=True)]
    if len(reads) == 1:
        (a,) = reads
        return lambda gang, lanes: write(gang, lanes, function(a(gang, lanes)))
    if len(reads) == 2:
        a, b = reads
        return lambda gang, lanes: write(gang, lanes, function(a(gang, lanes), b(gang, lanes)))
    return lambda gang, lanes: write(gang, lanes, function(*(r(gang, lanes) for r in reads)))


@instruction(rf"(add|sub)\.({INTEGER}|{FLOAT})")
@instruction(rf"(mul)\.({FLOAT})")
@instruction(rf"(mul)\.lo\.({INTEGER})")
def ring(names, modifiers, operands):
    operation, kind = modifiers
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation]
    return apply(names, operands, kind, (kind, kind), function)


@instruction(r"mul\.wide\.([us])(16|32)")
def multiply_wide(names, modifiers, operands):
    sign, bits = modifiers
    wide = DTYPES[f"{sign}{2 * int(bits)}"]
    return apply(
        names, operands, f"{sign}{2 * int(bits)}", [sign + bits] * 2,
        lambda a, b: a.astype(wide) * b.astype(wide),
    )  # fmt: skip


@instruction(r"mul\.hi\.([us])(32|64)")
def multiply_high(names, modifiers, operands):
    sign, bits = modifiers
    kind = sign + bits
    return apply(names, operands, kind, (kind, kind), high_32 if bits == "32" else high_64)


def high_32(a, b):
    """The upper half of products of 32-bit integers."""
    wide = np.dtype(f"{a.dtype.kind}8").type
    return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)


def high_64(a, b):
    """The same of 64 bits, by halves."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = np.broadcast_arrays(a.astype(np.uint64), b.astype(np.uint64))
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    other = x0 * y1 + (middle & low)
    result = x1 * y1 + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        result = result - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return result.astype(a.dtype)


@instruction(r"mad\.lo\.([us]32)")
def multiply_add(names, modifiers, operands):
    (kind,) = modifiers
    return apply(names, operands, kind, [kind] * 3, lambda a, b, c: a * b + c)


@instruction(r"fma\.rn\.f32")
def fused_multiply_add(names, modifiers, operands):
    return apply(names, operands, "f32", ["f32"] * 3, fma)


@instruction(r"(div|rem)\.([us](?:32|64))")
def divide(names, modifiers, operands):
    operation, kind = modifiers

    def function(a, b):
        check(np.atleast_1d(b == 0), "division by zero")
        unsigned = f"u{BYTES[kind]}"
        quotient = np.abs(a).view(unsigned) // np.abs(b).view(unsigned)  # |INT_MIN| fits
        quotient = np.where((a < 0) != (b < 0), -quotient, quotient).view(DTYPES[kind])
        return quotient if operation == "div" else a - quotient * b

    return apply(names, operands, kind, (kind, kind), function)


@instruction(r"div\.rn\.f32")
def divide_floats(names, modifiers, operands):
    return apply(names, operands, "f32", ("f32", "f32"), np.divide)


@instruction(r"div\.approx\.f32")
def divide_floats_roughly(names, modifiers, operands):
    """A product with 1/b, which is 0 from 2^126 on."""

    def function(a, b):
        return np.where(np.abs(b) > np.float32(2.0**126), a * np.copysign(np.float32(0), b), a / b)

    return apply(names, operands, "f32", ("f32", "f32"), function)


@instruction(r"(rcp\.rn|rsqrt\.approx|ex2\.approx\.ftz)\.f32")
def special(names, modifiers, operands):
    """Rounded from double: within what the instruction promises, if not its very bits."""

    def rsqrt(x):
        return 1 / np.sqrt(x.astype(np.float64))

    def ex2(x):
        return flush(np.exp2(flush(x).astype(np.float64)).astype(np.float32))

    function = {"rcp.rn": np.reciprocal, "rsqrt.approx": rsqrt, "ex2.approx.ftz": ex2}[modifiers[0]]
    return apply(names, operands, "f32", ("f32",), lambda x: function(x).astype(np.float32))


@instruction(rf"(neg|abs)\.(s32|s64|{FLOAT})")
def sign(names, modifiers, operands):
    operation, kind = modifiers
    function = {"neg": np.negative, "abs": np.abs}[operation]
    return apply(names, operands, kind, (kind,), function)


@instruction(r"copysign\.f32")
def copy_sign(names, modifiers, operands):
    return apply(names, operands, "f32", ("f32", "f32"), lambda sign, x: np.copysign(x, sign))


@instruction(rf"(min|max)\.({INTEGER})")
def extreme(names, modifiers, operands):
    operation, kind = modifiers
    function = {"min": np.minimum, "max": np.maximum}[operation]
    return apply(names, operands, kind, (kind, kind), function)


@instruction(r"(min|max)(\.NaN)?\.f32")
def extreme_float(names, modifiers, operands):
    operation, nan = modifiers
    of_numbers = {"min": smaller, "max": larger}[operation]

    def function(x, y):
        no_number = (np.isnan(x) | np.isnan(y)) if nan else (np.isnan(x) & np.isnan(y))
        return np.where(no_number, NAN_F32.view(np.float32), of_numbers(x, y))

    return apply(names, operands, "f32", ("f32", "f32"), function)


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@instruction(r"setp\.(eq|ne|lt|le|gt|ge)\.([bus](?:16|32|64))")
def compare(names, modifiers, operands):
    comparison, kind = modifiers
    return apply(names, operands, "pred", (kind, kind), COMPARISONS[comparison])


@instruction(rf"setp\.(eq|ne|lt|le|gt|ge)(u?)\.({FLOAT})")
def compare_floats(names, modifiers, operands):
    comparison, unordered, kind = modifiers
    function = COMPARISONS[comparison]

    def of_numbers(x, y):
        nan = np.isnan(x) | np.isnan(y)
        return function(x, y) | nan if unordered else function(x, y) & ~nan

    return apply(names, operands, "pred", (kind, kind), of_numbers)


@instruction(r"(and|or|xor)\.(pred|b16|b32|b64)")
def bitwise(names, modifiers, operands):
    operation, kind = modifiers
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[operation]
    return apply(names, operands, kind, (kind, kind), function)


@instruction(r"not\.(pred|b16|b32|b64)")
def invert(names, modifiers, operands):
    return apply(names, operands, modifiers[0], modifiers, np.invert)


@instruction(r"(shl)\.(b16|b32|b64)")
@instruction(r"(shr)\.([bus](?:16|32|64))")
def shift(names, modifiers, operands):
    operation, kind = modifiers
    bits = 8 * BYTES[kind]
    move = {"shl": np.left_shift, "shr": np.right_shift}[operation]

    def function(x, amount):
        moved = move(x, np.minimum(amount, bits - 1).astype(x.dtype))
        gone = x.dtype.type(0) if kind[0] != "s" else x >> x.dtype.type(bits - 1)
        return np.where(amount >= bits, gone, moved)

    return apply(names, operands, kind, (kind, "u32"), function)


@instruction(r"popc\.b32")
def count_ones(names, modifiers, operands):
    def function(x):
        x = np.atleast_1d(x)
        return np.unpackbits(x.view(np.uint8).reshape(-1, 4), axis=1).sum(1).astype(np.uint32)

    return apply(names, operands, "u32", ("b32",), function)


@instruction(r"clz\.b32")
def count_leading_zeros(names, modifiers, operands):
    def function(x):
        _, exponent = np.frexp(x.astype(np.float64))  # exact; of zero it is 0
        return (32 - exponent).astype(np.uint32)

    return apply(names, operands, "u32", ("b32",), function)


@instruction(r"bfi\.(b32|b64)")
def insert_bits(names, modifiers, operands):
    (kind,) = modifiers
    bits = 8 * BYTES[kind]

    def function(field, x, begin, count):
        dtype, begin, count = x.dtype.type, begin & 0xFF, count & 0xFF
        room = np.clip(bits - begin.astype(np.int64), 0, count)  # what does not fit is dropped
        full = room >= bits
        ones = np.where(
            full, ~dtype(0), (dtype(1) << np.where(full, 0, room).astype(dtype)) - dtype(1)
        )
        place = np.minimum(begin, bits - 1).astype(dtype)
        mask = np.where(room > 0, ones << place, dtype(0)).astype(dtype)
        return (x & ~mask) | ((field << place) & mask)

    return apply(names, operands, kind, (kind, kind, "u32", "u32"), function)
