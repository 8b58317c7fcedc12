"""``Experiment``: the folders of one experiment, as a configuration names them, and what is found in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from ckpt_lib.config import CheckpointConfig, is_monitor_given
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, StoreError, is_store_failure
from ckpt_lib.experiment.fallback_index import FallbackIndex
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import BACKUPS_NAME, CheckpointFolder
from ckpt_lib.experiment.query import ATTEMPTS, Catalogue, MonitorRecord, check_metric_is_known
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.store import open_store

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointSet:
    """The checkpoints of one folder: an experiment's own, its backups, or those in its fallback folder."""

    folder: CheckpointFolder
    index: Index
    catalogue: Catalogue

    def ids(self) -> list[str]:
        """Every id, oldest first, and then those whose manifest cannot be read."""
        readable = [manifest.checkpoint_id for manifest in self.index.manifests()]
        return readable + [str(error.checkpoint_id) for error in self.index.unreadable()]

    def id_of(self, name: str) -> str:
        """An id as it is, even of a checkpoint that is gone; for anything else, the id that it stands for."""
        return name if is_checkpoint_id(name) else self.catalogue.resolve(name).checkpoint_id

    def payload_version(self, name: str) -> str | None:
        """A text that changes when the payload file or its recorded digest does; ``None`` without the file."""
        manifest = self.catalogue.resolve(name)
        entry = self.folder.payload_entry(manifest)
        return None if entry is None else f"{manifest.payload.sha256}/{entry.version}"

    def best(self, metric: str | None, mode: Mode | None) -> CheckpointMetadata | None:
        """The best healthy checkpoint by any metric, by default the monitored one; ``None`` when no value is finite."""
        checkpoints = self.catalogue.describe_all()
        if metric is not None:
            check_metric_is_known(metric, checkpoints)
        if mode not in (None, "min", "max"):
            raise ConfigError('mode must be "min" or "max"', got=repr(mode))
        monitor = self.catalogue.monitor()
        if metric not in (None, monitor.metric) and mode is None:
            raise ConfigError(
                f"whether a smaller or a larger {metric!r} is better was not said", expected='mode="min" or "max"'
            )
        best = ranked(checkpoints, Monitor(metric=metric or monitor.metric, mode=mode or monitor.mode))
        return best[0] if best else None


class Experiment:
    """One experiment: its ``primary`` checkpoints, their ``backups`` and, where configured, the ``fallback`` folder.

    Nothing is read or written before it is asked for. Raises :class:`~ckpt_lib.errors.ConfigError` for two folders
    that are the same.
    """

    def __init__(self, config: CheckpointConfig, name: str) -> None:
        self.config = config
        self.name = name
        folder = CheckpointFolder(open_store(config.checkpoint_dir), name)
        backups = self._folder_in(config.backup_dir) or folder.child(BACKUPS_NAME)
        fallback = self._folder_in(config.fallback_dir)
        _check_apart("backups", backups, "backup_dir", folder)
        if fallback:
            _check_apart("checkpoints", folder, "fallback_dir", fallback)
            _check_apart("backups", backups, "fallback_dir", fallback)
        self.monitor_record = MonitorRecord(config.monitor, is_given=is_monitor_given(config))
        backup_index = Index(backups)
        fallback_index = FallbackIndex(fallback) if fallback else None
        index = Index(folder, backup_index, stranded=fallback_index)
        self.primary = CheckpointSet(folder, index, Catalogue(index, self.monitor_record))
        self.backups = CheckpointSet(backups, backup_index, self._catalogue_of_copies(backup_index))
        self.fallback: CheckpointSet | None = None
        if fallback and fallback_index:
            fallback_index.primary = index
            self.fallback = CheckpointSet(fallback, fallback_index, self._catalogue_of_copies(fallback_index))

    def _folder_in(self, url: str | None) -> CheckpointFolder | None:
        return CheckpointFolder(open_store(url), self.name) if url else None

    def _catalogue_of_copies(self, index: Index) -> Catalogue:
        """A catalogue whose record is not what the configuration is compared with."""
        return Catalogue(index, MonitorRecord(self.config.monitor))

    def find(self, name: str) -> tuple[CheckpointFolder, Manifest]:
        """What ``name`` stands for, and where it lies: an id may be in the fallback folder alone."""
        try:
            return self.primary.folder, self.primary.catalogue.resolve(name)
        except Exception as error:
            is_away = isinstance(error, CheckpointNotFoundError) or is_store_failure(error)
            if is_away and self.fallback is not None and is_checkpoint_id(name):
                with suppress(CheckpointNotFoundError, StoreError):
                    return self.fallback.folder, self.fallback.index.get(name)
            raise

    def with_found(self, name: str, action: Callable[[CheckpointFolder, Manifest], T]) -> T:
        """Do something with what ``name`` stands for, and with what it then stands for if that was just deleted."""
        attempt = 1
        while True:
            folder, manifest = self.find(name)
            try:
                return action(folder, manifest)
            except CheckpointNotFoundError:
                if name == manifest.checkpoint_id or attempt == ATTEMPTS:
                    raise
                attempt += 1


def _check_apart(name: str, folder: CheckpointFolder, option: str, other: CheckpointFolder) -> None:
    if os.path.realpath(folder.location()) == os.path.realpath(other.location()):
        raise ConfigError(f"{name} would lie in the same folder", path=other.location(), hint=f"Change {option}.")
