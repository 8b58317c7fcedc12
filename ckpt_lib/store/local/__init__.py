"""The local store: a folder of this machine, or of a network file system that is mounted here."""

from ckpt_lib.store.local.local_store import LocalStore

__all__ = ["LocalStore"]
