"""Standard streams that work even if the caller closed some of them.

Python represents a closed stream by ``None``, and its file descriptor goes to the next file that is opened: what a
library prints to that descriptor would end up in a checkpoint.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_MODES = ("r", "w", "w")
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Replace closed streams, and make stdout and stderr escape characters that they cannot encode.

    Writing to a replaced stream fails like writing to a full disk; reading from one finds its end.
    """
    for number, (name, mode) in enumerate(zip(_NAMES, _MODES, strict=True)):
        if getattr(sys, name) is None:
            _occupy(number)
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no tag may fail because of the terminal's encoding


def is_flushed(stream: TextIO) -> bool:
    """Return whether everything that was printed could be written."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


def silence_broken_streams() -> None:
    """Redirect streams that cannot be written to the null device, so that Python's flush at exit does not fail."""
    for stream in (sys.stdout, sys.stderr):
        if not is_flushed(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _occupy(number: int) -> None:
    """Open the null device under this descriptor, for reading only, so that writing to it is an error."""
    opened = os.open(os.devnull, os.O_RDONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
