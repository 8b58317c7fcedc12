"""The standard streams, whatever the caller left of them.

A closed stream is ``None`` in Python, and its number goes to the next file that is opened: what a library prints would
land in a checkpoint.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_MODES = ("r", "w", "w")
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Put a stream in the place of each one that is closed, and let none fail for want of a letter.

    What is written to a closed stream fails as it does on a full disk; what is read from one has ended.
    """
    for number, (name, mode) in enumerate(zip(_NAMES, _MODES, strict=True)):
        if getattr(sys, name) is None:
            _occupy(number)
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a tag must not fail a terminal that lacks its letters


def is_flushed(stream: TextIO) -> bool:
    """Return whether all that was printed has left the process."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


def silence_broken_streams() -> None:
    """Turn those that cannot be written away, for Python flushes them as it ends, and would fail in its own way."""
    for stream in (sys.stdout, sys.stderr):
        if not is_flushed(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _occupy(number: int) -> None:
    """Open the null device under this number, for reading: writing to it is an error."""
    opened = os.open(os.devnull, os.O_RDONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
