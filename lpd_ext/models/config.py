"""Shapes of the models: what a checkpoint was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


def _check_sizes(owner: str, sizes: Mapping[str, int | tuple[int, ...]]) -> None:
    """Raise TypeError or ValueError unless all sizes are ints of at least 1."""
    for name, size in sizes.items():
        for value in size if isinstance(size, tuple) else (size,):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{owner}: `{name}`: expected ints, got {size!r}")
            if value < 1:
                raise ValueError(f"{owner}: `{name}`: expected at least 1, got {size}")


@dataclass(frozen=True)
class LPDConfig:
    """Shape of an LPD transformer.

    Parameters
    ----------
    grid : tuple[int, int]
        Height and width in tokens.
    dim, depth, num_heads : int
        Width, number of blocks, heads a block; ``head_dim = dim // num_heads``.
    vocab_size, num_classes : int
        Tokens of the tokenizer, classes of the condition.
    mlp_ratio : int
        Width of the MLP in units of `dim`.

    Raises
    ------
    ValueError
        If a size is not positive or `dim` is no multiple of `num_heads`.
    TypeError
        If a size is no int, or `grid` is no tuple.
    """

    grid: tuple[int, int] = (16, 16)
    dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    vocab_size: int = 16384
    num_classes: int = 1000
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.grid, list):  # as JSON gives it
            object.__setattr__(self, "grid", tuple(self.grid))
        if not isinstance(self.grid, tuple):
            raise TypeError(f"LPDConfig: `grid`: expected (height, width), got {self.grid!r}")
        if len(self.grid) != 2:
            raise ValueError(f"LPDConfig: `grid`: expected (height, width), got {self.grid}")
        _check_sizes("LPDConfig", vars(self))
        if self.dim % self.num_heads:
            raise ValueError(
                f"LPDConfig: `dim`: expected a multiple of num_heads={self.num_heads}, "
                f"got {self.dim}"
            )

    @property
    def seq_len(self) -> int:
        """Tokens an image."""
        return self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    @staticmethod
    def named(name: str) -> LPDConfig:
        """Return a published configuration: ``lpd-{l,xl,xxl}-256`` or ``lpd-{l,xl}-512``.

        Raises
        ------
        ValueError
            If there is no configuration of that name; the message lists those there are.
        """
        if name not in PUBLISHED:
            raise ValueError(
                f"LPDConfig.named: `name`: expected one of {', '.join(PUBLISHED)}, got {name!r}"
            )
        return PUBLISHED[name]


@dataclass(frozen=True)
class VQConfig:
    """Shape of a tokenizer; the defaults are the published VQ-16.

    Parameters
    ----------
    in_channels : int
        Image channels (3 for RGB, 1 for grey).
    channels : int
        Width of the first level; a multiple of `norm_groups`.
    channel_mult : tuple[int, ...]
        Width of each level in units of `channels`; the stride is ``2 ** (levels - 1)``.
    num_res_blocks : int
        Residual blocks a level (the decoder has one more).
    z_channels : int
        Channels between the convolutions and the codebook projections.
    codebook_size, codebook_dim : int
        Number of codes and their dimension.
    norm_groups : int
        Groups of every GroupNorm.

    Raises
    ------
    ValueError
        If a size is not positive or `channels` is no multiple of `norm_groups`.
    TypeError
        If a size is no int, or `channel_mult` is no tuple.
    """

    in_channels: int = 3
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.channel_mult, list):  # as JSON gives it
            object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        if not isinstance(self.channel_mult, tuple):
            raise TypeError(f"VQConfig: `channel_mult`: expected ints, got {self.channel_mult!r}")
        _check_sizes("VQConfig", vars(self))
        if not self.channel_mult or self.channels % self.norm_groups:
            raise ValueError(
                "VQConfig: expected at least one level and `channels` divisible by `norm_groups`, "
                f"got channel_mult={self.channel_mult}, channels={self.channels}, "
                f"norm_groups={self.norm_groups}"
            )

    @property
    def stride(self) -> int:
        """Image pixels a token spans in each direction."""
        return int(2 ** (len(self.channel_mult) - 1))


_L = LPDConfig()
_XL = replace(_L, dim=1280, depth=36, num_heads=20)
_XXL = replace(_L, dim=1536, depth=48, num_heads=24)
PUBLISHED = {
    "lpd-l-256": _L,
    "lpd-xl-256": _XL,
    "lpd-xxl-256": _XXL,
    "lpd-l-512": replace(_L, grid=(32, 32)),
    "lpd-xl-512": replace(_XL, grid=(32, 32)),
}
"""The published transformers by name."""
