"""The least time that a GPU needs for the work of LPD.

    python benchmarks/roofline.py    # prints the floors

Counted of a step, for all its sequences (two an image with guidance):

- Rows: the group decoded before (context; the class token at first) and this group's queries. Keys:
  those in the cache and one a row.
- Weights: ``depth * (12 dim^2 + 13 dim) + 2 dim + vocab_size * dim`` numbers, blocks with an MLP of
  four times the width, last norm and head, each read once. Rows of embeddings are gathered.
- K/V: what is in the cache is read, what the context adds is written. Keys of queries are used once
  and never stored.
- Activations: 20 ``dim`` numbers a row and layer cross memory, but only where those alive at once,
  8 ``dim`` a row, are more than L2 keeps.
- Operations: ``24 dim^2`` a row and layer in the linear layers, ``4 dim`` a row, key and layer in
  attention (a tile multiplies what the mask hides, too), ``2 vocab_size dim`` a query in the head.
- `group_attention` by itself reads q, k, v of the packed projection and the cached K/V, writes the
  context's K/V and the result, each once.

A step takes at least the time of its bytes or that of its operations, whichever is longer. Launches
and the waiting of one kernel for another come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lpd_ext import LPDConfig, group_sizes

ELEMENT = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Gpu:
    """What a GPU reaches, not what its data sheet says.

    Parameters
    ----------
    name : str
        Part of the name that the driver gives it.
    bandwidth : float
        Bytes a second of a copy in its memory.
    arithmetic : float
        Operations a second of a large bfloat16 matrix product.
    l2_share : float
        Bytes of activations that stay in L2 between kernels.
    """

    name: str
    bandwidth: float
    arithmetic: float
    l2_share: float

    @property
    def ceilings(self) -> str:
        """Name and numbers, in words."""
        bandwidth, arithmetic = self.bandwidth / 1e12, self.arithmetic / 1e12
        return f"{self.name} taken at {bandwidth:g} TB/s and {arithmetic:g} TFLOP/s"


# The design notes of this project call these ceilings measured on such a card with PyTorch (770 to
# 798 TFLOP/s on random data), and take 30 MB of L2. This repository has not measured them.
H200 = Gpu("H200", bandwidth=4.3e12, arithmetic=790e12, l2_share=30e6)
GPUS = (H200,)


@dataclass(frozen=True)
class Work:
    """Bytes that cross memory, and operations."""

    num_bytes: float = 0
    operations: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.num_bytes + other.num_bytes, self.operations + other.operations)

    def floor(self, gpu: Gpu) -> float:
        """Return the least seconds it takes."""
        return max(self.num_bytes / gpu.bandwidth, self.operations / gpu.arithmetic)


@dataclass(frozen=True)
class Step:
    """Rows of one sequence in a step of decoding, and the keys that it finds in the cache."""

    context_len: int
    num_queries: int
    cache_len: int

    @property
    def rows(self) -> int:
        """Context and queries."""
        return self.context_len + self.num_queries

    @property
    def keys(self) -> int:
        """Those cached and one a row."""
        return self.cache_len + self.rows


def known_gpu(name: str) -> Gpu | None:
    """Return the GPU of that name, None where its ceilings are not known."""
    return next((gpu for gpu in GPUS if gpu.name in name), None)


def floor_notes(name: str, seconds: Callable[[Gpu], float]) -> dict[str, Any]:
    """Return a floor for the report, {} where the ceilings of the GPU are not known."""
    gpu = known_gpu(name)
    return {} if gpu is None else {"floor_us": 1e6 * seconds(gpu), "ceilings": gpu.ceilings}


def steps(sizes: Sequence[int]) -> Iterator[Step]:
    """Return the steps that decode groups of these sizes."""
    context_len, cache_len = 1, 0
    for size in sizes:
        yield Step(context_len, size, cache_len)
        cache_len += context_len
        context_len = size


def group_attention_work(step: Step, num_sequences: int, num_heads: int, head_dim: int) -> Work:
    """Return the work of one call of `group_attention`."""
    of_qkv_and_out = (3 + 1) * step.rows
    of_caches = 2 * (step.cache_len + step.context_len)
    width = num_sequences * num_heads * head_dim
    return Work((of_qkv_and_out + of_caches) * width * ELEMENT, 4 * step.rows * step.keys * width)


def step_work(config: LPDConfig, step: Step, num_sequences: int, gpu: Gpu) -> dict[str, Work]:
    """Return the work of a whole step by its parts."""
    dim, depth = config.dim, config.depth
    rows, queries = num_sequences * step.rows, num_sequences * step.num_queries
    weights = depth * (12 * dim**2 + 13 * dim) + 2 * dim + config.vocab_size * dim
    cached = num_sequences * (step.cache_len + step.context_len)
    in_l2 = 8 * dim * rows * ELEMENT <= gpu.l2_share
    return {
        "weights": Work(num_bytes=weights * ELEMENT),
        "kv": Work(num_bytes=depth * 2 * dim * cached * ELEMENT),
        "activations": Work(num_bytes=0 if in_l2 else depth * 20 * dim * rows * ELEMENT),
        "linear": Work(operations=depth * 24 * dim**2 * rows),
        "attention": Work(operations=depth * 4 * dim * rows * step.keys),
        "head": Work(operations=2 * config.vocab_size * dim * queries),
    }


def decode_work(
    config: LPDConfig, sizes: Sequence[int], images: int, gpu: Gpu, *, guided: bool = True
) -> list[dict[str, Work]]:
    """Return the work of each step that decodes a batch of images, by its parts."""
    num_sequences = images * (2 if guided else 1)
    return [step_work(config, step, num_sequences, gpu) for step in steps(sizes)]


def decode_floor(work: Sequence[dict[str, Work]], gpu: Gpu) -> float:
    """Return the least seconds of a whole decode: its steps wait for each other."""
    return sum(sum(parts.values(), Work()).floor(gpu) for parts in work)


SETTINGS = {  # published, with the numbers of steps of their tables
    "lpd-l-256": 20,
    "lpd-xl-256": 20,
    "lpd-xxl-256": 20,
    "lpd-l-512": 48,
    "lpd-xl-512": 48,
}
BATCHES = (1, 8, 64, 256)


def decode_table(gpu: Gpu) -> Iterator[list[str]]:
    """Return the floors of whole decodes, with guidance, without the tokenizer."""
    yield ["model, steps", "weights", *(f"batch {images}" for images in BATCHES)]
    for name, num_steps in SETTINGS.items():
        config = LPDConfig.named(name)
        sizes = group_sizes(config.seq_len, num_steps)
        cells = []
        for images in BATCHES:
            seconds = decode_floor(decode_work(config, sizes, images, gpu), gpu)
            cells.append(f"{1e3 * seconds:.2f} ms ({images / seconds:.0f} img/s)")
        weights = sum(parts["weights"].floor(gpu) for parts in decode_work(config, sizes, 1, gpu))
        yield [f"{name}, {num_steps}", f"{1e3 * weights:.2f} ms", *cells]


def attention_table(gpu: Gpu) -> Iterator[list[str]]:
    """Return the floors of single calls of `group_attention`: first, middle and last step."""
    yield ["model, step: rows x keys", *(f"batch {images}" for images in BATCHES)]
    for name, num_steps in SETTINGS.items():
        config = LPDConfig.named(name)
        all_steps = list(steps(group_sizes(config.seq_len, num_steps)))
        for number in (0, num_steps // 2, num_steps - 1):
            step = all_steps[number]
            cells = []
            for images in BATCHES:
                work = group_attention_work(step, 2 * images, config.num_heads, config.head_dim)
                cells.append(f"{1e6 * work.floor(gpu):.2f} us")
            yield [f"{name}, {number + 1}: {step.rows} x {step.keys}", *cells]


def main() -> None:
    """Print the tables."""
    for gpu in GPUS:
        print(f"Floors, not measurements: {gpu.ceilings}; bfloat16, two sequences an image.")
        titles = {"Decoding a batch, without the tokenizer": decode_table,
                  "group_attention, one call": attention_table}  # fmt: skip
        for title, table in titles.items():
            print(f"\n{title}\n")
            header, *rows = table(gpu)
            for cells in (header, ["---"] * len(header), *rows):
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
