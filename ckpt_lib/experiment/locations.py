"""``Locations``: where the checkpoints of one experiment lie, as a configuration says."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ckpt_lib.config import CheckpointConfig, is_monitor_given
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, StoreError, is_store_failure
from ckpt_lib.events import Events
from ckpt_lib.experiment import deleted_by_name
from ckpt_lib.experiment.best import BestWatch
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment
from ckpt_lib.experiment.layout import BACKUPS_NAME
from ckpt_lib.experiment.query import Catalogue, MonitorRecord
from ckpt_lib.store import Store, location, open_store
from ckpt_lib.store.identity import StoreWatch

T = TypeVar("T")


class Locations:
    """The places of one experiment's checkpoints: their ``home``, their ``backups`` and, if configured, a ``fallback``.

    Nothing is read or written before it is asked for. Raises :class:`~ckpt_lib.errors.ConfigError` for two locations
    that lead to the same folder by now; what a link or mount makes one later is found by :func:`check_apart`.
    """

    def __init__(self, config: CheckpointConfig, name: str) -> None:
        self.config = config
        self.name = name
        store = open_store(config.checkpoint_dir)
        self.events = Events(name, location(store))
        self.home = self._experiment(store, name)
        self.watch = StoreWatch(self.home.store)
        if config.backup_dir:
            self.backups = self._experiment(open_store(config.backup_dir), name)
        else:
            self.backups = self._experiment(self.home.store, f"{name}/{BACKUPS_NAME}")
        self.fallback = self._experiment(open_store(config.fallback_dir), name) if config.fallback_dir else None
        _check_paths("checkpoints", self.home, "backup_dir", self.backups)
        if self.fallback:
            _check_paths("checkpoints", self.home, "fallback_dir", self.fallback)
            _check_paths("backups", self.backups, "fallback_dir", self.fallback)
        self.monitor_record = MonitorRecord(config.monitor, is_given=is_monitor_given(config))
        self.catalogue = Catalogue(self.home, self.monitor_record, self.backups)
        self.best = BestWatch(self.catalogue)
        is_deleted = partial(deleted_by_name.is_deleted, self.home, self.backups)
        self.backup_catalogue = Catalogue(self.backups, MonitorRecord(config.monitor), is_deleted=is_deleted)
        self.fallback_catalogue = Catalogue(self.fallback, MonitorRecord(config.monitor)) if self.fallback else None

    def _experiment(self, store: Store, path: str) -> Experiment:
        return Experiment(
            store,
            path,
            self.name,
            single_writer=self.config.single_writer,
            events=self.events,
            is_indexed=True,
            index_url=self.config.index_url,
        )

    def find(self, name: str) -> tuple[Experiment, Manifest]:
        """Find what ``name`` stands for, and where it lies: an id may be in the fallback folder alone."""
        try:
            return self.home, self.catalogue.resolve(name)
        except Exception as error:
            is_away = isinstance(error, CheckpointNotFoundError) or is_store_failure(error)
            if is_away and self.fallback is not None and is_checkpoint_id(name):
                with suppress(CheckpointNotFoundError, StoreError):
                    return self.fallback, self.fallback.get(name)
            raise

    def with_found(self, name: str, action: Callable[[Experiment, Manifest], T]) -> T:
        """Do something with what ``name`` stands for, and with what it then stands for if that was just deleted.

        An id may stand for a checkpoint that was deleted and brought back meanwhile.
        """
        for _ in range(ATTEMPTS - 1):
            found = self.find(name)
            with suppress(CheckpointNotFoundError):
                return action(*found)
        return action(*self.find(name))


def check_apart(name: str, experiment: Experiment, option: str, other: Experiment) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` if the folder of ``option``, which is there, is that of ``name``.

    Copies and what they are copies of would be the same files: to be asked before some are removed for the others.
    """
    if other.is_same_folder(experiment):
        raise _same_folder(name, experiment, option, other)


def _check_paths(name: str, experiment: Experiment, option: str, other: Experiment) -> None:
    here, there = location(experiment.store, experiment.path), location(other.store, other.path)
    if os.path.realpath(here) == os.path.realpath(there):
        raise _same_folder(name, experiment, option, other)


def _same_folder(name: str, experiment: Experiment, option: str, other: Experiment) -> ConfigError:
    return ConfigError(
        f"{option} is the folder of the {name} under another name",
        path=location(other.store, other.path),
        expected=f"another folder than {location(experiment.store, experiment.path)}",
        hint=f"Change {option}, or remove the link or mount that makes them one.",
    )
