"""Where bytes live."""

from ckpt_lib.store.base import ABSENT, Capabilities, Condition, Delete, Entry, Put, RangeReader, Store, Upload
from ckpt_lib.store.registry import location, open_store

__all__ = [
    "ABSENT",
    "Capabilities",
    "Condition",
    "Delete",
    "Entry",
    "Put",
    "RangeReader",
    "Store",
    "Upload",
    "location",
    "open_store",
]
