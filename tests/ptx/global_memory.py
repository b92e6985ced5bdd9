"""Global memory: the host's own, of which a kernel may touch what it was told of."""

import ctypes
from dataclasses import dataclass

import numpy as np

from .fault import Fault, check

READ, READ_WRITE, WRITE = range(3)  # simt::Access
READABLE, WRITABLE = 1, 2
GRAIN = 16  # the widest access: views begin at a multiple, which no page boundary divides


@dataclass(frozen=True)
class Allocation:
    """Memory made known by a binding."""

    number: int  # never used twice
    start: int
    size: int
    access: int
    name: str


class _Region:
    """Allocations that overlap, or one alone; a byte may be what any of them says."""

    def __init__(self, allocations):
        self.start = min(a.start for a in allocations)
        self.end = max(a.start + a.size for a in allocations)
        self.name = "/".join(sorted({a.name for a in allocations}))
        self.base = self.start // GRAIN * GRAIN
        size = -(-(self.end - self.base) // GRAIN) * GRAIN
        memory = (ctypes.c_uint8 * size).from_address(self.base)
        data, state = np.frombuffer(memory, np.uint8), np.zeros(size, np.uint8)
        may = {READ: READABLE, READ_WRITE: READABLE | WRITABLE, WRITE: WRITABLE}
        for a in allocations:
            state[a.start - self.base :][: a.size] |= may[a.access]
        self.rows = {
            size: (data.reshape(-1, size), state.reshape(-1, size)) for size in (1, 2, 4, 8, 16)
        }


class GlobalMemory:
    """All that the kernels of one call may touch."""

    def __init__(self, allocations):
        self.regions = []
        together = []
        for allocation in sorted(allocations, key=lambda a: a.start):
            if together and allocation.start >= max(a.start + a.size for a in together):
                self.regions.append(_Region(together))
                together = []
            together.append(allocation)
        self.regions += [_Region(together)] if together else []
        self.starts = np.array([region.start for region in self.regions], np.int64)

    def load(self, addresses, size):
        """Bytes at addresses, [lanes, size]."""
        return self._each_region(addresses, size, self._load)

    def store(self, addresses, values):
        """Write bytes, [lanes, size]."""
        self._each_region(addresses, values.shape[1], self._store, values)

    def _each_region(self, addresses, size, function, *values):
        if size > 1:
            check(
                (addresses & (size - 1)) != 0,
                lambda i: f"misaligned: {size} bytes of global memory at {int(addresses[i]):#x}",
            )
        which = self._region_of(int(addresses[0]))
        region = self.regions[which]
        outside = (addresses - region.start).view(np.uint64) > region.end - region.start - size
        if not outside.any():
            return function(region, addresses, size, *values)
        numbers = np.searchsorted(self.starts, addresses, side="right") - 1
        numbers[numbers < 0] = 0
        result = np.zeros((len(addresses), size), np.uint8)
        for number in np.unique(numbers):
            region = self.regions[number]
            chosen = np.flatnonzero(numbers == number)
            part = addresses[chosen]
            outside = (part - region.start).view(np.uint64) > region.end - region.start - size
            if outside.any():
                raise Fault(self._describe(int(part[outside][0]), size), int(chosen[outside][0]))
            try:
                found = function(region, part, size, *(v[chosen] for v in values))
            except Fault as fault:
                raise Fault(str(fault), int(chosen[fault.index])) from None
            if found is not None:
                result[chosen] = found
        return result

    def _region_of(self, address):
        if not self.regions:
            raise Fault("global memory, and the launch was told of none")
        return max(0, int(np.searchsorted(self.starts, address, side="right")) - 1)

    def _describe(self, address, size):
        region = self.regions[self._region_of(address)]
        return (
            f"out of bounds: {size} bytes of global memory at {region.name}"
            f"{address - region.start:+d}, which has {region.end - region.start}"
        )

    @staticmethod
    def _load(region, addresses, size):
        data, state = region.rows[size]
        at = (addresses - region.base) // size
        readable = (state[at] & READABLE) != 0
        if not readable.all():
            check(
                ~readable.all(1),
                lambda i: (
                    f"uninitialised global {region.name}{int(addresses[i]) - region.start:+d}"
                ),
            )
        return data[at]

    @staticmethod
    def _store(region, addresses, size, values):
        data, state = region.rows[size]
        at = (addresses - region.base) // size
        writable = (state[at] & WRITABLE) != 0
        check(
            ~writable.all(1),
            lambda i: (
                f"a write to read-only global {region.name}{int(addresses[i]) - region.start:+d}"
            ),
        )
        data[at] = values
        state[at] |= READABLE
