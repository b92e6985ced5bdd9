"""Shared memory of blocks: what was written, what is in flight, and who raced.

Between two barriers of a block, a byte that one warp writes is no other warp's to read or write:
each byte remembers which warp did so, whatever the order in which the warps happened to run. Within
a warp nothing is checked: tests/simt does that.
"""

import numpy as np

from .fault import check
from .operands import SHARED_BASE

SIZES = (1, 2, 4, 8, 16)
WRITTEN, IN_FLIGHT = 1, 2
# Marks of a byte: 0 nobody, 1 to 32 a warp, and
SEVERAL = 255  # readers
ATOMIC = 64  # plus a warp: it has added to the byte
ATOMICS = 128  # several have


class SharedMemory:
    """Shared memory of some blocks, of one size.

    Addresses are those of a block; ``gang.block`` says whose it is, ``gang.mark`` is a warp's.
    """

    def __init__(self, num_blocks, size):
        self.size = size
        self.stride = -(-max(size, 1) // 16) * 16
        self.bytes, self.state, self.writer, self.reader = (
            np.zeros(num_blocks * self.stride, np.uint8) for _ in range(4)
        )
        self.rows = {
            size: tuple(
                array.reshape(-1, size)
                for array in (self.bytes, self.state, self.writer, self.reader)
            )
            for size in SIZES
        }

    def load(self, gang, lanes, addresses, size):
        """Bytes at addresses, [lanes, size]."""
        at = self._places(gang, lanes, addresses, size)
        data, state, _, _ = self.rows[size]
        self._check_written(state[at], addresses)
        self._mark_read(gang.mark[lanes], at, size, addresses)
        return data[at]

    def store(self, gang, lanes, addresses, values):
        """Write bytes, [lanes, size]."""
        size = values.shape[1]
        at = self._places(gang, lanes, addresses, size)
        data, state, _, _ = self.rows[size]
        check(
            (state[at] == IN_FLIGHT).any(1),
            _at("shared memory that a copy is on its way to", addresses),
        )
        self._mark_write(gang.mark[lanes], at, size, addresses)
        data[at] = values
        state[at] = WRITTEN

    def expect(self, gang, lanes, addresses, size):
        """A copy sets out; returns where it will land."""
        at = self._places(gang, lanes, addresses, size)
        state = self.rows[size][1]
        check(
            (state[at] == IN_FLIGHT).any(1),
            _at("a second copy is on its way to shared memory", addresses),
        )
        self._mark_write(gang.mark[lanes], at, size, addresses)
        state[at] = IN_FLIGHT
        return at

    def land(self, at, values, marks):
        """Copies arrive. The next barrier, not the last one, shows them to others."""
        data, state, writer, _ = self.rows[values.shape[1]]
        data[at], state[at], writer[at] = values, WRITTEN, marks[:, None]

    def atomic(self, gang, lanes, addresses, size):
        """Where an atomic operation finds its value: rows of bytes, which it may change."""
        at = self._places(gang, lanes, addresses, size)
        data, state, writer, reader = self.rows[size]
        self._check_written(state[at], addresses)
        mine = gang.mark[lanes][:, None]
        before, readers = writer[at], reader[at]
        foreign = (before != 0) & (before != mine) & (before <= ATOMIC)
        check(foreign.any(1), _race("an atomic operation on", "a write", addresses))
        foreign = (readers != 0) & (readers != mine)
        check(foreign.any(1), _race("an atomic operation on", "a read", addresses))
        alone = (before == 0) | (before == ATOMIC + mine)
        marks = np.where(before == mine, mine, np.where(alone, ATOMIC + mine, ATOMICS))
        writer[at] = marks
        # Two warps in this very instruction: the last one's mark stands.
        writer[at[(writer[at] != marks).any(1)]] = ATOMICS
        return data, at

    def barrier(self, block):
        """What a block did so far is ordered before what it does from now on."""
        part = slice(block * self.stride, (block + 1) * self.stride)
        self.writer[part] = self.reader[part] = 0

    def _places(self, gang, lanes, addresses, size):
        offsets = (addresses - SHARED_BASE).view(np.uint64)
        check(
            offsets > self.size - size,
            _at(f"out of bounds: {size} bytes of shared memory", addresses),
        )
        if size > 1:
            check(
                (offsets & np.uint64(size - 1)) != 0,
                _at(f"misaligned: {size} bytes of shared memory", addresses),
            )
        return (offsets.view(np.int64) + gang.block[lanes] * self.stride) // size

    @staticmethod
    def _check_written(state, addresses):
        if not (state == WRITTEN).all():
            check(
                (state == IN_FLIGHT).any(1),
                _at("read before a wait covers the copy to shared memory", addresses),
            )
            check((state != WRITTEN).any(1), _at("uninitialised shared memory", addresses))

    def _mark_read(self, marks, at, size, addresses):
        _, _, writer, reader = self.rows[size]
        mine = marks[:, None]
        before = writer[at]
        if before.any():
            foreign = (before != 0) & (before != mine) & (before != ATOMIC + mine)
            check(foreign.any(1), _race("a read of", "a write", addresses))
        readers = reader[at]
        reader[at] = np.where((readers == 0) | (readers == mine), mine, SEVERAL)
        # Two warps in this very instruction: the last one's mark stands.
        lost = (reader[at] != mine) & (reader[at] != SEVERAL)
        if lost.any():
            reader[at[lost.any(1)]] = SEVERAL

    def _mark_write(self, marks, at, size, addresses):
        _, _, writer, reader = self.rows[size]
        mine = marks[:, None]
        before, readers = writer[at], reader[at]
        foreign = (before != 0) & (before != mine) & (before != ATOMIC + mine)
        check(foreign.any(1), _race("a write to", "a write", addresses))
        check(((readers != 0) & (readers != mine)).any(1), _race("a write to", "a read", addresses))
        writer[at] = mine
        check((writer[at] != mine).any(1), _race("a write to", "a write", addresses))


def _at(what, addresses):
    return lambda index: f"{what}, offset {int(addresses[index]) - SHARED_BASE}"


def _race(what, other, addresses):
    offset = lambda index: int(addresses[index]) - SHARED_BASE  # noqa: E731
    return lambda index: (
        f"data race: {what} shared memory, offset {offset(index)}, against {other} by another warp"
        " since the last barrier"
    )
