"""Builds kernels for the SIMT runtime, with g++ alone.

``build()`` makes the shared library that runs the project's CUDA kernels as operators of
``lpd_ext_simt``; ``build_program()`` a program of other kernels. Both keep what they compiled in
``build/simt`` under the hash of all that went into it, so that nothing is compiled twice, whatever
the number of processes that ask at once.
"""

import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SIMT = ROOT / "tests/simt"
BUILD = ROOT / "build/simt"
JOBS = 2

COMMON_FLAGS = [
    "-std=c++20",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    f"-fdebug-prefix-map={ROOT}=",  # errors name files from the root on
    "-Wall",
    "-DSIMT_EMULATE",
    "-Itests/simt/include",
]
RUNTIME_FLAGS = [*COMMON_FLAGS, "-O2", "-Wextra"]
# The instrumentation without its libraries: the runtime has functions of the same names.
KERNEL_FLAGS = [
    *COMMON_FLAGS,
    "-O1",
    "-fsanitize=thread,alignment,bounds,shift,integer-divide-by-zero",
    "--param=tsan-distinguish-volatile=1",
    "--param=tsan-instrument-func-entry-exit=0",
    "-Wno-unknown-pragmas",  # unroll
]


def compiler() -> list[str]:
    """The command of the compiler."""
    return shlex.split(os.environ.get("CXX", "g++"))


def run(command: list[str]) -> str:
    """Output of a command; its errors, if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def digest(*parts: object) -> str:
    """Hash of texts and, for paths, of what they hold."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
        state.update(b"\0")
    return state.hexdigest()[:20]


def once(target: Path, command: list[str]) -> Path:
    """``target``, made by ``command -o target`` unless it is there.

    Whoever comes second replaces a file by its like, in one step.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder, target.name)
            run([*command, "-o", str(output)])
            output.replace(target)
    return target


def named(path: Path) -> str:
    """Return the name of a file from the root on, if it is there: the same in every checkout."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@functools.cache
def compiler_version() -> str:
    """Return what the compiler says of itself."""
    return run([*compiler(), "--version"])


def headers(*folders: Path) -> list[Path]:
    """Whatever a source may include from these folders."""
    found = (path for folder in folders for path in folder.rglob("*"))
    return sorted(path for path in found if path.suffix in {".h", ".cuh", ".inl"})


class Source:
    """A file to compile.

    Parameters
    ----------
    path
        The source.
    flags
        Of the compiler.
    folders
        Where its headers are; also looked through for them.
    parts
        Further sources, compiled as if ``path`` included them.
    version
        Of what else it depends on.
    """

    def __init__(
        self,
        path: Path,
        flags: list[str],
        folders: list[Path],
        *,
        parts: list[Path] | None = None,
        version: str = "",
    ):
        parts = parts or []
        includes = [f"-I{named(folder)}" for folder in folders]
        includes += [flag for part in parts for flag in ("-include", named(part))]
        self.command = [*compiler(), *flags, *includes, "-x", "c++", "-c", named(path)]
        files = [path, *parts, *headers(SIMT / "include", *folders)]
        contents = [item for file in files for item in (named(file), file)]
        self.key = digest(version, compiler_version(), *self.command, *contents)
        self.object = BUILD / "objects" / f"{path.stem}_{self.key}.o"

    def compile(self) -> Path:
        """Path of the object."""
        return once(self.object, self.command)


def runtime() -> Source:
    """Return the runtime, never instrumented, in one piece: each of its files takes a second."""
    first, *others = sorted(SIMT.glob("src/*.cpp"))
    return Source(first, RUNTIME_FLAGS, [SIMT / "src"], parts=others)


def kernel(path: Path, folders: list[Path]) -> Source:
    """A file of kernels and their launchers: instrumented."""
    return Source(path, KERNEL_FLAGS, folders)


