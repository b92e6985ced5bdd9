"""mma.sync and ldmatrix: which lane holds what of a matrix.

Sums are exact where a GPU's tensor core rounds; the layout is what is checked.
"""

import numpy as np

from .fault import Fault
from .floats import bf16_values, f16_values
from .operands import group
from .registry import instruction


@instruction(
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.(bf16|f16)\.f32", collective=True
)
def multiply(names, modifiers, operands):
    if modifiers[0] != modifiers[1]:
        raise Fault("operands of two types")
    values = {"bf16": bf16_values, "f16": f16_values}[modifiers[0]]
    d, a, b, c = (group(operand) for operand in operands)
    writes = [names.writer(register, "f32") for register in d]
    reads = [
        [names.reader(register, kind) for register in registers]
        for registers, kind in ((a, "b32"), (b, "b32"), (c, "f32"))
    ]
    if [len(x) for x in (d, a, b, c)] != [4, 4, 2, 4]:
        raise Fault("another number of registers than m16n8k16 has")

    def run(gang, lanes):
        a, b, c = (np.stack([read(gang, lanes) for read in part]) for part in reads)
        # Lane 4g + t holds elements 2t and 2t + 1 of row g, or of column g of b.
        a = values(a.view(np.uint16)).reshape(2, 2, -1, 8, 4, 2)  # k, row half, warp, g, t, pair
        b = values(b.view(np.uint16)).reshape(2, -1, 8, 4, 2)  # k half, warp, g, t, pair
        rows = a.transpose(2, 1, 3, 0, 4, 5).reshape(-1, 16, 16).astype(np.float64)
        columns = b.transpose(1, 0, 3, 4, 2).reshape(-1, 16, 8).astype(np.float64)
        product = np.matmul(rows, columns).reshape(-1, 2, 8, 4, 2)  # warp, row half, g, t, pair
        product = product.transpose(1, 4, 0, 2, 3).reshape(4, -1)
        for write, value in zip(writes, (product + c).astype(np.float32), strict=True):
            write(gang, lanes, value)

    return run


@instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", collective=True)
def load_matrices(names, modifiers, operands):
    count, transposed = int(modifiers[0]), bool(modifiers[1])
    writes = [names.writer(register, "b32") for register in group(operands[0])]
    address = names.address(operands[1])
    if len(writes) != count:
        raise Fault(f"x{count} and {len(writes)} registers")

    def run(gang, lanes):
        addresses, numbers = address(gang, lanes), gang.number[lanes]
        # Lane 8i + r names row r of matrix i; of fewer than four matrices the other lanes none.
        used = np.flatnonzero(np.arange(len(numbers)) % 32 < 8 * count)
        rows = gang.shared.load(gang, numbers[used], addresses[used], 16)
        matrices = rows.view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32)  # warp, matrix, row, pair
        for place, write in enumerate(writes):
            write(gang, lanes, pairs[:, place].reshape(-1))

    return run
