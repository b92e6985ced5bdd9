"""A whole generation: a model with random weights, its requests, and the duel on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from case_lines import SLOW, slow_baselines
from contender import Call
from gpu_timer import current_gpu
from published_loop import block_causal_mask, published_loop
from roofline import Gpu, decode_floor, decode_work, floor_notes
from sdpa_loop import SDPALoop
from torch import Tensor

from lpd_ext import LPD, DecodePlan, LPDConfig, decode, group_order, group_sizes
from lpd_ext.kernels import REFERENCE
from lpd_ext.philox import uniform as uniform_of

CFG_SCALE = 4.8
MOST_VERIFIED = 4  # images: logits in float32 are 17 MB each
GPU_ROUNDS = 7


def random_model(config: LPDConfig, device: torch.device | str = "cpu") -> LPD:
    """Weights as at the start of a training, but logits of some 6 nats at temperature 1."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LPD(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(4)
    return model


def arguments(
    config: LPDConfig, batch: int, num_steps: int, device: torch.device | str = "cpu"
) -> tuple[tuple[Tensor, list[int], Tensor], Tensor, Tensor]:
    """Labels, sizes and orders of a batch; uniforms; tokens to force."""
    sizes, seeds = group_sizes(config.seq_len, num_steps), torch.arange(batch)
    order = group_order(seeds, config.grid, sizes, repulsion_threshold=3)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(config.num_classes, (batch,), generator=generator)
    forced = torch.randint(config.vocab_size, (batch, config.seq_len), generator=generator)
    uniform = uniform_of(seeds, config.seq_len)
    return (labels.to(device), sizes, order.to(device)), uniform.to(device), forced.to(device)


def errors(logits: Tensor, exact: Tensor) -> dict[str, float]:
    """Maximum and mean distance."""
    error = (logits.double() - exact.double()).abs()
    return {"max": error.max().item(), "mean": error.mean().item()}


def entropy(logits: Tensor) -> float:
    """Mean nats of the distributions they give."""
    return torch.distributions.Categorical(logits=logits).entropy().mean().item()


def admit(prepared: Mapping[str, Callable[[], Call]]) -> tuple[dict[str, Call], dict[str, str]]:
    """Return the loops that run here, and in a word why the others are left out."""
    calls, left_out = {}, {}
    for name, prepare in prepared.items():
        try:
            call = prepare()
            call()
            calls[name] = call
        except Exception as error:  # a compiler's, or out of memory: it may say a path
            warnings.warn(f"{name}: {error!r}", stacklevel=2)
            left_out[name] = type(error).__name__
    return calls, left_out


def duel_on_gpu(
    versus: Callable[..., None], device: torch.device, name: str, num_steps: int, images: int
) -> None:
    """Time a captured plan in bfloat16 with guidance, after its logits were verified.

    Against it the published loop, eager and, where slow baselines are asked for, compiled for one
    image, and the strongest simple one: `SDPALoop` in one graph, its request fixed.
    """
    config = LPDConfig.named(name)
    wide = random_model(config, device)
    narrow = deepcopy(wide).to(torch.bfloat16)
    (labels, sizes, order), uniform, forced = arguments(config, images, num_steps, device)
    mask = block_causal_mask(sizes).to(device)
    plan = DecodePlan(narrow, images, sizes)
    sdpa = SDPALoop(narrow, images, sizes)

    def run_plan() -> Tensor:
        return plan(labels, order, uniform=uniform, cfg_scale=CFG_SCALE)

    def run_sdpa() -> Any:
        return sdpa(labels, order, uniform=uniform, cfg_scale=CFG_SCALE)

    def run_published(loop: Call = published_loop) -> Any:
        return loop(wide, labels, sizes, order, mask, cfg_scale=CFG_SCALE)

    few = slice(0, MOST_VERIFIED)
    options = {"cfg_scale": CFG_SCALE, "forced_tokens": forced[few], "return_logits": True}
    drawn = options | {"uniform": uniform[few]}
    request = labels[few], sizes, order[few]
    exact = decode(wide, *request, **drawn, kernels=REFERENCE)[1]
    small = SDPALoop(narrow, len(request[0]), sizes)
    error = {
        "plan": errors(plan(labels[few], order[few], **drawn)[1], exact),
        "sdpa_graph": errors(small(labels[few], order[few], **drawn)[1], exact),
        "published_loop": errors(published_loop(wide, *request, mask, **options)[1], exact),
    }
    for loop, of in error.items():
        for kind, value in of.items():
            assert value <= 2 * error["published_loop"][kind], (loop, kind, error)
    assert torch.equal(run_plan(), run_plan())

    prepared: dict[str, Callable[[], Call]] = {
        "sdpa_graph": lambda: current_gpu().capture(run_sdpa),
        "published_loop": lambda: run_published,
    }
    if images == 1 and slow_baselines():
        compiled = torch.compile(published_loop)
        prepared["published_loop_compiled"] = lambda: partial(run_published, compiled)
    baselines, left_out = admit(prepared)
    if images == 1 and not slow_baselines():
        left_out["published_loop_compiled"] = SLOW

    def floor(gpu: Gpu) -> float:
        return decode_floor(decode_work(config, sizes, images, gpu), gpu)

    versus(
        "decode",
        f"{name}, {num_steps} steps, batch {images}, bfloat16",
        run_plan,
        baselines,
        rounds=GPU_ROUNDS,
        device=device.type,
        loop=True,
        images=images,
        entropy_nats=entropy(exact),
        logits_std=exact.std().item(),
        logits_error=error,
        **({"left_out": left_out} if left_out else {}),
        **floor_notes(torch.cuda.get_device_name(), floor),
    )
    plan.release()
