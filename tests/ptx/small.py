"""Small kernels written by hand, to test the interpreter itself."""

import struct

import numpy as np

from .global_memory import READ, WRITE, Allocation, GlobalMemory
from .machine import Launch, execute
from .operands import DTYPES
from .program import Program
from .syntax import BYTES, parse

REGISTER = {1: "rs", 2: "rs", 4: "r", 8: "rd"}
HEAD = """.version 9.0
.target sm_90a
.address_size 64
{shared}
.entry small(
\t.param .u64 small_param_0,
\t.param .u64 small_param_1
)
{{
\t.reg .pred %p<9>;
\t.reg .b16 %rs<40>;
\t.reg .b32 %r<40>;
\t.reg .f32 %f<40>;
\t.reg .b64 %rd<40>;
\t.reg .f64 %fd<9>;
"""


def run(body, inputs, out, *, block=32, grid=1, seed=None, shared="", dynamic_bytes=0, opted_in=0):
    """Run a body, which finds addresses of `inputs` and `out` in %rd0 and %rd1, its thread in %r0.

    Returns how many warps executed each instruction.
    """
    text = (
        HEAD.format(shared=shared)
        + "\tld.param.u64 %rd0, [small_param_0];\n\tld.param.u64 %rd1, [small_param_1];\n"
        + "\tmov.u32 %r0, %tid.x;\n" + body + "\n\tret;\n\n}\n"
    )  # fmt: skip
    program = Program(parse(text)["small"]())
    memory = GlobalMemory([
        Allocation(1, inputs.ctypes.data, inputs.nbytes, READ, "inputs"),
        Allocation(2, out.ctypes.data, out.nbytes, WRITE, "out"),
    ])  # fmt: skip
    parameters = struct.pack("<2Q", inputs.ctypes.data, out.ctypes.data)
    launch = Launch("small", (grid, 1, 1), (block, 1, 1), dynamic_bytes, opted_in, parameters)
    return execute(program, launch, memory, seed)


def evaluate(opcode, sources, kind):
    """Values of an instruction for each lane.

    Parameters
    ----------
    opcode
        With its modifiers; what follows a space are further operands.
    sources
        (type, values) of each source, at most 32 values, or an operand as text.
    kind
        Type of the result.
    """
    opcode, _, rest = opcode.partition(" ")
    count = max(len(source[1]) for source in sources if not isinstance(source, str))
    body, operands = [], []
    inputs = np.zeros((len(sources), 32), np.uint64)
    for number, source in enumerate(sources):
        if isinstance(source, str):
            operands.append(source)
            continue
        type_, values = source
        values = np.array(values, DTYPES[type_])
        bits = values.view(f"u{BYTES[type_]}")
        inputs[number] = np.resize(bits, 32)
        name = f"%{REGISTER[BYTES[type_]]}{number + 10}"
        body.append(f"\tld.global.u{8 * BYTES[type_]} {name}, [%rd2+{256 * number}];")
        operands.append(name)
    result = f"%{REGISTER[BYTES[kind]]}30"
    body.append(f"\t{opcode} {', '.join([result, *operands, *filter(None, [rest])])};")
    body.append(f"\tst.global.u{8 * BYTES[kind]} [%rd3], {result};")
    places = (
        "\tmul.wide.u32 %rd5, %r0, 8;\n\tadd.s64 %rd2, %rd0, %rd5;\n\tadd.s64 %rd3, %rd1, %rd5;\n"
    )
    out = np.zeros(32, np.uint64)
    run(places + "\n".join(body), inputs, out)
    return out.astype(f"u{BYTES[kind]}").view(DTYPES[kind])[:count]
