"""What nvcc makes of the kernels, read without a GPU: resources from ptxas, instructions from SASS.

    python tests/cuda_static.py     # rewrites tests/cuda_resources.json; read the diff

Every ``csrc/cuda/*.cu`` is compiled for every architecture with the flags of setup.py, the device
half alone. Results stay in build/cuda_static under a hash of all they depend on.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests/cuda_resources.json"
CACHE = ROOT / "build/cuda_static"
# Continuous integration asks for some of them, for time.
ARCHITECTURES = tuple(
    os.environ.get("LPD_STATIC_ARCHITECTURES", "sm_80 sm_89 sm_90a sm_100 sm_120").split()
)
INTERPRETED = "sm_90a"  # compiled with its host code: tests/ptx runs both
TORCH_FLAGS = [  # what torch.utils.cpp_extension puts before our flags
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
]
JOBS = 2  # nvcc takes a core and up to a GiB each


@dataclass(frozen=True)
class Resources:
    """What one kernel takes, by ptxas; dynamic shared memory is not in it."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Cubin:
    """One source compiled for one architecture."""

    source: str
    architecture: str
    path: Path
    kernels: dict[str, Resources]

    @property
    def ptx(self):
        """What ptxas made it of; kept for INTERPRETED only."""
        return self.path.with_suffix(".ptx")

    @property
    def host_object(self):
        """The host code that launches its kernels; for INTERPRETED only."""
        return self.path.with_suffix(".o")


def sources():
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


@cache
def nvcc_version():
    """The compiler's version, or None without one."""
    if shutil.which("nvcc") is None:
        return None
    return re.search(r"\bV([\d.]+)", _output("nvcc", "--version")).group(1)


@cache
def nvcc_flags():
    """The flags of the real build, by reading setup.py: running it takes a CUDA torch."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NVCC_FLAGS":
            return TORCH_FLAGS + ast.literal_eval(node.value)
    raise LookupError("setup.py defines no NVCC_FLAGS")


def compile_all():
    """Every source for every architecture; a compiler's complaint is a RuntimeError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tasks = [(source, architecture) for source in sources() for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda task: compile_one(*task), tasks))


def compile_one(source, architecture):
    """Return a Cubin, from the cache where nothing changed."""
    stem = CACHE / f"{source.stem}.{architecture}.{key(source, architecture)}"
    cubin, log = stem.with_suffix(stem.suffix + ".cubin"), stem.with_suffix(stem.suffix + ".log")
    if not log.exists():
        for stale in CACHE.glob(f"{source.stem}.{architecture}.*"):
            stale.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            log_text = _compile(source, architecture, Path(folder))
            for made in (cubin, cubin.with_suffix(".ptx"), cubin.with_suffix(".o")):
                fresh = Path(folder, source.stem + made.suffix)
                if fresh.exists():
                    fresh.replace(made)
            fresh = Path(folder, "log")
            fresh.write_text(log_text)
            fresh.replace(log)  # last: its presence vouches for the others
    return Cubin(source.name, architecture, cubin, parse_ptxas(log.read_text()))


def _compile(source, architecture, folder):
    """Leave a cubin in a folder, of INTERPRETED also PTX and host object; return what nvcc says."""
    flags = [*nvcc_flags(), f"-I{ROOT / 'csrc/include'}", "-Werror=all-warnings", "-Xptxas=-v"]
    stem = folder / source.stem
    if architecture != INTERPRETED:
        return _output(
            "nvcc", "-cubin", f"-arch={architecture}", *flags, "-o", f"{stem}.cubin", source
        )
    virtual = architecture.replace("sm", "compute")
    return _output(
        "nvcc", "-c", "-gencode", f"arch={virtual},code={architecture}", *flags,
        "-Xcompiler=-fPIC,-fvisibility=hidden", "--keep", "--keep-dir", folder,
        "-o", f"{stem}.o", source,
    )  # fmt: skip


def parse_ptxas(text):
    """Resources by readable kernel name, from ptxas -v; a kernel answers for what it calls."""
    blocks = text.split("Compiling entry function '")[1:]
    names = readable([block.split("'")[0] for block in blocks])
    assert len(set(names)) == len(names), f"kernels of one name: {names}"

    def total(pattern, block):
        return sum(int(number) for number in re.findall(pattern, block))

    return {
        name: Resources(
            registers=total(r"Used (\d+) registers", block),
            shared_bytes=total(r"(\d+) bytes smem", block),
            stack_bytes=total(r"(\d+) bytes (?:cumulative )?stack (?:frame|size)", block),
            spill_bytes=total(r"(\d+) bytes spill", block),
        )
        for name, block in sorted(zip(names, blocks, strict=True))
    }


