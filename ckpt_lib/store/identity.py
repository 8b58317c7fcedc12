"""The identity file at the root of a store, which tells a new store from the mount point of a missing disk.

The first save writes it, and so does ``ckpt init``. A scheduled job that finds neither the file nor an experiment fails
instead of reporting that all of nothing is intact, and a process that saves notices when the disk goes away meanwhile.
"""

from __future__ import annotations

import contextlib
import uuid
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.errors import NotAStoreError, StoreUnavailableError, VersionConflictError
from ckpt_lib.store import ABSENT, Store, location, open_store

IDENTITY_NAME = ".ckpt-store.json"
_MAX_BYTES = 2**16


class StoreIdentity(BaseModel):
    """The content of a store's identity file."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = Field(default=1, ge=1)
    uid: str = Field(default_factory=lambda: uuid.uuid4().hex, pattern=r"^[0-9a-f]{32}$")
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))


class StoreWatch:
    """Notices when another store, or none, is where this process has found one before: its disk was unmounted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uid: str | None = None
        self._version = ""

    def check(self) -> None:
        """Raise :class:`~ckpt_lib.errors.StoreUnavailableError` if this is not the store that was there before.

        That costs one ``stat``. A store without an identity may be new, and one whose identity is damaged is taken for
        the one that it was.
        """
        entry = self._store.stat(IDENTITY_NAME)
        if entry is None:
            if self._uid is not None:
                raise self._gone("its identity file is missing")
        elif self._uid is None or entry.version != self._version:
            with contextlib.suppress(NotAStoreError):
                uid = read_identity(self._store).uid
                if self._uid not in {None, uid}:
                    raise self._gone(f"another store is there, with the uid {uid}")
                self._uid, self._version = uid, entry.version

    @property
    def uid(self) -> str | None:
        """The ``uid`` of the store; ``None`` before it is known."""
        return self._uid

    def expect(self, uid: str) -> None:
        """Take the store with this ``uid`` for the one that was there before, unless another one is known."""
        self._uid = self._uid or uid

    def ensure(self) -> None:
        """Write the identity file unless the store has one, and know it from now on."""
        if self._uid is None:
            ensure_identity(self._store)
            self.check()

    def _gone(self, got: str) -> StoreUnavailableError:
        error = StoreUnavailableError(
            "the store is not the one that was saved to before",
            path=location(self._store, IDENTITY_NAME),
            expected=f"the store with the uid {self._uid}",
            got=got,
            hint="Mount its disk again. If another store is wanted there, import or move away what is in the fallback "
            "folder, and start the training anew.",
        )
        error.may_have_happened = False
        return error


def init_store(url: str) -> StoreIdentity:
    """Create the store at ``url`` unless it is there; return its identity.

    A crash leaves the store with its identity or without, and the next call finishes. Raises
    :class:`~ckpt_lib.errors.StoreError` when the store cannot be written to.
    """
    store = open_store(url)
    ensure_identity(store)
    return read_identity(store)


def ensure_identity(store: Store) -> None:
    """Write the identity file unless the store has one. Of several first writers, one writes it."""
    if store.stat(IDENTITY_NAME) is not None:
        return
    text = StoreIdentity().model_dump_json(indent=2).encode() + b"\n"
    with contextlib.suppress(VersionConflictError):  # somebody else has written it
        store.put(IDENTITY_NAME, text, if_version=ABSENT if store.capabilities.create_if_absent else None)


def read_identity(store: Store) -> StoreIdentity:
    """Return the identity of a store; raise :class:`~ckpt_lib.errors.NotAStoreError` when it has none or a bad one."""
    path = location(store, IDENTITY_NAME)
    try:
        with store.open_read(IDENTITY_NAME) as reader:
            return StoreIdentity.model_validate_json(reader.read_at(0, _MAX_BYTES))
    except FileNotFoundError as error:
        raise NotAStoreError("the store has no identity file", path=path, hint="`ckpt init` writes it.") from error
    except ValidationError as error:
        raise NotAStoreError(
            "the identity file of the store is damaged",
            path=path,
            got=f"{error.error_count()} wrong fields",
            hint="Delete the file and run `ckpt init`; no checkpoint depends on it. Then start anew what saves there.",
        ) from error
