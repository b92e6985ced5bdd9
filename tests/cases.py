"""Named cases shared by tests and benchmarks, each with the mistake it catches."""

import random
from dataclasses import dataclass
from itertools import product

import torch

INF, NAN = float("inf"), float("nan")
HALF_AND_FLOAT = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of one group_attention call."""

    name: str
    batch: int
    q_len: int
    num_heads: int
    head_dim: int
    cache_len: int
    context_len: int
    max_kv_len: int

    def __str__(self):
        return self.name


ATTENTION_CASES = [
    # The first step of a generation: the class token and a group of one on an empty cache.
    AttentionCase("first_step", 2, 2, 2, 64, 0, 1, 257),
    # Nothing but one query: a softmax over a single key, an empty context.
    AttentionCase("group_of_one", 1, 1, 1, 32, 0, 0, 1),
    # Only queries, cache filled to its last slot: reads past the end.
    AttentionCase("no_context", 2, 5, 3, 64, 33, 0, 33),
    # Prefill: every row is context, no key comes from qkv alone.
    AttentionCase("prefill", 2, 40, 2, 64, 0, 40, 64),
    # Appending up to the very last slot.
    AttentionCase("cache_full", 1, 7, 2, 64, 60, 4, 64),
    # The widest row counts of the published schedules, more than 128 rows at once.
    AttentionCase("many_rows", 1, 150, 1, 64, 20, 50, 257),
    # One key more than a tile, one fewer: padding of the last tile.
    AttentionCase("tile_plus_one", 1, 3, 2, 32, 30, 0, 40),
    AttentionCase("tile_minus_one", 1, 3, 2, 32, 28, 1, 40),
    # All of a 256 px and of a 512 px image in the cache.
    AttentionCase("kv_257", 1, 20, 2, 64, 217, 20, 257),
    AttentionCase("kv_1025", 1, 34, 1, 64, 958, 33, 1025),
    # The other head dimensions, 80 and 96 being no powers of two.
    AttentionCase("head_dim_32", 2, 9, 2, 32, 11, 4, 40),
    AttentionCase("head_dim_80", 2, 9, 2, 80, 11, 4, 40),
    AttentionCase("head_dim_96", 2, 9, 2, 96, 11, 4, 40),
    AttentionCase("head_dim_128", 2, 9, 2, 128, 11, 4, 40),
    # More rows than one block of threads takes at these, in both kinds of rows.
    AttentionCase("head_dim_80_rows", 1, 52, 1, 80, 70, 19, 100),
    AttentionCase("head_dim_128_rows", 1, 70, 1, 128, 20, 37, 90),
    # Keys that are split over blocks: two parts, the second of a tile alone; context rows only.
    AttentionCase("split", 2, 40, 1, 64, 350, 19, 400),
    AttentionCase("split_prefill", 1, 40, 1, 32, 500, 40, 560),
]


@dataclass(frozen=True)
class MaskedCase:
    """Sizes of one masked_attention call."""

    name: str
    batch: int
    num_heads: int
    q_len: int
    kv_len: int
    head_dim: int

    def __str__(self):
        return self.name


MASKED_CASES = [
    # A single weight; fewer keys than any tile has.
    MaskedCase("one_key", 2, 1, 1, 1, 32),
    MaskedCase("few_keys", 1, 2, 5, 3, 64),
    # One row and one key more than tiles of 16 rows, 32 and 64 keys; one fewer.
    MaskedCase("tile_plus_one", 2, 2, 17, 65, 64),
    MaskedCase("tile_minus_one", 2, 2, 15, 63, 64),
    # A last tile that is shorter than half of one, rows of three tiles.
    MaskedCase("many_rows", 1, 1, 37, 75, 32),
    # Rows of whole tiles.
    MaskedCase("whole_tiles", 1, 2, 32, 33, 64),
    # All of a 256 px and of a 512 px image.
    MaskedCase("kv_257", 2, 1, 20, 257, 64),
    MaskedCase("kv_1025", 1, 1, 9, 1025, 64),
    # The other head dimensions.
    MaskedCase("head_dim_80", 1, 2, 9, 40, 80),
    MaskedCase("head_dim_96", 1, 2, 9, 40, 96),
    MaskedCase("head_dim_128", 1, 2, 9, 40, 128),
    # More rows than one block of threads takes there.
    MaskedCase("head_dim_96_rows", 1, 1, 39, 70, 96),
    MaskedCase("head_dim_128_rows", 1, 1, 21, 70, 128),
]

# Sizes of fused_linear, where its tiles, panels and row blocks end.
LINEAR_ROWS = (
    *(1, 2),  # less than any tile
    *(15, 16, 17),  # around a tile of 16 rows
    *(31, 32, 33),  # around two of them
    *(50, 200),  # a group, and rows that are too many to be multiplied in place
    *(385, 400),  # a second block of rows: of one, and of more
)
LINEAR_OUT_FEATURES = (
    *(1, 7),  # a fraction of a panel of 32
    *(31, 32, 33),  # around a panel
    *(100, 1024),  # many panels, the last one partly filled and full
)
LINEAR_IN_FEATURES = (
    *(16, 48, 80),  # a last block of inputs that is half empty: alone, second, third
    *(32, 1024),  # blocks that are full: one, and more than a chain of sums
)


@dataclass(frozen=True)
class LinearCase:
    """Sizes and options of one fused_linear call."""

    num_rows: int
    out_features: int
    in_features: int
    batch: int = 1
    strided: bool = False  # x and out are parts of wider tensors
    norm: bool = False
    bias: bool = True
    epilogue: str = "none"
    dtype: torch.dtype = torch.float32  # of the weight
    out_dtype: torch.dtype = torch.float32

    def __str__(self):
        sizes = f"{self.batch}x{self.num_rows}x{self.in_features}to{self.out_features}"
        flags = [name for name in ("strided", "norm", "bias") if getattr(self, name)]
        dtypes = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.out_dtype)]
        return "-".join([sizes, *dtypes, self.epilogue, *flags])


def _linear_pairs():
    """Return cases in which every value of each field meets every value of every other."""
    draw = random.Random(LINEAR_SEED).choice
    flags, dtypes = (False, True), (torch.float32, torch.bfloat16)
    sizes = product(range(len(LINEAR_ROWS)), range(len(LINEAR_OUT_FEATURES)))
    return [
        LinearCase(
            num_rows=LINEAR_ROWS[i],
            out_features=LINEAR_OUT_FEATURES[j],
            in_features=LINEAR_IN_FEATURES[(i + j) % len(LINEAR_IN_FEATURES)],
            batch=draw((1, 3)),
            strided=draw(flags),
            norm=draw(flags),
            bias=draw(flags),
            epilogue=draw(("none", "gelu", "add")),
            dtype=draw(dtypes),
            out_dtype=draw(dtypes),
        )
        for i, j in sizes
    ]


LINEAR_SEED = 37  # the first one with which no pair is left out
LINEAR_PAIRS = _linear_pairs()
LINEAR_CASES = [
    *LINEAR_PAIRS,
    # Few bfloat16 rows without padding, at uneven and at even steps: tiles may be loaded from x.
    LinearCase(9, 40, 64, batch=3, strided=True, dtype=torch.bfloat16),
    LinearCase(9, 40, 64, batch=3, dtype=torch.bfloat16),
    LinearCase(33, 40, 1024, strided=True, dtype=torch.bfloat16),
    # More panels than are multiplied at a time, inputs beyond one chain of sums, the last of both
    # filled in part.
    LinearCase(400, 164, 1040),
    LinearCase(400, 164, 1040, norm=True, dtype=torch.bfloat16),
]

GRIDS = [
    # The published grids.
    (16, 16),
    (32, 32),
    # Rows and columns confused.
    (5, 9),
    # No diagonal neighbour, no second row.
    (1, 12),
    (12, 1),
    # A group that is the whole image.
    (1, 1),
]

# Rows of token_selection without a distribution.
BAD_ROWS = {  # what row 1 of 3 gets: {(half, token): logit}, or {an argument: its value}
    "cond NaN": {(0, 5): NAN},
    "cond -NaN": {(0, 5): -NAN},
    "cond +inf": {(0, 5): INF},
    "cond +inf, scale negative": {(0, 5): INF, "cfg_scale": -1.0},  # guided to -inf
    "all -inf": {(0, ...): -INF},
    "uncond NaN": {(1, 5): NAN},
    "uncond NaN under a mask": {(0, 5): -INF, (1, 5): NAN},
    "uncond +inf": {(1, 5): INF},
    "uncond +inf under a mask": {(0, 5): -INF, (1, 5): INF},
    "uncond -inf": {(1, 5): -INF},  # masked in this half only: no guided value
    "guided overflow": {(0, 5): 3e38},
    "uniform NaN": {"uniform": NAN},
    "uniform 1": {"uniform": 1.0},
    "uniform negative": {"uniform": -1e-9},
    "cfg_scale NaN": {"cfg_scale": NAN},
    "cfg_scale inf": {"cfg_scale": INF},
    "temperature NaN": {"temperature": NAN},
    "temperature negative": {"temperature": -1.0},
    "temperature inf": {"temperature": INF},
    "top_p NaN": {"top_p": NAN},
    "top_p negative": {"top_p": -0.1},
}
