import pytest
import torch
from cases import GRIDS

from lpd_ext import philox
from lpd_ext.orders import ORDERS

OTHERS = ["random", "raster", "halton"]


def philox_of(counter, key):
    """Philox4x32-10 in unbounded integers, after the paper."""
    x, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * x[2], 1 << 32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return x


def test_philox_known_answers():
    # Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    assert philox_of([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox_of([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
def test_philox_streams(device, seed):
    key = [seed % (1 << 32), (seed >> 32) % (1 << 32)]
    seeds = torch.tensor([seed, 5], device=device)
    keys = philox.order_keys(seeds, 7, 4)[0].tolist()
    uniform = philox.uniform(seeds, 4)[0].tolist()
    for i in range(4):
        low, high, _, _ = philox_of([i, 7, 0, 0], key)
        assert keys[i] == (high << 32 | low) - (1 << 63)
        low, high, _, _ = philox_of([i, 0, 1, 0], key)
        assert uniform[i] == ((high << 32 | low) >> 11) / (1 << 53)


def test_uniform_is_uniform(device):
    values = philox.uniform(torch.arange(64, device=device), 256)
    assert values.dtype == torch.float64
    assert values.shape == (64, 256)
    assert values.min() >= 0
    assert values.max() < 1
    # Each of 16 bins holds 1024 of 16384, standard deviation 31.
    assert (values.flatten().histc(16, 0, 1) - 1024).abs().max() < 5 * 31
    # A number depends on its image and place alone.
    assert torch.equal(philox.uniform(torch.tensor([9], device=device), 16)[0], values[9, :16])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ORDERS)
def test_permutations(device, name, grid):
    seq_len = grid[0] * grid[1]
    positions = torch.arange(seq_len, device=device)
    seeds = torch.arange(4, device=device)
    order = ORDERS[name](seeds, grid, [seq_len])
    assert order.dtype == torch.int64
    assert torch.equal(order.sort(dim=1).values, positions.expand(4, -1))
    assert torch.equal(ORDERS[name](seeds[2:3], grid, [seq_len])[0], order[2])
    assert ORDERS[name](seeds[:0], grid, [seq_len]).shape == (0, seq_len)


@pytest.mark.parametrize("name", OTHERS)
def test_known_positions_come_first(device, name):
    known = torch.rand(4, 45, device=device).argsort(dim=1) < 11
    seeds = torch.arange(4, device=device)
    free = ORDERS[name](seeds, (5, 9))
    for image, order in enumerate(ORDERS[name](seeds, (5, 9), known=known)):
        assert torch.equal(order[:11], known[image].nonzero().flatten())
        # The others keep their sequence.
        rest = free[image]
        assert torch.equal(order[11:], rest[~known[image][rest]])


def test_halton_spreads(device):
    # 16 points in base 2 fall into 16 columns, 16 points in base 3 at most twice into a row.
    for order in ORDERS["halton"](torch.arange(8, device=device), (16, 16)):
        first = order[:16]
        assert (first % 16).bincount(minlength=16).max() == 1
        assert (first // 16).bincount(minlength=16).max() <= 2


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seeds": torch.zeros(2)}, TypeError, "`seeds`: expected int64"),
        ({"grid": (4, 0)}, ValueError, "`grid`: expected at least 1"),
        ({"grid": (2**16, 2**15)}, ValueError, "`grid`: .*2\\^31 cells, got 65536 x 32768"),
        ({"known": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "`known`.*got shape"),
        ({"known": torch.eye(2, 16).bool().cumsum(1) == 1}, ValueError, "`known`.*same number"),
    ],
    ids=["seeds", "grid", "cells", "shape", "count"],
)
def test_bad_input(name, changes, error, message):
    arguments = {"seeds": torch.arange(2), "grid": (4, 4), **changes}
    with pytest.raises(error, match=f"^{name}_order: argument {message}"):
        ORDERS[name](**arguments)
