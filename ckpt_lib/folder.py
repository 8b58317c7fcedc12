"""``CheckpointFolder``: payloads and their manifests. Experiments, backups and exports are all such folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from ckpt_lib.errors import CheckpointNotFoundError, CorruptManifestError
from ckpt_lib.metadata import Manifest
from ckpt_lib.names import is_checkpoint_id
from ckpt_lib.store import Entry, Store

BACKUPS_NAME = "backups"
SNAPSHOT_NAME = "checkpoint_metadata.json"
MANIFEST_SUFFIX = ".json"
_TOMBSTONE_SUFFIX = ".deleting"


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

    def tombstone_path(self, checkpoint_id: str) -> str:
        """The file that says: without a manifest, the payload is to go."""
        return self.path_of(f".{checkpoint_id}{_TOMBSTONE_SUFFIX}")

    def payload_path(self, manifest: Manifest) -> str:
        return self.path_of(manifest.payload.name)

    def payload_location(self, manifest: Manifest) -> str:
        """How a person names the payload of a checkpoint here."""
        return self.location(manifest.payload.name)

    def lock(self) -> AbstractContextManager[None]:
        """See :meth:`ckpt_lib.store.Store.lock`."""
        return self.store.lock(self.path)

    def manifest_entries(self) -> dict[str, Entry]:
        """Id to entry of every manifest here, by name alone: nothing is read."""
        return manifest_entries(self.store.entries(self.path))

    def read_manifest(self, checkpoint_id: str) -> Manifest:
        """Read one manifest. Raises what :meth:`Manifest.from_bytes` does, and when there is none."""
        path = self.manifest_path(checkpoint_id)
        try:
            with self.store.open_read(path) as file:
                data = _read_bounded(file, Manifest.MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(
                f"there is no checkpoint {checkpoint_id}",
                path=self.location(),
                hint="`ckpt list` shows what is there.",
            ) from error
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


def interrupted_deletions(entries: Iterable[Entry]) -> list[str]:
    """The ids in a listing whose deletion began and did not end."""
    return [found for found, _ in _ids(entries, _TOMBSTONE_SUFFIX, prefix=".")]


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
