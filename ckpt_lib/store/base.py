"""The contract of a store: what the rest of the library may ask of the place where bytes live.

Paths are relative to the store's root and use ``/``. Every method raises errors of ``ckpt_lib.errors``, but for a
missing file, which is a plain ``FileNotFoundError``.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ckpt_lib.stream.digests import Buffer


@dataclass(frozen=True)
class Entry:
    """One name in a folder. ``version`` changes whenever the file does, without being read."""

    name: str
    size_bytes: int
    version: str
    is_folder: bool


class PendingFile(Protocol):
    """A file nobody can see yet. It ends in :meth:`publish` or :meth:`discard`, or is swept once its owner is dead."""

    def write(self, data: Buffer, /) -> int:
        """Append all of ``data`` or raise."""
        ...

    def sync(self) -> None:
        """Make the bytes durable. A failure is final: the file can only be discarded."""
        ...

    def publish(self) -> None:
        """Give the file its name. Raises :class:`~ckpt_lib.errors.CheckpointExistsError` when it is taken."""
        ...

    def discard(self) -> None:
        """Remove it, if it was not published; never raises."""
        ...


class Store(Protocol):
    """A root under which experiments live."""

    @property
    def url(self) -> str:
        """The root, as a person would write it."""
        ...

    def location(self, path: str) -> str:
        """How a person names ``path``: the file's path on this machine, or its URL."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """What is in ``folder``, sorted by name; empty when there is no such folder."""
        ...

    def stat(self, path: str) -> Entry | None:
        """The entry of one regular file, or ``None``."""
        ...

    def open_read(self, path: str) -> BinaryIO:
        """Open an existing file for reading."""
        ...

    def open_write(self, path: str, *, replace: bool = False) -> PendingFile:
        """Claim ``path`` and begin writing it.

        With ``replace``, a claim that a living writer holds raises
        :class:`~ckpt_lib.errors.StoreUnavailableError`: trying again later may help. Without, such a claim and a name
        that is there raise :class:`~ckpt_lib.errors.CheckpointExistsError`.
        """
        ...

    def patch(self, path: str, pieces: Iterable[tuple[int, Buffer]], *, size_bytes: int) -> None:
        """Overwrite bytes of an existing file where it lies, make them durable, and cut what is beyond ``size_bytes``.

        ``pieces`` are offsets, ascending, with the bytes for them; the file grows where they reach past its end. Every
        other byte stays as it is. Afterwards reads of the pieces ask the disk. The folder must be locked. Readers see
        the change as it comes, and a crash or an error leaves some pieces written, one in part, and the others not.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove one file, if it is there."""
        ...

    def sync(self, folder: str) -> None:
        """Make the names in ``folder`` durable: publications and deletions so far survive power loss."""
        ...

    def sweep(self, folder: str) -> list[str]:
        """Remove what dead writers left unfinished in ``folder``; return the names. The folder must be locked."""
        ...

    def lock(self, folder: str) -> AbstractContextManager[None]:
        """Exclude every other holder of this folder's lock, in this process and others, creating the folder.

        The lock of a process that dies is free at once. It cannot be taken twice by one thread.
        """
        ...
