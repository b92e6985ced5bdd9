"""The interpreter on small kernels: each fault with its line, divergence, barriers, counts."""

import numpy as np
import pytest

from . import gang
from .fault import Fault
from .small import run

TILE = ".shared .align 16 .b8 tile[512];"
OWN = "\tmov.u32 %r1, tile;\n\tshl.b32 %r2, %r0, 2;\n\tadd.s32 %r3, %r1, %r2;\n"  # %r3: its word
OUT = "\tmul.wide.u32 %rd2, %r0, 4;\n\tadd.s64 %rd3, %rd1, %rd2;\n\tst.global.u32 [%rd3], %r9;"
COPY = OWN + "\tcp.async.ca.shared.global [%r3], [%rd0], 4, 4;\n"
SEEDS = [None, *range(4)]


def launch(body, *, block=64, seed=None):
    out = np.zeros(64, np.uint32)
    counts = run(body, np.arange(16, dtype=np.uint64), out, block=block, seed=seed, shared=TILE)
    return out, counts


FAULTS = {
    "read out of bounds": (
        "\tld.global.u32 %r9, [%rd0+128];",
        r"line 19, ld\.global\.u32 %r9, \[%rd0\+128\]: block 0 of the batch, thread \d+: out of"
        r" bounds: 4 bytes of global memory at inputs\+128, which has 128",
    ),
    "read before the memory": ("\tld.global.u32 %r9, [%rd0+-4];", "out of bounds"),
    "straddled end": (
        "\tld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd0+120];",
        "misaligned: 16 bytes",
    ),
    "misaligned": ("\tld.global.u32 %r9, [%rd0+2];", "misaligned: 4 bytes of global"),
    "result read before it is written": (
        "\tld.global.u32 %r9, [%rd1];",
        "uninitialised global out",
    ),
    "inputs written": ("\tst.global.u32 [%rd0], %r0;", "a write to read-only global inputs"),
    "shared memory out of bounds": (
        OWN + "\tst.shared.u32 [%r3+512], %r0;",
        r"out of bounds: 4 bytes of shared memory, offset \d{3}",
    ),
    "shared memory below": ("\tmov.u32 %r1, 0;\n\tld.shared.u32 %r9, [%r1];", "out of bounds"),
    "shared memory never written": (OWN + "\tld.shared.u32 %r9, [%r3];", "uninitialised shared"),
    "copy read before its wait": (
        COPY + "\tcp.async.commit_group;\n\tld.shared.u32 %r9, [%r3];",
        "before a wait covers the copy",
    ),
    "copy in no group": (
        COPY + "\tcp.async.wait_group 0;\n\tld.shared.u32 %r9, [%r3];",
        "before a wait covers the copy",
    ),
    "copy in flight at the end": (
        COPY + "\tcp.async.commit_group;",
        "before its copies have landed",
    ),
    "copy over a copy": (COPY + COPY, "a second copy is on its way"),
    "store over a copy": (COPY + "\tst.shared.u32 [%r3], %r0;", "that a copy is on its way to"),
    "more read than copied": (COPY.replace("4, 4;", "4, 8;"), "more bytes to be read than copied"),
    "word of another warp": (
        OWN + "\tst.shared.u32 [%r3], %r0;\n\txor.b32 %r4, %r2, 128;\n\tadd.s32 %r5, %r1, %r4;\n"
        "\tld.shared.u32 %r9, [%r5];",
        "data race: a read|uninitialised shared",
    ),
    "word that another warp still reads": (
        OWN + "\tst.shared.u32 [%r3], %r0;\n\tbar.sync 0;\n\txor.b32 %r4, %r2, 128;\n"
        "\tadd.s32 %r5, %r1, %r4;\n\tld.shared.u32 %r9, [%r5];\n\tst.shared.u32 [%r3], %r9;",
        "data race: a (write to|read of) shared memory, .* against a (read|write) by another",
    ),
    "one word of two warps": (
        "\tmov.u32 %r1, tile;\n\tst.shared.u32 [%r1], %r0;",
        "data race: a write to .* a write",
    ),
    "atomic beside a read": (
        "\tmov.u32 %r1, tile;\n\tsetp.ne.u32 %p1, %r0, 0;\n\t@%p1 bra $L1;\n"
        "\tst.shared.u32 [%r1], %r0;\n$L1:\n\tbar.sync 0;\n\tatom.shared.add.u32 %r4, [%r1], 1;\n"
        "\tld.shared.u32 %r9, [%r1];",
        "data race: (a read of|an atomic)",
    ),
    "barrier of some threads": (
        "\tsetp.lt.u32 %p1, %r0, 32;\n\t@%p1 bra $L1;\n\tbar.sync 0;\n$L1:",
        r"bar\.sync 0: block 0 of the batch: 32 of 64 threads reach this barrier",
    ),
    "another barrier for some": (
        "\tsetp.lt.u32 %p1, %r0, 32;\n\t@%p1 bra $L1;\n\tbar.sync 0;\n\tbra.uni $L2;\n$L1:\n"
        "\tbar.sync 0;\n$L2:",
        "32 of 64 threads",
    ),
    "shuffle of half a warp": (
        "\tsetp.lt.u32 %p1, %r0, 16;\n\t@%p1 bra $L1;\n"
        "\tshfl.sync.bfly.b32 %r9|%p2, %r0, 1, 31, -1;\n$L1:",
        r"line \d+, shfl\S* .*: a collective that some lanes of the warp do not reach",
    ),
    "shuffle under a part of the mask": (
        "\tshfl.sync.bfly.b32 %r9|%p2, %r0, 1, 31, 65535;",
        "a collective of some lanes",
    ),
    "loop without end": ("$L1:\n\tbra $L1;", "no end after 50 branches"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_fault(monkeypatch, name, seed):
    monkeypatch.setattr(gang, "MAX_BRANCHES", 50)
    body, message = FAULTS[name]
    with pytest.raises(Fault, match=message):
        launch(body, seed=seed)


def test_unknown_opcode_names_its_line():
    with pytest.raises(Fault, match=r"kernel small, line 19, add\.sat\.s32 .*unsupported"):
        launch("\tadd.sat.s32 %r1, %r0, %r0;")


def test_register_of_another_width():
    with pytest.raises(Fault, match="%rs1 is no s32"):
        launch("\tadd.s32 %r1, %r0, %rs1;")


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_that_loop_differently_meet_again(seed):
    # out = sum of 1 .. thread % 4; behind the loop a vote of the whole warp.
    body = (
        "\tand.b32 %r1, %r0, 3;\n\tmov.u32 %r9, 0;\n$L1:\n\tsetp.eq.u32 %p1, %r1, 0;\n"
        "\t@%p1 bra $L2;\n\tadd.u32 %r9, %r9, %r1;\n\tsub.u32 %r1, %r1, 1;\n\tbra.uni $L1;\n$L2:\n"
        "\tvote.sync.ballot.b32 %r2, %p1, -1;\n\tpopc.b32 %r3, %r2;\n\tadd.u32 %r9, %r9, %r3;\n"
    )
    out, counts = launch(body + OUT, seed=seed)
    assert out.tolist() == [32 + n * (n + 1) // 2 for n in np.arange(64) % 4]
    # Two warps: everything once but the loop, whose test runs four times and body three times.
    assert counts[:3] == [2, 2, 2]
    assert counts[5:10] == [8, 8, 6, 6, 6]
    assert counts[10:] == [2] * (len(counts) - 10)


@pytest.mark.parametrize("seed", SEEDS)
def test_warps_exchange_words_over_a_barrier(seed):
    body = (
        OWN + "\tst.shared.u32 [%r3], %r0;\n\tbar.sync 0;\n\txor.b32 %r4, %r2, 132;\n"
        "\tadd.s32 %r5, %r1, %r4;\n\tld.shared.u32 %r9, [%r5];\n"
    )
    out, _ = launch(body + OUT, seed=seed)
    assert out.tolist() == (np.arange(64) ^ 33).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_reduces(seed):
    body = (
        "\tsetp.eq.u32 %p1, %r0, 40;\n\t{\n\t.reg .pred %p1;\n\tsetp.eq.u32 %p1, %r0, 50;\n"
        "\tbar.red.or.pred %p1, 0, %p1;\n\tselp.u32 %r9, 1, 0, %p1;\n\t}\n"
        "\tselp.u32 %r9, 7, %r9, %p1;\n"  # the register outside of the braces is another one
    )
    out, _ = launch(body + OUT, seed=seed)
    assert out.tolist() == [7 if thread == 40 else 1 for thread in range(64)]


@pytest.mark.parametrize("seed", SEEDS)
def test_atomic_sums(seed):
    body = (
        "\tmov.u32 %r1, tile;\n\tsetp.ne.u32 %p1, %r0, 0;\n\t@%p1 bra $L1;\n"
        "\tst.shared.u32 [%r1], %r0;\n$L1:\n\tbar.sync 0;\n"
        "\tatom.shared.add.u32 %r9, [%r1], 3;\n\tbar.sync 0;\n\tld.shared.u32 %r4, [%r1];\n"
        "\tadd.u32 %r9, %r9, %r4;\n"
    )
    out, _ = launch(body + OUT, seed=seed)
    assert sorted(out - 192) == list(range(0, 192, 3))  # each saw another sum, then all saw 192


@pytest.mark.parametrize("seed", SEEDS)
def test_generic_addresses_lead_to_either_space(seed):
    body = (
        OWN + "\tmov.u64 %rd4, tile;\n\tcvta.shared.u64 %rd5, %rd4;\n"
        "\tmul.wide.u32 %rd2, %r0, 4;\n\tadd.s64 %rd6, %rd5, %rd2;\n\tst.u32 [%rd6], %r0;\n"
        "\tld.shared.u32 %r8, [%r3];\n\tld.u32 %r7, [%rd0+40];\n\tadd.u32 %r9, %r8, %r7;\n"
    )
    out, _ = launch(body + OUT.replace("\tmul.wide.u32 %rd2, %r0, 4;\n", ""), seed=seed)
    assert out.tolist() == [thread + 5 for thread in range(64)]


@pytest.mark.parametrize(
    ("dynamic_bytes", "opted_in", "block", "message"),
    [
        (49153, 0, 32, "49153 dynamic bytes, 0 opted in to"),
        (227 * 1024, 227 * 1024, 32, "232448 dynamic and 512 static bytes"),
        (0, 0, 33, "33 threads a block: no whole warps"),
    ],
)
def test_refused_launches(dynamic_bytes, opted_in, block, message):
    with pytest.raises(Fault, match=f"launch refused: {message}"):
        run(OWN, np.zeros(1), np.zeros(1), block=block, shared=TILE, dynamic_bytes=dynamic_bytes,
            opted_in=opted_in)  # fmt: skip


def test_every_block_has_shared_memory_of_its_own():
    # More blocks than run together; each writes its number and reads it behind a barrier.
    body = (
        OWN + "\tmov.u32 %r4, %ctaid.x;\n\tst.shared.u32 [%r3], %r4;\n\tbar.sync 0;\n"
        "\tld.shared.u32 %r9, [%r3];\n\tmov.u32 %r5, %ntid.x;\n\tmad.lo.s32 %r0, %r4, %r5, %r0;\n"
    )
    out = np.zeros(32 * 300, np.uint32)
    run(body + OUT, np.zeros(1), out, grid=300, shared=TILE)
    assert out.tolist() == np.repeat(np.arange(300), 32).tolist()


@pytest.mark.parametrize("block", [32, 64])
def test_copies_land_at_the_wait_that_covers_them(block):
    # Two groups; a wait that leaves one in flight lands the first.
    second = "\tcp.async.ca.shared.global [%r3+256], [%rd0+8], 4, 2;\n\tcp.async.commit_group;\n"
    body = (
        COPY.replace("[%rd0]", "[%rd0+16]") + "\tcp.async.commit_group;\n" + second
        + "\tcp.async.wait_group 1;\n\tld.shared.u32 %r8, [%r3];\n\tcp.async.wait_group 0;\n"
        "\tld.shared.u32 %r9, [%r3+256];\n\tmad.lo.s32 %r9, %r9, 100, %r8;\n"
    )  # fmt: skip
    out, _ = launch(body + OUT, block=block)
    assert set(out[:block].tolist()) == {102}  # inputs 2 and, of 4 bytes 2, 1


def test_matrices():
    # d = a b with small integers; lanes hold what the ISA says they do.
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 16)), rng.integers(-4, 5, (16, 8))
    bits = lambda x: x.astype(np.float16).view(np.uint16).astype(np.uint32)  # noqa: E731
    pair = lambda low, high: int(bits(low) | bits(high) << 16)  # noqa: E731
    inputs = np.zeros((32, 6), np.uint32)
    for lane in range(32):
        g, t = lane // 4, 2 * (lane % 4)
        inputs[lane] = [
            pair(*a[g, t : t + 2]), pair(*a[g + 8, t : t + 2]),
            pair(*a[g, t + 8 : t + 10]), pair(*a[g + 8, t + 8 : t + 10]),
            pair(*b[t : t + 2, g]), pair(*b[t + 8 : t + 10, g]),
        ]  # fmt: skip
    loads = "".join(f"\tld.global.u32 %r{10 + i}, [%rd3+{4 * i}];\n" for i in range(6))
    body = (
        "\tmul.wide.u32 %rd2, %r0, 24;\n\tadd.s64 %rd3, %rd0, %rd2;\n" + loads
        + "\tmov.f32 %f1, 0f3F800000;\n"
        "\tmma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5}, "
        "{%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f1, %f1, %f1};\n"
        "\tmul.wide.u32 %rd4, %r0, 16;\n\tadd.s64 %rd5, %rd1, %rd4;\n"
        "\tst.global.v4.f32 [%rd5], {%f2, %f3, %f4, %f5};\n"
    )  # fmt: skip
    out = np.zeros((32, 4), np.float32)
    run(body, inputs, out)
    d = np.zeros((16, 8))
    for lane in range(32):
        g, t = lane // 4, 2 * (lane % 4)
        d[g, t : t + 2], d[g + 8, t : t + 2] = out[lane, :2], out[lane, 2:]
    np.testing.assert_array_equal(d, a @ b + 1)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    # Row r of matrix m holds 64m + 8r + column; lane 8m + r names it.
    inputs = np.arange(256, dtype=np.uint16)
    trans = ".trans" if transposed else ""
    body = (
        "\tmov.u32 %r1, tile;\n\tshl.b32 %r2, %r0, 4;\n\tadd.s32 %r3, %r1, %r2;\n"
        "\tmul.wide.u32 %rd2, %r0, 16;\n\tadd.s64 %rd3, %rd0, %rd2;\n"
        "\tcp.async.cg.shared.global [%r3], [%rd3], 16, 16;\n\tcp.async.commit_group;\n"
        "\tcp.async.wait_group 0;\n\tbar.warp.sync -1;\n"
        f"\tldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r3];\n"
        "\tadd.s64 %rd5, %rd1, %rd2;\n\tst.global.v4.u32 [%rd5], {%r4, %r5, %r6, %r7};\n"
    )
    out = np.zeros((32, 4), np.uint32)
    run(body, inputs, out, shared=TILE)
    matrices = inputs.reshape(4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    for lane in range(32):
        low = matrices[:, lane // 4, 2 * (lane % 4)].astype(np.uint32)
        high = matrices[:, lane // 4, 2 * (lane % 4) + 1].astype(np.uint32)
        assert out[lane].tolist() == (low | high << 16).tolist()
