"""token_selection in every instruction set: the same ids as C++ alone, whatever the shortcuts.

That C++ alone is right is shown in test_specified_math.py; the cases here are those in which a list
of candidates, a bound of a threshold or a rest of a vector could go wrong.
"""

import itertools

import pytest
import torch

from lpd_ext import cpu_variant
from lpd_ext.ops.token_selection import token_selection

INF = float("inf")
TOP_P = (0.0, 1e-6, 0.5, 0.9, 0.999999, 1 - 2**-24, 1.0)
TEMPERATURES = (0.0, 0.5, 1.0, 2.0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(x):
    """Nothing special."""
    return x * 3


def flat(x):
    """A single value: no bound leaves anything out."""
    return torch.full_like(x, 0.25)


def tied(x):
    """Thresholds shared by many tokens."""
    return x.mul(2).round()


def peaked(x):
    """One token has nearly all the mass and stretches the range of the others."""
    x = x * 3
    x[..., x.shape[-1] // 2] = 30
    return x


def masked(x):
    """Fewer tokens than top-k asks for; whole tiles without a single one."""
    x = x * 3
    x[:, :, : x.shape[-1] * 4 // 5] = -INF
    x[..., -1] = 1
    return x


def low_bits(x):
    """Values that differ in their last bits: every digit of the radix selection counts."""
    return 5 + x * 2**-20


def of_all_sizes(x):
    """Values of every magnitude and both signs."""
    return x.sign() * (x * 8).exp().clamp(max=6e4)


def sorted_up(x):
    """All candidates in the last tiles."""
    return x.mul(3).sort(-1).values


KINDS = (normal, flat, tied, peaked, masked, low_bits, of_all_sizes, sorted_up)


def ids_of_all_variants(*arguments, **options):
    """The ids of each variant that this machine has, those of C++ alone first."""
    before = cpu_variant.cpu_variant()
    ids = []
    for name in cpu_variant.cpu_variants():
        cpu_variant.set_cpu_variant(name)
        ids.append(token_selection(*arguments, **options))
    cpu_variant.set_cpu_variant(before)
    return ids


@pytest.mark.parametrize("guidance", ["off", "per query", "per image"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [1, 7, 31, 257, 1000, 16384, 16385, 65536])
def test_all_variants_draw_the_same(vocab_size, kind, guidance):
    top_ks = {1, 2, 50, 600, vocab_size // 16, vocab_size // 2, vocab_size - 1, vocab_size}
    grid = list(itertools.product(TEMPERATURES, sorted(top_ks | {0}), TOP_P))
    if vocab_size > 1000:  # another part of the grid for every kind of row
        step = 17 if vocab_size < 65536 else 67
        grid = grid[KINDS.index(kind) :: step]
    batch = len(grid)
    halves = 1 if guidance == "off" else 2
    rows = kind(torch.randn(halves, 2, vocab_size, generator=rng(vocab_size)))
    uniform = torch.rand(batch, 2, generator=rng(1), dtype=torch.float64)
    uniform[::5, 0], uniform[1::5, 0] = 0.0, 1 - 2**-53
    scale = None
    if guidance != "off":
        scale = 4 * torch.rand(batch, 2, generator=rng(2))
        scale = scale[0] if guidance == "per query" else scale
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*grid, strict=True))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # Expanded: the rows of all images are the same memory.
        logits = rows.to(dtype)[:, None].expand(halves, batch, 2, vocab_size)
        plain, *others = ids_of_all_variants(
            logits.flatten(0, 1),
            uniform,
            cfg_scale=scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        assert (plain >= 0).any()
        for ids in others:
            assert torch.equal(ids, plain)


def test_the_largest_keys_are_selected_from():
    # A key range over half of all integers whose upper end is the largest float: no sum of keys may
    # wrap around.
    row = torch.tensor([-3.4e38, -INF, 3.4e38, 3.3e38, 3.2e38, 3.1e38, -1e-45, 0.0, 1.0, 3.4e38])
    uniform = (torch.arange(40, dtype=torch.float64) / 40)[None]
    for top_k, kept in ((1, {2, 9}), (3, {2, 3, 9}), (5, {2, 3, 4, 5, 9})):
        options = {"temperature": 1e38, "top_k": top_k}
        for ids in ids_of_all_variants(row.expand(1, 40, 10), uniform, **options):
            assert set(ids.flatten().tolist()) == kept
