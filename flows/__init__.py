"""Prefect flows: training, evaluation, the lifecycle of an experiment, validation and cleanup of a store, and backups.

Installed, this package is ``prefect_checkpoints.flows``::

    from prefect_checkpoints.flows import checkpoint_lifecycle
"""

from prefect_checkpoints.flows.backups import manage_backups
from prefect_checkpoints.flows.cleanup import cleanup_store
from prefect_checkpoints.flows.evaluate import Gate, evaluate_checkpoint
from prefect_checkpoints.flows.jobs import checkpoint_job
from prefect_checkpoints.flows.launch import launch
from prefect_checkpoints.flows.lifecycle import checkpoint_lifecycle
from prefect_checkpoints.flows.train import TrainingParameters, train
from prefect_checkpoints.flows.validate import validate_store

__all__ = [
    "Gate",
    "TrainingParameters",
    "checkpoint_job",
    "checkpoint_lifecycle",
    "cleanup_store",
    "evaluate_checkpoint",
    "launch",
    "manage_backups",
    "train",
    "validate_store",
]
