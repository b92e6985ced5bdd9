"""Files of weights, ``.pth`` or safetensors: read lazily, and nothing in them is executed."""

from __future__ import annotations

import argparse
import ctypes
import mmap
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
"""How the name of a file of weights ends."""

STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What weights may be written in."""


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file by name; where the format allows it they lie in a map of the file.

    A mapped tensor takes no memory until it is read, and writing to it leaves the file alone. But
    rewriting the file in its place would pull the memory away, so models `take` copies.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    mapped: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def take(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a contiguous copy in memory of its own and let go of the pages it was read from.

        Parameters
        ----------
        tensor : Tensor
            One of `tensors`, or computed from them.
        dtype : torch.dtype
            Of the copy.

        Returns
        -------
        Tensor
            On the CPU. While tensors are taken one by one, a file needs its size in memory once.
        """
        copy = torch.empty(tensor.shape, dtype=dtype).copy_(tensor.detach())
        # Memory that torch allocated can be resized; a map cannot.
        if self.mapped and not tensor.untyped_storage().resizable():
            _let_go(tensor)
        return copy


def read_weight_file(path: str | Path) -> WeightFile:
    """Open a checkpoint.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file, or a file of `torch.save` whose tensors stand at the top or, as
        in the published checkpoints, under ``"model"``.

    Returns
    -------
    WeightFile
        Its tensors, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content, mapped = _unpickle_weights(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor)
        for name, tensor in content.items()
    ):
        raise ValueError(
            f'checkpoint {path}: expected tensors by name, at the top or under "model", '
            f"got {type(content).__name__}"
        )
    return WeightFile(path, dict(content), {}, mapped)


def read_safetensors(path: Path) -> WeightFile:
    """Open a safetensors file, whatever its name ends in; ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # a list; the handle itself is no mapping
            tensors = {name: file.get_tensor(name) for name in names}
            return WeightFile(path, tensors, file.metadata() or {}, mapped=True)
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path}: truncated, or no safetensors ({error})") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file; OSError where that fails, with whatever it left behind."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


def _unpickle_weights(path: Path) -> tuple[Any, bool]:
    """Return the content of a file of torch.save, and whether it lies in a map of the file."""
    try:
        # A map reads the model alone, not the optimizer's state beside it. The published training
        # also saves its command line, in a class that holds values and does nothing.
        mapped = _can_be_mapped(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped), mapped
    except Exception as error:  # foreign bytes make the unpickler fail in any way there is
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f", it asks for {asked[1]}" if asked else ""
        raise ValueError(
            f"checkpoint {path}: truncated, or no checkpoint of weights alone "
            f"({type(error).__name__}{reason})"
        ) from error


def _can_be_mapped(path: Path) -> bool:
    """Tell the archives of torch >= 1.6 from older files, and from archives that are compressed.

    From those a map would show the compressed bytes.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def _let_go(tensor: Tensor) -> None:
    """Give back the whole pages of a mapped tensor; who reads it again reads the file again."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
    nbytes = (end - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if advice is not None and tensor.is_contiguous() and nbytes > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(nbytes), advice)
