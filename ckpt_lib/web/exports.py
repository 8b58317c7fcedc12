"""Exports of a server: files in a folder of its own, which clients download."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.wording import size_text
from ckpt_lib.errors import ExportNotFoundError, StorageFullError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import OWN_PREFIX
from ckpt_lib.maintenance import exports
from ckpt_lib.maintenance.convert import convert_checkpoint
from ckpt_lib.store import Store, open_store
from ckpt_lib.stream import Progress, StreamDigest
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES
from ckpt_lib.web.kept_files import KeptFolders, free_bytes, require_room, size_of

_RECORD = "export.json"
_BYTES_BETWEEN_LOOKS = 2**20


class Export(BaseModel):
    """What was exported, with the digests of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    export_id: str
    experiment_name: str
    checkpoint_id: str
    files: tuple[FileEntry, ...]
    left_out: tuple[str, ...] = ()
    who: str = ""
    """The token that asked for it, and may remove it; empty for what the page has converted."""


class Exports:
    """Exports, each in a folder that is complete once its record is there. A crash leaves what goes by itself."""

    def __init__(self, folder: Path, *, kept_seconds: float, most_bytes: int) -> None:
        self._root = folder
        self._most_bytes = most_bytes
        self.folders = KeptFolders(folder / "exports", kept_seconds)

    def create(
        self, experiment: Experiment, manifest: Manifest, options: Mapping[str, Any], progress: Progress, *, who: str
    ) -> Export:
        """Export a checkpoint, as it is or converted by the ``options`` of :func:`ckpt_lib.convert_checkpoint`.

        Raises what these raise, and :class:`~ckpt_lib.errors.StorageFullError` where the server has no room for it.
        """

        def write(place: str, progress: Progress) -> Sequence[str]:
            return _write(experiment, manifest, place, options, progress)

        facts = {"experiment_name": experiment.name, "checkpoint_id": manifest.checkpoint_id, "who": who}
        return self._created(write, manifest.plain_size_bytes, progress, **facts)

    def create_converted(self, source: Path, size_bytes: int, options: Mapping[str, Any], progress: Progress) -> Export:
        """Convert a file or folder that is in no store, of so many bytes. Raises as :meth:`create`."""

        def write(place: str, progress: Progress) -> Sequence[str]:
            return convert_checkpoint(source, place, **options, progress=progress).left_out

        return self._created(write, size_bytes, progress, experiment_name="", checkpoint_id="")

    def _created(
        self, write: Callable[[str, Progress], Sequence[str]], size_bytes: int, progress: Progress, **facts: str
    ) -> Export:
        """Make an export of what ``write`` writes into the folder that it is given; it returns what it leaves out."""
        most_bytes = self._most_bytes - self.folders.size_bytes()
        if size_bytes > most_bytes:
            raise self._too_large()
        require_room(self._root, size_bytes)
        export_id = self.folders.create()
        try:
            folder = self.folders.path(export_id)
            left_out = write(f"{folder / 'files'}/", self._bounded(progress, folder, size_bytes, most_bytes))
            files = _digested(folder / "files", progress)
            export = Export(export_id=export_id, **facts, files=files, left_out=tuple(left_out))
            open_store(str(folder)).put(_RECORD, export.model_dump_json().encode())
        except BaseException:
            self.folders.remove(export_id)
            raise
        return export

    def _bounded(self, progress: Progress, folder: Path, size_bytes: int, most_bytes: int) -> Progress:
        """Return ``progress`` that ends what becomes too large: a small file can describe a tensor of any size.

        What is larger than it was said to become leaves a tenth of the room on the disk to others.
        """
        kept_bytes = free_bytes(folder) // 10
        unseen_bytes = 0

        def bounded(written_bytes: int) -> object:
            nonlocal unseen_bytes
            unseen_bytes += written_bytes
            if unseen_bytes >= _BYTES_BETWEEN_LOOKS:
                unseen_bytes = 0
                there = size_of(folder)
                if there > most_bytes or (there > size_bytes and free_bytes(folder) < kept_bytes):
                    raise self._too_large()
            return progress(written_bytes)

        return bounded

    def _too_large(self) -> StorageFullError:
        return StorageFullError(
            "this and the other exports are larger than the server allows",
            expected=f"at most {size_text(self._most_bytes)} together, and room on its disk",
            hint="Exports go a day after they were made; DELETE /api/v1/exports/{export_id} removes one at once.",
        )

    def get(self, export_id: str) -> Export:
        """Return an export. Raises :class:`~ckpt_lib.errors.ExportNotFoundError`."""
        try:
            return Export.model_validate_json((self.folders.path(export_id) / _RECORD).read_bytes())
        except (OSError, ValidationError) as error:
            raise no_export() from error

    def remove(self, export_id: str, who: str) -> None:
        """Remove an export of the token ``who`` at once. Raises as :meth:`get`, also for an export of another token.

        The id alone is no right to remove it: everybody who may read sees the ids in jobs.
        """
        if self.get(export_id).who != who:
            raise no_export()
        self.folders.remove(export_id)

    def expires_at(self, export_id: str) -> float:
        """Return when an export goes, in seconds since 1970. Raises as :meth:`get`."""
        try:
            return self.folders.expires_at(export_id)
        except FileNotFoundError as error:
            raise no_export() from error

    def store(self, export_id: str) -> Store:
        """Return the store that holds the files of an export."""
        return open_store(str(self.folders.path(export_id) / "files"))


def no_export() -> ExportNotFoundError:
    """Return the error for an export, or a file of one, that is not there."""
    return ExportNotFoundError(
        "there is no such export, or no such file of it", hint="It was removed, or its day is over."
    )


def _write(
    experiment: Experiment, manifest: Manifest, place: str, options: Mapping[str, Any], progress: Progress
) -> Sequence[str]:
    """Write the files, and return what is not in them."""
    if not options:
        exports.export(experiment, manifest, place, progress)
        return ()
    from ckpt_lib.converting.options import conversion_options  # torch, only where it is used
    from ckpt_lib.maintenance.conversion import export_as

    wanted = conversion_options(place, **{"format": "torch", **options}, progress=progress)
    return export_as(experiment, manifest, place, wanted).left_out


def _digested(folder: Path, progress: Progress) -> tuple[FileEntry, ...]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((path, path.relative_to(folder).as_posix()) for path in paths)
    return tuple(_entry(path, name, progress) for path, name in named if not name.startswith(OWN_PREFIX))


def _entry(path: Path, name: str, progress: Progress) -> FileEntry:
    digest = StreamDigest()
    with path.open("rb") as file:
        while block := file.read(BLOCK_SIZE_BYTES):
            digest.update(block)
            progress(0)  # raises if the job is cancelled
    return FileEntry(name=name, **vars(digest.finish()))
