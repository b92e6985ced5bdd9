"""Judge generated images: asked label, recall, Fréchet distance.

    python evaluate.py --classifier runs/classifier/classifier.pt --output evaluation.json

Every setting generates the same number of images of each class, from the same seeds. Accuracy is
the share to which the classifier gives the asked label. Recall is the share of real test images
within the k-nearest-neighbour manifold of the generated ones (arXiv 1904.06991), on equally many
of each. The Fréchet distance (arXiv 1706.08500) is taken on the classifier's features against the
whole test set.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import data
import numpy as np
import torch
import training
from classifier import Classifier
from scipy.linalg import sqrtm
from torch import Tensor

from lpd_ext import LPDPipeline

NEIGHBOURS = 3
# Name, then what it changes in the default settings.
SETTINGS: dict[str, dict[str, object]] = {
    "20 steps, locality (default)": {},
    "20 steps, random": {"order": "random"},
    "20 steps, halton": {"order": "halton"},
    "20 steps, raster": {"order": "raster"},
    "12 steps, locality": {"num_steps": 12},
    "12 steps, random": {"num_steps": 12, "order": "random"},
    "256 steps, locality": {"num_steps": 256},
}


def main() -> None:
    """Generate, judge, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=data.DEBIAN_FOLDER)
    parser.add_argument("--count", type=int, default=1000, help="images a setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--cfg-scale", type=float, help="in place of the model's default")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    judge = Classifier()
    judge.load_state_dict(torch.load(args.classifier, weights_only=True))
    judge.eval()
    test_images, test_labels = data.load("test", args.data)
    real, predicted = describe(judge, data.to_float(test_images))
    result: dict[str, object] = {
        "classifier_accuracy_on_test_set": (predicted == test_labels).float().mean().item(),
        "images_a_setting": args.count,
        "neighbours": NEIGHBOURS,
        "settings": {},
    }
    print(f"classifier on the real test set: {result['classifier_accuracy_on_test_set']:.4f}")
    pipeline = LPDPipeline.from_pretrained(args.model)
    classes = [i % len(data.CLASS_NAMES) for i in range(args.count)]
    for name in args.settings:
        options = dict(SETTINGS[name])
        if args.cfg_scale is not None:
            options["cfg_scale"] = args.cfg_scale
        begin = time.monotonic()
        out = pipeline(classes, seed=args.seed, batch_size=50, **options)
        seconds = time.monotonic() - begin
        generated = torch.stack([torch.from_numpy(np.array(i)) for i in out.images])[:, None]
        features, labels = describe(judge, data.to_float(generated))
        figures = {
            "accuracy": (labels == torch.tensor(classes)).float().mean().item(),
            "recall": recall(real[: args.count], features),
            "frechet_distance": frechet_distance(real, features),
            "seconds": round(seconds, 1),
        }
        result["settings"][name] = figures
        print(f"{name:32}", "  ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
    training.write_json(result, args.output)


def describe(judge: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features ``[n, 128]`` and predicted labels ``[n]`` of float images."""
    with torch.no_grad():
        features = torch.cat([judge.features(batch) for batch in images.split(500)])
        return features, judge.head(features).argmax(1)


def recall(real: Tensor, generated: Tensor) -> float:
    """Return the share of real features nearer to a generated one than its k-th neighbour is."""
    distances = torch.cdist(generated, generated)
    radius = distances.kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is itself
    return (torch.cdist(real, generated) <= radius).any(1).float().mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians fitted to features ``[n, d]``."""
    a, b = a.double(), b.double()
    covariance_a, covariance_b = a.T.cov(), b.T.cov()
    root = sqrtm((covariance_a @ covariance_b).numpy())
    mean = (a.mean(0) - b.mean(0)).square().sum()
    trace = covariance_a.trace() + covariance_b.trace() - 2 * np.trace(root.real)
    return float(mean + trace)


if __name__ == "__main__":
    main()
