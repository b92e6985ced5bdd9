"""The least time of each launch of a planned decode, and what it is predicted to take.

Launches are those of `lpd_ext.DecodePlan` in bfloat16 with matrix products of torch. Counted of
one launch:

- Weights, biases among them, read once, as in `roofline.py`. K/V: what is in the cache is read,
  what the context adds is written.
- Activations, what goes in and what comes out, where those alive at once are more than L2 keeps
  (the rule of `roofline.py`). The residual stream is float32, twice as wide. Logits by themselves,
  where they are more than L2 keeps.
- Operations of matrix products and attention; others are not counted.

Floors of launches add up to more than the floor of a step: bytes of one do not move while another
computes, and what passes between them crosses memory once it outgrows L2.

A prediction, from instruction counts and not from a measurement, is for each launch the sum of

- `DEPENDENT`: a launch of a graph that waits for the one before costs about 1 us between the two,
  and the smallest kernel, two trips to L2 and two barriers, 1 to 2 us;
- `OWN`: what its kernel takes besides when rows are few. A product fills and drains its pipeline.
  Attention takes 4 to 5 us on average, by 41400 warp instructions for a pair of 40 rows x 257 keys.
  The sums of `fc2`, split over its long dimension, are added by a second kernel;
- its floor, by the share of the card's ceiling that its kernel is predicted to reach (`SHARES`).

LPD-L at batch 1: a layer's seven launches 14 to 21 us, what is their own 8, floors 6.2, in all 28
to 35 us; 480 times that and 20 times 21 to 25 us before and behind the layers are 14 to 17 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from roofline import ELEMENT, Gpu, Step, Work, decode_floor, decode_work, steps

from lpd_ext import LPDConfig

MODEL, NUM_STEPS, BATCHES = "lpd-l-256", 20, (1, 64)  # what is timed and predicted
ALL = "all"  # stages together, each launch in its place
DEPENDENT = (2e-6, 3e-6)  # seconds, at best and at worst
OWN = {"qkv": 1e-6, "attention": 2e-6, "proj": 1e-6, "fc1": 1e-6, "fc2": 3e-6, "head": 1e-6,
       "selection": 4e-6}  # fmt: skip
# At best and at worst. Attention is bound by issue: at perfect issue 196 us in the last step of
# batch 256, of which 50 to 60 % are reached, beside 155 us of memory. linear_gelu multiplies by
# m16n8k16, not by Hopper's own instructions.
SHARES = {"attention": ("bandwidth", (0.47, 0.40)), "fc1": ("arithmetic", (0.59, 0.53))}
RESIDUAL = 2  # numbers of ELEMENT bytes that a float32 takes

FIRST = ("embedding",)
LAYER = ("norm", "qkv", "attention", "proj", "norm", "fc1", "fc2")
LAST = ("last norm", "head", "selection")
STAGES = tuple(dict.fromkeys(FIRST + LAYER + LAST))


@dataclass(frozen=True)
class Stage:
    """All launches of one kind in a whole decode."""

    launches: int = 0
    floor: float = 0  # seconds
    least: float = 0  # predicted, at best
    most: float = 0  # and at worst

    def __add__(self, other: Stage) -> Stage:
        return Stage(
            self.launches + other.launches,
            self.floor + other.floor,
            self.least + other.least,
            self.most + other.most,
        )


def launches(config: LPDConfig) -> tuple[str, ...]:
    """Return the stages of a step, a launch each, in order."""
    return FIRST + LAYER * config.depth + LAST


def launch_work(stage: str, config: LPDConfig, step: Step, num_sequences: int, gpu: Gpu) -> Work:
    """Return the work of one launch of a step."""
    dim, hidden = config.dim, config.mlp_ratio * config.dim
    rows, queries = num_sequences * step.rows, num_sequences * step.num_queries
    logits = queries * config.vocab_size
    normalised = 2 * RESIDUAL * dim + 2 * dim  # residual stream in and out, a product in, rows out
    in_l2 = 8 * dim * rows * ELEMENT <= gpu.l2_share
    crossing_logits = logits if logits * ELEMENT > gpu.l2_share else 0

    def linear(width: int, into: int, biases: int = 0) -> tuple[int, int, int]:
        return width * into + biases, (width + into) * rows, 2 * width * into * rows

    # Numbers that are read whatever happens, activations, operations.
    weights, activations, operations = {
        "embedding": (2 * dim * rows, RESIDUAL * dim * rows, 0),
        "norm": (2 * dim + dim, normalised * rows, 0),
        "qkv": linear(dim, 3 * dim, 3 * dim),
        "attention": (
            2 * dim * num_sequences * (step.cache_len + step.context_len),
            (3 + 1) * dim * rows,
            4 * dim * rows * step.keys,
        ),
        "proj": linear(dim, dim),
        "fc1": linear(dim, hidden, hidden),
        "fc2": linear(hidden, dim),
        # The bias it adds is counted with the first norm of the step, which has none.
        "last norm": (2 * dim, normalised * queries, 0),
        "head": (config.vocab_size * dim, dim * queries, 2 * logits * dim),
        "selection": (0, 0, 0),
    }[stage]
    moved = weights + (0 if in_l2 else activations)
    if stage in ("head", "selection"):
        moved += crossing_logits
    return Work(moved * ELEMENT, operations)


def decode_stages(
    config: LPDConfig, sizes: Sequence[int], images: int, gpu: Gpu
) -> dict[str, Stage]:
    """Return what each stage takes in a whole decode of a batch, with guidance."""
    total = dict.fromkeys(STAGES, Stage())
    for step in steps(sizes):
        for stage, count in _counts(config):
            work = launch_work(stage, config, step, 2 * images, gpu)
            least, most = predicted(stage, work, gpu)
            total[stage] += Stage(count, count * work.floor(gpu), count * least, count * most)
    return total


def predicted(stage: str, work: Work, gpu: Gpu) -> tuple[float, float]:
    """Return the seconds that a launch is predicted to take, at best and at worst."""
    ceiling, shares = SHARES.get(stage, ("bandwidth", (1.0, 1.0)))
    reached = (replace(gpu, **{ceiling: share * getattr(gpu, ceiling)}) for share in shares)
    least, most = (
        launch + OWN.get(stage, 0) + work.floor(of)
        for launch, of in zip(DEPENDENT, reached, strict=True)
    )
    return least, most


def stage_floor(
    config: LPDConfig, sizes: Sequence[int], images: int, stage: str, gpu: Gpu
) -> float:
    """Return the least seconds of one stage in a whole decode, or of everything."""
    if stage == ALL:
        return decode_floor(decode_work(config, sizes, images, gpu), gpu)
    return decode_stages(config, sizes, images, gpu)[stage].floor


def _counts(config: LPDConfig) -> Iterator[tuple[str, int]]:
    of_step = launches(config)
    for stage in STAGES:
        yield stage, of_step.count(stage)
