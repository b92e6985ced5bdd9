"""Launches of the real host code, run by the interpreter.

interpreter = load()
with interpreter.running(): lpd_ext.linear_gelu(...)      # raises the Fault of a kernel
interpreter.launches                                      # what ran, and its instructions
"""

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import cuda_static
import torch

from lpd_ext import cuda_variant

from . import build, syntax
from .fault import Fault
from .global_memory import Allocation, GlobalMemory
from .machine import Launch, count_kinds, execute
from .program import BARRIER, Program


class _Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]

    def as_tuple(self):
        return self.x, self.y, self.z


class _Allocation(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("number", "start", "size", "access")]
    _fields_ += [("name", ctypes.c_char_p)]


class _Launch(ctypes.Structure):  # of host/runtime.cpp
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", _Dim3),
        ("block", _Dim3),
        ("dynamic_bytes", ctypes.c_int64),
        ("opted_in", ctypes.c_int64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("allocations", ctypes.POINTER(_Allocation)),
        ("num_allocations", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Record:
    """A launch that has run: warps, and how many of them executed instructions of each kind."""

    kernel: str  # readable
    warps: int
    counts: dict[str, int]
    barriers: tuple[int, ...]  # lines of those that were reached


class Interpreter:
    """The library, and what its kernels are.

    ``seed`` orders the warps of the launches that follow; None runs them in step.
    """

    def __init__(self):
        path = build.library()
        torch.ops.load_library(str(path))
        self.library = ctypes.CDLL(str(path))
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Launch))
        self._callback = callback(self._launch)  # kept as long as the library calls it
        self.library.lpd_ptx_set_callback(self._callback)
        self.seed = None
        self.launches = []
        self._error = None
        self._memory = (), None
        self._programs, self._kernels = {}, {}
        self._texts = {stem: cubin.ptx.read_text() for stem, cubin in build.compiled().items()}
        for text in self._texts.values():
            self._kernels |= syntax.parse(text)

    @contextmanager
    def running(self):
        """Public functions of ops run their kernels here; a Fault comes out as such."""
        before, self.launches = torch.ops.lpd_ext, []
        torch.ops.lpd_ext = getattr(torch.ops, build.NAMESPACE)
        try:
            yield self
        except RuntimeError as error:
            if self._error is None:
                raise
            raise self._error from error
        finally:
            torch.ops.lpd_ext, self._error = before, None

    @contextmanager
    def mutated(self, stem, change):
        """Run another text in place of a kernel file's PTX.

        Parameters
        ----------
        stem
            The kernel file.
        change
            Function of the text, which must change it.
        """
        text = change(self._texts[stem])
        assert text != self._texts[stem], f"nothing to change in {stem}"
        kernels, programs = self._kernels, self._programs
        self._kernels, self._programs = kernels | syntax.parse(text), {}
        try:
            yield
        finally:
            self._kernels, self._programs = kernels, programs

    @contextmanager
    def variant(self, name):
        """Let attention run its other kernels (`lpd_ext.cuda_variant`)."""
        before = self.library.lpd_ext_cuda_variant()
        self.library.lpd_ext_set_cuda_variant(cuda_variant.VARIANTS.index(name))
        try:
            yield
        finally:
            self.library.lpd_ext_set_cuda_variant(before)

    def kernels(self, stem):
        """Names of the kernels of a file, as the compiler mangles them."""
        return list(syntax.parse(self._texts[stem]))

    def program(self, name):
        """The Program of a kernel."""
        if name not in self._programs:
            self._programs[name] = Program(self._kernels[name]())
        return self._programs[name]

    def _launch(self, pointer):
        try:
            self._run(pointer.contents)
        except BaseException as error:  # none may pass through C++
            self._error = error
            return 1
        return 0

    def _run(self, asked):
        name = asked.kernel.decode()
        program = self.program(name)
        parameters = bytearray(
            max((p.offset + p.size for p in program.kernel.parameters), default=0)
        )
        for number, parameter in enumerate(program.kernel.parameters):
            value = ctypes.string_at(asked.arguments[number], parameter.size)
            parameters[parameter.offset : parameter.offset + parameter.size] = value
        launch = Launch(
            name, asked.grid.as_tuple(), asked.block.as_tuple(), asked.dynamic_bytes,
            asked.opted_in, bytes(parameters),
        )  # fmt: skip
        allocations = [
            Allocation(a.number, a.start, a.size, a.access, a.name.decode())
            for a in asked.allocations[: asked.num_allocations]
        ]
        counts = execute(program, launch, self._memory_of(allocations), self.seed)
        grid, block = asked.grid, asked.block
        threads = grid.x * grid.y * grid.z * block.x * block.y * block.z
        barriers = tuple(
            step.instruction.line
            for step, count in zip(program.steps, counts, strict=True)
            if step.kind == BARRIER and count
        )
        kinds = count_kinds(program, counts)
        self.launches.append(Record(readable(name), threads // 32, kinds, barriers))

    def _memory_of(self, allocations):
        """What the launches of one call write stays known to the next of them."""
        numbers = tuple(allocation.number for allocation in allocations)
        if self._memory[0] != numbers:
            if set(self._memory[0]) & set(numbers):
                raise Fault("memory was made known between two launches of a call")
            self._memory = numbers, GlobalMemory(allocations)
        return self._memory[1]


@cache
def readable(name):
    """A kernel's name with its template arguments."""
    return cuda_static.readable([name])[0]


@cache
def load():
    """Build and load the interpreter, once a process."""
    return Interpreter()
