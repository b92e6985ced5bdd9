"""A whole generation with LPD-L: the plan against the published loop and simpler ones.

256 px in 20 steps, guidance 4.8, bfloat16, unfiltered draws: the published setting. Weights are
random, with a head that spreads the logits as a trained one does. The tokenizer's decoder is not
in.
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
from published_loop import block_causal_mask, published_loop
from sdpa_loop import SDPALoop

from lpd_ext import LPD, LPDConfig, decode, group_order, group_sizes
from lpd_ext.philox import uniform as uniform_of
from lpd_ext.plan import DecodePlan

STEPS, CFG_SCALE = 20, 4.8
ROUNDS = {1: 7, 4: 5}  # by batch size: a round takes seconds


def random_model(config):
    """Weights as at the start of a training, but logits of some 6 nats at temperature 1."""
    torch.manual_seed(0)
    model = LPD(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(4)
    return model


def arguments(config, batch):
    """Labels, sizes and orders of a batch; uniforms; tokens to force."""
    sizes, seeds = group_sizes(config.seq_len, STEPS), torch.arange(batch)
    order = group_order(seeds, config.grid, sizes, repulsion_threshold=3)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(config.num_classes, (batch,), generator=generator)
    forced = torch.randint(config.vocab_size, (batch, config.seq_len), generator=generator)
    return (labels, sizes, order), uniform_of(seeds, config.seq_len), forced


def errors(logits, exact):
    """Maximum and mean distance."""
    error = (logits.double() - exact.double()).abs()
    return {"max": error.max().item(), "mean": error.mean().item()}


def duel(versus, config, batch, rounds):
    """Verify on forced tokens, then time."""
    wide = random_model(config)
    frozen = deepcopy(wide).requires_grad_(False)
    narrow = deepcopy(wide).to(torch.bfloat16)
    (labels, sizes, order), uniform, forced = arguments(config, batch)
    mask = block_causal_mask(sizes)
    sdpa = SDPALoop(narrow, batch, sizes)
    plan = DecodePlan(narrow, batch, sizes, guided=True)
    asked = {"cfg_scale": CFG_SCALE, "uniform": uniform}

    def run_plan(**options):
        return plan(labels, order, **asked, **options)

    def run_published(model=wide, **options):
        return published_loop(model, labels, sizes, order, mask, cfg_scale=CFG_SCALE, **options)

    def run_sdpa(**options):
        return sdpa(labels, order, **asked, **options)

    def run_decode(model=narrow, **options):
        return decode(model, labels, sizes, order, **asked, **options)

    loops = {
        "plan": run_plan,
        "published_loop": run_published,
        "published_loop_frozen": partial(run_published, frozen),
        "sdpa_loop": run_sdpa,
        "decode": run_decode,
    }
    options = {"forced_tokens": forced, "return_logits": True}
    exact = run_decode(wide, **options)[1]
    error = {name: errors(loop(**options)[1], exact) for name, loop in loops.items()}
    for name, of in error.items():
        for kind, value in of.items():
            assert value <= 2 * error["published_loop"][kind], (name, kind, error)
    entropy = torch.distributions.Categorical(logits=exact).entropy().mean().item()
    assert 4 <= entropy <= 8, entropy
    assert torch.equal(run_plan(), run_plan())
    # Greedy: drawn tokens differ where `uniform` lies within rounding of a boundary, as those of
    # `decode` do between batch sizes and numbers of threads.
    plan32 = DecodePlan(wide, batch, sizes, guided=True)
    greedy = {"cfg_scale": CFG_SCALE, "temperature": 0}
    tokens = plan32(labels, order, **greedy)
    assert torch.equal(tokens, decode(wide, labels, sizes, order, **greedy))
    plan32.release()

    versus(
        "decode",
        f"LPD-L, 256 px, {STEPS} steps, batch {batch}, bfloat16",
        loops.pop("plan"),
        loops,
        rounds=rounds,
        entropy_nats=entropy,
        logits_std=exact.std().item(),
        logits_error=error,
    )
    plan.release()


@pytest.mark.parametrize("batch", ROUNDS)
def test_decode(versus, batch):
    duel(versus, LPDConfig.named("lpd-l-256"), batch, ROUNDS[batch])
