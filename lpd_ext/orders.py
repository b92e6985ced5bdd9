"""Orders other than the locality-aware one, for comparison; the table of all; files of orders."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lpd_ext import philox
from lpd_ext.checks import check_order_arguments, check_permutations, check_tensor, fail
from lpd_ext.ops.group_order import group_order


def raster_order(
    seeds: Tensor,
    grid: tuple[int, int],
    group_sizes: Sequence[int] | None = None,
    *,
    known: Tensor | None = None,
) -> Tensor:
    """Row by row from the top left.

    Parameters
    ----------
    seeds : Tensor
        ``[batch]``, int64; only their number and device matter.
    grid : tuple of int
        Height and width, fewer than 2^31 cells.
    group_sizes : sequence of int, optional
        Without influence; here so that all orders are called alike.
    known : Tensor, optional
        ``[batch, height * width]``, bool: positions that come first.

    Returns
    -------
    Tensor
        ``[batch, height * width]``, int64: raster positions.

    Raises
    ------
    ValueError
        A wrong shape or device, or unequal numbers of known positions.
    TypeError
        A wrong dtype or type.

    Examples
    --------
    >>> raster_order(torch.tensor([0]), (2, 3))
    tensor([[0, 1, 2, 3, 4, 5]])
    """
    check_order_arguments("raster_order", seeds, grid, known)
    height, width = grid
    positions = torch.arange(height * width, device=seeds.device)
    return _known_first(positions.repeat(seeds.shape[0], 1), known)


def random_order(
    seeds: Tensor,
    grid: tuple[int, int],
    group_sizes: Sequence[int] | None = None,
    *,
    known: Tensor | None = None,
) -> Tensor:
    """Every permutation alike, drawn from the image's seed.

    Parameters
    ----------
    seeds : Tensor
        ``[batch]``, int64.
    grid : tuple of int
        Height and width, fewer than 2^31 cells.
    group_sizes : sequence of int, optional
        Without influence; here so that all orders are called alike.
    known : Tensor, optional
        ``[batch, height * width]``, bool: positions that come first, in raster order.

    Returns
    -------
    Tensor
        ``[batch, height * width]``, int64: raster positions.

    Raises
    ------
    ValueError
        A wrong shape or device, or unequal numbers of known positions.
    TypeError
        A wrong dtype or type.

    Examples
    --------
    >>> random_order(torch.tensor([0]), (2, 3))
    tensor([[5, 2, 1, 3, 4, 0]])
    """
    check_order_arguments("random_order", seeds, grid, known)
    height, width = grid
    keys = philox.order_keys(seeds, 0, height * width)
    return _known_first(keys.argsort(dim=1, stable=True), known)


def halton_order(
    seeds: Tensor,
    grid: tuple[int, int],
    group_sizes: Sequence[int] | None = None,
    *,
    known: Tensor | None = None,
) -> Tensor:
    """Low discrepancy: cells as the Halton sequence first visits them, shifted by the seed.

    Parameters
    ----------
    seeds : Tensor
        ``[batch]``, int64; each shifts the sequence around the grid, rows and columns alone.
    grid : tuple of int
        Height and width, fewer than 2^31 cells.
    group_sizes : sequence of int, optional
        Without influence; here so that all orders are called alike.
    known : Tensor, optional
        ``[batch, height * width]``, bool: positions that come first, in raster order.

    Returns
    -------
    Tensor
        ``[batch, height * width]``, int64: raster positions.

    Raises
    ------
    ValueError
        A wrong shape or device, or unequal numbers of known positions.
    TypeError
        A wrong dtype or type.

    Notes
    -----
    Source: the Halton sequence in bases 2 (columns) and 3 (rows), as arXiv 2503.17076 uses it to
    schedule masks.

    Examples
    --------
    >>> halton_order(torch.tensor([0]), (2, 3))
    tensor([[2, 4, 0, 1, 5, 3]])
    """
    check_order_arguments("halton_order", seeds, grid, known)
    height, width = grid
    cells = torch.tensor(_halton_cells(height, width), device=seeds.device)
    # The first key of the image's order stream is as good a random number as any.
    shift = philox.order_keys(seeds, 0, 1).remainder(height * width)
    rows = (cells // width + shift // width) % height
    cols = (cells % width + shift % width) % width
    return _known_first(rows * width + cols, known)


@lru_cache(maxsize=16)
def _halton_cells(height: int, width: int) -> tuple[int, ...]:
    cells: dict[int, None] = {}  # a set that remembers the sequence
    index = 1
    while len(cells) < height * width:
        cells[_scaled_inverse(index, 3, height) * width + _scaled_inverse(index, 2, width)] = None
        index += 1
    return tuple(cells)


def _scaled_inverse(index: int, base: int, size: int) -> int:
    """Floor of size times the radical inverse of index, in integers."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator = numerator * base + digit
        denominator *= base
    return numerator * size // denominator


