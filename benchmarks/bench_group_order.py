"""`group_order` against its specification in plain torch; torch itself has nothing like it.

The published generator is Python and is not run here.
"""

import pytest
import torch

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


@pytest.mark.parametrize("case", CASES)
def test_group_order(versus, case, images):
    grid, num_steps, repulsion = CASES[case]
    count, words = images
    sizes = group_sizes(grid[0] * grid[1], num_steps)
    inputs = [(torch.arange(count) + count * i,) for i in range(64)]

    def ours(seeds):
        return group_order(seeds, grid, sizes, repulsion_threshold=repulsion)

    def plain_torch(seeds):
        return reference.group_order(seeds, grid, sizes, repulsion_threshold=repulsion)

    one_by_one = torch.cat([ours(seed[None]) for seed in inputs[0][0]])
    assert torch.equal(ours(*inputs[0]), one_by_one)
    assert torch.equal(one_by_one[:1], plain_torch(inputs[0][0][:1]))
    # The specification takes one image after the other: a batch of it would tell nothing new.
    baselines = {"reference": plain_torch} if count == 1 else {}
    versus("group_order", f"{case}, {words}", ours, baselines, inputs=inputs)
