"""Where bytes live."""

from ckpt_lib.store.base import Entry, PendingFile, Store
from ckpt_lib.store.registry import open_store

__all__ = ["Entry", "PendingFile", "Store", "open_store"]
