"""The contract of a store: what the rest of the library may ask of the place where bytes live.

A store knows nothing of checkpoints and has no lock. Whoever needs to be the only writer of a key writes conditionally,
and reads again when that is refused.

Keys are relative to the store's root: parts joined by ``/`` (:func:`ckpt_lib.store.checks.check_key` has the grammar).
Every method raises errors of ``ckpt_lib.errors``, except that a missing key is a plain ``FileNotFoundError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol, Self

from ckpt_lib.errors import VersionConflictError
from ckpt_lib.stream.digests import Buffer


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT
"""The condition that a key is not there yet."""

Condition = str | Literal[_Absent.ABSENT] | None
"""A version, :data:`ABSENT`, or ``None`` for whatever is there."""


class Put(NamedTuple):
    """One write of :meth:`Store.put_many`."""

    key: str
    data: bytes
    if_version: Condition


class Delete(NamedTuple):
    """One deletion of :meth:`Store.delete_many`."""

    key: str
    if_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The abilities of a store beyond plain reads and writes. A probe tries once those that a store may only claim.

    The conditions are atomic: of any number of writers of one key with the same condition, one succeeds.
    """

    create_if_absent: bool
    """``put(if_version=ABSENT)`` refuses a key that is there."""
    replace_if_version: bool
    """``put(if_version=version)`` refuses a key of another version."""
    delete_if_version: bool
    """``delete(if_version=version)`` refuses a key of another version."""
    memory_map: bool
    """Readers have a ``fileno()`` that can be mapped, and what is mapped outlives the key."""
    free_space: bool
    """``free_bytes()`` knows how much room there is."""


@dataclass(frozen=True)
class Entry:
    """One key, or a folder in a listing: its key ends with ``/``, and its other fields are empty.

    ``version`` differs after every write of the key, and costs no reading of it. ``modified_seconds`` is the time of
    that write by the store's own clock: comparable with that of other entries of the same store, and with nothing else.
    """

    key: str
    size_bytes: int = 0
    version: str = ""
    modified_seconds: float = 0.0

    @property
    def is_folder(self) -> bool:
        return self.key.endswith("/")


class Upload(Protocol):
    """An object that is being written: invisible until :meth:`commit`, durable when that returns."""

    def write(self, data: Buffer, /) -> int:
        """Append all of ``data``, or raise."""
        ...

    def commit(self) -> Entry:
        """Make the bytes durable and give them their key, replacing what has it. After a failure only abort is left."""
        ...

    def abort(self) -> None:
        """Remove what was written, if it was not committed; never raises. Nothing of it ever becomes visible."""
        ...


class RangeReader(Protocol):
    """An object that is read, whole or in parts, by any number of threads. All of it is of one version."""

    @property
    def size_bytes(self) -> int: ...

    def read_at(self, start: int, stop: int) -> bytes:
        """Read the bytes from ``start`` to ``stop``, fewer only at the end.

        Raises ``FileNotFoundError`` where the store cannot read a key on that was deleted or replaced meanwhile.
        """
        ...

    def fileno(self) -> int | None:
        """Return a descriptor to map the object by, where the store has ``memory_map``; else ``None``."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Store(Protocol):
    """A root under which experiments live.

    An answer may be lost: a write that raises :class:`~ckpt_lib.errors.StoreUnavailableError` may have happened, or
    not, and only reading tells. One that raises :class:`~ckpt_lib.errors.NotDurableError` has happened, and power loss
    may undo it. Any other error says that nothing has changed.
    """

    @property
    def url(self) -> str:
        """The root, as a person would write it; :func:`ckpt_lib.store.open_store` opens it again."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def list(self, prefix: str, *, recursive: bool = False) -> Sequence[Entry]:
        """List the keys directly under the folder ``prefix`` (``""`` is the root), sorted.

        A deeper key is represented by its first folder; with ``recursive``, every key below is listed, and no folder.
        What comes or goes meanwhile may be in it or not. A folder without keys lists nothing, as one that is not there.
        """
        ...

    def stat(self, key: str) -> Entry | None:
        """Return the entry of one key, or ``None``."""
        ...

    def folder_version(self, prefix: str) -> str | None:
        """Return a text that is another one after each write or deletion of a key directly under ``prefix``.

        It costs no listing. ``None`` where the store cannot tell, or not at this moment.
        """
        ...

    def open_read(self, key: str) -> RangeReader:
        """Open an object for reading. Raises ``FileNotFoundError`` when the key is missing."""
        ...

    def open_write(self, key: str) -> Upload:
        """Begin an object. It is invisible until :meth:`Upload.commit`."""
        ...

    def put(self, key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        """Write a small object: all of it, durable when this returns, or nothing.

        An object that can be written anew at any time need not be ``durable``: power loss may take it or its content.
        Raises :class:`~ckpt_lib.errors.VersionConflictError` when ``if_version`` does not hold. ``ABSENT`` needs
        ``create_if_absent``, a version ``replace_if_version``; without, this raises
        :class:`~ckpt_lib.errors.ConfigError`.
        """
        ...

    def delete(self, key: str, *, if_version: str | None = None) -> None:
        """Remove one object, durably; a missing key is no error.

        Raises :class:`~ckpt_lib.errors.VersionConflictError` when ``if_version`` does not hold, and
        :class:`~ckpt_lib.errors.ConfigError` for it without ``delete_if_version``.
        """
        ...

    def put_many(self, puts: Sequence[Put]) -> Sequence[Entry | VersionConflictError]:
        """Do what :meth:`put` does for each of some keys, durably, in any order and in less time than one by one.

        Returns the entry of each, or the error of one whose condition does not hold. After any other error, each may
        have happened or not, and :meth:`put` may succeed with those that did not, as where the store is almost full.
        """
        ...

    def delete_many(self, deletes: Sequence[Delete]) -> Sequence[VersionConflictError | None]:
        """Do what :meth:`delete` does for each of some keys, as :meth:`put_many`."""
        ...

    def free_bytes(self) -> int | None:
        """Return how much more this process may write; ``None`` where ``free_space`` is missing."""
        ...
