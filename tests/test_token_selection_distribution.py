"""token_selection draws from the right distribution: kept sets, CDFs and counts in float64.

Exact ids against the specified arithmetic are in test_specified_math.py.
"""

import itertools

import pytest
import torch

from lpd_ext.ops import reference
from lpd_ext.ops.token_selection import token_selection

INF = float("inf")
TOP_P = (0.0, 1e-6, 0.5, 0.9, 0.999999, 1.0)
TEMPERATURES = (0.0, 0.5, 1.0, 2.0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_uniform(*shape, seed=0):
    return torch.rand(*shape, generator=rng(seed), dtype=torch.float64)


# Kinds of rows, and what each one catches.


def flat(shape, generator):
    """One value: every threshold is a tie of the whole vocabulary."""
    return torch.full(shape, 0.25)


def normal(shape, generator):
    return torch.randn(shape, generator=generator) * 3


def peaked(shape, generator):
    """One token holds nearly all the mass, the tail reaches down to the last bit of it."""
    logits = normal(shape, generator)
    logits[..., shape[-1] // 2] = 20
    return logits


def tied(shape, generator):
    """Few bfloat16 values: many tokens share the threshold."""
    return (torch.randn(shape, generator=generator) * 2).round().bfloat16()


def masked(shape, generator):
    """Masked tokens, also fewer left than top_k asks for."""
    logits = normal(shape, generator)
    mask = torch.rand(shape[1:], generator=generator) < 0.75  # the same in both halves
    logits[:, mask] = -INF
    logits[..., -1] = 1.0
    return logits


def low_bits(shape, generator):
    """Values that differ in their low 8 bits only: a coarse radix select mixes them up."""
    bits = torch.randint(0, 256, shape, generator=generator, dtype=torch.int32)
    return (bits + 0x40A00000).view(torch.float32)  # 5.0 and up


def float16_range(shape, generator):
    """Any finite float16, subnormal ones included."""
    bits = torch.randint(0, 0x7C00, shape, generator=generator, dtype=torch.int16)
    return bits.view(torch.float16) * torch.where(
        torch.rand(shape, generator=generator) < 0.5, -1, 1
    )


AGREEMENT_CASES = [
    *itertools.product((1, 7), (normal, tied), ("off", "per_query", "per_image")),
    *itertools.product((1000,), (flat, peaked, tied, masked, low_bits, float16_range), ("off",)),
    *itertools.product((1000,), (normal, peaked, tied, masked), ("per_query", "per_image")),
    (16384, normal, "per_query"),
    (16384, low_bits, "off"),
    (16385, tied, "per_image"),
    (65536, peaked, "off"),
]


def guidance(mode, batch, group_size):
    if mode == "off":
        return None
    scale = 1 + 4 * torch.rand(batch, group_size, generator=rng(1))
    return scale[0] if mode == "per_query" else scale


def at_boundary(probability, uniform, token, tolerance=1e-6):
    """Whether a token's interval of the CDF comes within the tolerance of ``uniform``."""
    upper = probability.cumsum(0)
    reach = upper[token] - probability[token] - tolerance, upper[token] + tolerance
    return bool(probability[token] > 0) and reach[0] <= uniform <= reach[1]


def kept_probability(x, temperature, top_k, top_p):
    """The distribution of one row in float64, thresholds by their definitions."""
    y = x.double() / temperature
    if 0 < top_k < len(y):
        y = y.where(y >= y.sort(descending=True).values[top_k - 1], -INF)
    probability = y.softmax(0)
    if top_p < 1:
        values = y.unique()
        above = torch.stack([probability[y > value].sum() for value in values])
        least = values[above <= torch.tensor(top_p).double()].min()  # top_p is float32
        probability = y.where(y >= least, -INF).softmax(0)
    return probability


@pytest.mark.parametrize(("vocab_size", "kind", "mode"), AGREEMENT_CASES)
def test_agrees_with_the_reference(torch_device, vocab_size, kind, mode):
    top_ks = sorted({0, 1, 2, 50, vocab_size - 1, vocab_size, vocab_size + 1})
    grid = list(itertools.product(TEMPERATURES, top_ks, TOP_P))
    if vocab_size > 1000:  # every value still meets most others
        grid = grid[:: 5 if vocab_size < 65536 else 11]
    batch, group_size = len(grid), 2
    halves = 1 if mode == "off" else 2
    logits = kind((halves * batch, group_size, vocab_size), rng(vocab_size))
    uniform = random_uniform(batch, group_size)
    uniform[::7, 0], uniform[3::7, 0] = 0.0, 1 - 2**-53
    scale = guidance(mode, batch, group_size)
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*grid, strict=True))
    arguments = {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    expected = reference.token_selection(logits, uniform, cfg_scale=scale, **arguments)
    if scale is not None:
        arguments["cfg_scale"] = scale.to(torch_device)
    arguments = {name: value.to(torch_device) for name, value in arguments.items()}
    ids = token_selection(logits.to(torch_device), uniform.to(torch_device), **arguments).cpu()

    assert ids.dtype == torch.int64
    assert (ids >= 0).all()
    x = logits.float()
    if scale is not None:
        cond, uncond = x.chunk(2)
        x = (uncond + scale[..., None] * (cond - uncond)).where(cond > -INF, -INF)
    differing = (ids != expected).nonzero().tolist()
    assert len(differing) <= 1 + ids.numel() // 100
    for i, j in differing:
        temperature, top_k, top_p = grid[i]
        assert temperature > 0
        probability = kept_probability(x[i, j], temperature, top_k, top_p)
        assert at_boundary(probability, uniform[i, j], ids[i, j])


@pytest.mark.parametrize("kind", [flat, normal, tied, masked])
def test_reference_follows_the_definition(kind):
    # The reference against a row by row reading of the definition, many draws a row.
    for k, p, t in itertools.product((0, 3, 12), TOP_P, TEMPERATURES[1:]):
        logits = kind((1, 1, 20), rng(k)).float()
        uniform = random_uniform(1, 16, seed=k)
        ids = reference.token_selection(
            logits.expand(1, 16, 20), uniform, temperature=t, top_k=k, top_p=p
        )
        probability = kept_probability(logits[0, 0], t, k, p)
        assert (probability[ids] > 0).all()
        inside = (probability.cumsum(0)[:, None] > uniform).long().argmax(0)
        assert torch.equal(ids[0], inside)


# Masses 1/2, 1, 1/4, 1/4, 1, 1/2, 1/4, 1/4 in units of the maximum: exact, and 4 in all.
HALVINGS = torch.tensor([-1, 0, -2, -2, 0, -1, -2, -2]) * torch.log(torch.tensor(2.0))
TOP, UPPER, ALL = {1, 4}, {0, 1, 4, 5}, set(range(8))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (1, 1.0, TOP),  # k-th value and its equals
        (2, 1.0, TOP),
        (3, 1.0, UPPER),
        (4, 1.0, UPPER),
        (5, 1.0, ALL),
        (0, 0.0, TOP),  # nothing lies above the largest value
        (0, 0.499, TOP),
        (0, 0.501, UPPER),
        (0, 0.749, UPPER),
        (0, 0.751, ALL),
        (3, 0.666, TOP),  # top-p sees the renormalised survivors: 2/3 above the second value
        (3, 0.667, UPPER),
    ],
)
@pytest.mark.parametrize("op", [token_selection, reference.token_selection])
def test_kept_set(device, op, top_k, top_p, kept):
    uniform = (torch.arange(64, dtype=torch.float64) / 64)[None].to(device)
    logits = HALVINGS.expand(1, 64, 8).to(device)
    ids = op(logits, uniform, top_k=top_k, top_p=top_p)
    assert set(ids.flatten().tolist()) == kept


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("top_k", [1, 2, 100, 255, 256, 257])
def test_top_k_is_exact(device, top_k):
    # 256 values that differ in their low 8 bits only, drawn evenly: all of the kept show up.
    bits = torch.randperm(256, generator=rng(top_k), dtype=torch.int32) + 0x40A00000
    logits = bits.view(torch.float32).expand(1, 512, 256).to(device)
    uniform = ((torch.arange(512, dtype=torch.float64) + 0.5) / 512)[None].to(device)
    ids = token_selection(logits, uniform, top_k=top_k)
    assert set(ids.flatten().tolist()) == set(bits.argsort()[-top_k:].tolist())


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(("top_p", "kept"), [(0.5, UPPER), (0.75, ALL)])
def test_mass_above_equal_to_top_p_keeps(device, top_p, kept):
    uniform = (torch.arange(64, dtype=torch.float64) / 64)[None].to(device)
    ids = token_selection(HALVINGS.expand(1, 64, 8).to(device), uniform, top_p=top_p)
    assert set(ids.flatten().tolist()) == kept