def readable(symbols):
    """Kernel names with template arguments, without namespaces, result and parameters."""
    if not symbols:
        return []
    return [shorten(name) for name in _output("c++filt", *symbols).splitlines()]


def shorten(signature):
    """Return ``kernel<float, 64>`` of ``void a::(anonymous namespace)::kernel<float, 64>(T1*)``."""
    name = re.sub(r"\([\w ]+\)(?=::|\d)", "", signature)  # (anonymous namespace)::, casts (int)64
    depth, end = 0, len(name)
    for place, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            end = place
            break
    name = re.sub(r"\b\w*::|(?<![\w>])::", "", name[:end])
    head, bracket, arguments = name.partition("<")
    return head.split()[-1] + bracket + arguments


def disassembler():
    """The path of cuobjdump, or None; it calls nvdisasm, which lies beside it."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep)]
    folders += [f"{entry}/nvidia/cu13/bin" for entry in sys.path]
    for folder in folders:
        if all(os.access(f"{folder}/{tool}", os.X_OK) for tool in ("cuobjdump", "nvdisasm")):
            return f"{folder}/cuobjdump"
    return None


def instructions(cubin):
    """By readable kernel name its code: [address, opcode with modifiers, where a branch goes]."""
    cached = cubin.path.with_suffix(".sass.json")
    if not cached.exists():
        tool = disassembler()
        path = f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        text = _output(tool, "--dump-sass", cubin.path, env={**os.environ, "PATH": path})
        fresh = cached.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(parse_sass(text)))
        fresh.replace(cached)
    return json.loads(cached.read_text())


def parse_sass(text):
    """The same of what cuobjdump prints."""
    names, bodies = [], []
    for line in text.splitlines():
        if function := re.match(r"\s*Function : (\w+)", line):
            names.append(function.group(1))
            bodies.append([])
        elif code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*?);", line):
            address, opcode, operands = code.groups()
            target = re.search(r"\b0x([0-9a-f]+)$", operands.strip()) if opcode == "BRA" else None
            bodies[-1].append([int(address, 16), opcode, int(target[1], 16) if target else None])
    return dict(zip(readable(names), bodies, strict=True))


def opcodes(code):
    """Distinct opcodes, sorted."""
    return sorted({opcode for _, opcode, _ in code})


def loop_around(code, pattern):
    """Opcodes of the innermost loop that holds all instructions of a pattern that loops hold."""
    loops = [(target, at) for at, _, target in code if target is not None and target <= at]
    places = [at for at, opcode, _ in code if re.match(pattern, opcode)]
    inside = [at for at in places if any(begin <= at <= end for begin, end in loops)]
    around = [
        (end - begin, begin, end)
        for begin, end in loops
        if inside and all(begin <= at <= end for at in inside)
    ]
    if not around:
        return []
    _, begin, end = min(around)
    return opcodes(entry for entry in code if begin <= entry[0] <= end)


def resource_table(cubins):
    """Return {"file: kernel": {architecture: [registers, static shared bytes]}}."""
    table = {}
    for cubin in cubins:
        for name, used in cubin.kernels.items():
            row = table.setdefault(f"{cubin.source}: {name}", {})
            row[cubin.architecture] = [used.registers, used.shared_bytes]
    return dict(sorted(table.items()))


def write_table():
    rows = [
        f"  {json.dumps(kernel)}: {json.dumps(row)}"
        for kernel, row in resource_table(compile_all()).items()
    ]
    TABLE.write_text(
        f'{{\n "nvcc": "{nvcc_version()}",\n "columns": ["registers", "static shared bytes"],\n'
        ' "kernels": {\n' + ",\n".join(rows) + "\n }\n}\n"
    )


def key(source, architecture):
    """Hash of all that a compilation depends on."""
    digest = hashlib.sha256(json.dumps([nvcc_version(), nvcc_flags(), architecture]).encode())
    headers = [*(ROOT / "csrc/cuda").glob("*.*h"), *(ROOT / "csrc/include/lpd").glob("*.h")]
    for path in [source, Path(__file__), *sorted(headers)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _output(*command, env=None):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed on {command[-1]}:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


if __name__ == "__main__":
    if nvcc_version() is None:
        sys.exit("nvcc is missing: set PATH to a CUDA toolkit")
    write_table()
