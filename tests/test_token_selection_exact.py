"""The CUDA kernel of `token_selection`, emulated or on a GPU: the ids of the CPU's, always."""

import itertools
import random

import emulator
import pytest
import torch
from test_token_selection_variants import KINDS, rng

from lpd_ext.ops.token_selection import token_selection

NAN, INF = float("nan"), float("inf")
TEMPERATURES = (0.0, 0.5, 1.0, 2.0)
TOP_P = (0.0, 1e-6, 0.5, 0.9, 0.999999, 1.0)
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
# A warp a row, 4, 16 and 32 warps a row in registers, a row read again; each to its end and ragged.
VOCAB_SIZES = (1, 7, 1000, 1024, 4096, 16383, 16384, 16385, 32768, 65536)
SCHEDULES = [("forward", 1), ("reverse", 1), ("random", 2)]


@pytest.fixture(params=["simt", pytest.param("cuda", marks=pytest.mark.cuda)])
def select(request):
    """The operator as it is registered, its tensors moved to where its kernel runs and back."""
    if request.param == "simt":
        emulator.load()
        return torch.ops.lpd_ext_simt.token_selection

    def on_gpu(*arguments):
        moved = (x if x is None else x.cuda() for x in arguments)
        return torch.ops.lpd_ext.token_selection(*moved).cpu()

    return on_gpu


def case(vocab_size, kind, dtype, guidance, rows):
    """Arguments of one call: an image for each of some settings, all settings of few tokens."""
    top_ks = sorted({0, 1, 2, 50, vocab_size - 1, vocab_size, vocab_size + 1})
    grid = list(itertools.product(TEMPERATURES, top_ks, TOP_P))
    random.Random(vocab_size).shuffle(grid)
    del grid[rows:]
    batch, halves = len(grid), 1 if guidance == "off" else 2
    logits = kind(torch.randn(halves * batch, 2, vocab_size, generator=rng(vocab_size))).to(dtype)
    uniform = torch.rand(batch, 2, generator=rng(1), dtype=torch.float64)
    uniform[::5, 0], uniform[1::5, 0] = 0.0, 1 - 2**-53
    scale = None
    if guidance != "off":
        scale = 4 * torch.rand(batch, 2, generator=rng(2))
        scale = {"per row": scale, "per query": scale[0], "constant": torch.full((2,), 2.5)}[
            guidance
        ]
    return logits, uniform, scale, *(torch.tensor(column) for column in zip(*grid, strict=True))


