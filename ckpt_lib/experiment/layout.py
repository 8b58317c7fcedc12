"""``CheckpointFolder``: payloads and their manifests. Experiments, backups and exports are all such folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointNotFoundError, CorruptManifestError
from ckpt_lib.store import Entry, FolderLock, Store

BACKUPS_NAME = "backups"
SNAPSHOT_NAME = "checkpoint_metadata.json"
MANIFEST_SUFFIX = ".json"
OWN_PREFIX = ".ckpt-"
"""Begins the names of what stores and this library keep for themselves."""

Mark = Literal["saving", "deleted", "quarantined"]
"""What a file ``.<id>.<mark>`` says of a checkpoint that has no manifest, or is about to have none."""
_MARK_SUFFIXES = tuple(f".{mark}" for mark in get_args(Mark))


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of a store, and the names that files of ours have in it."""

    store: Store
    path: str

    def location(self, name: str = "") -> str:
        """How a person names a file here."""
        return self.store.location(self.path_of(name))

    def child(self, name: str) -> CheckpointFolder:
        """The folder ``name`` inside this one."""
        return CheckpointFolder(self.store, self.path_of(name))

    def path_of(self, name: str) -> str:
        """The store path of a file here."""
        return "/".join(part for part in (self.path, name) if part)

    def manifest_path(self, checkpoint_id: str) -> str:
        return self.path_of(checkpoint_id + MANIFEST_SUFFIX)

    def marker_path(self, checkpoint_id: str, mark: Mark) -> str:
        """The file that says what a payload without a manifest is doing here; it means nothing beside a manifest.

        ``saving``: a save that was not acknowledged began; the payload is to go. ``deleted``: the payload is to go once
        the grace period is over, by the file's age, and until then comes back if it is asked for. ``quarantined``: it
        was found damaged and set aside. The first two hold the manifest, byte for byte; the last one holds whatever the
        manifest was, and then one line: the report.
        """
        return self.path_of(self.marker_name(checkpoint_id, mark))

    @staticmethod
    def marker_name(checkpoint_id: str, mark: Mark) -> str:
        """What such a file is called."""
        return f".{checkpoint_id}.{mark}"

    def payload_path(self, manifest: Manifest) -> str:
        return self.path_of(manifest.payload.name)

    def payload_location(self, manifest: Manifest) -> str:
        """How a person names the payload of a checkpoint here."""
        return self.location(manifest.payload.name)

    def lock(self) -> AbstractContextManager[FolderLock]:
        """See :meth:`ckpt_lib.store.Store.lock`."""
        return self.store.lock(self.path)

    def hold(self, checkpoint_id: str, reason: str) -> AbstractContextManager[None]:
        """Keep a checkpoint's payload from being deleted, by anyone, while the context lasts.

        Whether it is there has to be asked afterwards: it may be on its way out already.
        """
        return self.store.hold(self.path, checkpoint_id, reason)

    def held(self) -> dict[str, str]:
        """The ids that someone holds, with the reasons."""
        return self.store.held(self.path)

    def manifest_entries(self) -> dict[str, Entry]:
        """Id to entry of every manifest here, by name alone: nothing is read."""
        return manifest_entries(self.store.entries(self.path))

    def read_manifest(self, checkpoint_id: str) -> Manifest:
        """Read one manifest. Raises what :meth:`Manifest.from_bytes` does, and when there is none."""
        path = self.manifest_path(checkpoint_id)
        try:
            return self._parse(self._read(path), path, checkpoint_id)
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(
                f"there is no checkpoint {checkpoint_id}", path=self.location(), hint=self._whereabouts(checkpoint_id)
            ) from error

    def read_marker(self, checkpoint_id: str, mark: Mark) -> Manifest:
        """The manifest in a marker. Raises what :meth:`read_manifest` does."""
        data = self.read_record(checkpoint_id)[0] if mark == "quarantined" else self._marker(checkpoint_id, mark)
        return self._parse(data, self.marker_path(checkpoint_id, mark), checkpoint_id)

    def read_record(self, checkpoint_id: str) -> tuple[bytes, bytes]:
        """What the manifest of a quarantined checkpoint was, if it had one, and the report, both as they were written.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        manifest, _, report = self._marker(checkpoint_id, "quarantined").removesuffix(b"\n").rpartition(b"\n")
        return manifest, report

    def read_derived(self, name: str, limit_bytes: int) -> bytes | None:
        """A small file as it is, or its first ``limit_bytes``; ``None`` when there is none."""
        try:
            return self._read(self.path_of(name), limit_bytes)
        except FileNotFoundError:
            return None

    def read_manifest_bytes(self, checkpoint_id: str) -> bytes:
        """A manifest as it lies there, be it damaged; nothing where there is none."""
        try:
            return self._read(self.manifest_path(checkpoint_id))
        except FileNotFoundError:
            return b""

    def _marker(self, checkpoint_id: str, mark: Mark) -> bytes:
        try:
            return self._read(self.marker_path(checkpoint_id, mark), 2 * Manifest.MAX_BYTES)
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(
                f"there is no {mark} checkpoint {checkpoint_id}", path=self.location()
            ) from error

    def _whereabouts(self, checkpoint_id: str) -> str:
        """Where to look for a checkpoint that is not there."""
        if self.store.stat(self.marker_path(checkpoint_id, "quarantined")):
            return "It is damaged and was set aside: `ckpt quarantine`."
        if self.store.stat(self.marker_path(checkpoint_id, "deleted")):
            return "It was deleted: `ckpt undelete` brings it back."
        return "`ckpt list` shows what is there."

    def _read(self, path: str, limit_bytes: int = Manifest.MAX_BYTES + 1) -> bytes:
        with self.store.open_read(path) as file:
            return _read_bounded(file, limit_bytes)

    def _parse(self, data: bytes, path: str, checkpoint_id: str) -> Manifest:
        manifest = Manifest.from_bytes(data, path=self.store.location(path))
        if manifest.checkpoint_id != checkpoint_id:
            raise CorruptManifestError(
                "the manifest belongs to another checkpoint",
                path=self.store.location(path),
                expected=checkpoint_id,
                got=manifest.checkpoint_id,
            )
        return manifest

    def payload_entry(self, manifest: Manifest) -> Entry | None:
        """The payload as it lies in the store, or ``None`` when it is missing."""
        return self.store.stat(self.payload_path(manifest))

    def is_complete(self, manifest: Manifest) -> bool:
        """Whether the payload is there with the right size: the cheap part of being valid."""
        entry = self.payload_entry(manifest)
        return entry is not None and entry.size_bytes == manifest.payload.size_bytes


def manifest_entries(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Id to entry of every manifest in a listing."""
    return dict(_ids(entries, MANIFEST_SUFFIX))


