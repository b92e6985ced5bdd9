"""Moves between registers and memory."""

import numpy as np

from .arithmetic import apply
from .fault import Fault
from .operands import DTYPES, group
from .registry import instruction
from .syntax import BYTES

SHARED_WINDOW = 1 << 62  # where generic addresses of shared memory begin; the host has none there
TYPE = "[bus](?:8|16|32|64)|f32|f64"


@instruction(r"mov\.(pred|[bus](?:16|32|64)|f32|f64)")
def move(names, modifiers, operands):
    (kind,) = modifiers
    target, source = operands
    if target[0] == "{":
        return _unpack(names, kind, group(target), source)
    if source[0] == "{":
        return _pack(names, kind, target, group(source))
    return apply(names, operands, kind, (kind,), lambda x: x)


def _unpack(names, kind, targets, source):
    part = f"u{8 * BYTES[kind] // len(targets)}"
    writes = [names.writer(target, part) for target in targets]
    read = names.reader(source, f"u{8 * BYTES[kind]}")

    def run(gang, lanes):
        parts = np.ascontiguousarray(read(gang, lanes)).view(DTYPES[part]).reshape(-1, len(writes))
        parts = parts.copy()  # of the source, which may be among the targets
        for place, write in enumerate(writes):
            write(gang, lanes, parts[:, place])

    return run


def _pack(names, kind, target, sources):
    part = f"u{8 * BYTES[kind] // len(sources)}"
    write = names.writer(target, f"u{8 * BYTES[kind]}")
    reads = [names.reader(source, part) for source in sources]

    def run(gang, lanes):
        parts = np.empty((gang.number[lanes].size, len(reads)), DTYPES[part])
        for place, read in enumerate(reads):
            parts[:, place] = read(gang, lanes)
        write(gang, lanes, parts.view(f"u{BYTES[kind]}")[:, 0])

    return run


@instruction(r"selp\.([bus](?:16|32|64)|f32|f64)")
def select(names, modifiers, operands):
    (kind,) = modifiers
    bits = f"b{8 * BYTES[kind]}"
    return apply(
        names, operands, bits, (bits, bits, "pred"), lambda a, b, which: np.where(which, a, b)
    )


@instruction(r"cvta(\.to)?\.(global|shared)\.u64")
def convert_address(names, modifiers, operands):
    to, space = modifiers
    shift = np.uint64(SHARED_WINDOW if space == "shared" else 0)
    function = (lambda x: x - shift) if to else (lambda x: x + shift)
    return apply(names, operands, "u64", ("u64",), function)


@instruction(rf"ld\.param(\.v2|\.v4)?\.({TYPE})")
def load_parameter(names, modifiers, operands):
    vector, kind = modifiers
    writes, address = _registers(names, operands[0], kind, vector), names.address(operands[1])
    size = BYTES[kind] * len(writes)

    def run(gang, lanes):
        at = address(gang, lanes)
        if (at < 0).any() or (at + size > len(gang.parameters)).any() or (at % size).any():
            raise Fault("out of bounds or misaligned: a parameter")
        parts = gang.parameters[at[:, None] + np.arange(size)].view(DTYPES[kind])
        for place, write in enumerate(writes):
            write(gang, lanes, parts[:, place])

    return run


@instruction(rf"ld(\.global|\.shared)?(\.v2|\.v4)?\.({TYPE})")
def load(names, modifiers, operands):
    space, vector, kind = modifiers
    writes, address = _registers(names, operands[0], kind, vector), names.address(operands[1])
    size, dtype = BYTES[kind] * len(writes), DTYPES[kind]

    def run(gang, lanes):
        rows = load_bytes(gang, lanes, space, address(gang, lanes), size)
        parts = rows.view(dtype)
        for place, write in enumerate(writes):
            write(gang, lanes, parts[:, place])

    return run


@instruction(rf"st(\.global|\.shared)?(?:\.cg)?(\.v2|\.v4)?\.({TYPE})")
def store(names, modifiers, operands):
    space, vector, kind = modifiers
    address, sources = names.address(operands[0]), group(operands[1])
    if len(sources) != int((vector or ".v1")[2:]):
        raise Fault(f"{operands[1]} is no {vector}")
    kind = f"u{8 * BYTES[kind]}"
    reads = [names.reader(source, kind) for source in sources]

    def run(gang, lanes):
        at = address(gang, lanes)
        parts = np.empty((len(at), len(reads)), DTYPES[kind])
        for place, read in enumerate(reads):
            parts[:, place] = read(gang, lanes)
        store_bytes(gang, lanes, space, at, parts.view(np.uint8))

    return run


def _registers(names, operand, kind, vector):
    targets = group(operand)
    if len(targets) != int((vector or ".v1")[2:]):
        raise Fault(f"{operand} is no {vector}")
    return [names.writer(target, kind) for target in targets]


def load_bytes(gang, lanes, space, addresses, size):
    """Load from a state space, or wherever a generic address leads."""
    if space == ".shared":
        return gang.shared.load(gang, lanes, addresses, size)
    if space == ".global" or (addresses < SHARED_WINDOW).all():
        return gang.memory.load(addresses, size)
    _all_shared(addresses)
    return gang.shared.load(gang, lanes, addresses - SHARED_WINDOW, size)


def store_bytes(gang, lanes, space, addresses, values):
    """Store likewise."""
    if space == ".shared":
        gang.shared.store(gang, lanes, addresses, values)
    elif space == ".global" or (addresses < SHARED_WINDOW).all():
        gang.memory.store(addresses, values)
    else:
        _all_shared(addresses)
        gang.shared.store(gang, lanes, addresses - SHARED_WINDOW, values)


def _all_shared(addresses):
    if (addresses < SHARED_WINDOW).any():
        raise Fault("generic addresses of two spaces in one instruction are not supported")


@instruction(r"atom\.shared\.add\.u32")
def atomic_add(names, modifiers, operands):
    write, address = names.writer(operands[0], "u32"), names.address(operands[1])
    read = names.reader(operands[2], "u32")

    def run(gang, lanes):
        rows, at = gang.shared.atomic(gang, lanes, address(gang, lanes), 4)
        amounts = np.broadcast_to(read(gang, lanes), at.shape)
        words, before = rows.view(np.uint32)[:, 0], np.empty(len(at), np.uint32)
        # One lane after another, in the order of lanes: stable, so that sums run within a place.
        order = np.argsort(at, kind="stable")
        sums = np.cumsum(amounts[order], dtype=np.uint32)
        first = np.concatenate([[True], at[order][1:] != at[order][:-1]])
        start = np.maximum.accumulate(np.where(first, np.arange(len(at)), 0))
        before[order] = words[at[order]] + sums - amounts[order] - (sums - amounts[order])[start]
        np.add.at(words, at, amounts)
        write(gang, lanes, before)

    return run
