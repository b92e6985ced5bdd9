"""Static checks of the CUDA kernels: what the compiler made of them, on a machine without a GPU."""

import json
import re

import cuda_static
import pytest

pytestmark = pytest.mark.skipif(cuda_static.nvcc_version() is None, reason="nvcc is missing")

# Opcodes as regular expressions, matched from their beginning.
LOCAL_MEMORY = ["LDL", "STL"]
FLOAT_ATOMICS = [r"(RED|ATOM)[GS]?\b.*\.F(16|32|64)", r"(RED|ATOM)[GS]?\b.*\.BF16"]  # order varies
DOUBLE = ["DADD", "DMUL", "DFMA"]  # a literal without its f, mostly
WIDE_ATOMICS = [r"ATOMS\b.*\.(64|U64)\b"]  # of shared memory: a loop of compare and swap
NEVER = LOCAL_MEMORY + FLOAT_ATOMICS + WIDE_ATOMICS + DOUBLE

# Kernel (regular expression) -> what it may have all the same.
ALLOWED = {
    r"\w+_attention_simple_kernel<.*>": ["DADD"],  # the sum of a row's weights, rounded once
    r"token_selection_kernel<.*>": ["DMUL"],  # uniform and top_p times a mass, as specified
}

# Kernel (regular expression) -> opcodes that must be there.
EXPECTED = {
    r"\w+_attention_simple_kernel<.*>": [
        r"LDG\.E\.(64|128)\b",  # rows of keys and values come in vectors
        r"LDS\.128\b",
        r"MUFU\.EX2\b",
        r"FFMA\b",
    ],
    r"\w+_attention_mma_kernel<.*>": [
        r"HMMA\.16816\.F32",
        r"LDSM\.16\.M88\.4\b",
        r"LDSM\.16\.MT88\.4\b",
        r"LDGSTS\.E\..*128\b",  # cp.async
        r"MUFU\.EX2\b",
    ],
    # Not of head_dim 128 for masked_attention: until sm_90 ptxas stores its rows in words.
    r"group_attention_mma_kernel<.*>|masked_attention_mma_kernel<\w+, \d\d>": [r"STG\.E\.128\b"],
    r"masked_attention_pack_kernel": [r"LDG\.E\.U8\b", r"VOTE\b", r"STG\.E\.64\b"],
    r"group_attention_merge_kernel<.*>": [r"LDG\.E\.128\b", r"STG\.E\.128\b"],
    r"token_selection_kernel<.*>": [
        r"LDG\.E\.128\b",
        r"LDGSTS\.E\b",  # what is asked of the row
        r"F2I\.U64\b",
        r"ATOMS\.ADD\b",
        r"C?REDUX\b",
    ],
    r"group_order_kernel<\d+>": [
        r"C?REDUX\.MIN\b",  # a pick: no shuffles
        r"LDC\.U16\b",  # places of scores: parameters that are looked up, and not copied
        r"IMAD\.WIDE\.U32\b",  # Philox
    ],
    r"group_order_kernel<(4|16)>": [r"STS\.128\b", r"LDS\.128\b", r"BAR\.SYNC\b"],
    r"(add_layer_norm|group_embedding)_kernel<.*>": [
        r"LDG\.E\.128\b",
        r"STG\.E\.128\b",
        r"SHFL\.BFLY\b",
        r"MUFU\.RSQ\b",
    ],
    r"bias_gelu_kernel<.*>": [r"LDG\.E\.128\b", r"STG\.E\.128\b", r"MUFU\.EX2\b"],
    r"group_norm_silu_(statistics|apply)_kernel<.*>": [r"LDG\.E\.128\b", r"BAR\.SYNC\b"],
    r"group_norm_silu_apply_kernel<.*>": [
        r"STG\.E\.128\b",
        r"MUFU\.RSQ\b",
        r"MUFU\.EX2\b",
        r"MUFU\.RCP\b",
    ],
    r"linear_gelu_kernel<.*>": [r"STG\.E\.128\b", r"MUFU\.EX2\b"],
}


