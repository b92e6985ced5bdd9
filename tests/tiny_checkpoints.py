"""Files of weights as the published ones are, of models small enough for tests."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lpd_ext import pretrained
from lpd_ext.models.config import PUBLISHED, LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.settings import GenerationSettings

CONFIG = LPDConfig(grid=(4, 4), dim=64, depth=2, num_heads=2, vocab_size=19, num_classes=3)
VQ_CONFIG = VQConfig(
    channels=32,
    channel_mult=(1, 1),
    num_res_blocks=1,
    z_channels=8,
    codebook_size=19,
    codebook_dim=4,
)
SETTINGS = GenerationSettings(num_steps=5, cfg_scale=2.5, repulsion_threshold=1)


@dataclass(frozen=True)
class Checkpoints:
    """A transformer and a tokenizer, and the files that hold them."""

    model: LPD
    vq: VQModel
    lpd_file: Path
    vq_file: Path


def tiny_checkpoints(folder: Path) -> Checkpoints:
    """Write both in the published layout: tensors alone, under "model", one of them unused."""
    torch.manual_seed(0)
    model, vq = LPD(CONFIG), VQModel(VQ_CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # spread the logits: near-ties would prove nothing
            parameter.mul_(4 if parameter.ndim >= 2 else 1)
    files = folder / "lpd_tiny.pth", folder / "vq_tiny.pt"
    torch.save({"model": model.state_dict(), "epoch": 3}, files[0])
    used = {"quantize.codebook_used": torch.zeros(7)}
    torch.save({"model": vq.state_dict() | used}, files[1])
    return Checkpoints(model, vq, *files)


def publish(monkeypatch) -> None:
    """Let the tiny transformer count as published: only then do its weights say everything."""
    monkeypatch.setitem(PUBLISHED, "lpd-tiny", CONFIG)
    monkeypatch.setitem(pretrained._PUBLISHED_SETTINGS, CONFIG, SETTINGS)
