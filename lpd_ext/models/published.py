"""The published LPD module, known by its attributes, never imported; its weights as an `LPD`.

Source: ``models/lpd.py`` and ``models/block.py`` of mit-han-lab/lpd@f447b83.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lpd_ext.checks import fail
from lpd_ext.models.checkpoint import fitted, shortened
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.config_of_weights import lpd_config_of
from lpd_ext.models.lpd import LPD, NORM_EPS

_ATTRIBUTES = (
    *("sample_tokens", "fake_latent", "pos_embed", "mask_token", "class_emb", "token_emb"),
    *("z_proj_ln", "blocks", "norm", "head"),
)
_OF_A_BLOCK = ("norm1", "attn.qkv", "attn.proj", "attn.num_heads", "norm2", "mlp.fc1", "mlp.fc2")
_IDENTITIES = ("attn.q_norm", "attn.k_norm", "ls1", "ls2")  # in the published models
_OTHERS = {  # attributes of other parallel decoders
    "pos_instruct_embeddings": "RandAR, which interleaves instruction tokens and rotates positions",
    "none_token_id": "ARPG, which asks by cross-attention and rotates positions",
}


def published_config(op: str, model: nn.Module) -> LPDConfig:
    """Demand an instance of the published LPD module; return what it was made for.

    Parameters
    ----------
    op : str
        Who asks, for messages.
    model : nn.Module
        Any module.

    Returns
    -------
    LPDConfig
        From its attributes and the shapes of its weights.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        It is another one: the message lists what is missing or different.
    """
    if not isinstance(model, nn.Module):
        fail(TypeError, op, "model", "the published LPD module", type(model).__name__)
    kind = type(model).__name__
    if isinstance(model, LPD):
        wanted = "the published LPD module (for an lpd_ext.LPD there is lpd_ext.DecodePlan)"
        fail(ValueError, op, "model", wanted, "an lpd_ext.LPD")
    wanted = "the published LPD module"
    for attribute, other in _OTHERS.items():
        if hasattr(model, attribute):
            fail(ValueError, op, "model", wanted, f"{kind}: with `{attribute}` it is like {other}")
    missing = [name for name in _ATTRIBUTES if not hasattr(model, name)]
    blocks: Any = getattr(model, "blocks", None)
    if not missing and (not isinstance(blocks, nn.ModuleList) or not len(blocks)):
        missing = ["a list of `blocks`"]
    if not missing:
        missing = [f"blocks.0.{x}" for x in _OF_A_BLOCK if _nested(blocks[0], x) is None]
    if missing:
        fail(ValueError, op, "model", wanted, f"{kind} without {shortened(missing)}")
    config = _config(op, model)
    _check_layers(op, model)
    return config


def with_weights_of(model: nn.Module, config: LPDConfig) -> LPD:
    """Return an `LPD` in evaluation whose parameters are those of the published module themselves.

    Parameters
    ----------
    model : nn.Module
        As `published_config` takes it.
    config : LPDConfig
        Of that module.

    Returns
    -------
    LPD
        Without memory of its own: what changes in one of them has changed in the other.
    """
    with torch.device("meta"):
        shared = LPD(config).eval()
    modules = dict(shared.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        modules[owner].register_parameter(own_name, parameter)
    return shared


def _config(op: str, model: Any) -> LPDConfig:
    """Read the configuration off the weights, which must be those of an LPD, and no others."""
    state = model.state_dict()
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        config = lpd_config_of(shapes, num_heads=int(model.blocks[0].attn.num_heads))
        with torch.device("meta"):
            plain = LPD(config)
        fitted(plain, state, type(model).__name__)
    except ValueError as error:
        fail(ValueError, op, "model", "the weights of the published LPD module", error)
    return config


def _check_layers(op: str, model: Any) -> None:
    """Demand what is in no weight: of another GELU or epsilon the tokens would just be others."""
    for name, found in _other_layers(model):
        fail(ValueError, op, "model", "the layers of the published LPD module", f"{name}: {found}")


def _other_layers(model: Any) -> Iterator[tuple[str, str]]:
    norms = {"z_proj_ln": model.z_proj_ln, "norm": model.norm}
    for i, block in enumerate(model.blocks):
        norms |= {f"blocks.{i}.norm1": block.norm1, f"blocks.{i}.norm2": block.norm2}
        act = getattr(block.mlp, "act", None)
        if not isinstance(act, nn.GELU) or act.approximate != "none":
            yield f"blocks.{i}.mlp.act", f"{act} in place of GELU(approximate='none')"
        for name in _IDENTITIES:
            found = _nested(block, name)
            if not isinstance(found, (nn.Identity, type(None))):
                yield f"blocks.{i}.{name}", f"{found} in place of Identity()"
    for name, norm in norms.items():
        if not isinstance(norm, nn.LayerNorm) or norm.eps != NORM_EPS:
            yield name, f"{norm} in place of LayerNorm(eps={NORM_EPS})"


def _nested(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner
