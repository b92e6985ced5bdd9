"""Instructions that lanes of a warp execute together."""

import numpy as np

from .fault import Fault
from .operands import DTYPES
from .registry import instruction

FULL = 0xFFFFFFFF


def by_warp(values, count):
    """[warps, 32] of the values of whole warps."""
    return np.broadcast_to(values, (count,)).reshape(-1, 32)


def _full_mask(names, operand):
    """Function that checks a lane mask: the scheduler brings whole warps, and only those."""
    read = names.reader(operand, "u32")

    def check(gang, lanes):
        if (read(gang, lanes) != FULL).any():
            raise Fault("a collective of some lanes is not supported")

    return check


@instruction(r"shfl\.sync\.(bfly|up|down|idx)\.b32", collective=True)
def shuffle(names, modifiers, operands):
    (mode,) = modifiers
    target, _, valid = operands[0].partition("|")
    write, write_valid = names.writer(target, "b32"), names.writer(valid or "_", "pred")
    read = names.reader(operands[1], "b32")
    read_lane, read_bounds = (names.reader(operand, "u32") for operand in operands[2:4])
    check = _full_mask(names, operands[4])

    def run(gang, lanes):
        check(gang, lanes)
        count = gang.number[lanes].size
        values = by_warp(read(gang, lanes), count)
        lane = np.arange(32)
        b = by_warp(read_lane(gang, lanes), count).astype(np.int64) & 31
        bounds = by_warp(read_bounds(gang, lanes), count).astype(np.int64)
        clamp, segment = bounds & 31, bounds >> 8 & 31
        first = lane & segment
        last = first | clamp & ~segment
        if mode == "up":
            source = lane - b
            inside = source >= last
        elif mode == "idx":
            source = first | b & ~segment
            inside = source <= last
        else:
            source = lane + b if mode == "down" else lane ^ b
            inside = source <= last
        source = np.where(inside, source, lane)
        write(gang, lanes, np.take_along_axis(values, source, 1).reshape(-1))
        write_valid(gang, lanes, inside.reshape(-1))

    return run


@instruction(r"vote\.sync\.(any|all)\.pred", collective=True)
@instruction(r"vote\.sync\.(ballot)\.b32", collective=True)
def vote(names, modifiers, operands):
    (mode,) = modifiers
    write = names.writer(operands[0], "b32" if mode == "ballot" else "pred")
    read, check = names.reader(operands[1], "pred"), _full_mask(names, operands[2])

    def run(gang, lanes):
        check(gang, lanes)
        votes = by_warp(read(gang, lanes), gang.number[lanes].size)
        if mode == "ballot":
            result = np.packbits(votes, axis=1, bitorder="little").view(np.uint32)
        else:
            result = {"any": np.any, "all": np.all}[mode](votes, axis=1, keepdims=True)
        write(gang, lanes, np.repeat(result, 32))

    return run


@instruction(r"redux\.sync\.(add|min|max)\.([us]32)", collective=True)
def reduce(names, modifiers, operands):
    operation, kind = modifiers
    write, read = names.writer(operands[0], kind), names.reader(operands[1], kind)
    check = _full_mask(names, operands[2])
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation]

    def run(gang, lanes):
        check(gang, lanes)
        values = by_warp(read(gang, lanes), gang.number[lanes].size)
        write(gang, lanes, np.repeat(function.reduce(values, axis=1, dtype=DTYPES[kind]), 32))

    return run


@instruction(r"bar\.warp\.sync", collective=True)
def warp_barrier(names, modifiers, operands):
    return _full_mask(names, operands[0])
