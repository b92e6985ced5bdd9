"""Train the Fashion-MNIST tokenizer: 32x32 grey images to 16x16 tokens and back.

    python train_tokenizer.py --run runs/tokenizer --patches runs/patches.pt

The encoder learns to name the nearest patch centroid, codebook and decoder to paint the image
from those names alone. Seeded and resumable: run it again with the same options and it goes on
from its checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import data
import patches
import torch
import training
from fit_patches import COUNT
from torch import Tensor
from torch.nn import functional as F

from lpd_ext.models.checkpoint import save_weights
from lpd_ext.models.config import VQConfig
from lpd_ext.models.vq import VQModel

CONFIG = VQConfig(
    in_channels=1,
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=16,
    codebook_size=COUNT,
    codebook_dim=8,
    norm_groups=4,
)
SHARPNESS = 50.0  # of the softmax over cosine similarities, which lie in [-1, 1]
ENCODER_WEIGHT = 0.05  # the encoder shares nothing but the codebook with the decoder


def main() -> None:
    """Train, write ``vq.safetensors``, print agreement and reconstruction error on the test set."""
    parser = training.parser(__doc__ or "", steps=800, batch_size=64, lr=2e-3)
    parser.add_argument("--patches", type=Path, required=True, help="of fit_patches.py")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = VQModel(CONFIG).to(args.device)
    images, _ = data.load("train", args.data)
    centroids = torch.load(args.patches, weights_only=True)
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(lift(centroids))

    def compute_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        indices = data.batch_indices(len(images), args.batch_size, step, args.seed)
        batch = data.to_float(images[indices]).to(args.device)
        codes = patches.assign(images[indices], centroids).to(args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            painting = F.l1_loss(model.decode(codes), batch)
            latents = model.latents(batch)
        # Neighbouring centroids differ by less than bfloat16 can tell.
        similarity = latents.float() @ model.quantize.normalised().T
        naming = F.cross_entropy(SHARPNESS * similarity.flatten(0, 1), codes.flatten())
        agreement = (similarity.argmax(-1) == codes).float().mean().item()
        loss = painting + ENCODER_WEIGHT * naming
        return loss, {"l1": painting.item(), "agreement": agreement}

    average = training.train(model, compute_loss, args).eval()
    save_weights(average, args.run / "vq.safetensors")

    test_images = data.load("test", args.data)[0][:1000]
    batch = data.to_float(test_images).to(args.device)
    wanted = patches.assign(test_images, centroids).to(args.device)
    with torch.no_grad():
        codes = average.encode(batch)
        error = F.l1_loss(average.decode(codes).clamp(-1, 1), batch)
    agreement = (codes == wanted).float().mean()
    print(f"test: agreement {agreement.item():.4f}, L1 (range 2) {error.item():.4f}")


def lift(centroids: Tensor) -> Tensor:
    """Place patch centroids on the unit sphere of the codebook, neighbours near each other."""
    patch = centroids / 127.5 - 1
    constant = torch.ones(len(patch), 1)  # keeps brightness, which normalising would lose
    lifted = torch.cat([patch, constant], dim=1)
    return F.normalize(F.pad(lifted, (0, CONFIG.codebook_dim - lifted.shape[1])), dim=-1)


if __name__ == "__main__":
    main()
