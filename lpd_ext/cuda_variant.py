"""Which arithmetic the CUDA kernels of `lpd_ext.group_attention` use: for a second opinion."""

from lpd_ext._binary import host, ops_library
from lpd_ext.checks import fail

VARIANTS = ("float32", "tensor_cores")
"""In float32 whatever the dtype, or on tensor cores where the dtype allows (the default)."""


def cuda_variant() -> str:
    """Return the variant in use.

    Raises
    ------
    NotImplementedError
        This build has no CUDA kernels.
    """
    _check_build("cuda_variant")
    return VARIANTS[ops_library.lpd_ext_cuda_variant()]


def set_cuda_variant(name: str) -> None:
    """Use another variant from now on, in the whole process.

    Parameters
    ----------
    name : str
        One of `VARIANTS`.

    Raises
    ------
    ValueError
        There is no such variant.
    NotImplementedError
        This build has no CUDA kernels.
    """
    if name not in VARIANTS:
        fail(ValueError, "set_cuda_variant", "name", f"one of {VARIANTS}", repr(name))
    _check_build("set_cuda_variant")
    ops_library.lpd_ext_set_cuda_variant(VARIANTS.index(name))


def _check_build(function: str) -> None:
    if not host.build_info()["cuda"]:
        raise NotImplementedError(f"{function}: this build has no CUDA kernels")
