"""The line that a user of the published code adds: `sample_tokens` before and after.

LPD-L at 256 px in 20 steps, guidance 4.8, under bfloat16 autocast, random weights. The model is the
stand-in of `published_model`, whose eager method is leaner than the published one: keys are kept in
lists, there is no filter.
"""

from copy import deepcopy

import pytest
import torch
from published_model import block_causal, published_model

from lpd_ext import LPDConfig, accelerate, group_sizes

STEPS, ROUNDS = 20, 5


@pytest.mark.parametrize("batch", [1, 4])
def test_accelerate(versus, batch):
    c = LPDConfig.named("lpd-l-256")
    model = published_model(
        seq_len=c.seq_len,
        dim=c.dim,
        depth=c.depth,
        num_heads=c.num_heads,
        vocab=c.vocab_size,
        classes=c.num_classes,
    )
    fast = deepcopy(model)
    accelerated = accelerate(fast)
    sizes = group_sizes(c.seq_len, STEPS)
    given = {
        "cfg": 4.8,
        "labels": torch.arange(batch),
        "attn_mask": block_causal(sizes),
        "group_sizes": sizes,
        "orders": torch.stack([torch.randperm(c.seq_len) for _ in range(batch)]),
    }

    def run(of, **changes):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return of.sample_tokens(batch, **given, **changes)

    with torch.no_grad():
        few = {**given, "temperature": 0}
        assert fast.sample_tokens(batch, **few).equal(model.sample_tokens(batch, **few))
    versus(
        "accelerate",
        f"LPD-L, 256 px, {STEPS} steps, batch {batch}, bfloat16",
        lambda: run(fast),
        {"sample_tokens": lambda: run(model)},
        rounds=ROUNDS,
    )
    accelerated.restore()
