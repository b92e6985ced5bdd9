"""Named cases shared by tests and benchmarks, each with the mistake it catches."""

from dataclasses import dataclass

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
