"""Where bytes live."""

from ckpt_lib.store.base import Entry, FolderLock, Leftover, PendingFile, Store
from ckpt_lib.store.registry import open_store

__all__ = ["Entry", "FolderLock", "Leftover", "PendingFile", "Store", "open_store"]
