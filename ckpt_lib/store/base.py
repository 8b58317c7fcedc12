"""The contract of a store: what the rest of the library may ask of the place where bytes live.

Paths are relative to the store's root and use ``/``. Every method raises errors of ``ckpt_lib.errors``, but for a
missing file, which is a plain ``FileNotFoundError``.

Names change only under a folder's lock, through the :class:`FolderLock` that :meth:`Store.lock` gives. A process that
stands still for longer than its lease loses the lock, and from then on each method of that object raises
:class:`~ckpt_lib.errors.LeaseLostError` and changes no name.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ckpt_lib.stream.digests import Buffer


@dataclass(frozen=True)
class Entry:
    """One name in a folder. ``version`` changes whenever the file does, without being read.

    ``modified_seconds`` is when its bytes last changed, by the store's own clock: comparable with
    :attr:`FolderLock.time_seconds` of the same store, and with nothing else.
    """

    name: str
    size_bytes: int
    version: str
    is_folder: bool
    modified_seconds: float = 0.0


@dataclass(frozen=True)
class Leftover:
    """Something in a folder whose owner is dead or, with ``over_in_seconds``, seems to be.

    In that case, whoever sees it unchanged for so long may take it for dead.
    """

    name: str
    size_bytes: int
    message: str
    over_in_seconds: float = 0.0


class PendingFile(Protocol):
    """A file without a name. :meth:`FolderLock.publish` gives it one; :meth:`discard` or, once its owner is dead, a
    sweep removes it.
    """

    def write(self, data: Buffer, /) -> int:
        """Append all of ``data`` or raise."""
        ...

    def sync(self) -> None:
        """Make the bytes durable. A failure is final: the file can only be discarded."""
        ...

    def open_read(self) -> BinaryIO:
        """Open what was synced for reading, from the disk and not from memory where the system can tell the two apart.

        To be closed before the file is published.
        """
        ...

    def discard(self) -> None:
        """Remove it, if it was not published; never raises."""
        ...


class FolderLock(Protocol):
    """The right to change the names in one folder, which one holder at a time has."""

    @property
    def time_seconds(self) -> float:
        """When the lock was taken, by the store's own clock."""
        ...

    def publish(self, pending: PendingFile, path: str, *, replace: bool = False) -> None:
        """Give a pending file of this folder its name, atomically.

        Without ``replace``, a name that is there raises :class:`~ckpt_lib.errors.CheckpointExistsError`.
        """
        ...

    def put(self, path: str, content: bytes, *, durable: bool = True) -> None:
        """Write a small file: all of it under its name, replacing what was there, or nothing.

        With ``durable``, its bytes are durable before it has its name; the name is, after :meth:`sync`.
        """
        ...

    def link(self, path: str, other: str) -> None:
        """Give a file of this folder a second name, replacing what had that, without room for a copy.

        The file counts as changed now.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove one file, if it is there."""
        ...

    def patch(self, path: str, pieces: Iterable[tuple[int, Buffer]], *, size_bytes: int) -> None:
        """Overwrite bytes of an existing file where it lies, make them durable, and cut what is beyond ``size_bytes``.

        ``pieces`` are offsets, ascending, with the bytes for them; the file grows where they reach past its end. Every
        other byte stays as it is. Afterwards reads of the pieces ask the disk. Readers see the change as it comes, and
        a crash or an error leaves some pieces written, one in part, and the others not.
        """
        ...

    def sync(self) -> None:
        """Make the names in the folder durable: publications and deletions so far survive power loss."""
        ...

    def sweep(self) -> list[str]:
        """Remove what dead owners left unfinished in the folder; return the names."""
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

    def open_write(self, folder: str) -> PendingFile:
        """Begin a file in ``folder``, which is created if need be; nobody sees it before it is published."""
        ...

    def lock(self, folder: str) -> AbstractContextManager[FolderLock]:
        """Exclude every other holder of this folder's lock, in this process and others, creating the folder.

        The lock of a process that is known to be dead is free at once, that of any other once its lease has expired:
        when it was not renewed for so long, by the clock of whoever waits. Raises
        :class:`~ckpt_lib.errors.StoreUnavailableError` when a living owner does not give it up, and
        :class:`~ckpt_lib.errors.StoreError` when this thread has it already.
        """
        ...

    def hold(self, folder: str, name: str, reason: str) -> AbstractContextManager[None]:
        """Tell every process, while the context lasts, that ``name`` in ``folder`` is in use.

        It ends with the process at the latest. A store that cannot be written to is read without it.
        """
        ...

    def held(self, folder: str) -> dict[str, str]:
        """What living processes, this one included, hold in ``folder``: name to reason."""
        ...

    def leftovers(self, folder: str) -> list[Leftover]:
        """What :meth:`FolderLock.sweep` would remove, and what it may remove later; nothing is changed."""
        ...

    def free_bytes(self, folder: str) -> int | None:
        """How much more this process may write there; ``None`` when the store does not say."""
        ...
