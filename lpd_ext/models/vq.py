"""The LlamaGen VQ tokenizer: images to token grids and back.

Module names follow the published checkpoint keys, so a published state dict loads unchanged.

Source: arXiv 2406.06525 (LlamaGen), ``tokenizer/tokenizer_image/vq_model.py`` as used by
mit-han-lab/lpd@f447b83.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpd_ext.models.config import VQConfig

_NORM_EPS = 1e-6
_PUBLISHED_BUT_IGNORED = "codebook_used"  # a training-time usage window, no weight


class NormSiLU(Protocol):
    """What stands before a convolution."""

    def __call__(self, norm: nn.GroupNorm, x: Tensor, *, silu: bool, reuse: bool) -> Tensor:
        """Normalise and, if asked to, take SiLU; `reuse`: nobody reads `x` afterwards."""


def norm_silu(norm: nn.GroupNorm, x: Tensor, *, silu: bool, reuse: bool) -> Tensor:
    """Run torch's own operators, which can be trained."""
    y: Tensor = norm(x)
    return F.silu(y) if silu else y


class VQModel(nn.Module):
    """Convolutional encoder and decoder around an l2-normalised codebook.

    Parameters
    ----------
    config : VQConfig, optional
        Defaults to the published VQ-16 (stride 16, 16384 codes of dimension 8).

    Notes
    -----
    Images are float ``[batch, in_channels, height, width]`` in [-1, 1]; `decode` does not clamp.
    """

    def __init__(self, config: VQConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or VQConfig()
        self.encoder = _Encoder(c)
        self.decoder = _Decoder(c)
        self.quantize = _Codebook(c.codebook_size, c.codebook_dim)
        self.quant_conv = nn.Conv2d(c.z_channels, c.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(c.codebook_dim, c.z_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return the code of every grid position.

        Parameters
        ----------
        image : Tensor
            ``[batch, in_channels, height, width]`` in [-1, 1]; height and width are multiples of
            the stride.

        Returns
        -------
        Tensor
            int64 ``[batch, seq_len]`` in raster order, ``seq_len = height * width / stride ** 2``.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        return self.quantize.nearest(self.latents(image))

    def latents(self, image: Tensor) -> Tensor:
        """Return what `encode` compares with the codebook (for training an encoder).

        Parameters
        ----------
        image : Tensor
            As `encode` takes it.

        Returns
        -------
        Tensor
            ``[batch, seq_len, codebook_dim]``, each of length 1.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        c = self.config
        if image.dim() != 4 or image.shape[1] != c.in_channels or _ragged(image, c.stride):
            raise ValueError(
                f"VQModel.encode: `image`: expected [batch, {c.in_channels}, height, width] with "
                f"height and width multiples of {c.stride}, got {tuple(image.shape)}"
            )
        z = self.quant_conv(self.encoder(image))
        return F.normalize(z.flatten(2).transpose(1, 2), dim=-1)

    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return the image of a token grid.

        Parameters
        ----------
        codes : Tensor
            int64 ``[batch, seq_len]`` in raster order.
        grid : tuple[int, int], optional
            Height and width in tokens; a square grid when omitted.

        Returns
        -------
        Tensor
            ``[batch, in_channels, grid[0] * stride, grid[1] * stride]``, about [-1, 1], unclamped.

        Raises
        ------
        ValueError
            If shape or ids do not fit.
        TypeError
            If `codes` holds no integers.
        """
        if codes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"VQModel.decode: `codes`: expected int64, got {codes.dtype}")
        if codes.dim() != 2:
            raise ValueError(
                f"VQModel.decode: `codes`: expected [batch, seq_len], got {tuple(codes.shape)}"
            )
        if grid is None:
            grid = (isqrt(codes.shape[1]),) * 2
        if grid[0] * grid[1] != codes.shape[1]:
            raise ValueError(
                f"VQModel.decode: `codes`: expected seq_len {grid[0]} * {grid[1]} (`grid`), "
                f"got {codes.shape[1]}"
            )
        size = self.config.codebook_size
        if codes.numel() and not (codes.min() >= 0 and codes.max() < size):
            raise ValueError(
                f"VQModel.decode: `codes`: expected ids in [0, {size}), "
                f"got [{int(codes.min())}, {int(codes.max())}]"
            )
        return self.image_of(self.quantize.lookup(codes.long()), grid)

    def image_of(
        self, latents: Tensor, grid: tuple[int, int], normalise: NormSiLU = norm_silu
    ) -> Tensor:
        """Return the image of codebook rows: what `decode` does after its checks and the lookup.

        Parameters
        ----------
        latents : Tensor
            ``[batch, seq_len, codebook_dim]`` in raster order, each of length 1.
        grid : tuple[int, int]
            Height and width in tokens.
        normalise : NormSiLU, optional
            What computes every GroupNorm and the SiLU behind it.

        Returns
        -------
        Tensor
            As `decode` returns it.
        """
        z = latents.transpose(1, 2).unflatten(2, grid)
        return self.decoder(self.post_quant_conv(z), normalise)  # type: ignore[no-any-return]


def _ragged(image: Tensor, stride: int) -> bool:
    height, width = image.shape[2:]
    return height == 0 or width == 0 or height % stride != 0 or width % stride != 0


class _Codebook(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def nearest(self, latents: Tensor) -> Tensor:
        # Both sides have length 1, so the largest dot product is the smallest distance.
        return (latents @ self.normalised().T).argmax(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.normalised())

    def normalised(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        wanted = {k: v for k, v in state_dict.items() if k != prefix + _PUBLISHED_BUT_IGNORED}
        super()._load_from_state_dict(wanted, prefix, *args, **kwargs)


class _Encoder(nn.Module):
    def __init__(self, c: VQConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c.in_channels, c.channels, 3, padding=1)
        widths = [c.channels * m for m in (1, *c.channel_mult)]
        last = len(c.channel_mult) - 1
        self.conv_blocks = nn.ModuleList(
            _Level(
                widths[i],
                widths[i + 1],
                c.num_res_blocks,
                c.norm_groups,
                attention=i == last,
                downsample=i != last,
            )
            for i in range(last + 1)
        )
        self.mid = _Middle(widths[-1], c.norm_groups)
        self.norm_out = _norm(widths[-1], c.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        x = self.mid(x)
        x = norm_silu(self.norm_out, x, silu=True, reuse=True)
        return self.conv_out(x)  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    def __init__(self, c: VQConfig) -> None:
        super().__init__()
        widths = [c.channels * m for m in (c.channel_mult[-1], *reversed(c.channel_mult))]
        self.conv_in = nn.Conv2d(c.z_channels, widths[0], 3, padding=1)
        self.mid = _Middle(widths[0], c.norm_groups)
        last = len(c.channel_mult) - 1
        self.conv_blocks = nn.ModuleList(
            _Level(
                widths[i],
                widths[i + 1],
                c.num_res_blocks + 1,
                c.norm_groups,
                attention=i == 0,
                upsample=i != last,
            )
            for i in range(last + 1)
        )
        self.norm_out = _norm(widths[-1], c.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], c.in_channels, 3, padding=1)

    def forward(self, x: Tensor, normalise: NormSiLU = norm_silu) -> Tensor:
        x = self.mid(self.conv_in(x), normalise)
        for level in self.conv_blocks:
            x = level(x, normalise)
        x = normalise(self.norm_out, x, silu=True, reuse=True)
        return self.conv_out(x)  # type: ignore[no-any-return]


class _Level(nn.Module):
    """Residual blocks, each followed by its attention block where the level has them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_res_blocks: int,
        norm_groups: int,
        *,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            _ResBlock(in_channels if j == 0 else out_channels, out_channels, norm_groups)
            for j in range(num_res_blocks)
        )
        self.attn = nn.ModuleList(
            _AttnBlock(out_channels, norm_groups) for _ in range(num_res_blocks if attention else 0)
        )
        if downsample:
            self.downsample = _Downsample(out_channels)
        if upsample:
            self.upsample = _Upsample(out_channels)

    def forward(self, x: Tensor, normalise: NormSiLU = norm_silu) -> Tensor:
        for j, res in enumerate(self.res):
            x = res(x, normalise)
            if len(self.attn):
                x = self.attn[j](x, normalise)
        for resize in ("downsample", "upsample"):
            if hasattr(self, resize):
                x = getattr(self, resize)(x)
        return x


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, normalise: NormSiLU = norm_silu) -> Tensor:
        h: Tensor = self.conv1(normalise(self.norm1, x, silu=True, reuse=False))
        h = self.conv2(normalise(self.norm2, h, silu=True, reuse=True))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class _AttnBlock(nn.Module):
    """Self-attention over the grid, one head."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, norm_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, normalise: NormSiLU = norm_silu) -> Tensor:
        h = normalise(self.norm, x, silu=False, reuse=False)
        q, k, v = (proj(h).flatten(2).transpose(1, 2) for proj in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)  # type: ignore[no-any-return]


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=_NORM_EPS)


class _Middle(nn.Sequential):
    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__(
            _ResBlock(channels, channels, norm_groups),
            _AttnBlock(channels, norm_groups),
            _ResBlock(channels, channels, norm_groups),
        )

    def forward(self, x: Tensor, normalise: NormSiLU = norm_silu) -> Tensor:
        for block in self:
            x = block(x, normalise)
        return x
