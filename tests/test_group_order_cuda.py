"""The CUDA kernel of `group_order`, emulated or on a GPU: the orders of the CPU op, bit for bit."""

import itertools
import random
from functools import partial

import emulator
import pytest
import torch

from lpd_ext import group_order, group_sizes

REPEATS = {"simt": 6, "cuda": 250}
PROXIMITIES = (0.0, 1.0, 2.5, 100.0)
REPULSIONS = (0, 1, 2, 5, 100, 2**40)


@pytest.fixture(params=["simt", pytest.param("cuda", marks=pytest.mark.cuda)])
def kernel(request):
    """The operator as it is registered, results on the CPU: nothing stands before the kernel."""
    if request.param == "simt":
        emulator.load()
        return torch.ops.lpd_ext_simt.group_order

    def on_gpu(seeds, grid, sizes, proximity, repulsion, known):
        known = None if known is None else known.cuda()
        op = torch.ops.lpd_ext.group_order
        return op(seeds.cuda(), grid, sizes, proximity, repulsion, known).cpu()

    return on_gpu


def on_cpu(*arguments):
    return torch.ops.lpd_ext.group_order(*arguments)


def random_known(rng, batch, seq_len, num_known):
    known = torch.zeros(batch, seq_len, dtype=torch.bool)
    for image in known:
        image[rng.sample(range(seq_len), num_known)] = True
    return known


