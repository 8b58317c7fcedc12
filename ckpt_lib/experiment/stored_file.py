"""Payload files of an experiment, opened."""

from __future__ import annotations

from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store.file import StoredFile


def open_file(experiment: Experiment, name: str) -> StoredFile:
    """Open a file of an experiment; ``FileNotFoundError`` when there is none. Raises the errors of the store."""
    return StoredFile(experiment.store.open_read(experiment.key(name)))
