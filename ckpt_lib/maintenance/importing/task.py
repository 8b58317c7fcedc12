"""``ImportTask``: finds out whose checkpoint a path names, and imports it in the way that fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import CheckpointError, NotACheckpointError, NotAStoreError
from ckpt_lib.experiment.at_path import checkpoint_at, file_at
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.formats import Format
from ckpt_lib.maintenance.importing.exports import import_exported
from ckpt_lib.maintenance.importing.payloads import import_payload, is_payload_of_ours
from ckpt_lib.maintenance.importing.refusals import not_a_checkpoint
from ckpt_lib.maintenance.importing.report import Imported
from ckpt_lib.store.registry import url_text
from ckpt_lib.stream import Progress

if TYPE_CHECKING:
    from ckpt_lib.foreign import FoundFiles
    from ckpt_lib.maintenance.importing.foreign_copies import ForeignImport


@dataclass(frozen=True)
class ImportTask:
    """Imports into one experiment.

    ``stored`` returns the format that copies of what other programs wrote are saved in. ``monitor`` becomes the measure
    of the best if there is no checkpoint yet.
    """

    experiment: Experiment
    monitor: Monitor
    stored: Callable[[], Format]
    key_map: Mapping[str, str] | None = None
    in_place: bool = False
    health_check: bool = True
    progress: Progress | None = None
    newest: Manifest | None = None
    """What was saved before this checkpoint is refused."""

    def run(self, source: str | os.PathLike[str]) -> Imported:
        """Import a checkpoint as the newest. ``source`` is a file, or the folder of one checkpoint.

        Of our own, it is a payload or a manifest, or a folder that holds just one: see
        :mod:`ckpt_lib.maintenance.importing.exports` and :mod:`ckpt_lib.maintenance.importing.payloads`. What another
        program wrote is copied, or imported in place (:mod:`ckpt_lib.maintenance.importing.in_place`). With a
        ``key_map`` it is always taken for another program's.

        Raises :class:`~ckpt_lib.errors.UnsafePayloadError`, :class:`~ckpt_lib.errors.CorruptCheckpointError`,
        :class:`~ckpt_lib.errors.UnsupportedStateError` or :class:`~ckpt_lib.errors.UnsupportedFormatError` for what
        cannot be loaded without running code, or not at all, :class:`~ckpt_lib.errors.CorruptManifestError` or
        :class:`~ckpt_lib.errors.UnsupportedSchemaError` for a manifest that cannot be read, and
        :class:`~ckpt_lib.errors.NotACheckpointError` where there is nothing to import; nothing is written then. Killed
        on the way, call it again.
        """
        from ckpt_lib.foreign import found_files  # torch, only where it is used

        path = url_text(source)
        if self.in_place:
            from ckpt_lib.maintenance.importing.in_place import import_in_place

            return import_in_place(self._foreign(), path)
        find_files = partial(found_files, path)
        if self.key_map is not None:
            return self.copy(find_files)
        try:
            exported = checkpoint_at(path)
            origin, name = exported or file_at(path)
        except (NotACheckpointError, NotAStoreError) as error:  # if it is a link, for example
            return self._copy_unless_unknown(find_files, error)
        if exported is not None:
            return import_exported(self.experiment, origin, name, self.progress, self.newest)
        if is_payload_of_ours(origin, name):
            return import_payload(
                self.experiment,
                origin,
                name,
                monitor=self.monitor,
                progress=self.progress,
                health_check=self.health_check,
                newest=self.newest,
            )
        return self._copy_unless_unknown(find_files, not_a_checkpoint(origin, name))

    def copy(self, find_files: Callable[[], FoundFiles]) -> Imported:
        """Copy what another program wrote; :mod:`ckpt_lib.maintenance.importing.foreign_copies` says how."""
        return self._foreign().copy(find_files, self.stored())

    def _copy_unless_unknown(self, find_files: Callable[[], FoundFiles], error: CheckpointError) -> Imported:
        """Copy what another program wrote; raise ``error`` where no known program did."""
        from ckpt_lib.foreign.opening import kind_of

        try:
            with find_files() as files:
                is_known = kind_of(files) is not None
        except NotACheckpointError:  # there is nothing
            is_known = False
        if not is_known:
            raise error
        return self.copy(find_files)

    def _foreign(self) -> ForeignImport:
        from ckpt_lib.maintenance.importing.foreign_copies import ForeignImport

        return ForeignImport(self.experiment, self.monitor, self.key_map, self.progress, self.health_check, self.newest)