GUIDANCE = ("per row", "off", "constant", "per query")
CASES = [
    (vocab_size, kind, DTYPES[(i + j) % 3], GUIDANCE[(i // 3 + j) % 4])
    for (i, vocab_size), (j, kind) in itertools.product(enumerate(VOCAB_SIZES), enumerate(KINDS))
]
CASES += [  # the kernel whose registers are the scarcest
    (vocab_size, kind, torch.float32, GUIDANCE[j % 4])
    for vocab_size, (j, kind) in itertools.product((32767, 32768), enumerate(KINDS))
]


@pytest.mark.parametrize(("vocab_size", "kind", "dtype", "guidance"), CASES)
def test_ids_are_those_of_the_cpu(select, vocab_size, kind, dtype, guidance):
    rows = max(2, min(168, 60_000 // vocab_size))
    arguments = case(vocab_size, kind, dtype, guidance, rows)
    logits = arguments[0]
    # A bad row among the others, in the half that is looked at last.
    logits[-1, 1, vocab_size // 2] = NAN
    expected = torch.ops.lpd_ext.token_selection(*arguments)
    assert expected[-1, 1] == -1
    assert (expected.flatten()[:-1] >= 0).any()
    assert torch.equal(select(*arguments), expected)


@pytest.mark.parametrize("vocab_size", [1000, 5000, 20000, 40000])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_every_warp_sees_a_bad_logit(select, vocab_size, value):
    # In either half, at the edges of the tokens that warps have.
    places = sorted({0, 1023, 1024, 2500, vocab_size - 1} & set(range(vocab_size)))
    batch = 2 * len(places)
    logits = torch.zeros(2, batch, 1, vocab_size)
    for row, (half, place) in enumerate(itertools.product(range(2), places)):
        logits[half, row, 0, place] = value
    arguments = (
        logits.flatten(0, 1),
        torch.rand(batch, 1, generator=rng(), dtype=torch.float64),
        torch.ones(1),
        torch.ones(batch),
        torch.full((batch,), 40),
        torch.ones(batch),
    )
    expected = torch.ops.lpd_ext.token_selection(*arguments)
    assert torch.equal(select(*arguments), expected)


@pytest.mark.parametrize("vocab_size", [63, 5000])
def test_a_row_is_the_same_at_any_place(select, vocab_size):
    arguments = case(vocab_size, KINDS[0], torch.bfloat16, "off", 12)
    expected = select(*arguments)
    order = torch.randperm(12, generator=rng(3))
    shuffled = [x if x is None else x[order] for x in arguments]
    assert torch.equal(select(*shuffled), expected[order])
    # Rows that do not begin at multiples of 16 bytes are read token by token.
    logits = torch.full((12, 2, vocab_size + 1), NAN, dtype=torch.bfloat16)[:, :, 1:]
    assert torch.equal(select(logits.copy_(arguments[0]), *arguments[1:]), expected)


@pytest.mark.parametrize("vocab_size", [300, 3000, 16384, 32767, 33000])
def test_ids_do_not_depend_on_the_schedule(vocab_size):
    arguments = case(vocab_size, KINDS[0], torch.float32, "per row", 3)
    emulator.load()
    expected = torch.ops.lpd_ext.token_selection(*arguments)
    try:
        for order, seed in SCHEDULES:
            emulator.configure(order, seed)
            assert torch.equal(torch.ops.lpd_ext_simt.token_selection(*arguments), expected)
    finally:
        emulator.configure()


@pytest.mark.parametrize("vocab_size", [1000, 16384])
def test_large_sums_carry(select, vocab_size):
    # Masses below 2^32, which together are more: the high words of the bins are carries alone.
    batch = 12
    logits = torch.full((batch, 1, vocab_size), -8.0)
    logits[:, :, ::3] -= 0.25
    logits[:, :, ::7] -= 0.5
    logits[:, :, 5] = 0
    arguments = (
        logits,
        torch.linspace(0, 1 - 2**-53, batch, dtype=torch.float64)[:, None],
        None,
        torch.ones(batch),
        torch.zeros(batch, dtype=torch.int64),
        torch.linspace(0.1, 0.99, batch),
    )
    assert torch.equal(select(*arguments), torch.ops.lpd_ext.token_selection(*arguments))


@pytest.mark.parametrize("vocab_size", [1000, 4096, 5000, 33000])
def test_neighbours_at_the_end_of_a_bin(select, vocab_size):
    # With 0 the largest, a bin of the first pass, of any width, ends with the second value before
    # -2: the least of the next pass, in which top-k cuts right before it and behind it.
    neighbours = torch.arange(-5, 5, dtype=torch.int32) - 2**30  # -2 is 0 among them
    logits = torch.full((12, 1, vocab_size), -20.0)
    logits[:, :, 0] = 0
    logits[:, :, -10:] = neighbours.view(torch.float32)
    arguments = (
        logits,
        torch.full((12, 1), 1 - 2**-53, dtype=torch.float64),
        None,
        torch.ones(12),
        torch.arange(12),
        torch.ones(12),
    )
    expected = torch.ops.lpd_ext.token_selection(*arguments)
    assert expected[2:, 0].tolist() == [*range(vocab_size - 10, vocab_size)]
    assert torch.equal(select(*arguments), expected)


@pytest.mark.cuda
def test_repeats_are_equal():
    logits, uniform, scale, *settings = (
        x.cuda() for x in case(16384, KINDS[0], torch.bfloat16, "per row", 40)
    )
    options = dict(zip(("temperature", "top_k", "top_p"), settings, strict=True))
    expected = token_selection(logits, uniform, cfg_scale=scale, **options)
    for _ in range(250):
        ids = token_selection(logits, uniform, cfg_scale=scale, **options)
        assert torch.equal(ids, expected)
