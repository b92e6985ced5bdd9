"""Loads the compiled modules, or says in one sentence what to do about them."""

import ctypes
import importlib
from pathlib import Path
from typing import Protocol, cast

import torch

# The version of this source; setup.py writes it into both binaries.
VERSION = "0.1.0"

_FOLDER = Path(__file__).parent
_REBUILD = "reinstall lpd_ext (in a source tree: `pip install --no-build-isolation -e .`)"


class HostModule(Protocol):
    """What ``lpd_ext._host`` offers."""

    def build_info(self) -> dict[str, str]:
        """Version, compiler, flags, torch and CUDA version of the build ("" without CUDA)."""

    def group_sizes(self, seq_len: int, num_steps: int) -> list[int]:
        """Schedule of ``num_steps`` groups; throws ValueError where there is none."""


def load_ops(folder: Path = _FOLDER) -> ctypes.CDLL:
    """Register the operators of ``_C`` in ``torch.ops.lpd_ext``.

    Parameters
    ----------
    folder : Path
        Where the binary lies.

    Returns
    -------
    ctypes.CDLL
        The binary, for what it exports beside operators.

    Raises
    ------
    ImportError
        The binary is missing, does not load, or belongs to another version of lpd_ext.
    """
    path = next(folder.glob("_C*.so"), None)
    if path is None:
        raise ImportError(f"lpd_ext: the compiled operators (_C) are not built: {_REBUILD}")
    try:
        torch.ops.load_library(str(path))
        library = ctypes.CDLL(str(path))
        version = library.lpd_ext_version
    except (OSError, AttributeError):
        # The dynamic linker's words (an undefined symbol, mostly) help nobody here.
        raise ImportError(
            f"lpd_ext: the compiled operators ({path.name}) do not load with torch "
            f"{torch.__version__} (torch >= 2.11 is needed): {_REBUILD}"
        ) from None
    version.restype = ctypes.c_char_p
    _check_version(path.name, version().decode())
    return library


def load_host() -> HostModule:
    """Import ``_host``, the torch-free compiled half.

    Returns
    -------
    HostModule
        The module.

    Raises
    ------
    ImportError
        The binary is missing, does not load, or belongs to another version of lpd_ext.
    """
    try:
        module = cast(HostModule, importlib.import_module("lpd_ext._host"))
    except ImportError:
        raise ImportError(
            f"lpd_ext: the compiled module _host is not built for this Python: {_REBUILD}"
        ) from None
    _check_version("_host", module.build_info()["version"])
    return module


def _check_version(name: str, built: str) -> None:
    if built != VERSION:
        raise ImportError(
            f"lpd_ext: {name} was built for lpd_ext {built}, not for {VERSION}: {_REBUILD}"
        )


ops_library = load_ops()
host = load_host()
