"""The arithmetic of token_selection once more, in numpy, from its specification: ids to the bit.

What csrc/include/lpd/specified_math.h promises is written out here a second time, so that a change
of the specification, however small its effect, cannot pass unseen.
"""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd_ext.ops.token_selection import token_selection

F32 = np.float32
LOG2E = F32(float.fromhex("0x1.715476p+0"))
SHIFT = F32(1.5 * 2**23)
POLYNOMIAL = [  # of 2^f, highest degree first
    F32(float.fromhex(coefficient))
    for coefficient in (
        "0x1.4b0c3cp-13",
        "0x1.5fa782p-10",
        "0x1.3b222ep-7",
        "0x1.c6adc4p-5",
        "0x1.ebfbe6p-3",
        "0x1.62e432p-1",
        "0x1p+0",
    )
]


def fma(a, b, c):
    """Fused multiply-add of float32 arrays: float64 rounded to odd, then once to float32."""
    product, addend = np.float64(a) * np.float64(b), np.broadcast_to(np.float64(c), np.shape(a))
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0)
    return np.where(inexact & even, np.nextafter(total, towards), total).astype(F32)


def masses(values, maximum):
    difference = np.maximum(values - maximum, F32(-29))
    shifted = fma(difference, LOG2E, SHIFT)
    exponent = shifted - SHIFT
    f = fma(difference, LOG2E, -exponent)
    power = np.full_like(f, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        power = fma(power, f, coefficient)
    return np.rint(np.ldexp(np.float64(power), exponent.astype(int) + 40)).astype(np.uint64)


def select(cond, uncond, cfg_scale, uniform, temperature, top_k, top_p):
    """Token of one row of float32 logits."""
    x = cond
    if uncond is not None:
        x = fma(np.full_like(cond, cfg_scale), cond - uncond, uncond)
        x = np.where(cond == -np.inf, cond, x)
    if temperature == 0:
        return int(np.argmax(x))
    y = fma(x, np.full_like(x, F32(1) / F32(temperature)), F32(0))
    kept = np.ones(len(y), bool)
    if 0 < top_k < len(y):
        kept = y >= np.sort(y)[len(y) - top_k]
    mass = masses(y, y.max())
    total = int(mass[kept].sum())
    if top_p < 1:
        above = 0
        for value in np.unique(y[kept])[::-1]:
            if float(above) > float(F32(top_p)) * float(total):
                kept &= y > value
                break
            above += int(mass[y == value].sum())
        total = int(mass[kept].sum())
    target = min(int(uniform * float(total)), total - 1)
    return int(np.searchsorted(np.where(kept, mass, 0).cumsum(), np.uint64(target), side="right"))


def test_the_fma_of_this_file_is_one():
    # The yardstick itself: against exact rationals, where a double rounding would show.
    rng = np.random.default_rng(0)
    a = np.append(rng.standard_normal(500).astype(F32), F32(1 + 2**-12))
    b = np.append(rng.standard_normal(500).astype(F32), F32(1 + 2**-12))
    c = np.append(rng.standard_normal(500), -1e-20).astype(F32)
    for x, y, z, got in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        distance = abs(Fraction(float(got)) - exact)
        for neighbour in (np.nextafter(got, F32(np.inf)), np.nextafter(got, F32(-np.inf))):
            assert distance <= abs(Fraction(float(neighbour)) - exact)


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("include/lpd/specified_math.h", "float exp2_poly("),
        ("cpu/token_selection_math.inl", "Masses masses_of("),
    ],
)
def test_the_coefficients_are_the_sources(file, function):
    # One ulp of a high coefficient hardly ever shows in a mass: compare the text.
    source = Path(__file__).parents[1] / "csrc" / file
    body = source.read_text().split(function)[1].split("}")[0]
    found = [F32(float.fromhex(number)) for number in re.findall(r"(0x1\.\w+p-\d+)f", body)]
    assert [*found, F32(1)] == POLYNOMIAL


def test_masses_are_exponentials():
    difference = -np.concatenate([np.linspace(0, 29, 200_001), np.geomspace(1e-9, 29, 200_001)])
    difference = difference.astype(F32)
    exact = np.exp(difference.astype(np.longdouble)) * 2.0**40
    error = np.abs(masses(difference, F32(0)).astype(np.longdouble) - exact)
    assert np.all(error <= 0.5 + 4.6e-7 * exact)
    assert masses(np.array([0, -np.inf, -28.42], F32), F32(0)).tolist() == [2**40, 0, 0]


