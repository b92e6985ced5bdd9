"""A whole generation: the plan against the published loop and simpler ones.

On the CPU LPD-L at 256 px in 20 steps, on a GPU LPD-XL as well: guidance 4.8, bfloat16, unfiltered
draws, the published setting. Weights are random, with a head that spreads the logits as a trained
one does. The tokenizer's decoder is not in: `bench_decode_images.py` has it.
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
from decode_duel import CFG_SCALE, arguments, duel_on_gpu, entropy, errors, random_model
from published_loop import block_causal_mask, published_loop
from roofline import BATCHES
from sdpa_loop import SDPALoop

from lpd_ext import LPDConfig, decode
from lpd_ext.plan import DecodePlan

STEPS = 20
ROUNDS = {1: 7, 4: 5}  # by batch size: a round takes seconds


def duel(versus, config, batch, rounds):
    """Verify on forced tokens, then time."""
    wide = random_model(config)
    frozen = deepcopy(wide).requires_grad_(False)
    narrow = deepcopy(wide).to(torch.bfloat16)
    (labels, sizes, order), uniform, forced = arguments(config, batch, STEPS)
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
    nats = entropy(exact)
    assert 4 <= nats <= 8, nats
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
        entropy_nats=nats,
        logits_std=exact.std().item(),
        logits_error=error,
    )
    plan.release()


@pytest.mark.parametrize("batch", ROUNDS)
def test_decode(versus, batch):
    duel(versus, LPDConfig.named("lpd-l-256"), batch, ROUNDS[batch])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("model", ["lpd-l-256", "lpd-xl-256"])
def test_decode_on_gpu(versus, device, model, images):
    duel_on_gpu(versus, device, model, STEPS, images)
