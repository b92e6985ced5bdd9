import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lpd_ext import _binary

ROOT = Path(__file__).parents[1]
PACKAGE = Path(_binary.__file__).parent
OPS_BINARY = next(PACKAGE.glob("_C*.so"))


def run(cwd, *arguments, **environment):
    command = [sys.executable, *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def assert_one_sentence(message, *words):
    assert message.startswith("lpd_ext: ")
    assert "\n" not in message
    assert "pip install" in message  # what to do
    assert "undefined symbol" not in message
    for word in words:
        assert word in message


def test_a_source_tree_that_was_never_built(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "lpd_ext", ignore=shutil.ignore_patterns("*.so", "weights"))
    result = run(tmp_path, "-c", "import lpd_ext")  # the folder itself comes first
    assert result.returncode == 1
    error, message = result.stderr.strip().splitlines()[-1].split(": ", 1)
    assert error == "ImportError"
    assert_one_sentence(message, "not built")
    assert "During handling" not in result.stderr


def test_missing(tmp_path):
    with pytest.raises(ImportError) as error:
        _binary.load_ops(tmp_path)
    assert_one_sentence(str(error.value), "not built")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no library at all", id="text"),
        pytest.param(OPS_BINARY.read_bytes()[:100], id="truncated"),
    ],
)
def test_garbage(tmp_path, content):
    (tmp_path / "_C.abi3.so").write_bytes(content)
    with pytest.raises(ImportError) as error:
        _binary.load_ops(tmp_path)
    assert_one_sentence(str(error.value), "_C.abi3.so", torch.__version__)
    assert error.value.__suppress_context__


@pytest.mark.parametrize("source", ["void nothing();\nvoid* use = (void*)nothing;", "int x;"])
def test_a_library_of_another_kind(tmp_path, source):
    # Symbols that this torch lacks, or no version of ours.
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    code, library = tmp_path / "x.cpp", tmp_path / "_C.abi3.so"
    code.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, code], check=True)
    with pytest.raises(ImportError) as error:
        _binary.load_ops(tmp_path)
    assert_one_sentence(str(error.value), "do not load with torch")


def test_built_for_another_version(monkeypatch):
    monkeypatch.setattr(_binary, "VERSION", "99.0")
    for load, name in ((_binary.load_ops, "_C"), (_binary.load_host, "_host")):
        with pytest.raises(ImportError) as error:
            load()
        assert_one_sentence(str(error.value), name, "not for 99.0")


def test_build_info():
    info = _binary.host.build_info()
    assert info["version"] == _binary.VERSION
    assert info["torch"].split(".")[0] == "2"
    assert "-ffp-contract=off" in info["flags"]
    assert info["compiler"]
    assert set(info) == {"version", "compiler", "flags", "torch", "cuda"}


def test_operators_know_neither_python_nor_this_machine():
    # One binary for every Python, and no path of the machine that built it.
    assert OPS_BINARY.name == "_C.abi3.so"
    content = OPS_BINARY.read_bytes()
    assert b"PyInit" not in content
    assert str(ROOT).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_cuda_choice_is_checked():
    result = run(ROOT, "setup.py", "--version", LPD_CUDA="yes")
    assert result.returncode != 0
    assert result.stderr.strip().endswith("LPD_CUDA: expected 0, 1 or auto, got 'yes'")


def test_a_cuda_home_without_nvcc_is_no_toolkit(tmp_path):
    result = run(ROOT, "setup.py", "--version", LPD_CUDA="1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert "LPD_CUDA=1, but missing: nvcc" in result.stderr
    result = run(ROOT, "setup.py", "--version", LPD_CUDA="auto", CUDA_HOME=str(tmp_path))
    assert result.returncode == 0


@pytest.mark.skipif(torch.version.cuda is not None, reason="nothing is missing here")
def test_an_nvcc_far_from_its_toolkit_is_asked_for_it(tmp_path):
    # As a script in /usr/local/bin, whose parent folder holds no CUDA.
    script, toolkit = tmp_path / "local/bin/nvcc", tmp_path / "cuda/bin/nvcc"
    for file in (script, toolkit):
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit.parent}/..' >&2\n")
        file.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    wanted = {"LPD_CUDA": "1", "CUDA_HOME": "", "CUDA_PATH": ""}
    result = run(ROOT, "setup.py", "--version", PATH=path, **wanted)
    assert "a CUDA build of torch" in result.stderr
    assert "nvcc" not in result.stderr.rpartition("missing:")[2]
    toolkit.unlink()
    assert "missing: nvcc" in run(ROOT, "setup.py", "--version", PATH=path, **wanted).stderr


def test_a_changed_header_or_version_rebuilds():
    code = """if True:
        import json, runpy, setuptools
        setuptools.setup = lambda ext_modules, **_: print(
            json.dumps({extension.name: extension.depends for extension in ext_modules})
        )
        runpy.run_path("setup.py")
    """
    depends = json.loads(run(ROOT, "-c", code, LPD_CUDA="0").stdout)
    headers = {
        path.relative_to(ROOT).as_posix()
        for suffix in ("h", "inl", "cuh")
        for path in (ROOT / "csrc").rglob(f"*.{suffix}")
    }
    assert len(headers) > 5
    for files in (depends["lpd_ext._C"], depends["lpd_ext._host"]):
        assert set(files) == headers | {"setup.py", "lpd_ext/_binary.py"}


@pytest.mark.skipif(torch.version.cuda is not None, reason="nothing is missing here")
def test_cuda_demanded_without_its_tools():
    result = run(ROOT, "setup.py", "--version", LPD_CUDA="1")
    assert result.returncode != 0
    assert "LPD_CUDA=1, but missing: " in result.stderr
    assert "a CUDA build of torch" in result.stderr
    assert "Traceback" not in result.stderr
