"""A pipeline small enough for tests, with random weights that make every input matter."""

import torch

from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.pipeline import LPDPipeline
from lpd_ext.settings import GenerationSettings

CLASS_NAMES = ("T-shirt", "ankle boot", "bag")
GRID = (4, 4)
SEQ_LEN = 16


def tiny_pipeline(channels: int = 1) -> LPDPipeline:
    """8x8 images of 16 tokens, three classes."""
    torch.manual_seed(0)
    model = LPD(
        LPDConfig(
            grid=GRID, dim=64, depth=2, num_heads=2, vocab_size=19, num_classes=3, mlp_ratio=2
        )
    )
    vq = VQModel(
        VQConfig(
            in_channels=channels,
            channels=8,
            channel_mult=(1, 1),
            num_res_blocks=1,
            z_channels=8,
            codebook_size=19,
            codebook_dim=4,
            norm_groups=4,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():  # spread the logits: near-ties would prove nothing
            parameter.mul_(4 if parameter.ndim >= 2 else 1)
    defaults = GenerationSettings(num_steps=5, cfg_scale=2.5, repulsion_threshold=1)
    return LPDPipeline(model, vq, CLASS_NAMES, defaults)
