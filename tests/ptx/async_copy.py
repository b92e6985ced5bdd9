"""cp.async: copies that land at the wait which covers them, and no earlier."""

import numpy as np

from .fault import Fault
from .registry import instruction


class Copies:
    """Copies in flight of the lanes of a gang."""

    def __init__(self, num_lanes):
        self.committed = np.zeros(num_lanes, np.int64)  # groups
        self.flying = []  # of each instruction: lanes, their groups, where to, bytes

    def start(self, lanes, places, values):
        """Copies of the groups that their lanes commit next."""
        self.flying.append((lanes, self.committed[lanes], places, values))

    def wait(self, gang, lanes, groups_left):
        """Land what is in no group of a lane's last ones."""
        bound = np.full(len(self.committed), -1)
        bound[lanes] = self.committed[lanes] - groups_left
        still = []
        for by, groups, places, values in self.flying:
            lands = groups < bound[by]
            if lands.any():
                gang.shared.land(places[lands], values[lands], gang.mark[by[lands]])
            if not lands.all():
                still.append(tuple(part[~lands] for part in (by, groups, places, values)))
        self.flying = still

    def check_none(self, lanes):
        """A thread that returns leaves nothing in flight."""
        for by, *_ in self.flying:
            if np.isin(by, lanes).any():
                raise Fault("a thread returns before its copies have landed")


@instruction(r"cp\.async\.(?:cg|ca)\.shared\.global")
def copy(names, modifiers, operands):
    target, source = (names.address(operand) for operand in operands[:2])
    size = int(operands[2])
    read_size = names.reader(operands[3] if len(operands) > 3 else operands[2], "u32")

    def run(gang, lanes):
        numbers = gang.number[lanes]
        to, start = target(gang, lanes), source(gang, lanes)
        given = np.broadcast_to(read_size(gang, lanes), numbers.shape)
        if (given > size).any():
            raise Fault("more bytes to be read than copied", int((given > size).argmax()))
        values = np.zeros((len(numbers), size), np.uint8)
        for count in np.unique(given[given > 0]):
            chosen = np.flatnonzero(given == count)
            values[chosen, :count] = _read(gang, start[chosen], int(count), size)
        at = gang.shared.expect(gang, lanes, to, size)
        gang.copies.start(numbers, at, values)

    return run


def _read(gang, addresses, count, size):
    if (addresses % size).any():
        raise Fault(f"misaligned: the source of a copy of {size} bytes")
    parts, done = [], 0
    while done < count:  # in accesses of a power of two
        step = 1 << ((count - done).bit_length() - 1)
        parts.append(gang.memory.load(addresses + done, step))
        done += step
    return np.concatenate(parts, axis=1)


@instruction(r"cp\.async\.commit_group")
def commit(names, modifiers, operands):
    def run(gang, lanes):
        gang.copies.committed[lanes] += 1

    return run


@instruction(r"cp\.async\.wait_group")
def wait_group(names, modifiers, operands):
    groups_left = int(operands[0])
    return lambda gang, lanes: gang.copies.wait(gang, lanes, groups_left)
