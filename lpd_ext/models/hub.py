"""Names on the Hugging Face hub to files on this machine: through huggingface_hub and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from lpd_ext.models.weight_file import WEIGHT_SUFFIXES

PUBLISHED_VQ = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
"""The tokenizer of the published transformers."""

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(/(?P<file>[\w./-]+))?", re.ASCII)


def weights_at(name_or_path: str | Path) -> Path:
    """Return a file of weights on this machine, fetched from the hub where it is named there.

    Parameters
    ----------
    name_or_path : str or Path
        A ``.pth``, ``.pt`` or ``.safetensors`` file; or ``owner/repository`` with one such file, or
        ``owner/repository/file``.

    Returns
    -------
    Path
        Of the file itself or of its copy in the hub's cache.

    Raises
    ------
    FileNotFoundError
        There is no such file, and the hub has none or cannot be asked.
    ValueError
        It ends otherwise, or the repository holds none or several.
    ImportError
        A name on the hub is given, and huggingface_hub is not installed.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            raise ValueError(f"checkpoint {path}: expected a file that ends in {_endings()}")
        return path
    named = _parsed(name)
    if named is None:
        raise FileNotFoundError(
            f"checkpoint {name}: no such file, and no name on the hub (owner/repository)"
        )
    try:
        hub = import_module("huggingface_hub")  # an extra: only this needs it
    except ImportError as error:
        raise ImportError(
            f"checkpoint {name}: no such file; to look on the hub: pip install 'lpd_ext[hub]'"
        ) from error
    return _from_hub(hub, *named)


def is_name(name_or_path: str | Path) -> bool:
    """Tell names on the hub from paths: ``owner/weights.pth`` is a path."""
    return _parsed(str(name_or_path)) is not None


def _parsed(name: str) -> tuple[str, str | None] | None:
    match = _NAME.fullmatch(name)
    if match is None or (match["file"] is None and name.endswith(WEIGHT_SUFFIXES)):
        return None
    return match["repo"], match["file"]


def _from_hub(hub: Any, repo: str, file: str | None) -> Path:
    try:
        if file is None:
            file = _only_weights(repo, hub.list_repo_files(repo))
        return Path(hub.hf_hub_download(repo, file))
    except _WrongRepositoryError:
        raise
    except Exception as error:  # offline, no such name, no access: each version in its own types
        cached = _cached(hub, repo, file)
        if cached is not None:
            return cached
        reason = (str(error).splitlines() or [""])[0]
        wanted = repo if file is None else f"{repo} {file}"
        raise FileNotFoundError(
            f"checkpoint {repo if file is None else f'{repo}/{file}'}: neither here nor in the "
            f"cache of the hub, and fetching it failed ({type(error).__name__}: {reason}); where "
            f"there is a network: `hf download {wanted}`, or unset HF_HUB_OFFLINE; or give the "
            "path of a file"
        ) from error


def _cached(hub: Any, repo: str, file: str | None) -> Path | None:
    patterns = [f"*{suffix}" for suffix in WEIGHT_SUFFIXES] if file is None else [file]
    try:
        folder = hub.snapshot_download(repo, local_files_only=True, allow_patterns=patterns)
    except Exception:  # the caller reports why the hub could not help
        return None
    files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")]
    if file is None:
        file = _only_weights(repo, files)
    return Path(folder) / file if file in files else None


class _WrongRepositoryError(ValueError):
    """A repository that does not say which file is meant."""


def _only_weights(repo: str, files: Iterable[str]) -> str:
    weights = sorted(file for file in files if file.endswith(WEIGHT_SUFFIXES))
    if len(weights) == 1:
        return weights[0]
    found = ", ".join(weights[:6]) or "none"
    raise _WrongRepositoryError(
        f"checkpoint {repo}: expected one file that ends in {_endings()}, found {found}; "
        f"say which: {repo}/FILE"
    )


def _endings() -> str:
    return ", ".join(WEIGHT_SUFFIXES)
