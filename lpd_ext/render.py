"""Pictures: tensors to images, captioned grids, the animation of the steps, PNG and GIF bytes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

METADATA_KEY = "lpd_ext"
"""Name of the PNG text entry that holds seed and settings as JSON."""

_GAP = 4  # pixels between the cells of a grid
_CAPTION_HEIGHT = 14
_UNDECODED = 128  # grey
_ANIMATION_MS = 4000
_LAST_FRAME_MS = 2000
_GIF_TICK_MS = 10  # GIF counts in hundredths of a second; many viewers slow down below 2


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Turn decoded pixels into images of 8 bits a channel.

    Parameters
    ----------
    pixels : Tensor
        ``[batch, channels, height, width]`` in [-1, 1] (clamped), 1 channel (grey) or 3 (RGB).

    Returns
    -------
    list[PIL.Image.Image]
        Modes ``L`` or ``RGB``.
    """
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    arrays = levels.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def enlarge(image: Image.Image, zoom: int) -> Image.Image:
    """Return the image with every pixel `zoom` times as wide and high."""
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def grid_image(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, zoom: int
) -> Image.Image:
    """Lay images out in rows, each under its caption.

    Parameters
    ----------
    images : Sequence[PIL.Image.Image]
        Of one size and mode, row by row.
    captions : Sequence[str]
        One an image.
    columns : int
        Images a row.
    zoom : int
        Enlargement of the images.

    Returns
    -------
    PIL.Image.Image
        On white, in the mode of the images.
    """
    font = ImageFont.load_default()
    width, height = images[0].width * zoom, images[0].height * zoom
    widest = max(math.ceil(font.getlength(caption)) for caption in captions)
    cell_width, cell_height = max(width, widest) + _GAP, _CAPTION_HEIGHT + height + _GAP
    rows = math.ceil(len(images) / columns)
    size = (columns * cell_width + _GAP, rows * cell_height + _GAP)
    sheet = Image.new(images[0].mode, size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + i % columns * cell_width, _GAP + i // columns * cell_height
        draw.text((x, y), caption, fill="black", font=font)
        sheet.paste(enlarge(image, zoom), (x, y + _CAPTION_HEIGHT))
    return sheet


def reveal(
    images: Sequence[Image.Image], steps: Tensor, grid: tuple[int, int]
) -> Iterator[list[Image.Image]]:
    """Yield, for each step, the images with all that is not decoded yet in grey.

    Parameters
    ----------
    images : Sequence[PIL.Image.Image]
        The final images.
    steps : Tensor
        int64 ``[len(images), seq_len]``: the step that decoded each raster position.
    grid : tuple[int, int]
        Height and width in tokens.

    Yields
    ------
    list[PIL.Image.Image]
        One frame of every image. The pixels shown are those of the final image.
    """
    pixels = np.stack([np.asarray(image) for image in images])
    stride = (pixels.shape[1] // grid[0], pixels.shape[2] // grid[1])
    step_of = steps.reshape(-1, *grid).numpy()
    step_of = step_of.repeat(stride[0], axis=1).repeat(stride[1], axis=2)
    if pixels.ndim == 4:
        step_of = step_of[..., None]
    for step in range(int(steps.max()) + 1):
        frame = np.where(step_of <= step, pixels, np.uint8(_UNDECODED))
        yield [Image.fromarray(array) for array in frame]


def png_bytes(image: Image.Image, software: str, metadata: Mapping[str, Any]) -> bytes:
    """Encode a PNG with a readable ``Software`` text and `metadata` as JSON beside it."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", software)
    text.add_text(METADATA_KEY, json.dumps(metadata))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text, optimize=True)
    return buffer.getvalue()


def gif_bytes(frames: Sequence[Image.Image]) -> bytes:
    """Encode an endless animation of about four seconds that rests on its last frame."""
    ticks = max(2, min(20, _ANIMATION_MS // len(frames) // _GIF_TICK_MS))
    durations = [ticks * _GIF_TICK_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()
