"""Room for a few records: a disk that is full to the last byte must not keep anyone from deleting what fills it.

Each change of a checkpoint's state, a deletion too, writes a record before the old one goes. All writes of small files
get the room but those of new records, so that saves that fail one after the other do not use it up.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.folders import Folders
from ckpt_lib.store.local.system import System

RESERVE_NAME = "reserve"
RESERVE_SIZE_BYTES = 2**18
_MIN_FREE_BYTES = 4 * RESERVE_SIZE_BYTES
"""With less than this, the room is left to whoever needs it now."""


def keep_reserve(folders: Folders, system: System) -> None:
    """Set room aside in a store, where there is none and the disk has plenty. Never raises ``OSError``."""
    with contextlib.suppress(OSError):
        path = folders.own(folders.root) / RESERVE_NAME
        if os.path.lexists(path) or shutil.disk_usage(folders.root).free < _MIN_FREE_BYTES:
            return
        with system.create(path) as file:
            # Random bytes, since some file systems need no room for zeros.
            system.write(file, memoryview(os.urandom(RESERVE_SIZE_BYTES)))


def give_up_reserve(folders: Folders, system: System) -> bool:
    """Free the room that was set aside; return whether there was any. Never raises ``OSError``."""
    with contextlib.suppress(OSError):
        system.unlink(folders.root / OWN_FOLDER / RESERVE_NAME)
        return True
    return False
