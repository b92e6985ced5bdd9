"""`group_order` on one image against its specification in plain torch."""

import pytest
import torch

from lpd_ext import group_order, group_sizes
from lpd_ext.ops import reference

CASES = {"16x16 in 20 steps": ((16, 16), 20, 2), "32x32 in 48 steps": ((32, 32), 48, 4)}


@pytest.mark.parametrize("case", CASES)
def test_group_order(benchmark, case):
    grid, num_steps, repulsion = CASES[case]
    sizes = group_sizes(grid[0] * grid[1], num_steps)
    seeds = torch.tensor([7])
    options = {"repulsion_threshold": repulsion}
    order = group_order(seeds, grid, sizes, **options)
    assert torch.equal(order, reference.group_order(seeds, grid, sizes, **options))
    benchmark(group_order, seeds, grid, sizes, **options)
