"""Operands of instructions as functions that read and write the registers of lanes.

A register is a row of an array with a column for each lane; the arrays are typed by views of one
memory. ``lanes`` is an index: all of them (a slice) or some (an array of numbers).
"""

import re

import numpy as np

from .fault import Fault
from .syntax import BYTES

DTYPES = {
    "pred": np.bool_,
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
SHARED_BASE = 1024  # of a block's shared memory in its window: what lies below is the system's
SPECIAL = {f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {"%laneid"}


class Names:
    """What the names in a kernel's operands stand for."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.rows = {}  # of registers: (bytes of each, row)
        self.counts = {1: 0, 2: 0, 4: 0, 8: 0}
        self.parameters = {parameter.name: parameter.offset for parameter in kernel.parameters}
        self.shared, offset = {}, SHARED_BASE
        # Dynamic memory, which has no size here, comes last.
        for name, (alignment, size) in sorted(kernel.shared.items(), key=lambda v: v[1][1] is None):
            offset = -(-offset // alignment) * alignment
            self.shared[name] = offset
            offset += size or 0
        self.static_bytes = offset - SHARED_BASE

    def row(self, register):
        """Width of a register in bytes and its row among those of that width."""
        if register not in self.rows:
            types = self.kernel.register_types
            kind = types.get(register) or types.get(register.rstrip("0123456789"))
            if kind is None:
                raise Fault(f"no register {register}")
            width = BYTES[kind]
            self.rows[register] = width, self.counts[width]
            self.counts[width] += 1
        return self.rows[register]

    def bank(self, num_lanes):
        """Registers of so many lanes: an array for each type."""
        bank = {}
        for width, count in self.counts.items():
            memory = np.zeros((count, num_lanes), DTYPES["pred"] if width == 1 else f"u{width}")
            for kind, dtype in DTYPES.items():
                if BYTES[kind] == width and (width > 1 or kind == "pred"):
                    bank[kind] = memory.view(dtype)
        return bank

    def reader(self, operand, kind):
        """Function of (gang, lanes) that gives an operand's values as a type."""
        if operand in SPECIAL:
            return lambda gang, lanes: gang.special[operand][lanes].astype(DTYPES[kind])
        if operand[0] == "%":
            return self._register_reader(operand, kind)
        value = np.asarray(self.constant(operand, kind))
        return lambda gang, lanes: value

    def _register_reader(self, operand, kind):
        width, row = self.row(operand)
        if width == BYTES[kind] and (width > 1 or kind == "pred"):
            return lambda gang, lanes: gang.bank[kind][row][lanes]
        if width < BYTES[kind] or width == 1:
            raise Fault(f"{operand} is no {kind}")
        wide, dtype = f"u{8 * width}", DTYPES[f"u{8 * BYTES[kind]}"]  # its lower bits
        return lambda gang, lanes: gang.bank[wide][row][lanes].astype(dtype).view(DTYPES[kind])

    def constant(self, operand, kind):
        """The value of a literal or of a variable's name."""
        dtype = DTYPES[kind]
        if found := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", operand):
            bits = np.dtype("u4" if found[1] in "fF" else "u8").type(int(found[2], 16))
            return bits.view(dtype)
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            bits = int(operand.rstrip("U"), 0) & ((1 << 8 * BYTES[kind]) - 1)
            return np.dtype(f"u{BYTES[kind]}").type(bits).view(dtype)
        for names in (self.shared, self.parameters):
            if operand in names:
                return dtype.type(names[operand])
        raise Fault(f"unknown operand {operand}")

    def writer(self, operand, kind):
        """Function of (gang, lanes, values) that sets a register; a wider one is extended."""
        if operand == "_":
            return lambda gang, lanes, values: None
        width, row = self.row(operand)
        if width < BYTES[kind] or (width == 1) != (kind == "pred"):
            raise Fault(f"{operand} is no {kind}")
        # Signed values are extended by their sign, when they are assigned.
        target = kind if width == BYTES[kind] else f"{'s' if kind[0] == 's' else 'u'}{8 * width}"

        def write(gang, lanes, values):
            gang.bank[target][row][lanes] = values

        return write

    def address(self, operand):
        """Function of (gang, lanes) that gives the address in brackets, int64."""
        base, offset = re.fullmatch(r"\[\s*([%\w$]+)(?:\+(-?\d+))?\s*\]", operand).groups()
        offset = np.int64(offset or 0)
        if base[0] != "%":
            value = np.atleast_1d(np.int64(self.constant(base, "u64")) + offset)
            return lambda gang, lanes: np.broadcast_to(value, gang.number[lanes].shape)
        kind = f"u{8 * self.row(base)[0]}"
        read = self.reader(base, kind)
        return lambda gang, lanes: read(gang, lanes).astype(np.int64) + offset


def group(operand):
    """Registers in braces, or the one that stands without."""
    if operand[0] == "{":
        return [register.strip() for register in operand[1:-1].split(",")]
    return [operand]
