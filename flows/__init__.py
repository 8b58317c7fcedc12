"""Prefect flows: training, the lifecycle of an experiment, validation and cleanup of a store, and backups.

Installed, this package is ``prefect_checkpoints.flows``::

    from prefect_checkpoints.flows import checkpoint_lifecycle
"""

from prefect_checkpoints.flows.backups import manage_backups
from prefect_checkpoints.flows.cleanup import cleanup_store
from prefect_checkpoints.flows.launch import launch
from prefect_checkpoints.flows.lifecycle import checkpoint_lifecycle
from prefect_checkpoints.flows.train import TrainingParameters, train
from prefect_checkpoints.flows.validate import validate_store

__all__ = [
    "TrainingParameters",
    "checkpoint_lifecycle",
    "cleanup_store",
    "launch",
    "manage_backups",
    "train",
    "validate_store",
]
