"""A launch: its blocks in batches, their warps in gangs, the gangs in random order."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .fault import Fault
from .gang import Gang
from .program import BARRIER
from .shared_memory import SharedMemory

LANES = 4096  # of a batch: numpy works best on some thousands
MAX_SHARED = 227 * 1024  # of a block on sm_90
DEFAULT_SHARED = 48 * 1024


@dataclass(frozen=True)
class Launch:
    """What the host asked for."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_bytes: int
    opted_in: int  # to so many dynamic bytes
    parameters: bytes


class Batch:
    """Blocks that run together, and what they share."""

    def __init__(self, program, launch, blocks, memory, counts):
        self.launch, self.blocks, self.memory, self.counts = launch, blocks, memory, counts
        self.shared = SharedMemory(len(blocks), program.names.static_bytes + launch.dynamic_bytes)
        self.parameters = np.frombuffer(launch.parameters, np.uint8)

    def special_registers(self, block, thread):
        """Arrays of each by name."""
        registers = {"%laneid": (thread % 32).astype(np.uint32)}
        for name, numbers, shape in (
            ("tid", thread, self.launch.block),
            ("ctaid", np.asarray(self.blocks)[block], self.launch.grid),
        ):
            rest = numbers
            for axis, extent in zip("xyz", shape, strict=True):
                registers[f"%{name}.{axis}"] = (rest % extent).astype(np.uint32)
                registers[f"%n{name}.{axis}"] = np.full(len(rest), extent, np.uint32)
                rest = rest // extent
        return registers


def execute(program, launch, memory, seed=None):
    """Run a launch; returns how many warps executed each instruction.

    Parameters
    ----------
    program
        The Program of the kernel.
    launch
        The Launch.
    memory
        The GlobalMemory.
    seed
        Of the order of warps; None runs them all in step.
    """
    num_threads = int(np.prod(launch.block))
    _check_launch(program, launch, num_threads)
    counts = [0] * len(program.steps)
    rng = None if seed is None else np.random.default_rng(seed)
    num_blocks, together = int(np.prod(launch.grid)), max(1, LANES // num_threads)
    for first in range(0, num_blocks, together):
        blocks = range(first, min(first + together, num_blocks))
        batch = Batch(program, launch, blocks, memory, counts)
        try:
            with np.errstate(all="ignore"):
                _run_batch(program, batch, num_threads // 32, rng)
        except Fault as fault:
            raise Fault(f"kernel {launch.kernel}: {fault}") from None
    return counts


def count_kinds(program, counts):
    """Sum the counts of instructions by their kind."""
    total = Counter()
    for kind, count in zip(program.kinds, counts, strict=True):
        total[kind] += count
    return {kind: count for kind, count in total.items() if count}


def _check_launch(program, launch, num_threads):
    dynamic = launch.dynamic_bytes
    problem = None
    if num_threads % 32 or not 0 < num_threads <= 1024:
        problem = f"{num_threads} threads a block: no whole warps, or too many"
    elif dynamic > max(DEFAULT_SHARED, launch.opted_in):
        problem = f"{dynamic} dynamic bytes, {launch.opted_in} opted in to"
    elif dynamic + program.names.static_bytes > MAX_SHARED:
        problem = f"{dynamic} dynamic and {program.names.static_bytes} static bytes"
    if problem:
        raise Fault(f"kernel {launch.kernel}: launch refused: {problem}")


def _run_batch(program, batch, num_warps, rng):
    blocks = np.repeat(np.arange(len(batch.blocks)), num_warps)
    warps = np.tile(np.arange(num_warps), len(batch.blocks))
    parts = [np.arange(len(blocks))]
    if rng is not None and len(blocks) > 1:
        first = rng.random(len(blocks)) < 0.5
        first[rng.choice(len(blocks), 2, replace=False)] = True, False  # none is empty
        parts = [np.flatnonzero(first), np.flatnonzero(~first)]
    gangs = [Gang(program, blocks[part], warps[part], batch) for part in parts]
    while True:
        order = range(len(gangs)) if rng is None else rng.permutation(len(gangs))
        for index in order:
            gangs[index].run()
        if all(gang.returned.all() for gang in gangs):
            return
        _pass_barriers(program, batch, gangs, num_warps * 32)


def _pass_barriers(program, batch, gangs, num_threads):
    """Release the blocks all of whose threads wait at one barrier."""
    places = sorted({at for gang in gangs for at in gang.waiting})
    arrived = {at: np.zeros(len(batch.blocks), int) for at in places}
    for gang in gangs:
        for at, numbers in gang.waiting.items():
            arrived[at] += np.bincount(gang.block[numbers], minlength=len(batch.blocks))
    for at in places:
        blocks = np.flatnonzero(arrived[at] == num_threads)
        _reduce(program.steps[at], at, gangs, blocks)
        for gang in gangs:
            gang.release(blocks)
        for block in blocks:
            batch.shared.barrier(block)
        short = np.flatnonzero((arrived[at] > 0) & (arrived[at] < num_threads))
        if len(short):
            instruction = program.steps[at].instruction
            raise Fault(
                f"line {instruction.line}, {instruction.text}: block {short[0]} of the batch:"
                f" {arrived[at][short[0]]} of {num_threads} threads reach this barrier"
            )


def _reduce(step, at, gangs, blocks):
    assert step.kind == BARRIER
    if step.reduction is None or len(blocks) == 0:
        return
    combine = {"or": np.any, "and": np.all}[step.reduction]
    lanes = [gang.waiting.get(at, gang.number[:0]) for gang in gangs]
    votes = np.concatenate([step.read(g, n) for g, n in zip(gangs, lanes, strict=True)])
    block = np.concatenate([g.block[n] for g, n in zip(gangs, lanes, strict=True)])
    for one in blocks:
        result = combine(votes[block == one])
        for gang, numbers in zip(gangs, lanes, strict=True):
            step.write(gang, numbers[gang.block[numbers] == one], result)
