"""Takes a little memory of the GPU and gives it back: what a sanitizer has to stand at least.

    compute-sanitizer --tool memcheck python benchmarks/sanitizer_probe.py

Through the driver alone: neither torch nor a compiler.
"""

import ctypes
import sys


def main(name: str = "libcuda.so.1") -> None:
    """Exit with the call that fails."""
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        sys.exit(f"no CUDA driver: {error}")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    calls = (
        ("cuInit", 0),
        ("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0),
        ("cuCtxSetCurrent", context),
        ("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(1 << 20)),
        ("cuMemsetD8_v2", address, 0, ctypes.c_size_t(1 << 20)),
        ("cuCtxSynchronize",),
        ("cuMemFree_v2", address),
    )
    for function, *arguments in calls:
        if status := getattr(driver, function)(*arguments):
            sys.exit(f"{function}: CUDA error {status}")
    print("the driver answers")


if __name__ == "__main__":
    main(*sys.argv[1:])
