"""Checks an installed CUDA build of lpd_ext where there is no GPU; `make cuda-build` runs it.

The interpreter's own lpd_ext is imported, never the source tree's.
"""

import os
import re
import subprocess
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lpd_ext
from lpd_ext import ops

ROOT = Path(__file__).parent.parent
CUDA_STEMS = {source.stem for source in (ROOT / "csrc/cuda").glob("*.cu")}
BINARY = next(Path(lpd_ext.__file__).parent.glob("_C*.so"))


def declared_schemas():
    """Qualified overload -> schema, as the source declares them."""
    text = (ROOT / "csrc/torch/library.cpp").read_text()
    schemas = {}
    for literals in re.findall(r"m\.def\(\s*((?:\"[^\"]*\"\s*)+)\)", text):
        schema = torch._C.parse_schema("lpd_ext::" + "".join(re.findall(r'"([^"]*)"', literals)))
        schemas[".".join(filter(None, (schema.name, schema.overload_name)))] = schema
    assert schemas, "library.cpp: found no schema"
    return schemas


def check_schemas(declared):
    registered = {name for name in torch._C._dispatch_get_all_op_names() if "lpd_ext::" in name}
    assert registered == set(declared), registered ^ set(declared)
    for schema in declared.values():
        packet = getattr(torch.ops.lpd_ext, schema.name.removeprefix("lpd_ext::"))
        overload = getattr(packet, schema.overload_name or "default")
        assert overload._schema == schema, f"{overload._schema} is not {schema}"


def check_kernels(declared):
    """Every op runs on the CPU; one whose stem has a .cu file, and no other, on CUDA."""
    assert CUDA_STEMS, "csrc/cuda holds no kernel"
    for name in declared:
        stem = name.removeprefix("lpd_ext::").split(".")[0].rstrip("_")
        for key, wanted in {"CPU": True, "CUDA": stem in CUDA_STEMS}.items():
            has = torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
            assert has == wanted, f"{name}: kernel for {key}: {has}, expected {wanted}"


def check_architectures():
    """The binary holds machine code for each architecture that was asked for, or setup.py names.

    The letter of 90a is left out, as some releases of cuobjdump do.
    """
    triton = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin/cuobjdump"
    command = [triton, "--list-elf", "--list-ptx", BINARY]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"\.sm_(\d+)\w?\.cubin", listed))
    text = (ROOT / "setup.py").read_text()
    named = re.search(r'^CUDA_ARCHITECTURES = "(.+)"$', text, re.MULTILINE).group(1)
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", named)
    wanted = set(re.findall(r"\d+", asked.replace(".", "")))
    assert found == wanted, f"machine code for {sorted(found)}, expected {sorted(wanted)}"
    assert ".ptx" in listed, "no PTX for later architectures"


def check_no_path_of_this_machine():
    assert str(ROOT).encode() not in BINARY.read_bytes()


def check_info():
    """Each CPU kernel agrees with its reference; CUDA is built and has no device, or agrees."""
    info = lpd_ext.info()
    assert info["build"]["cuda"] == torch.version.cuda, info["build"]
    for op, states in info["kernels"].items():
        assert states["cpu"]["state"] == "verified", (op, states)
        on_gpu = [states[device]["state"] for device in states if device != "cpu"]
        assert set(on_gpu) <= {"no device", "verified", "not built"}, (op, states)
        assert ("not built" in on_gpu) == (op.rstrip("_") not in CUDA_STEMS), (op, states)


def check_fake_cuda_tensors():
    """What torch.compile asks first: shapes, without a device."""
    with FakeTensorMode():
        qkv = torch.empty(2, 5, 3, 4, 64, dtype=torch.bfloat16, device="cuda")
        caches = torch.empty(2, 2, 4, 40, 64, dtype=torch.bfloat16, device="cuda")
        out = ops.group_attention(qkv, caches[0], caches[1], 7, 2)
        assert (out.shape, out.device.type) == ((2, 5, 256), "cuda")


def main():
    assert not BINARY.is_relative_to(ROOT / "lpd_ext"), "imported the source tree"
    assert torch.version.cuda, f"torch {torch.__version__} is no CUDA build"
    declared = declared_schemas()
    check_schemas(declared)
    check_kernels(declared)
    check_architectures()
    check_no_path_of_this_machine()
    check_info()
    check_fake_cuda_tensors()
    print(
        f"cuda-build: lpd_ext {lpd_ext.__version__} imports with torch {torch.__version__}; "
        f"{len(declared)} schemas, their kernels and the architectures are as the source has them"
    )


if __name__ == "__main__":
    main()
