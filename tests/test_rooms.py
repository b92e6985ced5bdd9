"""The walls of the house: what each folder may include, import or say.

The table in CONTRIBUTING.md ("The house") in executable form.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lpd_ext"
MAX_LINES = 450

# Room -> patterns of includes that may stand there (beside the C++ standard library).
INCLUDES = {
    "csrc/include/lpd": [r"lpd/.*\.h"],
    "csrc/cuda": [
        r"lpd/.*\.h",
        r"cuda.*\.h",
        r"cub/.*",
        r".*\.cuh",
        r"dispatch\.h",
        r".*_(division|kernels)\.h",
    ],
    "csrc/cpu": [
        r"lpd/.*\.h",
        r"(half|target|vector_.*|group_order_.*|fused_linear_.*|token_selection_.*)\.h",
        r".*\.inl",
        r"immintrin\.h",
    ],
    "csrc/host": [r"build_info\.h", r"schedule\.h"],
    "csrc/torch": [
        r"torch/(csrc/stable|headeronly)/.*",
        r"lpd/.*\.h",
        r"(attention|checks|cuda_.*|library|workspace)\.h",
    ],
}
INCLUDES_OF_FILE = {
    "csrc/cuda/primitives.cuh": [r"simt/cuda\.h"],  # in place of CUDA, to run without a GPU
    "csrc/host/module.cpp": [r"pybind11/.*"],
    "csrc/include/lpd/cuda_runtime.h": [r"cuda_runtime_api\.h", r"simt/cuda\.h"],
    "csrc/torch/cuda_launch.h": [
        r"simt/runtime\.h",
        r"torch/csrc/inductor/aoti_torch/c/shim\.h",  # the stable C interface: a stream
    ],
    "csrc/cpu/variant.cpp": [r"cpuid\.h", r"sys/syscall\.h", r"unistd\.h"],
}

# Standard headers that bring threads: a CPU kernel takes a range, the binding has torch's pool.
THREADS = {"thread", "mutex", "shared_mutex", "future", "condition_variable", "execution"}

# Room -> words that give a trespass away.
WORDS = {
    "csrc/include/lpd": [r"\btorch\b", r"\bat::", r"<<<"],
    "csrc/cuda": [r"\btorch\b", r"cudaMalloc", r"cudaDeviceSynchronize", r"curand"],
    "csrc/cpu": [r"\btorch\b", r"\bcuda", r"#pragma omp"],
    "csrc/host": [r"\btorch/", r"\bat::", r"\bcuda_"],
    "csrc/torch": [r"\bATen\b", r"<<<", r"pybind11"],
}

# Python room -> modules of this package it may import.
IMPORTS = {
    "lpd_ext/ops/reference.py": ["lpd_ext.philox"],
    "lpd_ext/ops": [
        "lpd_ext._binary",
        "lpd_ext.checks",
        "lpd_ext.ops.huge_pages",
        "lpd_ext.ops.launch",
    ],
    "lpd_ext/checks.py": [],
    "lpd_ext/cpu_variant.py": ["lpd_ext._binary", "lpd_ext.checks"],
    "lpd_ext/cuda_variant.py": ["lpd_ext._binary", "lpd_ext.checks"],
    "lpd_ext/models": ["lpd_ext.models", "lpd_ext.checks", "lpd_ext.files"],
    "lpd_ext/self_check.py": ["lpd_ext.ops"],
    "lpd_ext/verdicts.py": ["lpd_ext._binary", "lpd_ext.files", "lpd_ext.self_check"],
    "lpd_ext/kernels.py": ["lpd_ext.ops", "lpd_ext.verdicts"],
    "lpd_ext/arrays.py": ["lpd_ext.checks"],
    "lpd_ext/orders.py": ["lpd_ext.ops", "lpd_ext.checks", "lpd_ext.philox"],
    "lpd_ext/philox.py": [],
    "lpd_ext/files.py": [],
    "lpd_ext/render.py": [],
    "lpd_ext/pretrained.py": ["lpd_ext.models", "lpd_ext.settings"],
    "lpd_ext/convert.py": [
        "lpd_ext.models",
        "lpd_ext.checks",
        "lpd_ext.files",
        "lpd_ext.pretrained",
        "lpd_ext.settings",
    ],
    "lpd_ext/class_names.py": ["lpd_ext.models", "lpd_ext.checks"],
    "lpd_ext/settings.py": ["lpd_ext.checks", "lpd_ext.orders", "lpd_ext.decode_request"],
    "lpd_ext/decode_request.py": ["lpd_ext.models", "lpd_ext.checks"],
    "lpd_ext/plain_linear.py": ["lpd_ext.ops", "lpd_ext.checks"],
    "lpd_ext/packed_model.py": [
        "lpd_ext.models",
        "lpd_ext.ops",
        "lpd_ext.checks",
        "lpd_ext.plain_linear",
        "lpd_ext.stream_order",
        "lpd_ext.watched_weights",
    ],
    "lpd_ext/forward_pass.py": [
        "lpd_ext.ops",
        "lpd_ext.packed_model",
        "lpd_ext.plain_linear",
        "lpd_ext.plan_buffers",
    ],
    "lpd_ext/cuda_graph.py": [],
    "lpd_ext/cuda_precision.py": [],
    "lpd_ext/stream_order.py": [],
    "lpd_ext/watched_weights.py": ["lpd_ext.checks"],
    "lpd_ext/image_plan.py": [
        "lpd_ext.models",
        "lpd_ext.ops",
        "lpd_ext.checks",
        "lpd_ext.cuda_graph",
        "lpd_ext.cuda_precision",
        "lpd_ext.stream_order",
        "lpd_ext.verdicts",
        "lpd_ext.watched_weights",
    ],
    "lpd_ext/plan_buffers.py": ["lpd_ext.models", "lpd_ext.checks", "lpd_ext.packed_model"],
    "lpd_ext/plan.py": [
        "lpd_ext.models",
        "lpd_ext.ops",
        "lpd_ext.checks",
        "lpd_ext.cuda_graph",
        "lpd_ext.cuda_precision",
        "lpd_ext.decode",
        "lpd_ext.decode_request",
        "lpd_ext.forward_pass",
        "lpd_ext.packed_model",
        "lpd_ext.plan_buffers",
        "lpd_ext.verdicts",
    ],
    "lpd_ext/plan_cache.py": [
        "lpd_ext.models",
        "lpd_ext.checks",
        "lpd_ext.packed_model",
        "lpd_ext.plan",
        "lpd_ext.plan_buffers",
    ],
    "lpd_ext/accelerate.py": [
        "lpd_ext.models",
        "lpd_ext.ops",
        "lpd_ext.checks",
        "lpd_ext.plan",
        "lpd_ext.plan_cache",
    ],
    "lpd_ext/decode.py": ["lpd_ext.models", "lpd_ext.kernels", "lpd_ext.decode_request"],
}
ANYTHING_OF_THE_PACKAGE = {"lpd_ext/__init__.py", "lpd_ext/ops/__init__.py"}
THE_BINARY = {
    *("lpd_ext/__init__.py", "lpd_ext/_binary.py", "lpd_ext/schedule.py", "lpd_ext/info.py"),
    *("lpd_ext/cpu_variant.py", "lpd_ext/cuda_variant.py", "lpd_ext/verdicts.py"),
}


def cpp_files():
    files = [
        p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".inl", ".cpp", ".cu", ".cuh"}
    ]
    assert files, "the scan found nothing to read"
    return files


def room_of(path: Path, rooms) -> str | None:
    """The most special room that holds a file: itself, or its folder."""
    name = path.relative_to(ROOT).as_posix()
    return max((r for r in rooms if name == r or name.startswith(r + "/")), key=len, default=None)


def std_header(name: str) -> bool:
    return re.fullmatch(r"[a-z_0-9]+", name) is not None and name not in THREADS


@pytest.mark.parametrize("path", cpp_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_cpp_room(path):
    room = room_of(path, INCLUDES)
    assert room, f"{path} stands in no room"
    text = path.read_text()
    allowed = INCLUDES[room] + INCLUDES_OF_FILE.get(path.relative_to(ROOT).as_posix(), [])
    for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE):
        known = std_header(header) or any(re.fullmatch(pattern, header) for pattern in allowed)
        assert known, f"{room} may not include {header}"
    code = re.sub(r"//.*", "", text)
    code = re.sub(r"^\s*#\s*include.*$", "", code, flags=re.MULTILINE)
    for word in WORDS[room]:
        assert not re.search(word, code), f"{room} may not say {word}"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def python_files():
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, "the scan found nothing to read"
    return files


@pytest.mark.parametrize("path", python_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_room(path):
    name = path.relative_to(ROOT).as_posix()
    own = {i for i in imports_of(path) if i.split(".")[0] == "lpd_ext"}
    room = room_of(path, IMPORTS)
    if room and name not in ANYTHING_OF_THE_PACKAGE:
        stray = {i for i in own if not any(f"{i}.".startswith(f"{m}.") for m in IMPORTS[room])}
        assert not stray, f"{name} may not import {stray}"
    text = path.read_text()
    if room != "lpd_ext/ops" and name not in THE_BINARY:
        named = re.search(r"(?<!torch\.)\b_C\b|_binary|torch\.ops\.lpd_ext", text)
        assert not named, f"{name} names the binary"
    chooses = re.search(r"\bis_cuda\b|device\.type\s*[!=]=", text)
    assert not chooses, f"{name}: the dispatcher chooses the device"
    assert not re.search(r"\bbackend\s*=\s*[\"']", text), f"{name}: kernels are a value"


@pytest.mark.parametrize("folder", ["examples", "benchmarks"])
def test_outer_rooms_use_public_modules_only(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, "the scan found nothing to read"
    for path in files:
        private = {i for i in imports_of(path) if i.startswith("lpd_ext.") and "._" in i}
        tests = {i for i in imports_of(path) if i.split(".")[0] in {"tests", "conftest", "cases"}}
        assert not private | tests, f"{path} may not import {private | tests}"


def test_no_file_holds_two_ideas():
    sources = [*cpp_files(), *python_files(), *(ROOT / "tests").glob("*.py")]
    long = {p.name: n for p in sources if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"longer than {MAX_LINES} lines: {long}"


@pytest.mark.parametrize(
    "stem",
    [
        "group_attention",
        "masked_attention",
        "token_selection",
        "group_order",
        "fused_linear",
        "group_embedding",
        "add_layer_norm",
        "bias_gelu",
        "linear_gelu",
        "group_norm_silu",
    ],
)
def test_an_op_has_its_stem_in_every_room(stem):
    for place in ("csrc/include/lpd/{}.h", "csrc/cpu/{}.cpp", "csrc/torch/{}.cpp",
                  "lpd_ext/ops/{}.py", "tests/test_{}.py"):  # fmt: skip
        assert (ROOT / place.format(stem)).exists(), place.format(stem)
    assert f"def {stem}(" in (PACKAGE / "ops/reference.py").read_text()
    assert f'"{stem}(' in (ROOT / "csrc/torch/library.cpp").read_text()


PLANTED = [  # file, text, the wall it hits (none: it may stand there)
    ("csrc/cpu/planted.cpp", '#include "torch/torch.h"', "include"),
    ("csrc/cpu/planted.cpp", "#include <ATen/ATen.h>", "include"),
    ("csrc/cpu/planted.cpp", "#include <thread>", "include"),
    ("csrc/cpu/planted.cpp", "#include <omp.h>", "include"),
    ("csrc/cpu/planted.cpp", "cudaStream_t stream;", "say"),
    ("csrc/cpu/planted.cpp", "#include <vector>", None),
    ("csrc/cpu/planted.cpp", '#include "vector_math.inl"', None),
    ("csrc/cpu/planted.cpp", '#include "lpd/group_order.h"  // not torch', None),
    ("csrc/host/planted.cpp", "#include <pybind11/pybind11.h>", "include"),
    ("csrc/host/module.cpp", "#include <pybind11/pybind11.h>", None),
    ("csrc/torch/planted.cpp", "#include <ATen/Tensor.h>", "include"),
    ("csrc/torch/planted.cpp", "kernel<<<1, 1>>>();", "say"),
    ("csrc/include/lpd/planted.h", "torch::Tensor tensor;", "say"),
    ("csrc/cuda/planted.cu", '#include "primitives.cuh"', None),
    ("csrc/cuda/planted.cu", '#include "simt/cuda.h"', "include"),
    ("csrc/cuda/planted.cu", '#include "simt/runtime.h"', "include"),
    ("csrc/cuda/primitives.cuh", '#include "simt/cuda.h"', None),
    ("csrc/cuda/primitives.cuh", '#include "simt/runtime.h"', "include"),
    ("csrc/cuda/planted.cu", "cudaMalloc(&pointer, bytes);", "say"),
    ("lpd_ext/ops/planted.py", "from lpd_ext.models.lpd import LPD", "import"),
    ("lpd_ext/ops/reference.py", "from lpd_ext import _binary", "import"),
    ("lpd_ext/models/planted.py", "from lpd_ext.ops import group_attention", "import"),
    ("lpd_ext/models/planted.py", "import torch", None),
    ("lpd_ext/decode.py", "y = torch.ops.lpd_ext.group_attention", "binary"),
    ("lpd_ext/decode.py", "y = lpd_ext._C", "binary"),
    ("lpd_ext/decode.py", "y = torch._C", None),
    ("lpd_ext/decode.py", 'if x.device.type == "cuda": pass', "device"),
]


@pytest.mark.parametrize(("name", "text", "wall"), PLANTED)
def test_the_walls_can_be_hit(tmp_path, monkeypatch, name, text, wall):
    # A check that cannot fail would be worth nothing.
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    check = test_python_room if path.suffix == ".py" else test_cpp_room
    if wall is None:
        check(path)
    else:
        with pytest.raises(AssertionError, match=wall):
            check(path)
