"""Fit the patch centroids that both training scripts read.

python fit_patches.py --output runs/patches.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import patches
import training

COUNT = 128  # tokens of a group are drawn independently: bits of mere texture would cost more


def main() -> None:
    """Write the centroids and print the error of replacing each patch by its centroid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=data.DEBIAN_FOLDER)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images, _ = data.load("train", args.data)
    centroids = patches.fit(images, COUNT, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    training.save_atomically(centroids, args.output)
    sample = images[:1000]
    replaced = centroids[patches.assign(sample, centroids)]
    error = (replaced - patches.split(sample).float()).abs().mean() / 127.5
    print(f"L1 of patches against centroids (range 2): {error.item():.4f}")


if __name__ == "__main__":
    main()
