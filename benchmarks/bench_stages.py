"""Time by stage of a planned decode on a GPU: where the next microsecond is.

A stage is timed alone, its launches in all layers and steps one after the other in one graph. Each
layer has weights and caches of its own, so they have left L2 before their turn comes again, as in
the loop; rows lie in L2 as they do there. ``all`` is the loop, every launch in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from decode_duel import CFG_SCALE, arguments, random_model
from plan_stages import Launch, named_launches
from roofline import Gpu, floor_notes
from roofline_stages import ALL, BATCHES, MODEL, NUM_STEPS, STAGES, stage_floor

from lpd_ext import DecodePlan, LPDConfig, group_sizes

GPU_ROUNDS = 30


@lru_cache(maxsize=1)
def prepared(
    model: str, num_steps: int, images: int, device: torch.device
) -> list[tuple[str, Launch]]:
    """Return the launches of a plan in bfloat16 with guidance, after a call with random numbers."""
    config = LPDConfig.named(model)
    (labels, sizes, order), uniform, _ = arguments(config, images, num_steps, device)
    narrow = random_model(config, device).to(torch.bfloat16)
    plan = DecodePlan(narrow, images, sizes, products="torch")
    launches = list(named_launches(plan))
    assert {stage for stage, _ in launches} == set(STAGES), "a stage without a floor"
    plan(labels, order, uniform=uniform, cfg_scale=CFG_SCALE)
    return launches


def time_stage(
    versus: Callable[..., None],
    device: torch.device,
    model: str,
    num_steps: int,
    images: int,
    stage: str,
) -> None:
    """Time the launches of one stage, or those of all, in one graph."""
    launches = prepared(model, num_steps, images, device)
    chosen = [launch for of, launch in launches if stage in (of, ALL)]

    def run() -> None:
        for launch in chosen:
            launch()

    def floor(gpu: Gpu) -> float:
        config = LPDConfig.named(model)
        return stage_floor(config, group_sizes(config.seq_len, num_steps), images, stage, gpu)

    versus(
        "stages",
        f"{model}, {num_steps} steps, batch {images}, bfloat16: {stage}",
        run,
        {},
        rounds=GPU_ROUNDS,
        device=device.type,
        model=model,
        num_steps=num_steps,
        batch=images,
        stage=stage,
        launches=len(chosen),
        **floor_notes(torch.cuda.get_device_name(), floor),
    )


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("stage", [*STAGES, ALL])
@pytest.mark.parametrize("images", BATCHES)  # last, so outermost: one plan for all its stages
def test_stages_on_gpu(versus, device, images, stage):
    time_stage(versus, device, MODEL, NUM_STEPS, images, stage)
