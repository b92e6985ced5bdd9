"""The least time that a GPU needs for the tokenizer's decoder.

Counted of each convolution of `lpd_ext.VQModel`, and of the attention between them:

- Operations: two for each product of a weight and a pixel; in attention ``4 channels`` a pair of
  pixels.
- Weights, read once. What goes in and comes out crosses memory where both together are more than L2
  keeps. Norms, activations and the doubling of pixels are taken as fused into their neighbours.

Layers wait for each other, so their floors add up.
"""

from __future__ import annotations

from collections.abc import Iterator

from roofline import ELEMENT, Gpu, Work

from lpd_ext import VQConfig


def image_work(config: VQConfig, grid: tuple[int, int], images: int, gpu: Gpu) -> Iterator[Work]:
    """Yield the work of each layer that turns tokens into a batch of images."""

    def convolution(width: int, into: int, kernel: int, pixels: int, read: int = 0) -> Work:
        weights = width * into * kernel**2
        moved = images * (width * (read or pixels) + into * pixels) * ELEMENT
        crossing = moved if moved > gpu.l2_share else 0
        return Work(weights * ELEMENT + crossing, 2 * images * weights * pixels)

    def residual(width: int, into: int, pixels: int) -> Iterator[Work]:
        yield convolution(width, into, 3, pixels)
        yield convolution(into, into, 3, pixels)
        if width != into:
            yield convolution(width, into, 1, pixels)

    def attention(width: int, pixels: int) -> Iterator[Work]:
        for _ in ("q", "k", "v", "proj_out"):
            yield convolution(width, width, 1, pixels)
        yield Work(operations=4 * images * width * pixels**2)

    c, pixels = config, grid[0] * grid[1]
    width, *widths = (c.channels * m for m in (c.channel_mult[-1], *reversed(c.channel_mult)))
    yield convolution(c.codebook_dim, c.z_channels, 1, pixels)
    yield convolution(c.z_channels, width, 3, pixels)
    yield from residual(width, width, pixels)
    yield from attention(width, pixels)
    yield from residual(width, width, pixels)
    for level, into in enumerate(widths):
        for _ in range(c.num_res_blocks + 1):
            yield from residual(width, into, pixels)
            width = into
            if level == 0:
                yield from attention(width, pixels)
        if level < len(widths) - 1:
            pixels *= 4
            yield convolution(width, width, 3, pixels, read=pixels // 4)
    yield convolution(width, c.in_channels, 3, pixels)


def image_floor(config: VQConfig, grid: tuple[int, int], images: int, gpu: Gpu) -> float:
    """Return the least seconds of a batch."""
    return sum(work.floor(gpu) for work in image_work(config, grid, images, gpu))
