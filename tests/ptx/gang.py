"""Warps that run together: their registers, and the fragments in which they diverge."""

import numpy as np

from .async_copy import Copies
from .fault import Fault
from .program import BARRIER, BRANCH, RETURN

ALL = slice(None)
MAX_BRANCHES = 200_000  # of a gang between two barriers: a loop of cases this small has an end


class Fragment:
    """Lanes at one instruction; ``lanes`` is an index of the gang's arrays."""

    def __init__(self, at, numbers, gang):
        self.at = at
        self.numbers = numbers
        self.lanes = ALL if len(numbers) == gang.size else numbers
        # Warps with a lane here: what the instruction costs.
        self.num_warps = 1 + int(np.count_nonzero(np.diff(numbers >> 5))) if len(numbers) else 0


class Gang:
    """Some warps of a launch, lane after lane.

    Parameters
    ----------
    program
        What they execute.
    blocks, warps
        Of each warp its block, counted within the batch, and its number in the block.
    batch
        What all gangs share: memories, parameters, special registers, counts of instructions.
    """

    def __init__(self, program, blocks, warps, batch):
        self.size = 32 * len(blocks)
        self.number = np.arange(self.size)
        self.block = np.repeat(blocks, 32)
        self.mark = np.repeat(warps + 1, 32).astype(np.uint8)
        self.thread = np.repeat(warps * 32, 32) + self.number % 32
        self.steps, self.counts = program.steps, batch.counts
        self.bank = program.names.bank(self.size)
        self.memory, self.shared = batch.memory, batch.shared
        self.parameters = batch.parameters
        self.special = batch.special_registers(self.block, self.thread)
        self.copies = Copies(self.size)
        self.fragments = [Fragment(0, self.number, self)]
        self.waiting = {}  # at a barrier: its place, and whose lanes
        self.returned = np.zeros(self.size, bool)

    def run(self):
        """Go on until every lane waits at a barrier of its block or has returned."""
        stuck = set()  # collectives that wait for the rest of a warp
        for _ in range(MAX_BRANCHES):
            runnable = [f for f in self.fragments if f.at not in stuck]
            if not runnable:
                if self.fragments:
                    message = "a collective that some lanes of the warp do not reach"
                    raise self.locate(Fault(message), self.fragments[0])
                return
            fragment = min(runnable, key=lambda f: f.at)
            others = {f.at for f in self.fragments if f is not fragment}
            self._advance(fragment, others, stuck)
        raise self.locate(Fault(f"no end after {MAX_BRANCHES} branches"), self.fragments[0])

    def _advance(self, fragment, others, stuck):
        """Run a fragment until it meets another one, splits or stops."""
        steps, counts = self.steps, self.counts
        lanes, num_warps = fragment.lanes, fragment.num_warps
        meets = min((at for at in others if at > fragment.at), default=len(steps))
        while True:
            step = steps[fragment.at]
            if step.collective and not self._is_whole(fragment):
                self._wait_for_rest(fragment, stuck)
                return
            counts[fragment.at] += num_warps
            try:
                if step.kind:
                    self._control(step, fragment, stuck)
                    return
                if step.guard is None:
                    step.run(self, lanes)
                else:
                    holds = step.guard(self, lanes) != step.guard_negated
                    if holds.all():
                        step.run(self, lanes)
                    elif holds.any():
                        step.run(self, fragment.numbers[holds])
            except Fault as fault:
                raise self.locate(fault, fragment) from None
            fragment.at += 1
            if fragment.at == meets:
                self._move(fragment, [(fragment.at, fragment.numbers)], stuck)
                return

    def _is_whole(self, fragment):
        return fragment.lanes is ALL or len(fragment.numbers) == 32 * fragment.num_warps

    def _wait_for_rest(self, fragment, stuck):
        """Whole warps go on; lanes whose warp is elsewhere wait for it here."""
        warp = fragment.numbers >> 5
        is_whole = np.bincount(warp, minlength=self.size // 32)[warp] == 32
        self.fragments.remove(fragment)
        if not is_whole.any():
            self.fragments.append(fragment)
            stuck.add(fragment.at)
            return
        whole, rest = fragment.numbers[is_whole], fragment.numbers[~is_whole]
        step = self.steps[fragment.at]
        part = Fragment(fragment.at, whole, self)
        self.counts[part.at] += part.num_warps
        try:
            step.run(self, part.lanes)
        except Fault as fault:
            raise self.locate(fault, part) from None
        self._put([(part.at + 1, whole)], stuck)
        self.fragments.append(Fragment(fragment.at, rest, self))
        stuck.add(fragment.at)

    def _control(self, step, fragment, stuck):
        here, numbers = fragment.at, fragment.numbers
        if step.kind == BRANCH:
            taken = np.ones(len(numbers), bool)
            if step.guard is not None:
                taken = step.guard(self, fragment.lanes) != step.guard_negated
            parts = [(step.target, numbers[taken]), (here + 1, numbers[~taken])]
            self._move(fragment, parts, stuck)
            return
        self.fragments.remove(fragment)
        if step.kind == RETURN:
            self.copies.check_none(numbers)
            self.returned[numbers] = True
        else:
            assert step.kind == BARRIER
            before = self.waiting.get(here, numbers[:0])
            self.waiting[here] = np.sort(np.concatenate([before, numbers]))

    def _move(self, fragment, parts, stuck):
        self.fragments.remove(fragment)
        self._put(parts, stuck)

    def _put(self, parts, stuck):
        """Add lanes at places; those that meet others there join them."""
        for at, numbers in parts:
            if len(numbers) == 0:
                continue
            for other in self.fragments:
                if other.at == at:
                    self.fragments.remove(other)
                    numbers = np.sort(np.concatenate([numbers, other.numbers]))
                    stuck.discard(at)
                    break
            self.fragments.append(Fragment(at, numbers, self))

    def release(self, blocks):
        """Let the lanes of blocks go on behind their barriers."""
        for at in list(self.waiting):
            numbers = self.waiting.pop(at)
            go = np.isin(self.block[numbers], blocks)
            if not go.all():
                self.waiting[at] = numbers[~go]
            self._put([(at + 1, numbers[go])], set())

    def locate(self, fault, fragment):
        """The fault with the instruction and the thread."""
        instruction = self.steps[fragment.at].instruction
        lane = fragment.numbers[min(fault.index, len(fragment.numbers) - 1)]
        return Fault(
            f"line {instruction.line}, {instruction.text}: block {self.block[lane]} of the batch,"
            f" thread {self.thread[lane]}: {fault}"
        )
