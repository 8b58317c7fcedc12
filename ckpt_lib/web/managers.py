"""The managers of a server, one for each experiment."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.store import open_store

_KEPT = 256
"""A manager caches its folder; the least recently used are forgotten."""


class Managers:
    """Opens managers of one store. Threads may share it."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self._store = open_store(config.checkpoint_dir)
        self._backups = open_store(config.backup_dir) if config.backup_dir else None
        self._known: OrderedDict[str, CheckpointManager] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, experiment_name: str) -> CheckpointManager:
        """Return the manager of an experiment, which may consist of backups alone.

        Raises :class:`~ckpt_lib.errors.ExperimentNotFoundError` or :class:`~ckpt_lib.errors.InvalidNameError`.
        """
        check_experiment_exists(self._store, experiment_name, backups=self._backups)
        return self._manager(experiment_name)

    def for_job(self, experiment_name: str, *, may_create: bool) -> CheckpointManager:
        """Return the manager of an experiment that exists or, with ``may_create``, may. Raises as :meth:`of`."""
        return self._manager(experiment_name) if may_create else self.of(experiment_name)

    def _manager(self, experiment_name: str) -> CheckpointManager:
        with self._lock:
            manager = self._known.pop(experiment_name, None) or CheckpointManager(self.config, experiment_name)
            self._known[experiment_name] = manager
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return manager


def home_of(manager: CheckpointManager) -> Experiment:
    """Return the folder of a manager's checkpoints, to read files that managers do not hand out."""
    store = open_store(manager.config.checkpoint_dir)
    return Experiment(store, manager.experiment_name, manager.experiment_name)
