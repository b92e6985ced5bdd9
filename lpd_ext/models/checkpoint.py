"""Models from files of weights and back, and a clear word where the two misfit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpd_ext.files import write_atomically
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.config_of_weights import lpd_config_of, vq_config_of
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.models.weight_file import (
    STORED_DTYPES,
    WeightFile,
    read_weight_file,
    write_safetensors,
)

Model = TypeVar("Model", LPD, VQModel)

_CONFIG_KEY = "config"
_NAMES_SHOWN = 6


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint into memory; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        As `read_weight_file` takes it: safetensors, or a file of `torch.save`.

    Returns
    -------
    dict[str, Tensor]
        On the CPU, each in memory of its own.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_weight_file`: there is no such file, or it is truncated or holds something else.
    """
    file = read_weight_file(path)
    return {name: file.take(tensor, tensor.dtype) for name, tensor in file.tensors.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str = "state dict") -> None:
    """Copy weights into a model, all of them or none.

    Parameters
    ----------
    model : LPD or VQModel
        Changed in place.
    state : Mapping[str, Tensor]
        Published names. For an `LPD` of a larger grid, ``pos_embed`` is resized.
    source : str
        Where the weights come from, for messages.

    Raises
    ------
    ValueError
        If names are missing or unexpected, or a shape differs; the model is left as it was.
    """
    model.load_state_dict(fitted(model, state, source))


def fitted(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the weights a model takes from a state dict; arguments and errors as `load_weights`.

    The model may be on the meta device.
    """
    state = {k: v for k, v in state.items() if not k.endswith("quantize.codebook_used")}
    if isinstance(model, LPD) and "pos_embed" in state:
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.config.grid)
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source}: not a checkpoint of this {type(model).__name__}: "
            f"missing {shortened(missing)}; unexpected {shortened(unexpected)}"
        )
    misfits = [
        f"{name}: expected {list(wanted[name].shape)}, got {list(state[name].shape)}"
        for name in wanted
        if wanted[name].shape != state[name].shape
    ]
    if misfits:
        raise ValueError(
            f"{source}: shapes differ from this {type(model).__name__}: {shortened(misfits)}"
        )
    return state


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a position embedding to another grid, bicubically; the class entry stays.

    Parameters
    ----------
    pos_embed : Tensor
        ``[1, seq_len + 1, dim]`` of a square grid, index 0 for the class row.
    grid : tuple[int, int]
        Wanted height and width in tokens.

    Returns
    -------
    Tensor
        ``[1, grid[0] * grid[1] + 1, dim]``; the input itself where nothing changes or the old
        shape is none of a square grid.

    Notes
    -----
    Source: LPD's 512 px models start from 256 px checkpoints this way (mit-han-lab/lpd@f447b83).
    """
    old_len = pos_embed.shape[1] - 1 if pos_embed.dim() == 3 else 0
    side = round(old_len**0.5)
    if old_len < 1 or old_len == grid[0] * grid[1] or side * side != old_len:
        return pos_embed
    image = pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(image.float(), size=grid, mode="bicubic").to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def load_lpd(path: str | Path, config: LPDConfig | None = None) -> LPD:
    """Build a transformer and load its weights.

    Parameters
    ----------
    path : str or Path
        As `read_state_dict` takes it.
    config : LPDConfig, optional
        By default the one that `save_weights` stored in the file, or else what names and shapes of
        the weights say: all of a published model's. With a larger grid than the file's,
        ``pos_embed`` is resized.

    Returns
    -------
    LPD
        In evaluation mode, float32, on the CPU, in memory of its own: the file may be rewritten.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_state_dict` and `load_weights`; or no configuration is known.

    Notes
    -----
    The weights are read once, tensor by tensor: a float32 file takes its size in memory.
    """
    return _load(LPD, read_weight_file(path), config)


def load_vq(path: str | Path, config: VQConfig | None = None) -> VQModel:
    """Build a tokenizer and load its weights; see `load_lpd`.

    Parameters
    ----------
    path : str or Path
        As `read_state_dict` takes it.
    config : VQConfig, optional
        As for `load_lpd`; weights alone do not say ``norm_groups``, which is then 32.

    Returns
    -------
    VQModel
        In evaluation mode, float32, on the CPU, in memory of its own.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_lpd`.
    """
    return _load(VQModel, read_weight_file(path), config)


def metadata_of(config: LPDConfig | VQConfig) -> dict[str, str]:
    """Return what a safetensors file holds beside the weights, for `config_of`."""
    return {_CONFIG_KEY: json.dumps(dataclasses.asdict(config))}


def config_of(file: WeightFile, kind: type[LPD] | type[VQModel]) -> LPDConfig | VQConfig:
    """Return the configuration stored in a file, or the one its weights have.

    Raises
    ------
    ValueError
        It is damaged or of another kind of model, or the weights do not say enough.
    """
    config_type = LPDConfig if kind is LPD else VQConfig
    try:
        if _CONFIG_KEY in file.metadata:
            return config_type(**json.loads(file.metadata[_CONFIG_KEY]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {file.path}: holds no {config_type.__name__}; pass one as `config`"
        ) from error
    try:
        return lpd_config_of(file.shapes) if kind is LPD else vq_config_of(file.shapes)
    except ValueError as error:
        raise ValueError(
            f"checkpoint {file.path}: {error}; where this is one, pass its {config_type.__name__} "
            "as `config`"
        ) from error


def save_weights(
    model: LPD | VQModel, path: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model and its configuration to a safetensors file, whole or not at all.

    Parameters
    ----------
    model : LPD or VQModel
        Its weights are stored in `dtype`.
    path : str or Path
        Replaced in one step.
    dtype : torch.dtype
        float32, float16 or bfloat16.

    Raises
    ------
    TypeError
        If `dtype` is another.
    OSError
        If the file cannot be written.
    """
    if dtype not in STORED_DTYPES:
        raise TypeError(f"save_weights: `dtype`: expected one of {STORED_DTYPES}, got {dtype}")
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    metadata = metadata_of(model.config)
    write_atomically(path, lambda partial: write_safetensors(partial, weights, metadata))


def _load(kind: type[Model], file: WeightFile, config: object) -> Model:
    with torch.device("meta"):  # no memory, no random numbers: every weight is replaced
        model = kind(config or config_of(file, kind))  # type: ignore[arg-type]  # each its own
    state = fitted(model, file.tensors, f"checkpoint {file.path}")
    weights = {name: file.take(tensor, torch.float32) for name, tensor in state.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def shortened(names: list[str]) -> str:
    """Return the first few names of a list, for a message."""
    if not names:
        return "none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
