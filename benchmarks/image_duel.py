"""From labels to images on a GPU: the plans of loop and tokenizer against the same in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from contender import Call
from decode_duel import (
    CFG_SCALE,
    GPU_ROUNDS,
    MOST_VERIFIED,
    admit,
    arguments,
    errors,
    random_model,
)
from gpu_timer import current_gpu
from published_loop import block_causal_mask, published_loop
from roofline import Gpu, decode_floor, decode_work, floor_notes
from roofline_images import image_floor
from sdpa_loop import SDPALoop
from torch import Tensor
from torch.nn import functional as F

from lpd_ext import DecodePlan, ImagePlan, LPDConfig, VQConfig, VQModel


def random_tokenizer(config: VQConfig, device: torch.device | str = "cpu") -> VQModel:
    """Weights as at the start of a training."""
    torch.manual_seed(0)
    with torch.device(device):
        return VQModel(config).eval()


class SDPAToImages:
    """`SDPALoop`, then the tokenizer in bfloat16 and channels-last: nothing read back, either.

    The codebook is normalised beforehand, the ids are not checked, so that all is one graph.
    """

    @torch.no_grad()
    def __init__(self, loop: SDPALoop, vq: VQModel, grid: tuple[int, int]) -> None:
        self.loop, self.grid = loop, grid
        self.vq = deepcopy(vq).to(loop.model.dtype).to(memory_format=torch.channels_last)
        self.codebook = vq.quantize.normalised().to(loop.model.dtype)

    @torch.no_grad()
    def __call__(self, class_labels: Tensor, order: Tensor, **options: Any) -> Tensor:
        """Decode a batch; arguments as those of `SDPALoop`."""
        tokens = self.loop(class_labels, order, **options)
        return self.vq.image_of(F.embedding(tokens, self.codebook), self.grid)


@torch.no_grad()
def eager_images(vq: VQModel, tokens: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`VQModel.decode` as it is, or under autocast to another dtype than float32."""
    autocast = dtype != torch.float32
    with torch.autocast(tokens.device.type, dtype if autocast else None, enabled=autocast):
        return vq.decode(tokens, grid)


def image_duel_on_gpu(
    versus: Callable[..., None],
    device: torch.device,
    name: str,
    num_steps: int,
    images: int,
    vq_config: VQConfig | None = None,
) -> None:
    """Time captured plans in bfloat16 with guidance, after the images were verified.

    Against them the published loop with an eager tokenizer, in float32 or under autocast, whichever
    is faster, and the strongest simple one, all of it in one graph, its request fixed.
    """
    config, vq_config = LPDConfig.named(name), vq_config or VQConfig()
    wide = random_model(config, device)
    narrow = deepcopy(wide).to(torch.bfloat16)
    vq = random_tokenizer(vq_config, device)
    (labels, sizes, order), uniform, forced = arguments(config, images, num_steps, device)
    mask = block_causal_mask(sizes).to(device)
    plan = DecodePlan(narrow, images, sizes)
    image_plan = ImagePlan(vq, images, config.grid, dtype=torch.bfloat16)
    sdpa = SDPAToImages(SDPALoop(narrow, images, sizes), vq, config.grid)

    def run_plans() -> Tensor:
        return image_plan(plan(labels, order, uniform=uniform, cfg_scale=CFG_SCALE))

    def run_sdpa() -> Tensor:
        return sdpa(labels, order, uniform=uniform, cfg_scale=CFG_SCALE)

    def run_published(dtype: torch.dtype) -> Tensor:
        tokens = published_loop(wide, labels, sizes, order, mask, cfg_scale=CFG_SCALE)
        return eager_images(vq, tokens, config.grid, dtype)

    few = forced[:MOST_VERIFIED]
    exact = eager_images(deepcopy(vq).double(), few, config.grid, torch.float32)
    made = {
        "image_plan": image_plan(few),
        "vq_bfloat16": eager_images(sdpa.vq, few, config.grid, torch.float32),
        "vq_autocast": eager_images(vq, few, config.grid, torch.bfloat16),
        "vq_float32": eager_images(vq, few, config.grid, torch.float32),
    }
    error = {name: errors(pictures, exact) for name, pictures in made.items()}
    for kind, factor in (("max", 2.0), ("mean", 1.5)):
        assert error["image_plan"][kind] <= factor * error["vq_bfloat16"][kind], (kind, error)
    assert torch.equal(run_plans(), run_plans())

    prepared: dict[str, Callable[[], Call]] = {
        "sdpa_graph": lambda: current_gpu().capture(run_sdpa)
    }
    baselines, left_out = admit(prepared)
    published = {
        str(dtype).removeprefix("torch."): partial(run_published, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }

    def floor(gpu: Gpu) -> float:
        of_tokens = decode_floor(decode_work(config, sizes, images, gpu), gpu)
        return of_tokens + image_floor(vq_config, config.grid, images, gpu)

    versus(
        "decode_images",
        f"{name}, {num_steps} steps, batch {images}, bfloat16, with the tokenizer",
        run_plans,
        baselines | {"published_loop": published},
        rounds=GPU_ROUNDS,
        device=device.type,
        loop=True,
        images=images,
        image_error=error,
        **({"left_out": left_out} if left_out else {}),
        **floor_notes(torch.cuda.get_device_name(), floor),
    )
    plan.release()
    image_plan.release()
