"""A command with a time limit, whose output is kept while it comes."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_libc, _PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
GRACE = 20  # seconds between SIGINT, on which pytest writes its report, and SIGKILL


asked_to_stop: list[int] = []  # signals: an exception amid anything would leave it half done


class StoppedError(Exception):
    """Somebody ended the whole check."""


def stop_at(numbers: Sequence[signal.Signals]) -> None:
    """Let these signals end the command that runs, and the check behind it."""
    for number in numbers:
        signal.signal(number, lambda number, _: asked_to_stop.append(number))


def _detach() -> None:
    """Give it a group of its own for signals from here; killed, this one does not leave it alone.

    `stop_at` has SIGINT handled here, so that it is not ignored there, whatever the shell ignores.
    """
    os.setpgrp()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


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
        By a signal of `stop_at`; the command was stopped first.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        cwd=folder, env=environment, preexec_fn=_detach,
    )  # fmt: skip
    assert process.stdout is not None
    end, stopped_at = time.monotonic() + seconds, 0.0
    while process.poll() is None:
        _forward(process.stdout, logs)
        now = time.monotonic()
        if not stopped_at and (now >= end or asked_to_stop):
            stopped_at = now
            os.killpg(process.pid, signal.SIGINT)
        elif stopped_at and now - stopped_at >= GRACE:
            os.killpg(process.pid, signal.SIGKILL)
    while _forward(process.stdout, logs, wait=0):
        pass
    process.stdout.close()
    if asked_to_stop:
        raise StoppedError
    return None if stopped_at else process.returncode


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
