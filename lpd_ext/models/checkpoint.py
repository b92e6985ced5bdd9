"""Weights in and out: published ``.pth`` files, safetensors, and a clear word where they misfit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from lpd_ext.files import write_atomically
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel

Model = TypeVar("Model", LPD, VQModel)

_CONFIG_KEY = "config"
_NAMES_SHOWN = 6
_STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file, or a file of `torch.save` whose tensors stand at the top or, as
        in the published checkpoints, under ``"model"``.

    Returns
    -------
    dict[str, Tensor]
        On the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated or holds something else.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            names = file.keys()  # a list; the handle itself is no mapping
            return {name: file.get_tensor(name) for name in names}
    with path.open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # foreign bytes make the unpickler fail in any way there is
            raise ValueError(
                f"checkpoint {path}: truncated, or no checkpoint of weights alone "
                f"({type(error).__name__})"
            ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ValueError(
            f'checkpoint {path}: expected tensors by name, at the top or under "model", '
            f"got {type(content).__name__}"
        )
    return dict(content)


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
    state = {k: v for k, v in state.items() if not k.endswith("quantize.codebook_used")}
    if isinstance(model, LPD) and "pos_embed" in state:
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.config.grid)
    wanted = model.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source}: not a checkpoint of this {type(model).__name__}: "
            f"missing {_shorten(missing)}; unexpected {_shorten(unexpected)}"
        )
    misfits = [
        f"{name}: expected {list(wanted[name].shape)}, got {list(state[name].shape)}"
        for name in wanted
        if wanted[name].shape != state[name].shape
    ]
    if misfits:
        raise ValueError(
            f"{source}: shapes differ from this {type(model).__name__}: {_shorten(misfits)}"
        )
    model.load_state_dict(state)


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
        May be left out for a file written by `save_weights`, which holds it.

    Returns
    -------
    LPD
        In evaluation mode, float32, on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_state_dict` and `load_weights`; or no configuration is known.
    """
    return _load(LPD, path, config or _stored_config(LPDConfig, path))


def load_vq(path: str | Path, config: VQConfig | None = None) -> VQModel:
    """Build a tokenizer and load its weights; see `load_lpd`.

    Parameters
    ----------
    path : str or Path
        As `read_state_dict` takes it.
    config : VQConfig, optional
        May be left out for a file written by `save_weights`, which holds it.

    Returns
    -------
    VQModel
        In evaluation mode, float32, on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_lpd`.
    """
    return _load(VQModel, path, config or _stored_config(VQConfig, path))


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
    if dtype not in _STORED_DTYPES:
        raise TypeError(f"save_weights: `dtype`: expected one of {_STORED_DTYPES}, got {dtype}")
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    config = json.dumps(dataclasses.asdict(model.config))
    write_atomically(path, save(weights, metadata={_CONFIG_KEY: config}))


def _load(kind: type[Model], path: str | Path, config: object) -> Model:
    model = kind(config)  # type: ignore[arg-type]  # each kind with its own configuration
    load_weights(model, read_state_dict(path), source=f"checkpoint {path}")
    return model.eval()


def _stored_config(kind: type[LPDConfig] | type[VQConfig], path: str | Path) -> object:
    path = _existing(path)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            metadata = file.metadata() or {}
    try:
        return kind(**json.loads(metadata[_CONFIG_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path}: holds no {kind.__name__}; pass one as `config`"
        ) from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    return path


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path}: truncated, or no safetensors ({error})") from error


def _shorten(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