def marker_entries(entries: Iterable[Entry], mark: Mark) -> dict[str, Entry]:
    """Id to entry of every such marker in a listing."""
    return dict(_ids(entries, f".{mark}", prefix="."))


def is_marker(name: str) -> bool:
    """Whether a name looks like that of a marker."""
    return name.startswith(".") and name.endswith(_MARK_SUFFIXES)


def names_of(checkpoint_id: str, suffix: str) -> set[str]:
    """Every name by which a checkpoint may be known in a folder; ``suffix`` is its payload's."""
    markers = {CheckpointFolder.marker_name(checkpoint_id, mark) for mark in get_args(Mark)}
    return {checkpoint_id + suffix, checkpoint_id + MANIFEST_SUFFIX} | markers


def _read_bounded(file: BinaryIO, limit_bytes: int) -> bytes:
    """All of a file, or its first ``limit_bytes``: a planted giant must not fill the memory."""
    pieces = []
    while limit_bytes > 0 and (piece := file.read(min(limit_bytes, 2**20))):
        pieces.append(piece)
        limit_bytes -= len(piece)
    return b"".join(pieces)


def _ids(entries: Iterable[Entry], suffix: str, prefix: str = "") -> Iterator[tuple[str, Entry]]:
    for entry in entries:
        name = entry.name
        if entry.is_folder or not name.startswith(prefix) or not name.endswith(suffix):
            continue
        checkpoint_id = name[len(prefix) : -len(suffix)]
        if is_checkpoint_id(checkpoint_id):
            yield checkpoint_id, entry
