"""A kernel decoded: each instruction a function of (gang, lanes), control flow as steps."""

import re

from . import (  # noqa: F401  (they register their instructions)
    arithmetic,
    async_copy,
    conversion,
    data_movement,
    tensor_core,
    warp,
)
from .fault import Fault
from .operands import Names
from .registry import find

CONTROL = r"bra(\.uni)?|ret|bar\.sync|bar\.red\.(or|and)\.pred"
STEP, BRANCH, RETURN, BARRIER = range(4)

# Opcodes by what they ask of a multiprocessor, the first pattern that fits: the columns of the
# table of counts.
KINDS = {
    "mma": r"mma\..*",
    "ldmatrix": r"ldmatrix\..*",
    "cp.async": r"cp\.async\.(ca|cg)\..*",
    "global": r"(ld|st)(\.global\b.*|\.(v\d\.)?[busf]\d+)",
    "shared": r"(ld|st|atom)\.shared\b.*",
    "barrier": r"bar\..*|cp\.async\..*",
    "warp": r"(shfl|vote|redux)\..*",
    "branch": r"bra.*|ret",
    "float": r"(fma|add|sub|mul|min|max|neg|abs|copysign|setp\.\w+|selp)\.(\w+\.)*f(32|64)",
    "slow float": r"(div|rcp|rsqrt|ex2)\..*f32",
    "convert": r"cvt\..*[fx](16|32|64|2)\b.*",
    "integer": r".*",
}


def kind_of(opcode):
    """The column of an opcode."""
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, opcode))


def is_known(opcode):
    """Whether the interpreter has an instruction; otherwise a Fault."""
    return bool(re.fullmatch(CONTROL, opcode)) or bool(find(opcode))


class Step:
    """One instruction as the scheduler sees it."""

    def __init__(self, names, instruction, labels):
        self.instruction = instruction
        self.kind = STEP
        self.collective = False
        self.guard = None
        self.guard_negated = instruction.guard_negated
        if instruction.guard:
            self.guard = names.reader(instruction.guard, "pred")
        opcode, operands = instruction.opcode, instruction.operands
        if not re.fullmatch(CONTROL, opcode):
            decoder, modifiers, self.collective = find(opcode)
            self.run = decoder(names, modifiers, operands)
        elif opcode.startswith("bra"):
            self.kind, self.target = BRANCH, labels[operands[0]]
        elif opcode == "ret":
            self.kind = RETURN
        else:
            self._barrier(names, opcode, operands)
        if self.guard and (self.collective or self.kind in (RETURN, BARRIER)):
            raise Fault("a guarded collective, barrier or return is not supported")

    def _barrier(self, names, opcode, operands):
        self.kind = BARRIER
        self.reduction = None
        place = operands.index("0") if "0" in operands else -1
        if opcode == "bar.sync" and operands == ["0"]:
            return
        if not (opcode.startswith("bar.red") and place == 1 and len(operands) == 3):
            raise Fault("only barrier 0 of all threads is supported")
        self.reduction = opcode.split(".")[2]
        self.write, self.read = names.writer(operands[0], "pred"), names.reader(operands[2], "pred")


class Program:
    """All steps of a kernel."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.names = Names(kernel)
        self.steps = []
        for instruction in kernel.instructions:
            try:
                self.steps.append(Step(self.names, instruction, kernel.labels))
            except (Fault, AttributeError, KeyError, ValueError, IndexError) as error:
                where = f"kernel {kernel.name}, line {instruction.line}, {instruction.text}"
                raise Fault(f"{where}: cannot be decoded: {error}") from error
        self.kinds = [kind_of(instruction.opcode) for instruction in kernel.instructions]