def unit_by_unit(device, difference, mass, **options):
    """Rows of two tokens, the second the maximum: token 0 is drawn up to its mass, not beyond."""
    logits = torch.zeros(1, len(mass), 2)
    logits[0, :, 0] = torch.from_numpy(difference)
    for offset, expected in ((-0.5, 0), (0.5, 1)):  # the middle of the last unit, of the next one
        uniform = torch.from_numpy((mass + offset) / (mass + 2.0**40))[None]
        ids = token_selection(logits.to(device), uniform.to(device), **options)
        assert (ids == expected).all()


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_masses_to_the_unit(device, temperature):
    # Every exponent and the whole reduced range.
    octaves = np.arange(0, 41)[:, None] * np.log(2)
    inside = np.concatenate([np.linspace(0, np.log(2), 1000), np.geomspace(1e-7, 0.1, 20)])
    logit = (-(octaves + inside) * temperature).astype(F32).ravel()
    scaled = fma(logit, np.full_like(logit, F32(1) / F32(temperature)), F32(0))
    mass = masses(scaled, F32(0)).astype(np.int64)
    unit_by_unit(device, logit[mass > 0], mass[mass > 0], temperature=temperature)


@pytest.mark.usefixtures("variant")
def test_guidance_to_the_bit(device):
    # Greedy, token 1 unguided (cond = uncond): it wins from the float above token 0's value on.
    rng = np.random.default_rng(0)
    cond, uncond, scale = rng.standard_normal((3, 20_000)).astype(F32) * F32(3)
    x = fma(scale, cond - uncond, uncond)
    assert (x != scale * (cond - uncond) + uncond).mean() > 0.05  # what rounding twice would give
    for other, expected in ((x, 0), (np.nextafter(x, F32(np.inf)), 1)):
        logits = np.stack([[cond, other], [uncond, other]]).transpose(0, 2, 1).copy()
        ids = token_selection(
            torch.from_numpy(logits).to(device),
            torch.zeros(1, len(x), dtype=torch.float64, device=device),
            cfg_scale=torch.from_numpy(scale).to(device),
            temperature=0.0,
        )
        assert (ids == expected).all()


@pytest.mark.usefixtures("variant")
def test_top_p_to_the_bit(device):
    # Two tokens with top_p the float32 nearest to what lies above the first: kept or not by the
    # last bit of one float64 product.
    difference = np.linspace(-3, -0.01, 4000).astype(F32)
    total = masses(difference, F32(0)).astype(np.float64) + 2.0**40
    top_p = (2.0**40 / total).astype(F32)
    kept = top_p.astype(np.float64) * total >= 2.0**40
    assert 0.3 < kept.mean() < 0.7
    logits = torch.zeros(len(total), 1, 2)
    logits[:, 0, 0] = torch.from_numpy(difference)
    ids = token_selection(
        logits.to(device),
        torch.zeros(len(total), 1, dtype=torch.float64, device=device),
        top_p=torch.from_numpy(top_p).to(device),
    )
    assert np.array_equal(ids.flatten().cpu().numpy(), np.where(kept, 0, 1))


PARAMETERS = [  # temperature, top_k, top_p
    (1.0, 0, 1.0),
    (0.7, 0, 0.9),
    (1.3, 50, 1.0),
    (2.0, 20, 0.5),
    (0.9, 3, 0.999999),
    (1.0, 0, 1e-6),
    (0.05, 0, 0.3),
    (0.0, 5, 0.5),
]


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("vocab_size", [1, 7, 300, 4097])
@pytest.mark.parametrize("guidance", ["off", "per_query", "per_image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ids_to_the_bit(device, vocab_size, guidance, dtype):
    generator = torch.Generator().manual_seed(vocab_size)
    batch, group_size = len(PARAMETERS), 6
    halves = 1 if guidance == "off" else 2
    logits = torch.randn(halves * batch, group_size, vocab_size, generator=generator) * 4
    # Few distinct values, and masks: the conditional -inf alone masks a token.
    logits[:, 1] = logits[:, 1].round()
    logits[:, 3] = 5 + logits[:, 3] * 2**-20  # differs in the last bits of float32 only
    if vocab_size > 1:
        logits[:batch, 2, ::2] = -torch.inf
        logits[batch:, 2, ::4] = -torch.inf
    logits = logits.to(dtype)
    uniform = torch.rand(batch, group_size, generator=generator, dtype=torch.float64)
    uniform[:, 4], uniform[:, 5] = 0, 1 - 2**-53
    scale = None
    if guidance != "off":
        scale = 1 + 4 * torch.rand(batch, group_size, generator=generator)
        scale = scale[0] if guidance == "per_query" else scale
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*PARAMETERS, strict=True))

    ids = token_selection(
        logits.to(device),
        uniform.to(device),
        cfg_scale=None if scale is None else scale.to(device),
        temperature=temperature.to(device),
        top_k=top_k.to(device),
        top_p=top_p.to(device),
    )

    rows = logits.float().numpy()
    with np.errstate(invalid="ignore"):  # -inf - -inf under a mask
        expected = [
            [
                select(
                    rows[i, j],
                    None if scale is None else rows[batch + i, j],
                    None if scale is None else F32(scale.expand(batch, group_size)[i, j]),
                    float(uniform[i, j]),
                    *PARAMETERS[i],
                )
                for j in range(group_size)
            ]
            for i in range(batch)
        ]
    assert ids.tolist() == expected
