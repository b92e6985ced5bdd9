"""Where a pipeline's parts come from: packages, folders, files, the hub; and published settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from lpd_ext.models import hub
from lpd_ext.models.checkpoint import load_lpd, load_vq
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.settings import GenerationSettings

Pipeline = TypeVar("Pipeline")
Build: TypeAlias = Callable[
    [LPD, VQModel, Sequence[str] | None, GenerationSettings | None], Pipeline
]
"""`LPDPipeline`, or a class made from it: transformer, tokenizer, class names, settings."""

LPD_FILE, VQ_FILE, DESCRIPTION_FILE = "lpd.safetensors", "vq.safetensors", "pipeline.json"
"""What the folder of a pipeline holds."""

_PACKAGED = Path(__file__).parent / "weights"
_OWNER = "LPDPipeline.from_pretrained"

_PUBLISHED_SETTINGS = {
    LPDConfig.named(name): GenerationSettings(
        num_steps=num_steps, cfg_scale=cfg_scale, repulsion_threshold=repulsion_threshold
    )
    for name, num_steps, cfg_scale, repulsion_threshold in (
        ("lpd-l-256", 20, 4.8, 2),
        ("lpd-xl-256", 20, 4.9, 2),
        ("lpd-xxl-256", 20, 5.9, 3),
        ("lpd-l-512", 48, 7.3, 4),
        ("lpd-xl-512", 48, 6.0, 4),
    )
}


def load(
    build: Build[Pipeline],
    name_or_path: str | Path,
    vq: str | Path | None = None,
    config: LPDConfig | None = None,
    vq_config: VQConfig | None = None,
) -> Pipeline:
    """Build what `LPDPipeline.from_pretrained` is asked for; arguments and errors are its own."""
    packaged = sorted(path.parent.name for path in _PACKAGED.glob(f"*/{DESCRIPTION_FILE}"))
    folder = _PACKAGED / name_or_path if name_or_path in packaged else Path(name_or_path)
    if folder.is_dir():
        return _from_folder(build, folder, vq, config, vq_config)
    try:
        path = hub.weights_at(name_or_path)
    except FileNotFoundError as error:
        if hub.is_name(name_or_path):
            raise
        raise FileNotFoundError(
            f"{_OWNER}: argument `name_or_path`: expected one of {packaged}, a folder that holds "
            f"{LPD_FILE}, {VQ_FILE} and {DESCRIPTION_FILE}, a file of weights or a name on the "
            f"hub (owner/repository), got {str(name_or_path)!r}"
        ) from error
    if vq is None:
        if path == Path(name_or_path):
            raise FileNotFoundError(
                f"{_OWNER}: {path} is a transformer alone; give the tokenizer as `vq` (--vq): a "
                f'file, or "{hub.PUBLISHED_VQ}" on the hub, which the published ones go with'
            )
        vq = hub.PUBLISHED_VQ
    vq = hub.weights_at(vq)
    model, tokenizer = load_lpd(path, config), load_vq(vq, vq_config)
    check_vocabulary(path, model.config, vq, tokenizer.config)
    return build(model, tokenizer, None, published_settings(model.config))


def check_vocabulary(
    path: str | Path, config: LPDConfig, vq_path: str | Path, vq_config: VQConfig
) -> None:
    """Raise ValueError unless the tokenizer has an image for every token of the transformer."""
    if vq_config.codebook_size < config.vocab_size:
        raise ValueError(
            f"{path} draws from {config.vocab_size} tokens, but the codebook of {vq_path} has "
            f"{vq_config.codebook_size}: give the tokenizer that the transformer was trained with"
        )


def published_settings(config: LPDConfig) -> GenerationSettings | None:
    """Return the settings a published model is evaluated with, None for any other model.

    Notes
    -----
    Source: ``scripts/eval`` of mit-han-lab/lpd@f447b83, in the fewest steps it has for each model.
    """
    return _PUBLISHED_SETTINGS.get(config)


def description(class_names: Sequence[str] | None, defaults: GenerationSettings) -> bytes:
    """Return the content of ``pipeline.json``."""
    described = {"class_names": class_names, "defaults": dataclasses.asdict(defaults)}
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()


def _from_folder(
    build: Build[Pipeline],
    folder: Path,
    vq: str | Path | None,
    config: LPDConfig | None,
    vq_config: VQConfig | None,
) -> Pipeline:
    wanted = [LPD_FILE, DESCRIPTION_FILE] + ([VQ_FILE] if vq is None else [])
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{_OWNER}: argument `name_or_path`: expected a folder that holds {', '.join(wanted)}, "
            f"got {str(folder)!r} without {', '.join(missing)}"
        )
    vq_path = folder / VQ_FILE if vq is None else hub.weights_at(vq)
    model, tokenizer = load_lpd(folder / LPD_FILE, config), load_vq(vq_path, vq_config)
    check_vocabulary(folder / LPD_FILE, model.config, vq_path, tokenizer.config)
    try:
        described = json.loads((folder / DESCRIPTION_FILE).read_text("utf-8"))
        defaults = GenerationSettings(**described["defaults"])
        return build(model, tokenizer, described["class_names"], defaults)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder}: {DESCRIPTION_FILE} is damaged or does not fit the weights beside it "
            f"({type(error).__name__}: {error})"
        ) from error