@pytest.fixture(scope="module")
def cubins():
    """All kernels, compiled or from the cache."""
    return cuda_static.compile_all()


# Kernel -> an opcode of its main loop, and what else must be in that loop.
HOT_LOOPS = {
    r"group_attention_mma_kernel<.*>": ("HMMA", [r"LDSM\.", r"LDGSTS\.", r"LDGDEPBAR\b"]),
    r"linear_gelu_kernel<.*>": ("HMMA", [r"LDSM\.", r"LDGSTS\.", r"LDGDEPBAR\b"]),
}


@pytest.fixture(scope="module")
def code(cubins):
    """(architecture, kernel) -> its instructions."""
    if cuda_static.disassembler() is None:
        pytest.skip("cuobjdump and nvdisasm are missing: pip install 'lpd_ext[sass]'")
    return {
        (cubin.architecture, kernel): instructions
        for cubin in cubins
        for kernel, instructions in cuda_static.instructions(cubin).items()
    }


@pytest.fixture(scope="module")
def opcodes(code):
    """(architecture, kernel) -> opcodes."""
    return {key: cuda_static.opcodes(instructions) for key, instructions in code.items()}


def of_kernel(table, kernel):
    """All patterns that a table has for a kernel."""
    return [p for name, patterns in table.items() if re.fullmatch(name, kernel) for p in patterns]


def matching(patterns, codes):
    return {p: [code for code in codes if re.match(p, code)] for p in patterns}


def test_every_source_holds_kernels_for_every_architecture(cubins):
    made = {(cubin.source, cubin.architecture) for cubin in cubins if cubin.kernels}
    named = {s.name for s in cuda_static.sources() if "__global__" in s.read_text()}
    assert named, "the scan found nothing to compile"
    assert made == {(name, arch) for name in named for arch in cuda_static.ARCHITECTURES}


def test_no_local_memory(cubins):
    assert not [
        (cubin.architecture, kernel, used)
        for cubin in cubins
        for kernel, used in cubin.kernels.items()
        if used.stack_bytes or used.spill_bytes
    ]


def test_resources_are_those_of_the_table(cubins):
    table = json.loads(cuda_static.TABLE.read_text())
    if table["nvcc"] != cuda_static.nvcc_version():
        pytest.skip(f"the table is of nvcc {table['nvcc']}, this is {cuda_static.nvcc_version()}")
    expected = {
        kernel: {name: row[name] for name in cuda_static.ARCHITECTURES}
        for kernel, row in table["kernels"].items()
    }
    measured = cuda_static.resource_table(cubins)
    assert measured == expected, "if wanted: python tests/cuda_static.py"


def test_instructions_that_no_kernel_may_have(opcodes):
    for (architecture, kernel), codes in opcodes.items():
        never = [p for p in NEVER if p not in of_kernel(ALLOWED, kernel)]
        hits = [code for found in matching(never, codes).values() for code in found]
        assert not hits, f"{architecture} {kernel}: {hits}"


def test_instructions_that_a_kernel_must_have(opcodes):
    for (architecture, kernel), codes in opcodes.items():
        wanted = of_kernel(EXPECTED, kernel)
        assert wanted, f"no expectation of {kernel}"
        missing = [p for p, hits in matching(wanted, codes).items() if not hits]
        assert not missing, f"{architecture} {kernel}: no {missing} in {codes}"


