"""Build of the two compiled modules; the metadata stands in pyproject.toml.

``LPD_CUDA=0`` builds for the CPU, ``1`` demands CUDA, ``auto`` (default) takes it where nvcc and a
CUDA build of torch are found. Whether this machine has a GPU plays no part. ``CUDA_HOME`` and
``TORCH_CUDA_ARCH_LIST`` are honoured.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.resolve()
os.chdir(ROOT)  # setuptools takes sources relative to setup.py

# The oldest torch that may load the binary (major 2, minor 11), see torch/csrc/stable/version.h.
TORCH_TARGET_VERSION = "0x020b000000000000"
MIN_PYTHON = "0x030A0000"

# Torch's own default would be the GPU at hand or, without one, all it knows.
CUDA_ARCHITECTURES = "8.0 8.9 9.0a 10.0 12.0+PTX"
NVCC_FLAGS = ["-std=c++20", "-O3"]


def project_version() -> str:
    text = Path("lpd_ext/_binary.py").read_text()
    match = re.search(r'^VERSION = "(.+)"$', text, re.MULTILINE)
    assert match is not None, "lpd_ext/_binary.py defines no VERSION"
    return match.group(1)


def glob(*patterns: str) -> list[str]:
    return sorted(path.as_posix() for pattern in patterns for path in Path().glob(pattern))


def cuda_home() -> str | None:
    """Where nvcc itself says it lives: the nvcc on PATH may be a script far from its toolkit."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    if named or nvcc is None:
        return named or cpp_extension.CUDA_HOME
    command = [nvcc, "--dryrun", "-x", "cu", "-cubin", os.devnull]
    dryrun = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    return os.path.realpath(top.group(1)) if top else cpp_extension.CUDA_HOME


def cuda_wanted() -> bool:
    """Whether there are CUDA kernels to build and the tools to build them."""
    choice = os.environ.get("LPD_CUDA", "auto")
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"setup.py: LPD_CUDA: expected 0, 1 or auto, got {choice!r}")
    missing = []
    home = cpp_extension.CUDA_HOME = cuda_home()  # any folder that the environment names
    if home is None or not Path(home, "bin/nvcc").is_file():
        missing.append("nvcc (set CUDA_HOME to a CUDA toolkit)")
    if torch.version.cuda is None:
        missing.append(f"a CUDA build of torch (found {torch.__version__})")
    if not glob("csrc/cuda/*.cu"):
        missing.append("CUDA kernels (csrc/cuda holds no .cu file)")
    if choice == "1" and missing:
        raise SystemExit(f"setup.py: LPD_CUDA=1, but missing: {'; '.join(missing)}")
    return choice != "0" and not missing


# Besides the sources: what a leftover build/ must be older than to be taken.
DEPENDS = [*glob("csrc/**/*.h", "csrc/**/*.inl", "csrc/**/*.cuh"), "setup.py", "lpd_ext/_binary.py"]
VERSION = project_version()
CUDA = cuda_wanted()
# Multiplications and additions stay as written (no contraction): results are specified bit for bit.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",  # the interpreter's own flags ask for debug information
    "-ffp-contract=off",
    "-fvisibility=hidden",
    f"-ffile-prefix-map={ROOT}=.",
    f"-ffile-prefix-map={sysconfig.get_path('purelib')}=site-packages",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # torch headers
    "-Wno-uninitialized",  # AVX-512 intrinsics of GCC 12
]


def ops_extension() -> Extension:
    """``_C``: the operators, on torch's stable ABI; holds no Python."""
    make = cpp_extension.CUDAExtension if CUDA else cpp_extension.CppExtension
    sources = glob("csrc/torch/*.cpp", "csrc/cpu/*.cpp")
    nvcc_flags = [*NVCC_FLAGS]
    if CUDA:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        sources += glob("csrc/cuda/*.cu")
        nvcc_flags += (f"-Xcompiler={flag}" for flag in CXX_FLAGS if flag.startswith("-f"))
    defines = [
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f"-DPy_LIMITED_API={MIN_PYTHON}",
        f'-DLPD_VERSION="{VERSION}"',
    ]
    if CUDA:
        defines.append("-DUSE_CUDA")
    return make(
        "lpd_ext._C",
        sources,
        depends=DEPENDS,
        include_dirs=[str(ROOT / "csrc/include")],
        extra_compile_args={"cxx": CXX_FLAGS + defines, "nvcc": nvcc_flags},
        py_limited_api=True,
    )


def host_extension() -> Extension:
    """``_host``: schedule tables and build info, plain C++ behind pybind11."""
    build_info = {
        "LPD_VERSION": VERSION,
        "LPD_TORCH_VERSION": torch.__version__,
        "LPD_CUDA_VERSION": torch.version.cuda if CUDA else "",
        "LPD_CXX_FLAGS": " ".join(flag for flag in CXX_FLAGS if "-prefix-map" not in flag),
    }
    return Extension(
        "lpd_ext._host",
        glob("csrc/host/*.cpp"),
        depends=DEPENDS,
        include_dirs=[pybind11.get_include()],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *(f'-D{name}="{value}"' for name, value in build_info.items())]
        },
        language="c++",
    )


setup(
    ext_modules=[ops_extension(), host_extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