def chi_square_p(counts, expected):
    """How likely counts are that differ from the expected ones by as much or more."""
    assert (expected >= 5).all()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(expected) - 1.0).double()
    return torch.special.gammaincc(freedom / 2, statistic / 2)


@pytest.mark.parametrize(
    ("peak", "arguments"),
    [(0.0, {}), (6.0, {}), (1.0, {"temperature": 0.8, "top_k": 40, "top_p": 0.9})],
    ids=["flat", "peaked", "filtered"],
)
def test_draws_follow_the_distribution(torch_device, peak, arguments):
    vocab_size, num_draws = 64, 1_000_000
    logits = torch.zeros(vocab_size)
    if peak:
        logits = torch.randn(vocab_size, generator=rng(3)) * 0.5
        logits[11] += peak
    uniform = random_uniform(1, num_draws)  # of seed 0, the first one: not picked
    rows = logits.to(torch_device).expand(1, num_draws, vocab_size)
    counts = token_selection(rows, uniform.to(torch_device), **arguments).flatten().bincount().cpu()
    counts = torch.nn.functional.pad(counts, (0, vocab_size - len(counts)))

    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    expected = kept_probability(logits, *(defaults | arguments).values()) * num_draws
    assert (counts[expected == 0] == 0).all()
    expected, counts = expected[expected > 0], counts[expected > 0]
    assert chi_square_p(counts, expected) > 0.001
    # Probabilities that are off by 2 % would be noticed.
    wrong = expected * torch.where(torch.arange(len(expected)) % 2 == 0, 1.02, 0.98)
    assert chi_square_p(counts, wrong * num_draws / wrong.sum()) < 1e-6


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(
    ("dtype", "temperature"), [(torch.float16, 2.0**-24), (torch.bfloat16, 1.0)]
)
def test_every_half_is_read_exactly(torch_device, dtype, temperature):
    # Neighbouring values of the dtype in a row, subnormal ones included; the temperature stretches
    # the spacing of those to 1. float32 logits of the same value must give the same ids.
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    finite = bits.view(dtype)[bits.view(dtype).isfinite()]
    logits = torch.stack([finite, finite.roll(1), finite.roll(2)], dim=-1)[None].to(torch_device)
    uniform = random_uniform(1, len(finite)).to(torch_device)
    ids = token_selection(logits, uniform, temperature=temperature)
    assert torch.equal(ids, token_selection(logits.float(), uniform, temperature=temperature))