def test_nothing_is_contracted_in_specified_arithmetic(cubins, monkeypatch):
    # Ids are the same on every device as long as nvcc fuses no product and sum of its own accord.
    if cuda_static.disassembler() is None:
        pytest.skip("cuobjdump and nvdisasm are missing: pip install 'lpd_ext[sass]'")
    (fused,) = (c for c in cubins if (c.source, c.architecture) == ("token_selection.cu", "sm_90a"))
    flags = [*cuda_static.nvcc_flags(), "-fmad=false"]
    folder = cuda_static.CACHE / "unfused"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(cuda_static, "nvcc_flags", lambda: flags)
    monkeypatch.setattr(cuda_static, "CACHE", folder)
    (source,) = (s for s in cuda_static.sources() if s.name == fused.source)
    unfused = cuda_static.compile_one(source, fused.architecture)
    assert cuda_static.instructions(unfused) == cuda_static.instructions(fused)


def test_instructions_of_the_hot_loop(code):
    seen = set()
    for (architecture, kernel), instructions in code.items():
        for name, (anchor, wanted) in HOT_LOOPS.items():
            if not re.fullmatch(name, kernel):
                continue
            seen.add(name)
            loop = cuda_static.loop_around(instructions, anchor)
            missing = [p for p, hits in matching(wanted, loop).items() if not hits]
            assert not missing, f"{architecture} {kernel}: no {missing} around {anchor}: {loop}"
    assert seen == set(HOT_LOOPS)


def test_a_loop_is_found():
    code = [[0, "S2R", None], [16, "LDSM.4", None], [32, "HMMA", None], [48, "BRA", 16],
            [64, "LDG", None], [80, "BRA", 0], [96, "HMMA", None]]  # fmt: skip
    assert cuda_static.loop_around(code, "HMMA") == ["BRA", "HMMA", "LDSM.4"]
    assert cuda_static.loop_around(code, "LDG") == ["BRA", "HMMA", "LDG", "LDSM.4", "S2R"]
    assert cuda_static.loop_around(code, "FFMA") == []


PLANTED = """
namespace lpd::cuda {
namespace {
template <typename T, int kSize>
__global__ void planted(T* out, const int* place) {
  T local[kSize];
  for (int i = 0; i < kSize; ++i) local[i] = out[i];
  local[place[0]] = T(1);
  atomicAdd(out, local[place[1]] * local[place[2]]);
}
}  // namespace
template <typename T> void run(T* out, const int* place) { planted<T, 40><<<1, 1>>>(out, place); }
template void run(float*, const int*);
template void run(double*, const int*);
}  // namespace lpd::cuda
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A kernel with all that is forbidden."""
    monkeypatch.setattr(cuda_static, "CACHE", tmp_path)
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED)
    return cuda_static.compile_one(source, "sm_80")


def test_a_planted_kernel_is_seen(planted):
    assert list(planted.kernels) == ["planted<double, 40>", "planted<float, 40>"]
    for used in planted.kernels.values():
        assert used.stack_bytes >= 160
    with pytest.raises(AssertionError):
        test_no_local_memory([planted])


def test_planted_instructions_are_seen(planted):
    if cuda_static.disassembler() is None:
        pytest.skip("cuobjdump and nvdisasm are missing: pip install 'lpd_ext[sass]'")
    code = cuda_static.instructions(planted)
    hits = matching(NEVER, [opcode for body in code.values() for _, opcode, _ in body])
    assert all(hits[p] for p in (*LOCAL_MEMORY, FLOAT_ATOMICS[0], "DMUL"))


def test_a_warning_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_static, "CACHE", tmp_path)
    source = tmp_path / "warns.cu"
    source.write_text("__global__ void warns(int* out) { int unused; *out = 0; }")
    with pytest.raises(RuntimeError, match="unused"):
        cuda_static.compile_one(source, "sm_80")


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void lpd::cuda::(anonymous namespace)::k<__half, 128>(T1 const*, int)", "k<__half, 128>"),
        ("void a::k<a::Tile<float, (int)64>, (bool)1>(a::P)", "k<Tile<float, 64>, 1>"),
        ("a::plain(int*)", "plain"),
    ],
)
def test_names_are_short(signature, name):
    assert cuda_static.shorten(signature) == name
