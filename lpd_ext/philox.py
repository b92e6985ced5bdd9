"""Philox4x32-10 in plain torch, bit-equal to ``csrc/include/lpd/philox.h``."""

import torch
from torch import Tensor

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF

# What a draw is for; the third counter word, so that no two uses share a block.
_STREAM_ORDER = 0
_STREAM_UNIFORM = 1


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * x, in two halves: int64 cannot hold the full product."""
    low = constant * (x & 0xFFFF)
    high = constant * (x >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _MASK


def _block(seeds: Tensor, count: int, c1: int, stream: int) -> tuple[Tensor, Tensor]:
    """First two output words, int64 in [0, 2^32), of the counters (0..count-1, c1, stream, 0)."""
    c0 = torch.arange(count, dtype=torch.int64, device=seeds.device)
    key0, key1 = seeds[:, None] & _MASK, (seeds[:, None] >> 32) & _MASK
    x0 = c0.expand(seeds.shape[0], -1)
    x1 = torch.full_like(x0, c1)
    x2 = torch.full_like(x0, stream)
    x3 = torch.zeros_like(x0)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIER[0], x0)
        high1, low1 = _multiply(_MULTIPLIER[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
        key0 = (key0 + _WEYL[0]) & _MASK
        key1 = (key1 + _WEYL[1]) & _MASK
    return x0, x1


def order_keys(seeds: Tensor, step: int, count: int) -> Tensor:
    """Random sort keys of the positions in one step of an order.

    Parameters
    ----------
    seeds : Tensor
        ``[batch]``, int64, any device.
    step : int
        Index of the group.
    count : int
        Number of positions.

    Returns
    -------
    Tensor
        ``[batch, count]``, int64: the 64-bit keys less 2^63, which sorts them as unsigned.
    """
    out0, out1 = _block(seeds, count, step, _STREAM_ORDER)
    return ((out1 - (1 << 31)) << 32) | out0


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Random numbers for the tokens of an image, in generation order.

    Parameters
    ----------
    seeds : Tensor
        ``[batch]``, int64, any device.
    count : int
        Numbers per image.

    Returns
    -------
    Tensor
        ``[batch, count]``, float64 in [0, 1), multiples of 2^-53; row i depends on ``seeds[i]``
        alone.

    Notes
    -----
    The stream is separate from that of the orders.

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> uniform(torch.tensor([0]), 4).shape
    torch.Size([1, 4])
    """
    out0, out1 = _block(seeds, count, 0, _STREAM_UNIFORM)
    return ((out1 << 21) | (out0 >> 11)).double() * 2.0**-53
