"""Where tests write: to memory where there is room, and to the disk where the disk is what they are about."""

from __future__ import annotations

import os
import shutil
import tempfile

MEMORY = "/dev/shm"
ENOUGH_BYTES = 2 * 2**30
_DISK = "TMPDIR_ON_DISK"
"""A variable for the workers of pytest-xdist: they are started with a ``TMPDIR`` that may be memory already."""


def memory_folder() -> str | None:
    """Where temporary files cost no disk, if there is such a place with room: most faults do not depend on one."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH_BYTES:
        return MEMORY
    return None


def disk_folder() -> str:
    """Where temporary files lie when nobody has chosen memory for them."""
    return os.environ.get(_DISK, tempfile.gettempdir())


def write_to_memory() -> None:
    """Put the temporary files of this process and of those that it starts into memory, if there is room."""
    os.environ.setdefault(_DISK, tempfile.gettempdir())
    if folder := memory_folder():
        os.environ["TMPDIR"] = tempfile.tempdir = folder
