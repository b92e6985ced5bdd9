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
    "csrc/include/lpd": [r"lpd/.*\.h", r"cuda_runtime_api\.h"],
    "csrc/cuda": [r"lpd/.*\.h", r"cuda.*\.h", r"cub/.*", r".*\.cuh", r"dispatch\.h"],
    "csrc/cpu": [r"lpd/.*\.h", r"[a-z_0-9]+\.h", r"immintrin\.h"],
    "csrc/host": [r"[a-z_]+\.h"],
    "csrc/torch": [r"torch/csrc/stable/.*", r"torch/headeronly/.*", r"lpd/.*\.h", r"checks\.h"],
}
INCLUDES_OF_FILE = {"csrc/host/module.cpp": [r"pybind11/.*"]}

# Room -> words that give a trespass away.
WORDS = {
    "csrc/include/lpd": [r"\btorch\b", r"\bat::", r"<<<"],
    "csrc/cuda": [r"\btorch\b", r"cudaMalloc", r"cudaDeviceSynchronize", r"curand"],
    "csrc/cpu": [r"\btorch\b", r"\bcuda", r"std::thread", r"omp\.h", r"#pragma omp"],
    "csrc/host": [r"\btorch/", r"\bat::", r"\bcuda_"],
    "csrc/torch": [r"\bATen\b", r"<<<", r"pybind11"],
}

# Python room -> modules of this package it may import.
IMPORTS = {
    "lpd_ext/ops/reference.py": ["lpd_ext.philox"],
    "lpd_ext/ops": ["lpd_ext._binary", "lpd_ext.ops.checks"],
    "lpd_ext/models": ["lpd_ext.models", "lpd_ext.files"],
    "lpd_ext/kernels.py": ["lpd_ext.ops"],
    "lpd_ext/decode_request.py": ["lpd_ext.models"],
    "lpd_ext/decode.py": ["lpd_ext.models", "lpd_ext.kernels", "lpd_ext.decode_request"],
}
ANYTHING_OF_THE_PACKAGE = {"lpd_ext/__init__.py", "lpd_ext/ops/__init__.py"}
THE_BINARY = {"lpd_ext/__init__.py", "lpd_ext/_binary.py", "lpd_ext/schedule.py", "lpd_ext/info.py"}


def cpp_files():
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert files, "the scan found nothing to read"
    return files


def room_of(path: Path, rooms) -> str | None:
    """The most special room that holds a file: itself, or its folder."""
    name = path.relative_to(ROOT).as_posix()
    return max((r for r in rooms if name == r or name.startswith(r + "/")), key=len, default=None)


def std_header(name: str) -> bool:
    return re.fullmatch(r"[a-z_0-9]+", name) is not None


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
        assert not re.search(r"\b_C\b|_binary|torch\.ops\.lpd_ext", text), name
    assert not re.search(r"\bis_cuda\b", text), f"{name}: the dispatcher chooses the device"
    assert not re.search(r"\bbackend\s*=\s*[\"']", text), f"{name}: kernels are a value"


def test_examples_use_public_modules_only():
    for path in (ROOT / "examples").rglob("*.py"):
        assert "lpd_ext._" not in path.read_text(), path


def test_no_file_holds_two_ideas():
    sources = [*cpp_files(), *python_files(), *(ROOT / "tests").glob("*.py")]
    long = {p.name: n for p in sources if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"longer than {MAX_LINES} lines: {long}"


@pytest.mark.parametrize("stem", ["group_attention", "token_selection", "group_order"])
def test_an_op_has_its_stem_in_every_room(stem):
    for place in ("csrc/include/lpd/{}.h", "csrc/cpu/{}.cpp", "csrc/torch/{}.cpp",
                  "lpd_ext/ops/{}.py", "tests/test_{}.py"):  # fmt: skip
        assert (ROOT / place.format(stem)).exists(), place.format(stem)
    assert f"def {stem}(" in (PACKAGE / "ops/reference.py").read_text()
    assert f'"{stem}(' in (ROOT / "csrc/torch/library.cpp").read_text()


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ('#include "torch/torch.h"', True),
        ("#include <vector>", False),
        ("#include <ATen/ATen.h>", True),
        ('#include "lpd/group_order.h"', False),
    ],
)
def test_the_walls_can_be_hit(tmp_path, monkeypatch, text, caught):
    # A check that cannot fail would be worth nothing.
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "csrc/cpu/planted.cpp"
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    if caught:
        with pytest.raises(AssertionError, match="may not"):
            test_cpp_room(path)
    else:
        test_cpp_room(path)
