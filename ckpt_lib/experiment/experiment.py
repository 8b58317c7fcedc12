"""``Experiment``: one folder of checkpoints. Experiments, their backups and exports are all such folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from ckpt_lib.core.manifest import Claim, Manifest, Record, new_token, parse_record
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptManifestError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.events import Events
from ckpt_lib.experiment.found import NOTHING, Found
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.indexed import Indexed
from ckpt_lib.experiment.layout import CLOCK_NAME, manifest_name
from ckpt_lib.experiment.stored_index import StoredIndex
from ckpt_lib.store import location
from ckpt_lib.store.base import ABSENT, Condition, Entry, Put, Store
from ckpt_lib.store.checks import version_conflict

ATTEMPTS = 20
"""How often a change is tried again when someone else was faster, or no answer came."""


def too_busy(experiment: Experiment, what: str, checkpoint_id: str | None = None) -> VersionConflictError:
    """Return the error for a change that others were faster with, :data:`ATTEMPTS` times."""
    return VersionConflictError(
        f"others kept changing {what}",
        checkpoint_id=checkpoint_id,
        path=experiment.location(),
        hint="Try again when nobody else works on it.",
    )


class Experiment:
    """The checkpoints in one folder of a store.

    ``single_writer`` is the caller's word that no other process writes here. Only with it may a store be written to
    that lacks ``create_if_absent`` or ``replace_if_version``. What happens here is told to ``events``. ``is_indexed``
    says whether the database at ``index_url``, by default the user's own, remembers the records.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        name: str,
        *,
        single_writer: bool = False,
        events: Events | None = None,
        is_indexed: bool = False,
        index_url: str | None = None,
    ) -> None:
        self.store = store
        self.path = path
        self.name = name
        self.events = events or Events(name, location(store))
        stored = StoredIndex(store, path, name, index_url) if is_indexed else None
        self.index = Index(store, path, name, self.read, stored)
        self.indexed = Indexed(store, path, self.index, stored)
        self._single_writer = single_writer

    @property
    def has_conditions(self) -> bool:
        """True when the store compares versions itself, so that several processes may write."""
        capabilities = self.store.capabilities
        return capabilities.create_if_absent and capabilities.replace_if_version

    def key(self, name: str) -> str:
        """Return the store key of a file here."""
        return "/".join(part for part in (self.path, name) if part)

    def location(self, name: str = "") -> str:
        """Return how a person names a file here."""
        return "/".join(part for part in (self.store.url, self.path, name) if part)

    def read(self, checkpoint_id: str) -> Found:
        """Read the record of one checkpoint.

        The version may be older than the record, never newer: a change that relies on both is then refused, and reads
        again. Raises what :func:`~ckpt_lib.core.manifest.parse_record` does.
        """
        name = manifest_name(checkpoint_id)
        found = self.read_small(name, Record.MAX_BYTES + 1)
        if found is None:
            return NOTHING
        data, entry = found
        record = parse_record(data, path=self.location(name))
        if record.checkpoint_id != checkpoint_id:
            raise CorruptManifestError(
                "the manifest belongs to another checkpoint",
                path=self.location(name),
                expected=checkpoint_id,
                got=record.checkpoint_id,
                hint=f"Restore it from a backup: `ckpt restore {checkpoint_id}`.",
            )
        return Found(record, entry.version, entry.modified_seconds)

    def read_small(self, name: str, limit_bytes: int) -> tuple[bytes, Entry] | None:
        """Read a small file, or its first ``limit_bytes``; ``None`` where there is none."""
        entry = self.store.stat(self.key(name))
        if entry is None:
            return None
        try:
            with self.store.open_read(self.key(name)) as file:
                return file.read_at(0, limit_bytes), entry
        except FileNotFoundError:
            return None

    def get(self, checkpoint_id: str) -> Manifest:
        """Return the manifest of a checkpoint that readers see, as it is now.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`, and what :meth:`read` does.
        """
        return self.read_visible(checkpoint_id).manifest

    def read_visible(self, checkpoint_id: str) -> Found:
        """Read the record of a checkpoint that readers see, as :meth:`read`. Raises as :meth:`get`."""
        found = self.read(checkpoint_id)
        record = found.record
        if isinstance(record, Manifest) and record.is_visible:
            return found
        is_deleted = isinstance(record, Manifest) and record.state == "deleted"
        raise CheckpointNotFoundError(
            f"there is no checkpoint {checkpoint_id}",
            path=self.location(),
            hint=f"It was deleted: `ckpt undelete {checkpoint_id}` brings it back."
            if is_deleted
            else "`ckpt list` shows what is there.",
        )

    def check_current(self, manifest: Manifest) -> None:
        """Raise :class:`~ckpt_lib.errors.CheckpointNotFoundError` if it was deleted since its manifest was read.

        It may be back, or have another payload, with files of other names. What is missing of the old ones is no
        damage.
        """
        if not self.get(manifest.checkpoint_id).has_files_of(manifest):
            raise CheckpointNotFoundError(
                f"the files of {manifest.checkpoint_id} were replaced by others meanwhile",
                checkpoint_id=manifest.checkpoint_id,
                path=self.location(),
                hint="Try again.",
            )

    def is_complete(self, manifest: Manifest) -> bool:
        """Tell whether each payload file is there with the right size: the cheap part of being valid."""
        entries = ((file, self.store.stat(self.key(file.name))) for file in manifest.files)
        return all(entry is not None and entry.size_bytes == file.size_bytes for file, entry in entries)

    def now(self) -> datetime:
        """Return the time by the store's clock: that of a small file just written."""
        clock = self.store.put(self.key(CLOCK_NAME), b"", durable=False)
        return datetime.fromtimestamp(clock.modified_seconds, UTC)

    def is_same_folder(self, other: Experiment) -> bool:
        """Tell whether what is written here is read there: whatever the two are called, by a link, a mount or an alias.

        It makes this folder, if that is not there, and never the other.
        """
        for _ in range(ATTEMPTS):
            token = new_token().encode()
            written = self.store.put(self.key(CLOCK_NAME), token, durable=False)
            there = other.read_small(CLOCK_NAME, len(token) + 1)
            if there and there[0] == token:
                return True
            if self.store.stat(self.key(CLOCK_NAME)) == written:  # nobody wrote it again before it was read there
                return False
        raise StoreUnavailableError(
            "others keep writing what tells whether two folders are one",
            path=self.location(CLOCK_NAME),
            hint="Try again.",
        )

    def put_record(
        self,
        record: Manifest | Claim,
        if_version: Condition,
        *,
        is_mine: Callable[[Manifest | Claim], bool] | None = None,
        lost: StoreError | None = None,
    ) -> Found:
        """Write a record, as :meth:`put_small`. ``is_mine`` recognises a later record of the same write."""
        name, data = manifest_name(record.checkpoint_id), record.to_bytes()

        def proves(found: bytes) -> bool:
            return found == data or (is_mine is not None and is_mine(parse_record(found, path=self.location(name))))

        entry = self.put_small(name, data, if_version, is_mine=proves, lost=lost)
        return Found(record, entry.version, entry.modified_seconds)

    def put_records(self, records: Sequence[tuple[Manifest | Claim, Condition]]) -> list[Found | StoreError]:
        """Write many records, each as :meth:`put_record`, in less time.

        Returns for each what it holds now, or why this one alone could not be written: someone else was faster, or it
        is not ours to write. Any other error is raised.
        """
        lost: StoreError | None = None
        if len(records) > 1 and self.has_conditions:
            puts = [
                Put(self.key(manifest_name(record.checkpoint_id)), record.to_bytes(), version)
                for record, version in records
            ]
            try:
                answers = self.store.put_many(puts)
            except (StoreUnavailableError, StorageFullError, StorePermissionError) as error:
                lost = error  # each may have been written, or still be
            else:
                return [
                    Found(record, answer.version, answer.modified_seconds) if isinstance(answer, Entry) else answer
                    for (record, _), answer in zip(records, answers, strict=True)
                ]
        return [self._put_or_refuse(*record, lost) for record in records]

    def _put_or_refuse(
        self, record: Manifest | Claim, version: Condition, lost: StoreError | None
    ) -> Found | StoreError:
        try:
            return self.put_record(record, version, lost=lost)
        except (VersionConflictError, StorePermissionError) as error:
            return error

    def put_small(
        self,
        name: str,
        data: bytes,
        if_version: Condition,
        *,
        is_mine: Callable[[bytes], bool] | None = None,
        lost: StoreError | None = None,
    ) -> Entry:
        """Write a small file under a condition; ``data`` is such that nobody else writes the same.

        A write without an answer is looked for: it has happened if the file holds ``data``, or what ``is_mine`` takes
        for it. ``lost`` is the error of an earlier attempt at the same write. Raises
        :class:`~ckpt_lib.errors.VersionConflictError` when someone else was faster, and
        :class:`~ckpt_lib.errors.StoreUnavailableError` when no answer came; then it may have happened.
        """
        proves = is_mine or data.__eq__
        for _ in range(ATTEMPTS):
            try:
                return self.put(name, data, if_version)
            except StoreUnavailableError as error:
                if not error.may_have_happened:
                    raise
                lost = error
            except StorageFullError:
                if lost is None:
                    raise
                raise lost from None  # the earlier write may still come
            except VersionConflictError:
                if lost is None:
                    raise
            found = self.read_small(name, Record.MAX_BYTES + 1)
            if found and proves(found[0]):
                return found[1]
            version = found[1].version if found else ABSENT
            if version != if_version:
                raise version_conflict(self.location(name), if_version, version) from lost
        assert lost is not None  # every other error was raised at once
        raise lost

    def put(self, name: str, data: bytes, if_version: Condition) -> Entry:
        """Write a small file under a condition, as :meth:`ckpt_lib.store.base.Store.put`.

        Where the store has no conditions, a single writer compares the version itself; else this raises
        :class:`~ckpt_lib.errors.ConfigError`.
        """
        self.check_writable()
        key = self.key(name)
        if self.has_conditions or if_version is None:
            return self.store.put(key, data, if_version=if_version)
        there = self.store.stat(key)
        version = there.version if there else ABSENT
        if version != if_version:
            raise version_conflict(self.location(name), if_version, version)
        return self.store.put(key, data)

    def check_writable(self) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` where only one process may write, and none said it is alone."""
        if not (self.has_conditions or self._single_writer):
            raise ConfigError(
                "the store cannot keep two writers apart",
                path=self.location(),
                expected="a store with create_if_absent and replace_if_version",
                hint="Pass single_writer=True if no other process writes to this experiment.",
            )

    def delete_key(self, name: str, version: Condition) -> bool:
        """Remove a small file if it still has this version, and return True; ``False`` where the store cannot tell.

        Raises :class:`~ckpt_lib.errors.VersionConflictError` for a file that changed: it stays.
        """
        if not (self.store.capabilities.delete_if_version and isinstance(version, str)):
            return False
        self.store.delete(self.key(name), if_version=version)
        return True
