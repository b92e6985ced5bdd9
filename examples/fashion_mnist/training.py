"""What the training scripts share: learning rate, weight averaging, checkpoints, the loop."""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from data import DEBIAN_FOLDER
from torch import Tensor, nn
from tqdm import tqdm

from lpd_ext.files import write_atomically


def parser(description: str, *, steps: int, batch_size: int, lr: float) -> argparse.ArgumentParser:
    """Return the options that every training script has."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files")
    p.add_argument("--run", type=Path, required=True, help="folder of checkpoint and log")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch-size", type=int, default=batch_size)
    p.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    p.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    return p


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def average_weights(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move `average` towards `model`; the window grows with the run, up to about 1000 steps."""
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        for target, source in zip(average.parameters(), model.parameters(), strict=True):
            target.lerp_(source, 1 - decay)


def save_atomically(state: object, path: Path) -> None:
    """Write a checkpoint so that a killed run leaves the old one or the new one, never half."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def train(
    model: nn.Module,
    compute_loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    args: argparse.Namespace,
    *,
    weight_decay: float = 0.0,
) -> nn.Module:
    """Run or resume the training loop and return the averaged model.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    compute_loss : Callable
        Maps a step to its loss and to figures for the log; all its randomness comes from the step.
    args : argparse.Namespace
        Options of `parser`; ``run/checkpoint.pt`` is resumed where it exists.
    weight_decay : float
        Of the matrices; vectors (norms, biases) have none.
    """
    args.run.mkdir(parents=True, exist_ok=True)
    checkpoint = args.run / "checkpoint.pt"
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0},
        ],
        lr=args.lr,
        betas=(0.9, 0.95),
    )
    average = copy.deepcopy(model).requires_grad_(False)
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=args.device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds,
        }
        save_atomically(state, checkpoint)

    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, unit="step")
    with (args.run / "log.jsonl").open("a") as log:
        options = {name: str(value) for name, value in vars(args).items()}
        log.write(json.dumps({"first_step": first, "options": options}) + "\n")
        for step in bar:
            begin = time.monotonic()
            lr = learning_rate(step, args.steps, args.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, figures = compute_loss(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average_weights(average, model, step)
            seconds += time.monotonic() - begin
            figures = {"loss": loss.item(), "grad_norm": norm.item(), "lr": lr, **figures}
            bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items() if k != "lr"})
            log.write(json.dumps({"step": step, "seconds": round(seconds, 1), **figures}) + "\n")
            if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
                log.flush()
                save(step + 1)
    return average


def write_json(value: object, path: Path) -> None:
    """Write a value as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