def link(sources: list[Source], stem: str, suffix: str, flags: list[str]) -> Path:
    """Compile what is new and link all."""
    target = BUILD / f"{stem}_{digest(*flags, *(s.key for s in sources))}{suffix}"
    if target.exists():
        return target
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda source: source.compile(), sources))
    return once(target, [*compiler(), *map(str, objects), *flags])


def build_program(kernels: list[Path], sources: list[Path], name: str) -> Path:
    """Program of instrumented ``kernels`` and plain C++ ``sources`` over the runtime."""
    folders = [ROOT / "csrc/cuda", ROOT / "csrc/include", *{p.parent for p in kernels}]
    parts = [kernel(path, folders) for path in kernels]
    parts += [Source(path, RUNTIME_FLAGS, folders) for path in sources]
    return link([*parts, runtime()], name, "", ["-ldl", "-pthread"])


def bindings(
    stems: list[str], flags: list[str], folders: list[Path]
) -> tuple[list[Source], list[str]]:
    """Sources that register the operators, and the flags that link them with torch.

    Parameters
    ----------
    stems
        Of the operators.
    flags, folders
        With which they are compiled, and where else their headers are.
    """
    import torch
    from torch.utils import cpp_extension

    setup = (ROOT / "setup.py").read_text()
    target = re.search(r'^TORCH_TARGET_VERSION = "(.+)"$', setup, re.MULTILINE)
    version = re.search(
        r'^VERSION = "(.+)"$', (ROOT / "lpd_ext/_binary.py").read_text(), re.MULTILINE
    )
    assert target
    assert version
    flags = [
        *(flag for flag in flags if flag != "-Wextra"),  # torch's headers
        f"-DTORCH_TARGET_VERSION={target[1]}",
        f'-DLPD_VERSION="{version[1]}"',
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
    ]
    folders = [*folders, ROOT / "csrc/include", ROOT / "csrc/torch"]
    sources = [
        Source(ROOT / f"csrc/torch/{stem}.cpp", flags, folders, version=torch.__version__)
        for stem in ["library", "cuda_variant", *stems]
    ]
    libraries = cpp_extension.library_paths()
    link_flags = [f"-L{path}" for path in libraries] + [f"-Wl,-rpath,{path}" for path in libraries]
    return sources, [*link_flags, "-ltorch_cpu", "-ltorch", "-lc10"]


def build() -> Path:
    """Shared library of the kernels in ``csrc/cuda``, those in the folder ``LPD_SIMT_CUDA`` first.

    A kernel there takes the place of one of the same name; what it includes is looked for there
    first, then in ``csrc/cuda``.
    """
    folder = ROOT / "csrc/cuda"
    kernels = {
        path.name: kernel(path, [folder, ROOT / "csrc/include"]) for path in cu_files(folder)
    }
    if instead := os.environ.get("LPD_SIMT_CUDA"):
        folders = [Path(instead).resolve(), folder, ROOT / "csrc/include"]
        kernels |= {path.name: kernel(path, folders) for path in cu_files(folders[0])}
    return library(kernels)


def cu_files(folder: Path) -> list[Path]:
    """Return the kernels of a folder."""
    return sorted(folder.glob("*.cu"))


def library(kernels: dict[str, Source]) -> Path:
    """Shared library of kernels by file name; without any it holds the runtime alone.

    With ``<stem>.cu`` comes ``csrc/torch/<stem>.cpp``, if there is one, its binding.
    """
    sources = [runtime(), *kernels.values()]
    flags = ["-shared", "-ldl", "-pthread"]
    if kernels:
        stems = [Path(name).stem for name in kernels]
        bound = [stem for stem in stems if (ROOT / f"csrc/torch/{stem}.cpp").exists()]
        registered, torch_flags = bindings(bound, RUNTIME_FLAGS, [])
        sources += registered
        flags += torch_flags
    return link(sources, "lpd_simt", ".so", flags)


if __name__ == "__main__":
    print(build())
