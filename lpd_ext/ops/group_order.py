"""Locality-aware order: which positions each group decodes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lpd_ext.checks import (
    check_device_type,
    check_float,
    check_int,
    check_order_arguments,
    fail,
)
from lpd_ext.ops.launch import device_types

_OP = "group_order"
_DEVICE_TYPES = device_types(_OP)
MOST_CELLS = {"cuda": 4096}
"""By type of device, where its kernel has a bound."""


def group_order(
    seeds: Tensor,
    grid: tuple[int, int],
    group_sizes: Sequence[int],
    *,
    proximity_threshold: float = 1.0,
    repulsion_threshold: int = 2,
    known: Tensor | None = None,
) -> Tensor:
    """Draw one locality-aware decoding order per image.

    ::

        score = sum of 1 / distance over the 8 neighbours decoded in earlier groups
        walk positions of score >= proximity_threshold, best first, equals in random order:
            take it unless a pick of this group is within repulsion_threshold rows and columns
        group not full: farthest-point sampling over the others (a random one where none is picked)

    Parameters
    ----------
    seeds : Tensor
        ``[batch]``, int64, CPU or (in a CUDA build) CUDA, any stride. The order of an image depends
        on its seed alone.
    grid : tuple of int
        Height and width, fewer than 2^31 cells, on CUDA at most 4096.
    group_sizes : sequence of int
        Positions per group, each at least 1; they sum to the positions that are not known.
    proximity_threshold : float
        Least score of a position that is walked; scores are o + d / sqrt(2) with o and d in 0..4.
    repulsion_threshold : int
        Distance in cells, at least 0; 0 repels nothing.
    known : Tensor, optional
        ``[batch, height * width]``, bool, device of ``seeds``, any strides: positions decoded
        before the first group, the same number in every image. On CUDA its contents are not read
        here, so that nobody waits for the device: an image with more or fewer known positions than
        ``group_sizes`` leave gets -1 everywhere.

    Returns
    -------
    Tensor
        ``[batch, height * width]``, int64: raster positions, those known first (in raster order),
        then group after group in the order they were picked.

    Raises
    ------
    ValueError
        A wrong shape or device, sizes that do not fill the grid, or unequal numbers of known
        positions.
    TypeError
        A wrong dtype or type.
    NotImplementedError
        A device without a kernel, or more cells than its kernel takes.

    Notes
    -----
    Deterministic and exact: scores are compared by their counts, distances as squared integers,
    random keys are Philox4x32-10 blocks, so that every implementation draws the same order. In a
    compiled graph on the CPU the contents of ``known`` are checked by the operator (RuntimeError).
    The CUDA kernel has not yet run on a GPU.

    Source: arXiv 2507.01957, locality-aware generation order; mit-han-lab/lpd@f447b83.

    Examples
    --------
    >>> group_order(torch.tensor([0]), (2, 2), [1, 3]).sort().values
    tensor([[0, 1, 2, 3]])
    """
    num_known = check_order_arguments(_OP, seeds, grid, known, unread=("cuda",))
    check_device_type(_OP, "seeds", seeds, _DEVICE_TYPES)
    most_cells = MOST_CELLS.get(seeds.device.type)
    if most_cells is not None and grid[0] * grid[1] > most_cells:
        wanted = f"at most {most_cells} cells on {seeds.device.type}"
        fail(NotImplementedError, _OP, "grid", wanted, f"{grid[0]} x {grid[1]}")
    if isinstance(group_sizes, (str, Tensor)) or not isinstance(group_sizes, Sequence):
        fail(TypeError, _OP, "group_sizes", "a sequence of int", type(group_sizes).__name__)
    if set(map(type, group_sizes)) != {int} or min(group_sizes) < 1:  # quick where all is well
        for size in group_sizes:
            check_int(_OP, "group_sizes", size, 1)
    if num_known is not None and sum(group_sizes) != grid[0] * grid[1] - num_known:
        total = f"height * width - known = {grid[0] * grid[1] - num_known}"
        fail(ValueError, _OP, "group_sizes", f"a sum of {total}", sum(group_sizes))
    check_float(_OP, "proximity_threshold", proximity_threshold)
    check_int(_OP, "repulsion_threshold", repulsion_threshold, 0)
    order: Tensor = torch.ops.lpd_ext.group_order.default(
        seeds, grid, group_sizes, proximity_threshold, repulsion_threshold, known
    )
    return order


@torch.library.register_fake("lpd_ext::group_order")
def _(
    seeds: Tensor,
    grid: Sequence[int],
    group_sizes: Sequence[int],
    proximity_threshold: float,
    repulsion_threshold: int,
    known: Tensor | None,
) -> Tensor:
    return seeds.new_empty((seeds.shape[0], grid[0] * grid[1]))
