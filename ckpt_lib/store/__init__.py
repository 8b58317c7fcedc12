"""Where bytes live."""

from ckpt_lib.store.base import Entry, FolderLock, PendingFile, Store
from ckpt_lib.store.registry import open_store

__all__ = ["Entry", "FolderLock", "PendingFile", "Store", "open_store"]
