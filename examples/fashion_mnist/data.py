"""Fashion-MNIST from its four IDX files, padded to 32x32 and scaled to [-1, 1].

The files are Debian's package ``dataset-fashion-mnist``, or lie in a folder given by the caller.
Source: arXiv 1708.07747; IDX is the format of the original MNIST.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


def load(split: str, folder: Path = DEBIAN_FOLDER) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a split.

    Parameters
    ----------
    split : str
        ``"train"`` (60000 images) or ``"test"`` (10000).
    folder : Path
        Where the IDX files lie, gzipped or not.

    Returns
    -------
    images : Tensor
        uint8 ``[n, 1, 32, 32]``, the 28x28 originals with 2 pixels of background around.
    labels : Tensor
        int64 ``[n]`` in [0, 10).

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says how to get it.
    ValueError
        If a file is no IDX file of bytes, or the split is unknown.
    """
    if split not in ("train", "test"):
        raise ValueError(f"load: `split`: expected 'train' or 'test', got {split!r}")
    prefix = "train" if split == "train" else "t10k"
    images = torch.from_numpy(_read_idx(folder, f"{prefix}-images-idx3-ubyte"))
    labels = torch.from_numpy(_read_idx(folder, f"{prefix}-labels-idx1-ubyte"))
    return F.pad(images[:, None], (2, 2, 2, 2)), labels.long()


def to_float(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def batch_indices(num_images: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the image indices of a training step: one seeded permutation an epoch.

    A pure function of its arguments, so a resumed run sees the batches it would have seen.
    """
    steps_per_epoch = num_images // batch_size
    epoch, position = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    permutation = torch.randperm(num_images, generator=generator)
    return permutation[position * batch_size : (position + 1) * batch_size]


def _read_idx(folder: Path, name: str) -> np.ndarray:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            break
    else:
        raise FileNotFoundError(
            f"{folder / name}[.gz] is missing: install Debian's package dataset-fashion-mnist, "
            "or give the folder of the four IDX files with --data"
        )
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if path.suffix else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected gzip, got something damaged ({error})") from error
    num_dims = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * num_dims
    shape = np.frombuffer(raw[4:header].ljust(4 * num_dims, b"\0"), ">i4").astype(int)
    if num_dims == 0 or len(raw) != header + shape.prod():
        raise ValueError(f"{path}: expected an IDX file of bytes, got {len(raw)} bytes of another")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()