def cut(rng, total, kind):
    """Group sizes that sum to a total."""
    if total == 0:
        return []
    if kind == "one":
        return [total]
    if kind == "ones":
        return [1] * total
    if kind == "growing":
        return group_sizes(total, max(total // 7, 1))
    ends = sorted({*rng.sample(range(1, total + 1), min(6, total)), total})
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


def cases(grid, count, batch, max_generated=None):
    """Random arguments: every kind of sizes, thresholds and known positions with the others."""
    rng = random.Random(str(grid))
    seq_len = grid[0] * grid[1]
    least = seq_len - (max_generated or seq_len)  # what takes long is picks, not cells
    known_kinds = (None, 0, least, rng.randint(least, seq_len), seq_len - 1, seq_len)
    kinds = ("one", "ones", "growing", "random")
    everything = list(itertools.product(kinds, PROXIMITIES, REPULSIONS, known_kinds))
    fast = [case for case in everything if (case[-1] or 0) >= least]
    for kind, proximity, repulsion, num_known in rng.sample(fast, min(count, len(fast))):
        seeds = torch.tensor([rng.randrange(-(2**63), 2**63) for _ in range(batch)])
        known = None if num_known is None else random_known(rng, batch, seq_len, num_known)
        yield seeds, grid, cut(rng, seq_len - (num_known or 0), kind), proximity, repulsion, known


def assert_equals_cpu(kernel, arguments):
    assert torch.equal(kernel(*arguments), on_cpu(*arguments)), arguments


# Grids of one warp, of four and of sixteen, the largest and the smallest of each; single rows and
# columns; a last word and a last warp that are full or hold one cell.
@pytest.mark.parametrize(
    ("grid", "count", "max_generated"),
    [
        ((1, 1), 10, None),
        ((1, 7), 40, None),
        ((3, 5), 200, None),
        ((8, 8), 200, None),
        ((33, 1), 20, None),
        ((16, 16), 60, None),
        ((257, 1), 12, 60),
        ((15, 20), 16, None),
        ((32, 32), 6, 300),
        ((1, 1025), 4, 40),
        ((50, 41), 4, 40),
        ((64, 64), 6, 40),
    ],
    ids=str,
)
def test_equals_the_cpu_op(kernel, grid, count, max_generated):
    for arguments in cases(grid, count, 2, max_generated):
        assert_equals_cpu(kernel, arguments)


@pytest.mark.parametrize(("grid", "repulsion"), [((16, 16), 2), ((32, 32), 4), ((64, 64), 4)])
def test_all_of_a_published_schedule(kernel, grid, repulsion):
    seq_len = grid[0] * grid[1]
    sizes = group_sizes(seq_len, {256: 20, 1024: 48, 4096: 96}[seq_len])
    assert_equals_cpu(kernel, (torch.tensor([3]), grid, sizes, 1.0, repulsion, None))


# The first seeds of which two cells share the upper 31 bits of their keys, the first of them being
# the later cell; in the larger grid, where the order is that of its keys, in another warp.
@pytest.mark.parametrize(
    ("seed", "grid", "place", "cells"),
    [(15530, (16, 16), 34, [246, 237]), (2034, (32, 32), 65, [1019, 195])],
)
def test_keys_that_differ_in_their_lower_half_only(kernel, seed, grid, place, cells):
    arguments = torch.tensor([seed]), grid, [grid[0] * grid[1]], 100.0, 2, None
    order = kernel(*arguments)
    assert order[0, place : place + 2].tolist() == cells
    assert torch.equal(order, on_cpu(*arguments))


@pytest.mark.parametrize("grid", [(6, 7), (20, 20), (35, 36)], ids=str)
def test_known_cells_that_do_not_fit_the_sizes(kernel, grid):
    seq_len = grid[0] * grid[1]
    rng = random.Random(0)
    known = random_known(rng, 5, seq_len, seq_len - 30)
    known[1, known[1].logical_not().nonzero()[0]] = True  # one too many
    known[3, known[3].nonzero()[-1]] = False  # one too few
    sizes = [1, 9, 20]
    order = kernel(torch.arange(5), grid, sizes, 1.0, 2, known)
    assert (order[1::2] == -1).all()
    fitting = on_cpu(torch.arange(5)[::2], grid, sizes, 1.0, 2, known[::2])
    assert torch.equal(order[::2], fitting)


@pytest.mark.parametrize("grid", [(9, 8), (19, 20), (40, 40)], ids=str)
def test_an_image_is_alone_in_its_batch(kernel, grid):
    known = random_known(random.Random(1), 5, grid[0] * grid[1], grid[0] * grid[1] - 40)
    seeds, sizes, thresholds = torch.arange(5) - 2, group_sizes(40, 6), (1.0, 2)
    order = kernel(seeds, grid, sizes, *thresholds, known)
    for image in range(5):
        one = slice(image, image + 1)
        alone = kernel(seeds[one], grid, sizes, *thresholds, known[one])
        assert torch.equal(alone, order[one])
    # Any strides.
    flipped = kernel(seeds.flip(0), grid, sizes, *thresholds, known.T.contiguous().T.flip(0))
    assert torch.equal(flipped, order.flip(0))
    wide = torch.stack([known, ~known], dim=2).flatten(1)
    strided = kernel(seeds.repeat_interleave(3)[::3], grid, sizes, *thresholds, wide[:, ::2])
    assert torch.equal(strided, order)


def schedule_cases():
    return [
        arguments
        for grid, count, most in (((16, 16), 6, None), ((12, 25), 4, 60), ((37, 31), 4, 60))
        for arguments in cases(grid, count, 3, most)
    ]


def test_bits_do_not_depend_on_the_schedule():
    emulator.load()
    for arguments in schedule_cases():
        emulator.assert_bits_equal_on_schedules(
            partial(torch.ops.lpd_ext_simt.group_order, *arguments)
        )


def test_repeats_are_bitwise_equal(kernel, request):
    for grid in ((16, 16), (20, 20), (40, 30)):
        arguments = next(iter(cases(grid, 1, 4, 100)))
        expected = on_cpu(*arguments)
        for _ in range(REPEATS[request.node.callspec.params["kernel"]]):
            assert torch.equal(kernel(*arguments), expected)


def test_a_grid_that_is_too_large(kernel):
    for grid in ((64, 65), (4097, 1)):
        with pytest.raises(RuntimeError, match=r"`grid`: .* at most 4096 cells"):
            kernel(torch.arange(2), grid, [grid[0] * grid[1]], 1.0, 2, None)


@pytest.mark.cuda
def test_a_graph_captures_it():
    seeds = torch.arange(4, device="cuda")
    known = torch.rand(4, 256, device="cuda").argsort(dim=1) < 64
    options = {"repulsion_threshold": 3, "known": known}
    sizes = group_sizes(192, 12)
    group_order(seeds, (16, 16), sizes, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        order = group_order(seeds, (16, 16), sizes, **options)
    seeds += 100
    known.copy_(known.roll(5, dims=1))
    graph.replay()
    expected = group_order(seeds.cpu(), (16, 16), sizes, repulsion_threshold=3, known=known.cpu())
    assert torch.equal(order.cpu(), expected)
