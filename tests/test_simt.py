"""The SIMT library: every class of bug it claims to find, planted, and kernels without one."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
from simt import build

KERNELS = Path(__file__).parent / "simt/kernels"
FORWARD, REVERSE, RANDOM = range(3)
ORDERS = (FORWARD, REVERSE, RANDOM)

# Case -> what its error must say; the file has the line. Cases of the memory, in memory.cu.
MEMORY = {
    "array_bounds": "array index out of bounds",
    "async_copy_left_in_flight": "returned with cp.async in flight",
    "async_copy_misaligned": "misaligned, not at a multiple of 16: global in",
    "async_copy_past_end": r"read out of bounds: global in\+16 \(16 bytes\)",
    "async_copy_touched_before_wait": "shared tile.* while a cp.async to it is in flight",
    "async_copy_without_barrier": "(uninitialised memory|in flight|data race on).* shared tile",
    "async_wait_too_weak": r"shared tile\+16 .* while a cp.async to it is in flight",
    "division_by_zero": "division by zero",
    "global_read_past_end": r"read out of bounds: global in\+37 \(37 bytes\)",
    "global_write_before_begin": r"write out of bounds: global out-4 \(256 bytes\)",
    "half_initialised": r"read of uninitialised memory .*: shared pair\+2",
    "ldmatrix_misaligned": r"misaligned row, not at a multiple of 16: shared tile",
    "ldmatrix_of_global_memory": "the row is not in shared memory",
    "ldmatrix_past_end": r"read out of bounds: shared tile\+512",
    "local_memory_of_another_thread": "read out of bounds: a local variable of another thread",
    "misaligned_ldg": r"misaligned access of 8 bytes: global in\+4",
    "misaligned_vector": r"misaligned pointer: global in\+4",
    "shared_of_the_block_before": "read of uninitialised memory .*: shared value",
    "shared_read_past_end": r"read out of bounds: shared tile\+256 \(256 bytes\)",
    "shared_write_past_end": r"write out of bounds: shared \(dynamic\)\+63 \(63 bytes\)",
    "shift_out_of_range": "shift out of range",
    "uninitialised_output": "read of uninitialised memory .*: global out",
    "uninitialised_shared": r"read of uninitialised memory .*: shared tile\+252",
    "unregistered_memory": "read out of bounds: address 0x.*, which no registered memory is near",
    "write_to_const": "write to read-only memory: global in",
    "write_to_const_of_overlapping": r"write to read-only memory: global all\+8",
}
# Races, barriers and collectives, in ordering.cu.
ORDERING = {
    "atomic_and_plain": "data race on shared bin",
    "atomic_then_read": "data race on shared counter",
    "barrier_in_branch": "(returned while other|after .* threads of the block returned)",
    "deadlock": "deadlock, .*16 from thread 0 on in __syncwarp.*16 on in __syncthreads",
    "divergent_barrier": "divergent barrier: in __syncthreads",
    "divergent_collective": "divergent warp: in __shfl_xor_sync",
    "exit_before_barrier": "(returned while other|after .* threads of the block returned)",
    "exit_before_collective": "(returned while lanes|its mask 0xffffffff names lanes that have)",
    "lane_not_in_its_mask": "__ballot_sync at .*: the lane is not in its own mask 0xffff",
    "last_block_without_ldcg": "data race on global parts.*read at .*write by thread 0 of block",
    "missing_syncthreads": "(uninitialised memory .*:|data race on) shared tile",
    "missing_syncthreads_between_rounds": "data race on shared tile.* against a (read|write) by",
    "missing_syncwarp": "(uninitialised memory .*:|data race on) shared tile",
    "mma_in_half_a_warp": "mma_bf16 at .* in a warp of fewer than 32 threads",
    "overlapping_masks": "(returned while lanes|names lanes that have returned|deadlock)",
    "race_between_blocks": "data race on global out.*write by thread .* of block",
    "race_of_one_byte": r"data race on global out",
    "read_write_race_between_blocks": "data race on global data.* of block",
    "shuffle_outside_mask": "__shfl_xor_sync at .*: lane .* which is outside its mask 0xaaaaaaaa",
    "syncwarp_of_the_other_half": "(uninitialised memory .*:|data race on) shared tile",
    "trap": "__trap",
    "write_write_race": "data race on global out.*write at .* against a write by thread",
}
WITHOUT_LINE = {
    "shared_memory_without_opt_in": "73728 bytes of shared memory with tile, but a launch opts in",
    "shared_memory_past_the_limit": "too much shared memory: 114688 bytes with tile",
}
CORRECT = (
    "atomics",
    "bank_conflicts",
    "block_functions",
    "copy_pipeline",
    "half_conversions",
    "host_threads",
    "last_block_sum",
    "launch_after_an_error",
    "ldmatrix_product",
    "many_launches",
    "mma_bf16_product",
    "mma_f16_product",
    "neighbouring_bytes",
    "overlapping_memory",
    "warp_functions",
)


@pytest.fixture(scope="module")
def program():
    return build.build_program(sorted(KERNELS.glob("*.cu")), [KERNELS / "main.cpp"], "cases")


def run(program, case, order=FORWARD, seed=1, preempt=0):
    command = [program, case, str(order), str(seed), str(preempt)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{case}: {done.stdout}{done.stderr}"
    return done.stdout


def marked_lines(file, case):
    """Where the source says "<- CASE"."""
    lines = []
    for number, line in enumerate((KERNELS / file).read_text().splitlines(), 1):
        mark = re.search(r"// <- (.+)$", line)
        if mark and case in mark[1].split(", "):
            lines.append(f"at tests/simt/kernels/{file}:{number}")
    assert lines, f"{file} marks no line of {case}"
    return lines


def check_planted(program, file, case, wanted, order):
    message = run(program, case, order)
    assert re.match(r"kernel \w+: block \(\d,0,0\)( thread \(\d+,0,0\), warp |: deadlock)", message)
    assert re.search(wanted, message), message
    assert any(re.search(rf"{line}\b", message) for line in marked_lines(file, case)), message


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("case", "wanted"), MEMORY.items(), ids=MEMORY)
def test_planted_access_is_found(program, case, wanted, order):
    check_planted(program, "memory.cu", case, wanted, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("case", "wanted"), ORDERING.items(), ids=ORDERING)
def test_planted_disorder_is_found(program, case, wanted, order):
    check_planted(program, "ordering.cu", case, wanted, order)


@pytest.mark.parametrize(("case", "wanted"), WITHOUT_LINE.items(), ids=WITHOUT_LINE)
def test_too_much_shared_memory_is_found(program, case, wanted):
    assert wanted in run(program, case)


@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernel_passes(program, case):
    for order in ORDERS:
        assert run(program, case, order).endswith("ok\n")


def test_every_case_is_tested(program):
    planted = {*MEMORY, *ORDERING, *WITHOUT_LINE}
    listed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert set(listed) == planted | set(CORRECT)


@pytest.mark.parametrize("preempt", [0, 3])
def test_results_depend_on_no_schedule(program, preempt):
    schedules = [(FORWARD, 1), (REVERSE, 1), *((RANDOM, seed) for seed in range(1, 9))]
    outputs = {run(program, "last_block_sum", *s, preempt) for s in schedules}
    assert len(outputs) == 1, outputs


def test_library_without_kernels_loads():
    # What a program sees through ctypes; the operators have tests of their own.
    path = build.library({})
    library = ctypes.CDLL(str(path))
    assert library.simt_configure(RANDOM, ctypes.c_uint64(2**40), 5) == 0
    assert library.simt_configure(3, ctypes.c_uint64(1), 0) == 1
    fields = (ctypes.c_uint64 * 8)(*[7] * 8)
    assert library.simt_stats(fields, 8) == 8
    assert list(fields) == [0] * 8
    exported = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True)
    names = {line.split()[-1] for line in exported.stdout.splitlines()}
    assert not {name for name in names if name.startswith(("__tsan", "__ubsan"))}, "would be seen"


def test_equal_content_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    source = tmp_path / "empty.cpp"
    source.write_text("int answer() { return 42; }\n")

    def compiled():
        return build.Source(source, build.RUNTIME_FLAGS, [tmp_path]).compile()

    first = compiled()
    made = first.stat().st_mtime_ns
    assert compiled() == first
    assert first.stat().st_mtime_ns == made
    (tmp_path / "new.h").write_text("#define NEW\n")  # a header may change what is compiled
    assert compiled() != first
    assert len(list(first.parent.iterdir())) == 2  # and nothing half made
