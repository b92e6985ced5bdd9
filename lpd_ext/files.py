"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Content: TypeAlias = bytes | Callable[[Path], None]
"""A whole file: its bytes, or a function that writes them to the path it is given."""


def write_atomically(path: str | Path, content: Content) -> None:
    """Write a file in one step: readers and crashes see the old file or the new one.

    Parameters
    ----------
    path : str or Path
        Its folder must exist.
    content : Content
        The whole file.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write several files, all of them or none; each appears in one step.

    Parameters
    ----------
    contents : Mapping[Path, Content]
        The whole files; their folders must exist. What a function raises is passed on.

    Raises
    ------
    OSError
        If one cannot be written; none is left behind, and files that were there stay as they were.
    """
    partials: dict[Path, str] = {}
    try:
        for path, content in contents.items():
            handle, partials[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            partial = Path(partials[path])
            # A function may put another file there: it is opened anew, not kept open.
            if isinstance(content, bytes):
                partial.write_bytes(content)
            else:
                content(partial)
            with partial.open("rb") as file:
                os.fsync(file)  # else a crash may keep the new name but not the content
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(partial, 0o666 & ~umask)  # mkstemp's 0600 would surprise others
        for path, written in partials.items():
            if os.path.lexists(path):
                _keep(path, _aside(written))
            os.replace(written, path)
    except BaseException:
        for path, written in partials.items():
            with suppress(OSError):  # the first error is the one to report
                _undo(path, written)
        raise
    for written in partials.values():
        _aside(written).unlink(missing_ok=True)


def _aside(partial: str) -> Path:
    return Path(f"{partial}.old")


def _keep(path: Path, aside: Path) -> None:
    try:
        os.link(path, aside, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, aside, follow_symlinks=False)


def _undo(path: Path, partial: str) -> None:
    aside = _aside(partial)
    if os.path.lexists(partial):  # not yet renamed
        os.unlink(partial)
        aside.unlink(missing_ok=True)
    elif os.path.lexists(aside):
        os.replace(aside, path)
    else:
        path.unlink(missing_ok=True)
