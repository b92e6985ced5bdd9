"""A command with a time limit, whose output is kept while it comes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

GRACE = 20  # seconds between SIGINT, on which pytest writes its report, and SIGKILL


class StoppedError(Exception):
    """Somebody ended the whole check."""


def _detach() -> None:
    """In a group of its own, so that it gets its signals from here; SIGINT may be ignored here."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(
    command: Sequence[str],
    logs: Sequence[IO[bytes]],
    *,
    seconds: float,
    folder: Path,
    environment: Mapping[str, str],
) -> int | None:
    """Run a command; its output goes to all logs at once.

    Returns
    -------
    int or None
        The exit status; None if it was stopped at its limit.

    Raises
    ------
    StoppedError
        By KeyboardInterrupt; the command was stopped first.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        cwd=folder, env=environment, preexec_fn=_detach,
    )  # fmt: skip
    assert process.stdout is not None
    interrupted, begin, limit = False, time.monotonic(), seconds
    stops: list[float] = []
    while True:
        try:
            if process.poll() is not None:
                break
            _forward(process.stdout, logs)
            now = time.monotonic()
            if now - begin >= limit and not stops:
                stops.append(now)
                os.killpg(process.pid, signal.SIGINT)
            elif stops and now - stops[0] >= GRACE:
                os.killpg(process.pid, signal.SIGKILL)
        except KeyboardInterrupt:
            interrupted, limit = True, 0
    while _forward(process.stdout, logs, wait=0):
        pass
    process.stdout.close()
    if interrupted:
        raise StoppedError
    return None if stops else process.returncode


def _forward(output: IO[bytes], logs: Sequence[IO[bytes]], wait: float = 0.1) -> bytes:
    """Pass on what there is; returns it."""
    if not select.select([output], [], [], wait)[0]:
        return b""
    piece = os.read(output.fileno(), 1 << 16)
    if not piece:  # closed, but the process may still run
        time.sleep(min(wait, 0.01))
    for log in logs:
        log.write(piece)
        log.flush()
    return piece
