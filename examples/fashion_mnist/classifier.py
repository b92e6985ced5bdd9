"""Train the judge: a small convolutional classifier that has never seen a generated image.

    python classifier.py --run runs/classifier

Its accuracy on the real test set is printed; its last hidden layer gives the features of
evaluate.py.
"""

from __future__ import annotations

from itertools import pairwise

import data
import torch
import training
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 128


class Classifier(nn.Module):
    """Four convolutions, a mean over the grid, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, FEATURES, FEATURES)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=1 if a == 1 else 2, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                )
                for a, b in pairwise(widths)
            )
        )
        self.head = nn.Linear(FEATURES, len(data.CLASS_NAMES))

    def features(self, images: Tensor) -> Tensor:
        """Return ``[n, 128]`` of float images ``[n, 1, 32, 32]`` in [-1, 1]."""
        return self.layers(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits ``[n, 10]``."""
        return self.head(self.features(images))


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of float images that are given their label."""
    with torch.no_grad():
        predictions = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return (predictions == labels).float().mean().item()


def main() -> None:
    """Train, write ``classifier.pt``, print the accuracy on the test set."""
    args = training.parser(__doc__ or "", steps=2000, batch_size=128, lr=3e-3).parse_args()
    torch.manual_seed(args.seed)
    images, labels = data.load("train", args.data)
    model = Classifier().to(args.device)

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        indices = data.batch_indices(len(images), args.batch_size, step, args.seed)
        batch = data.to_float(images[indices])
        flipped = torch.rand(
            len(batch), generator=torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        )
        batch = torch.where(flipped[:, None, None, None] < 0.5, batch, batch.flip(3))
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            logits = model(batch.to(args.device))
        return F.cross_entropy(logits.float(), labels[indices].to(args.device)), {}

    training.train(model, compute_loss, args, weight_decay=0.02)
    model.eval().cpu()
    training.save_atomically(model.state_dict(), args.run / "classifier.pt")
    test_images, test_labels = data.load("test", args.data)
    print(f"test accuracy: {accuracy(model, data.to_float(test_images), test_labels):.4f}")


if __name__ == "__main__":
    main()
