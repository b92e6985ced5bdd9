"""Put trained weights into the package, with class names and recommended settings.

python package.py --lpd runs/lpd/lpd.safetensors --tokenizer runs/tokenizer/vq.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import torch

import lpd_ext
from lpd_ext import LPDPipeline
from lpd_ext.models.checkpoint import load_lpd, load_vq
from lpd_ext.settings import GenerationSettings

DEFAULTS = GenerationSettings(num_steps=20, repulsion_threshold=2, cfg_scale=3.5)


def main() -> None:
    """Write the three files of the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lpd", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument(
        "--output", type=Path, default=Path(lpd_ext.__file__).parent / "weights/fashion-mnist"
    )
    args = parser.parse_args()
    model, vq = load_lpd(args.lpd), load_vq(args.tokenizer)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = LPDPipeline(model, vq, data.CLASS_NAMES, DEFAULTS)
    pipeline.save_pretrained(args.output, dtype=torch.float32)


if __name__ == "__main__":
    main()
