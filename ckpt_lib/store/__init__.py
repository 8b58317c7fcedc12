"""Where bytes live."""

from ckpt_lib.store.base import Entry, PendingFile, Store, StoreCapabilities
from ckpt_lib.store.registry import open_store

__all__ = ["Entry", "PendingFile", "Store", "StoreCapabilities", "open_store"]