def read_orders(path: str | Path, grid: tuple[int, int], count: int | None = None) -> Tensor:
    """Read a file of orders as the published generator writes it: a JSON list of orders.

    Parameters
    ----------
    path : str or Path
        Each order is a list of all raster positions in the sequence they are decoded in.
    grid : tuple of int
        Height and width that the orders are for.
    count : int, optional
        Read the first orders only; what comes behind them is not looked at. The published files
        hold 60000.

    Returns
    -------
    Tensor
        ``[count, height * width]``, int64.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, an entry is no permutation of the positions, or there are fewer orders;
        the message names file and entry.

    Notes
    -----
    Source: ``orders/run_lpd_order.py`` of mit-han-lab/lpd@f447b83.
    """
    path, seq_len = Path(path), grid[0] * grid[1]
    if not path.is_file():
        raise FileNotFoundError(f"orders {path}: no such file")
    try:
        entries = list(islice(_orders(path.read_text("utf-8"), seq_len), count))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"orders {path}: expected a JSON list of permutations of the {seq_len} positions of a "
            f"{grid[0]}x{grid[1]} grid, got {error}"
        ) from error
    least = 1 if count is None else count
    if len(entries) < least:
        raise ValueError(f"orders {path}: expected at least {least} orders, got {len(entries)}")
    return torch.stack(entries)


def checked_orders(op: str, orders: Tensor | None, count: int, seq_len: int) -> Tensor:
    """Return the first `count` of given orders; ValueError or TypeError where they are none."""
    names = "[images or more, seq_len]"
    if orders is None:
        fail(TypeError, op, "order", f"a tensor {names}", "none")
    check_tensor(op, "order", orders, (torch.int64,), names, 2)
    if orders.shape[0] < count or orders.shape[1] != seq_len:
        got = list(orders.shape)
        fail(ValueError, op, "order", f"{names}, here [{count} or more, {seq_len}]", got)
    orders = orders[:count].cpu()
    check_permutations(op, "order", orders)
    return orders


def _orders(text: str, seq_len: int) -> Iterator[Tensor]:
    """Yield the entries of a JSON list one by one: all at once would take gigabytes."""
    index, opening = 0, "["
    sign, at = _sign(text, 0)
    while sign == opening:
        order, at = json.JSONDecoder().raw_decode(text, at)
        if not isinstance(order, list) or not all(type(position) is int for position in order):
            raise ValueError(f"entry {index}: {str(order)[:60]}")
        if sorted(order) != list(range(seq_len)):
            least, most = min(order, default=None), max(order, default=None)
            raise ValueError(
                f"entry {index}: {len(order)} positions, {len(set(order))} different ones, "
                f"{least} to {most}"
            )
        yield torch.tensor(order)
        index, opening = index + 1, ","
        sign, at = _sign(text, at)
    if sign != "]" or at != len(text):
        raise ValueError(f"no end behind {index} entries (truncated?)")


def _sign(text: str, at: int) -> tuple[str, int]:
    """Return the bracket or comma after white space, "" where there is none, and what is next."""
    match = re.compile(r"\s*([\[,\]]?)\s*").match(text, at)
    assert match is not None  # it matches nothing, too
    return match[1], match.end()


def _known_first(order: Tensor, known: Tensor | None) -> Tensor:
    if known is None:
        return order
    seq_len = order.shape[1]
    # Known positions are ranked by raster, the others behind them by the order.
    rank = order.argsort(dim=1) + seq_len
    raster = torch.arange(seq_len, device=order.device)
    return torch.where(known, raster, rank).argsort(dim=1)


ORDERS: dict[str, Callable[..., Tensor]] = {
    "locality": group_order,
    "random": random_order,
    "raster": raster_order,
    "halton": halton_order,
}
