"""Configurations read off the names and shapes of weights, for files that store none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import TypeAlias

from lpd_ext.models.config import PUBLISHED, LPDConfig, VQConfig

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shapes of the weights of a model by their published names."""

_LPD_SAYS = ("pos_embed", "class_emb.weight", "token_emb.weight", "blocks.0.mlp.fc1.weight")
_VQ_SAYS = ("encoder.conv_in.weight", "quantize.embedding.weight", "quant_conv.weight")


def lpd_config_of(shapes: Shapes, num_heads: int | None = None) -> LPDConfig:
    """Return the configuration of a transformer.

    Parameters
    ----------
    shapes : Shapes
        Of its weights.
    num_heads : int, optional
        By default that of the published model of this width and depth.

    Returns
    -------
    LPDConfig
        Of a square grid.

    Raises
    ------
    ValueError
        Weights are missing, or they do not say enough.
    """
    sizes = _Sizes("an LPD", shapes, _LPD_SAYS)
    length, dim = sizes.of("pos_embed", 3)[1:]
    depth = sizes.count(r"blocks\.(\d+)\.")
    hidden = sizes.of("blocks.0.mlp.fc1.weight", 2)[0]
    vocab_size, num_classes = sizes.of("token_emb.weight", 2)[0], sizes.of("class_emb.weight", 2)[0]
    side = isqrt(max(length - 1, 0))
    if side * side != length - 1:
        raise ValueError(f"pos_embed of {length - 1} positions is of no square grid")
    heads = {(model.dim, model.depth): model.num_heads for model in PUBLISHED.values()}
    num_heads = heads.get((dim, depth)) if num_heads is None else num_heads
    if num_heads is None:
        raise ValueError(
            f"num_heads is not in the weights, and no published model has width {dim} and "
            f"depth {depth}"
        )
    return LPDConfig((side, side), dim, depth, num_heads, vocab_size, num_classes, hidden // dim)


def vq_config_of(shapes: Shapes) -> VQConfig:
    """Return the configuration of a tokenizer.

    Parameters
    ----------
    shapes : Shapes
        Of its weights.

    Returns
    -------
    VQConfig
        Its GroupNorms have the published 32 groups.

    Raises
    ------
    ValueError
        Weights are missing, or no such tokenizer has them.
    """
    sizes = _Sizes("a VQModel", shapes, _VQ_SAYS)
    codebook_size, codebook_dim = sizes.of("quantize.embedding.weight", 2)
    channels, in_channels = sizes.of("encoder.conv_in.weight", 4)[:2]
    levels = sizes.count(r"encoder\.conv_blocks\.(\d+)\.")
    widths = [
        sizes.of(f"encoder.conv_blocks.{level}.res.0.conv1.weight", 4)[0] for level in range(levels)
    ]
    return VQConfig(
        in_channels=in_channels,
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        num_res_blocks=sizes.count(r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        z_channels=sizes.of("quant_conv.weight", 4)[1],
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
    )


class _Sizes:
    """Sizes of weights by name; ValueError where there are none."""

    def __init__(self, model: str, shapes: Shapes, names: Sequence[str]) -> None:
        self._shapes = shapes
        missing = ", ".join(name for name in names if name not in shapes)
        if missing:
            found = ", ".join(sorted(shapes)[:3]) or "no weights"
            raise ValueError(f"not a checkpoint of {model}: missing {missing}; found {found} ...")

    def of(self, name: str, ndim: int) -> tuple[int, ...]:
        shape = self._shapes.get(name, ())
        if len(shape) != ndim or min(shape) < 1:
            raise ValueError(f"{name}: expected {ndim} dimensions, got shape {list(shape)}")
        return shape

    def count(self, pattern: str) -> int:
        matches = (re.match(pattern, name) for name in self._shapes)
        return len({match[1] for match in matches if match})
