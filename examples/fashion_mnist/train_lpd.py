"""Train LPD on Fashion-MNIST tokens, with groups of every size and labels dropped for guidance.

    python train_lpd.py --run runs/lpd --patches runs/patches.pt

Seeded and resumable: run it again with the same options and it goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import patches
import torch
import training
from fit_patches import COUNT
from torch import Tensor
from torch.nn import functional as F

from lpd_ext import group_order, group_sizes
from lpd_ext.models.checkpoint import save_weights
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD, UNCONDITIONAL

CONFIG = LPDConfig(
    grid=(16, 16), dim=128, depth=6, num_heads=2, vocab_size=COUNT, num_classes=10, mlp_ratio=4
)
FEWEST_GROUPS, MOST_GROUPS = 8, 64
LABEL_DROPPING = 0.1
LARGE_FIRST_GROUP = 0.15  # share of batches trained for editing: many known positions at once
REPULSION_THRESHOLDS = (1, 2, 3)


def main() -> None:
    """Tokenise the training set, train, write ``lpd.safetensors``."""
    parser = training.parser(__doc__ or "", steps=2000, batch_size=64, lr=2e-3)
    parser.add_argument("--patches", type=Path, required=True, help="of fit_patches.py")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokens, labels = tokenise(args)
    model = LPD(CONFIG).to(args.device)

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        indices = data.batch_indices(len(tokens), args.batch_size, step, args.seed)
        sizes, order = draw_schedule(len(indices), generator)
        dropped = torch.rand(len(indices), generator=generator) < LABEL_DROPPING
        classes = labels[indices].masked_fill(dropped, UNCONDITIONAL)
        batch = (t.to(args.device) for t in (tokens[indices].long(), classes, order))
        images, classes, order = batch
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            loss = model.training_loss(images, classes, sizes, order)
        return loss, {"groups": len(sizes)}

    average = training.train(model, compute_loss, args, weight_decay=0.05)
    save_weights(average, args.run / "lpd.safetensors")


def draw_schedule(batch: int, generator: torch.Generator) -> tuple[list[int], Tensor]:
    """Return random group sizes and one locality-aware order an image."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    seq_len = CONFIG.seq_len
    seeds = torch.randint(2**62, (batch,), generator=generator)
    repulsion = REPULSION_THRESHOLDS[draw(0, len(REPULSION_THRESHOLDS) - 1)]
    # Uniform in 1 / groups: few-step schedules, the hard ones, come up as often as long ones.
    share = draw(0, 1000) / 1000
    groups = round(1 / (share / FEWEST_GROUPS + (1 - share) / MOST_GROUPS))
    first, known = 0, None
    if draw(1, 100) <= 100 * LARGE_FIRST_GROUP:
        first = draw(16, seq_len * 3 // 4)
        known = random_regions(batch, first, generator)
    sizes = group_sizes(seq_len - first, groups)
    order = group_order(seeds, CONFIG.grid, sizes, repulsion_threshold=repulsion, known=known)
    return ([first] if first else []) + sizes, order


def random_regions(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Return bool masks ``[batch, seq_len]`` of `count` known positions in smooth blobs."""
    noise = torch.randn(batch, 1, *CONFIG.grid, generator=generator)
    smooth = F.avg_pool2d(noise, 5, stride=1, padding=2).flatten(1)
    return torch.zeros_like(smooth, dtype=torch.bool).scatter(1, smooth.topk(count).indices, True)


def tokenise(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return the training set as uint8 tokens ``[n, seq_len]`` and its labels."""
    images, labels = data.load("train", args.data)
    centroids = torch.load(args.patches, weights_only=True)
    return patches.assign(images, centroids).to(torch.uint8), labels


if __name__ == "__main__":
    main()
