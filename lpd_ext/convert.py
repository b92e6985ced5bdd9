"""Checkpoints to safetensors with their configuration, each tensor compared with its source."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpd_ext.checks import fail
from lpd_ext.files import write_together
from lpd_ext.models.checkpoint import config_of, fitted, metadata_of
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.hub import weights_at
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.models.weight_file import (
    STORED_DTYPES,
    WeightFile,
    read_safetensors,
    read_weight_file,
    write_safetensors,
)
from lpd_ext.pretrained import (
    DESCRIPTION_FILE,
    LPD_FILE,
    VQ_FILE,
    check_vocabulary,
    description,
    published_settings,
)
from lpd_ext.settings import GenerationSettings

_PIECE = 1 << 20
_VQ_ALONE = "quantize.embedding.weight"


@dataclass(frozen=True)
class Conversion:
    """A checkpoint and what is to become of it."""

    source: Path
    source_sha256: str
    config: LPDConfig | VQConfig
    dtype: torch.dtype
    file: WeightFile
    weights: dict[str, Tensor]

    def write(self, path: Path) -> None:
        """Write a safetensors file, read it again and compare the hash of every tensor."""
        copies = {name: self.file.take(tensor, self.dtype) for name, tensor in self.weights.items()}
        about = {"source": self.source.name, "source_sha256": self.source_sha256}
        write_safetensors(path, copies, metadata_of(self.config) | about)
        del copies
        written = read_safetensors(path).tensors
        if written.keys() != self.weights.keys():
            raise OSError(f"{path}: reads back with other names than it was written with")
        for name, tensor in self.weights.items():
            if _sha256_of(written[name]) != _sha256_of(self.file.take(tensor, self.dtype)):
                raise OSError(f"{path}: {name} reads back otherwise than {self.source} has it")


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    vq: str | Path | None = None,
    dtype: torch.dtype | None = None,
    config: LPDConfig | VQConfig | None = None,
    vq_config: VQConfig | None = None,
) -> list[Conversion]:
    """Write checkpoints as safetensors with their configuration, all files or none.

    Parameters
    ----------
    source : str or Path
        A transformer, or a tokenizer alone: file or name on the hub.
    destination : str or Path
        A ``.safetensors`` file; with `vq` a folder as `LPDPipeline.from_pretrained` reads it,
        created where it is missing. What is there is replaced.
    vq : str or Path, optional
        The tokenizer beside the transformer: file or name on the hub.
    dtype : torch.dtype, optional
        Of the written weights: float32, float16 or bfloat16; by default as they are.
    config, vq_config : LPDConfig or VQConfig, optional
        Where the weights do not say it; with another grid ``pos_embed`` is resized.

    Returns
    -------
    list[Conversion]
        Of each checkpoint: also the SHA-256 of its file, which the new file's metadata hold, too.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As `LPDPipeline.from_pretrained`; or `destination` is none.
    TypeError
        `dtype` is another, or the weights are of several.
    OSError
        Files cannot be written or read back otherwise than they were written.
    """
    destination = Path(destination)
    if vq is None:
        if destination.suffix != ".safetensors":
            wanted = "a file that ends in .safetensors, or `vq` (--vq) beside it"
            fail(ValueError, "convert", "destination", wanted, str(destination))
        conversion = _prepare(source, None, config, dtype)
        write_together({destination: conversion.write})
        return [conversion]
    model = _prepare(source, LPD, config, dtype)
    tokenizer = _prepare(vq, VQModel, vq_config, dtype)
    assert isinstance(model.config, LPDConfig)
    assert isinstance(tokenizer.config, VQConfig)
    check_vocabulary(model.source, model.config, tokenizer.source, tokenizer.config)
    defaults = published_settings(model.config) or GenerationSettings(
        num_steps=min(GenerationSettings.num_steps, model.config.seq_len)
    )
    is_new = not destination.exists()
    destination.mkdir(exist_ok=True)
    try:
        write_together(
            {
                destination / LPD_FILE: model.write,
                destination / VQ_FILE: tokenizer.write,
                destination / DESCRIPTION_FILE: description(None, defaults),
            }
        )
    except BaseException:
        if is_new:
            with suppress(OSError):  # somebody else may have put a file there
                destination.rmdir()
        raise
    return [model, tokenizer]


def _prepare(
    name_or_path: str | Path,
    kind: type[LPD] | type[VQModel] | None,
    config: LPDConfig | VQConfig | None,
    dtype: torch.dtype | None,
) -> Conversion:
    path = weights_at(name_or_path)
    file = read_weight_file(path)
    if kind is None:
        kind = VQModel if _VQ_ALONE in file.tensors else LPD
    config = config or config_of(file, kind)
    with torch.device("meta"):  # names and shapes alone
        model = kind(config)  # type: ignore[arg-type]  # each kind with its own configuration
    weights = fitted(model, file.tensors, f"checkpoint {path}")
    found = {tensor.dtype for tensor in weights.values()} if dtype is None else {dtype}
    if len(found) > 1 or not found <= set(STORED_DTYPES):
        wanted = f"one of {STORED_DTYPES}, as those of {path} are of {found}"
        fail(TypeError, "convert", "dtype", wanted, dtype)
    return Conversion(path, _sha256_of(path), config, found.pop(), file, weights)


def _sha256_of(content: Path | Tensor) -> str:
    if isinstance(content, Tensor):
        flat = content.contiguous().flatten().view(torch.uint8)
        return hashlib.sha256(flat.numpy().data).hexdigest()
    sha256 = hashlib.sha256()
    with content.open("rb") as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
    return sha256.hexdigest()