@pytest.mark.parametrize("bits", [28, 36])
def test_the_tail_gets_its_share(torch_device, bits):
    # A token of probability 2^-bits among draws from the last 2^-(bits-2) of the unit interval.
    num_draws = 40_000
    logits = torch.tensor([0.0, -bits * torch.log(torch.tensor(2.0)).item()])
    stratified = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    uniform = 1 - 2.0 ** (2 - bits) * (1 - stratified)
    ids = token_selection(
        logits.to(torch_device).expand(1, num_draws, 2), uniform[None].to(torch_device)
    )
    assert ids.double().mean().item() == pytest.approx(0.25, rel=2**-10 if bits == 28 else 2**-5)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_rare_token_gets_its_share_wherever_it_stands(device, place):
    # Three tokens of probability 2^-28 around two of 1/2, and draws from the token's part of the
    # unit interval and what lies around it, one from each of equal strata: the count is exact.
    num_draws = 1500
    logits = torch.tensor([-27.0, 0.0, -27.0, 0.0, -27.0]) * torch.log(torch.tensor(2.0))
    probability = logits.double().softmax(0)
    assert probability[place].item() == pytest.approx(2**-28, rel=1e-6)
    end = probability.cumsum(0)[place] + probability[place]
    begin = (end - 3 * probability[place]).clamp(min=0)
    end = end.clamp(max=1)
    stratified = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    uniform = begin + (end - begin) * stratified
    ids = token_selection(logits.to(device).expand(1, num_draws, 5), uniform[None].to(device))
    share = num_draws * probability[place] / (end - begin)
    assert ((ids == place).sum().cpu() - share).abs() <= 1
