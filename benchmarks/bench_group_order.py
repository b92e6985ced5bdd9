"""`group_order` against its specification in plain torch; torch itself has nothing like it.

The published generator is Python and is not run here. On a GPU there is no baseline at all: orders
are compared with those of the CPU op, and timed alone.
"""

import pytest
import torch
from gpu_timer import current_gpu

from lpd_ext import group_order, group_sizes
from lpd_ext.ops import reference

CASES = {"16x16 in 20 steps": ((16, 16), 20, 2), "32x32 in 48 steps": ((32, 32), 48, 4)}


@pytest.fixture(params=[(1, 1), (8, None)], ids=["one image", "batch 8"])
def images(request):
    """Number of images, and a word on the threads they are given."""
    count, threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    used = torch.get_num_threads()
    yield count, f"{count} image{'s' * (count > 1)}, {used} thread{'s' * (used > 1)}"
    torch.set_num_threads(before)


def ours_of(case):
    """Return what draws the orders of a case from seeds."""
    grid, num_steps, repulsion = CASES[case]
    sizes = group_sizes(grid[0] * grid[1], num_steps)
    return lambda seeds: group_order(seeds, grid, sizes, repulsion_threshold=repulsion)


def inputs_of(count, device):
    """Return seeds of 64 calls."""
    return [(torch.arange(count, device=device) + count * i,) for i in range(64)]


@pytest.mark.parametrize("case", CASES)
def test_group_order(versus, case, images):
    grid, num_steps, repulsion = CASES[case]
    count, words = images
    sizes = group_sizes(grid[0] * grid[1], num_steps)
    inputs, ours = inputs_of(count, "cpu"), ours_of(case)

    def plain_torch(seeds):
        return reference.group_order(seeds, grid, sizes, repulsion_threshold=repulsion)

    one_by_one = torch.cat([ours(seed[None]) for seed in inputs[0][0]])
    assert torch.equal(ours(*inputs[0]), one_by_one)
    assert torch.equal(one_by_one[:1], plain_torch(inputs[0][0][:1]))
    # The specification takes one image after the other: a batch of it would tell nothing new.
    baselines = {"reference": plain_torch} if count == 1 else {}
    versus("group_order", f"{case}, {words}", ours, baselines, inputs=inputs)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("count", [1, 256], ids=["one image", "batch 256"])
@pytest.mark.parametrize("case", CASES)
def test_group_order_on_gpu(versus, device, case, count):
    inputs, ours = inputs_of(count, device), ours_of(case)
    orders = []
    replay = current_gpu().capture(lambda: orders.append(ours(*inputs[0])))
    orders[-1].zero_()
    replay()
    assert torch.equal(orders[-1].cpu(), ours(inputs[0][0].cpu()))
    words = f"{count} image{'s' * (count > 1)}"
    versus("group_order", f"{case}, {words}", ours, {}, inputs=inputs, device=device.type)
