"""The library that the interpreter serves: nvcc's host code, a CUDA runtime of our own, bindings.

It registers the operators as `lpd_ext_ptx`, for tensors of the CPU.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cuda_static
from simt import build as simt

HERE = Path(__file__).parent
NAMESPACE = "lpd_ext_ptx"
FLAGS = [
    "-std=c++20",
    "-O0",  # what runs here is the interpreter
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-DSIMT_EMULATE",  # tensors of the CPU, each of them made known
    f"-DLPD_LIBRARY={NAMESPACE}",
]


@cache
def compiled():
    """{stem: Cubin} of each kernel file, with PTX and host object."""
    cuda_static.CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cuda_static.JOBS) as pool:
        cubins = pool.map(
            lambda source: cuda_static.compile_one(source, cuda_static.INTERPRETED),
            sorted(cuda_static.sources(), key=lambda path: -path.stat().st_size),
        )
        return {Path(cubin.source).stem: cubin for cubin in cubins}


class _HostObject:
    """What nvcc compiled, as something to link."""

    def __init__(self, cubin):
        self.path = cubin.host_object
        self.key = cubin.path.name

    def compile(self):
        return self.path


def library():
    """Path of the library."""
    stems = [stem for stem in compiled() if (simt.ROOT / f"csrc/torch/{stem}.cpp").exists()]
    registered, link_flags = simt.bindings(sorted(stems), FLAGS, [HERE / "host"])
    runtime = simt.Source(HERE / "host/runtime.cpp", FLAGS, [HERE / "host"])
    objects = [_HostObject(cubin) for _, cubin in sorted(compiled().items())]
    return simt.link([runtime, *registered, *objects], "lpd_ptx", ".so", ["-shared", *link_flags])
