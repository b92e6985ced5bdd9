"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file in one step: readers and crashes see the old file or the new one.

    Parameters
    ----------
    path : str or Path
        Its folder must exist.
    content : bytes
        The whole file.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    path = Path(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp's 0600 would surprise whoever shares the file
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
