"""The files of a stored payload, as a format reads them."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from ckpt_lib.core.damage import missing_file
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.formats import Format, format_named
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.cache import CacheKey, PayloadCache


class StoredPayload:
    """A :class:`~ckpt_lib.formats.PayloadSource`: each file is opened, mapped and verified once. Used as a context.

    Without ``verify``, no digest is compared. Verified files are taken from ``cache``, and with ``keep`` whole files
    are put into it. Memory that tensors share outlives the context.
    """

    def __init__(
        self,
        experiment: Experiment,
        files: Sequence[FileEntry],
        *,
        verify: bool,
        cache: PayloadCache | None = None,
        keep: bool = False,
    ) -> None:
        self._experiment = experiment
        self._entries = {file.part: file for file in files}
        self._verify = verify
        self._cache = cache if verify else None
        self._keep = keep
        self._opened: dict[str, VerifiedFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._entries)

    def open(self, name: str = "") -> VerifiedFile:
        """Return a file at its start. Its ``FileNotFoundError`` has the file's name in the experiment."""
        if name not in self._entries:
            raise CorruptCheckpointError(f"the payload has no file {name!r}", expected=", ".join(self._entries))
        if name not in self._opened:
            self._opened[name] = self._stack.enter_context(self._open(self._entries[name]))
        file = self._opened[name]
        file.seek(0)
        return file

    def read_ahead(self) -> None:
        """Let the system begin to read the files, of which all is needed soon."""
        for name in self._entries:
            self.open(name).read_ahead()

    def require_all(self) -> None:
        """Verify every byte. Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` with the damage of all files."""
        failures = []
        for name in self._entries:
            try:
                self.open(name).require_all()
            except CorruptCheckpointError as error:
                failures.append(error)
        if failures:
            failures[0].damages = tuple(damage for error in failures for damage in error.damages)
            raise failures[0]

    def _open(self, entry: FileEntry) -> VerifiedFile:
        key = _cache_key(self._experiment, entry) if self._cache else None
        if self._cache and key and (kept := self._cache.open(key, entry)):
            return kept
        try:
            source = open_file(self._experiment, entry.name)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such payload file", entry.name) from error
        if self._cache and key and self._keep and (kept := self._cache.admit(key, source, entry)):
            return kept
        return VerifiedFile(source, entry, verify=self._verify)


def format_of(manifest: Manifest) -> Format:
    """Return the format that reads the payload of a checkpoint.

    Raises :class:`~ckpt_lib.errors.UnsupportedFormatError` where it is not installed.
    """
    if manifest.foreign is None:
        return format_named(manifest.format)
    from ckpt_lib.foreign.format import ForeignFormat  # torch, only where it is used

    return ForeignFormat(manifest.foreign.title, manifest.foreign.key_map)


@contextmanager
def errors_named(experiment: Experiment, manifest: Manifest, files: Sequence[FileEntry]) -> Iterator[None]:
    """Let errors of reading ``files`` of a checkpoint say which checkpoint it is.

    A missing file raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, and where the checkpoint was deleted
    meanwhile :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        experiment.check_current(manifest)  # raises when it was deleted meanwhile, which is no damage
        damage = missing_file(str(error.filename))
        raise CorruptCheckpointError(
            damage.message,
            checkpoint_id=manifest.checkpoint_id,
            path=experiment.location(str(error.filename)),
            damages=[damage],
            hint=f"`ckpt restore {manifest.checkpoint_id}` restores a backup.",
        ) from error
    except CheckpointError as error:
        error.checkpoint_id = manifest.checkpoint_id
        error.path = experiment.location(files[0].name.partition("/")[0])
        raise


def _cache_key(experiment: Experiment, entry: FileEntry) -> CacheKey | None:
    found = experiment.store.stat(experiment.key(entry.name))
    return (experiment.location(entry.name), found.version, entry.sha256) if found else None
