"""Single instructions with right values, as the PTX ISA has them."""

import numpy as np
import pytest

from .fault import Fault
from .registry import find
from .small import evaluate

INF, NAN = np.inf, np.nan
MIN_32, MAX_32 = -(2**31), 2**31 - 1
MAX_64 = 2**64 - 1

EXACT = [  # opcode, sources, type of the result, values
    ("add.s32", [("s32", [MAX_32, -1]), ("s32", [1, 1])], "s32", [MIN_32, 0]),
    ("sub.s64", [("s64", [-(2**63)]), ("s64", [1])], "s64", [2**63 - 1]),
    ("mul.lo.s32", [("s32", [-3, 2**30]), ("s32", [7, 4])], "s32", [-21, 0]),
    ("mul.wide.s32", [("s32", [MIN_32, -1]), ("s32", [MIN_32, 5])], "s64", [2**62, -5]),
    ("mul.wide.u16", [("u16", [65535]), ("u16", [65535])], "u32", [65535**2]),
    ("mul.hi.s32", [("s32", [MIN_32, -1]), ("s32", [MIN_32, 1])], "s32", [2**30, -1]),
    ("mul.hi.u64", [("u64", [MAX_64, 2**33]), ("u64", [MAX_64, 2**32])], "u64", [MAX_64 - 1, 2]),
    ("mul.hi.s64", [("s64", [-1, -(2**63), 3]), ("s64", [1, 2, -5])], "s64", [-1, -1, -1]),
    ("mad.lo.s32", [("s32", [3]), ("s32", [-4]), ("s32", [5])], "s32", [-7]),
    ("div.s32", [("s32", [-7, 7, MIN_32]), ("s32", [2, -2, 1])], "s32", [-3, -3, MIN_32]),
    ("rem.s32", [("s32", [-7, 7, 6]), ("s32", [2, -2, 3])], "s32", [-1, 1, 0]),
    ("div.u32", [("u32", [2**32 - 1]), ("u32", [2])], "u32", [MAX_32]),
    ("shl.b32", [("b32", [1, 1, 1]), ("u32", [31, 32, 2**31])], "u32", [2**31, 0, 0]),
    ("shl.b64", [("b64", [1, 1]), ("u32", [63, 64])], "u64", [2**63, 0]),
    ("shr.u32", [("u32", [2**31] * 2), ("u32", [31, 32])], "u32", [1, 0]),
    ("shr.s32", [("s32", [-8, -8, 8]), ("u32", [2, 99, 99])], "s32", [-2, -1, 0]),
    ("shr.s64", [("s64", [-(2**40)]), ("u32", [64])], "s64", [-1]),
    ("popc.b32", [("b32", [0, 2**32 - 1, 0x8001])], "u32", [0, 32, 2]),
    ("clz.b32", [("b32", [0, 1, 2**31, 0xFFFF])], "u32", [32, 31, 0, 16]),
    # Insert a's lower bits into b.
    ("bfi.b32", [("b32", [0xF5, 0xFF]), ("b32", [0, 0]), "4", "8"], "u32", [0xF50, 0xFF0]),
    ("bfi.b32", [("b32", [0xFF]), ("b32", [0]), "28", "8"], "u32", [0xF0000000]),
    ("bfi.b64", [("b64", [1]), ("b64", [5]), "32", "32"], "u64", [2**32 + 5]),
    ("abs.s32", [("s32", [-5, MIN_32])], "s32", [5, MIN_32]),
    ("min.s32", [("s32", [-1]), ("s32", [1])], "s32", [-1]),
    ("min.u32", [("u32", [2**32 - 1]), ("u32", [1])], "u32", [1]),
    ("not.b32", [("b32", [0])], "u32", [2**32 - 1]),
    # Of a sum that double precision rounds to a tie: 1 + 2^-24 + 2^-70, to float.
    ("fma.rn.f32", [("f32", [2.0**-35]), ("f32", [2.0**-35]), ("f32", [1.0])], "f32", [1.0]),
    (
        "fma.rn.f32",
        [("f32", [1 + 2.0**-12, 2.0**-75]), ("f32", [1 - 2.0**-12, 2.0**-75]), ("f32", [-1.0, 0])],
        "f32",
        [-(2.0**-24), 0],
    ),
    ("div.rn.f32", [("f32", [1, 1, 0]), ("f32", [3, 0, 0])], "f32", [np.float32(1) / 3, INF, NAN]),
    # The reciprocal of what is large is zero, and so is a product with it, but not of infinity.
    (
        "div.approx.f32",
        [("f32", [1, -6, 2.0**127, INF, 1]), ("f32", [4, -3, 2.0**127, -(2.0**127), INF])],
        "f32",
        [0.25, 2, 0, NAN, 0],
    ),
    ("rcp.rn.f32", [("f32", [3, 0.0])], "f32", [np.float32(1) / np.float32(3), INF]),
    ("rsqrt.approx.f32", [("f32", [4, 0, -1])], "f32", [0.5, INF, NAN]),
    # Subnormal numbers are zeros, going in and coming out.
    ("ex2.approx.ftz.f32", [("f32", [3, -127, 1e-40, -INF, 128])], "f32", [8, 0, 1, 0, INF]),
    # The sign of the first on the second.
    ("copysign.f32", [("f32", [-1.0, 2]), ("f32", [3.0, -4])], "f32", [-3, 4]),
    ("max.f32", [("f32", [NAN, 1, NAN]), ("f32", [1, NAN, NAN])], "f32", [1, 1, NAN]),
    ("max.NaN.f32", [("f32", [NAN, 1, 2]), ("f32", [1, NAN, 1])], "f32", [NAN, NAN, 2]),
    ("cvt.s64.s32", [("s32", [-1])], "s64", [-1]),
    ("cvt.u64.u32", [("u32", [2**32 - 1])], "u64", [2**32 - 1]),
    ("cvt.u32.u64", [("u64", [2**32 + 7])], "u32", [7]),
    ("cvt.rn.f32.s64", [("s64", [2**24 + 1, -(2**24) - 3])], "f32", [2**24, -(2**24) - 4]),
    ("cvt.rn.f32.f64", [("f64", [1 + 2.0**-24, 1e300])], "f32", [1, INF]),
    # To nearest even; saturated; what is no number is 0, or of 64 bits the highest bit.
    (
        "cvt.rni.u64.f32",
        [("f32", [0.5, 1.5, 2.5, -3, 2.0**65, NAN])],
        "u64",
        [0, 2, 2, 0, MAX_64, 2**63],
    ),
    ("cvt.rzi.u64.f64", [("f64", [2.9, -0.5, 2.0**63])], "u64", [2, 0, 2**63]),
    ("cvt.rni.s32.f32", [("f32", [-2.5, 1e20, NAN])], "s32", [-2, MAX_32, 0]),
    ("cvt.f32.f16", [("b16", [0x3C00, 0x0001, 0x7C00])], "f32", [1, 2.0**-24, INF]),
    ("cvt.rn.f16.f32", [("f32", [1, 65520, 2.0**-25, NAN])], "u16", [0x3C00, 0x7C00, 0, 0x7FFF]),
    # The first source is the upper half; ties to even.
    (
        "cvt.rn.bf16x2.f32",
        [("f32", [1, 1 + 2.0**-8, NAN]), ("f32", [2, 1 + 3 * 2.0**-8, -INF])],
        "u32",
        [0x3F804000, 0x3F803F82, 0x7FFFFF80],
    ),
    ("cvt.rn.f16x2.f32", [("f32", [1]), ("f32", [-2])], "u32", [0x3C00C000]),
    # Lane masks and segments of shuffles.
    (
        "shfl.sync.up.b32",
        [("b32", np.arange(32)), "1", "0", "-1"],
        "u32",
        [0, *range(31)],
    ),
    (
        "shfl.sync.down.b32",
        [("b32", np.arange(32)), "30", "31", "-1"],
        "u32",
        [30, 31, *range(2, 32)],
    ),
    (  # segments of 8
        "shfl.sync.idx.b32",
        [("b32", np.arange(32)), "2", "6175", "-1"],
        "u32",
        [lane // 8 * 8 + 2 for lane in range(32)],
    ),
    (
        "shfl.sync.bfly.b32",
        [("b32", np.arange(32)), "5", "31", "-1"],
        "u32",
        [lane ^ 5 for lane in range(32)],
    ),
    ("redux.sync.min.s32", [("s32", np.arange(32) - 9), "-1"], "s32", [-9] * 32),
    ("redux.sync.max.u32", [("s32", np.arange(32) - 9), "-1"], "u32", [2**32 - 1] * 32),
]


@pytest.mark.parametrize(
    ("opcode", "sources", "kind", "expected"), EXACT, ids=[row[0] for row in EXACT]
)
def test_values(opcode, sources, kind, expected):
    got = evaluate(opcode, sources, kind)
    np.testing.assert_array_equal(got, np.array(expected, got.dtype))


@pytest.mark.parametrize(
    ("opcode", "x", "y", "expected"),
    [
        ("setp.lt.s32", -1, 1, True),
        ("setp.lt.u32", -1, 1, False),
        ("setp.ge.f32", NAN, 1, False),
        ("setp.ltu.f32", NAN, 1, True),
        ("setp.ne.f32", NAN, NAN, False),
        ("setp.neu.f32", NAN, NAN, True),
        ("setp.eq.f32", 0.0, -0.0, True),
    ],
)
def test_comparisons(opcode, x, y, expected):
    kind = "f32" if opcode.endswith("f32") else "s32"
    bits = [int(np.asarray(v).astype({"f32": "f4", "s32": "i4"}[kind]).view("u4")) for v in (x, y)]
    selected = evaluate_predicate(opcode, *bits)
    assert selected == expected


def evaluate_predicate(opcode, x, y):
    from .small import run

    out = np.zeros(32, np.uint32)
    run(
        f"\t{opcode} %p1, {x}, {y};\n\tselp.u32 %r2, 1, 0, %p1;\n"
        "\tmul.wide.u32 %rd2, %r0, 4;\n\tadd.s64 %rd3, %rd1, %rd2;\n\tst.global.u32 [%rd3], %r2;",
        np.zeros(4, np.uint64), out,
    )  # fmt: skip
    assert (out == out[0]).all()
    return bool(out[0])


def test_larger_of_zeros_is_the_positive_one():
    zeros = [("f32", [0.0, -0.0, -0.0]), ("f32", [-0.0, 0.0, -0.0])]
    assert np.signbit(evaluate("max.f32", zeros, "f32")).tolist() == [False, False, True]
    assert np.signbit(evaluate("min.f32", zeros, "f32")).tolist() == [True, True, True]


def test_fma_is_rounded_once():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(20_000).astype(np.float32) for _ in range(3))
    c[::2] = -(a * b)[::2]  # what is left is the rounding of the product
    scale = np.float32(2.0) ** rng.integers(-70, 3, 20_000).astype(np.float32)
    a, b, c = a * scale, b * scale, c * scale * scale
    from .floats import fma

    # Through longer arithmetic: a product has 48 bits, the sum is exact in integers.
    got = fma(a, b, c)
    from fractions import Fraction

    for x, y, z, result in zip(a[:2000], b[:2000], c[:2000], got, strict=False):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        neighbours = [
            result,
            np.nextafter(result, np.float32(-INF)),
            np.nextafter(result, np.float32(INF)),
        ]
        errors = [abs(Fraction(float(n)) - exact) for n in neighbours]
        assert errors[0] == min(errors)


@pytest.mark.parametrize(
    "opcode",
    [
        "add.sat.s32",
        "fma.rz.f32",
        "ld.global.nc.u32",
        "cp.async.bulk.shared",
        "mov",
        "setp.lt.and.s32",
    ],
)
def test_another_modifier_is_a_fault(opcode):
    with pytest.raises(Fault, match=f"unsupported instruction {opcode}"):
        find(opcode)


def test_division_by_zero():
    with pytest.raises(Fault, match=r"line 2\d, div\.s32 .* thread 1: division by zero"):
        evaluate("div.s32", [("s32", [1, 1]), ("s32", [1, 0])], "s32")
