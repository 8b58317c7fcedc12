"""Checkpoint lifecycle management for PyTorch training: save, verify, back up, compare, export and clean up.

>>> from ckpt_lib import CheckpointConfig, CheckpointManager
>>> manager = CheckpointManager(CheckpointConfig(checkpoint_dir="checkpoints"), "my_experiment")

Names load when they are first used, so that ``import ckpt_lib`` costs next to nothing. Errors are in
``ckpt_lib.errors``, reports in ``ckpt_lib.reports``, events in ``ckpt_lib.events``, save policies in
``ckpt_lib.policies.saving``, retention policies in ``ckpt_lib.policies.retention``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_lib.advice import advise
    from ckpt_lib.analysis.frames import to_dataframe
    from ckpt_lib.analysis.results import CheckpointComparison, ExperimentSummary
    from ckpt_lib.config import CheckpointConfig
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.errors import CheckpointError
    from ckpt_lib.experiment.listing import list_experiments
    from ckpt_lib.experiment.overviews import describe_experiments, find_checkpoints
    from ckpt_lib.index.conditions import Condition
    from ckpt_lib.index.overview import ExperimentOverview
    from ckpt_lib.inspecting.inspection import inspect_checkpoint
    from ckpt_lib.maintenance.convert import convert_checkpoint
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.policies.retention import RetentionPlan
    from ckpt_lib.state.data import ResumableLoader
    from ckpt_lib.state.training_state import TrainingState
    from ckpt_lib.store import open_store
    from ckpt_lib.store.identity import init_store

    __version__: str

_HOMES = {
    "CheckpointComparison": "ckpt_lib.analysis.results",
    "CheckpointConfig": "ckpt_lib.config",
    "CheckpointError": "ckpt_lib.errors",
    "CheckpointManager": "ckpt_lib.manager",
    "CheckpointMetadata": "ckpt_lib.core.metadata",
    "Condition": "ckpt_lib.index.conditions",
    "ExperimentOverview": "ckpt_lib.index.overview",
    "ExperimentSummary": "ckpt_lib.analysis.results",
    "ResumableLoader": "ckpt_lib.state.data",
    "RetentionPlan": "ckpt_lib.policies.retention",
    "TrainingState": "ckpt_lib.state.training_state",
    "convert_checkpoint": "ckpt_lib.maintenance.convert",
    "advise": "ckpt_lib.advice",
    "describe_experiments": "ckpt_lib.experiment.overviews",
    "find_checkpoints": "ckpt_lib.experiment.overviews",
    "init_store": "ckpt_lib.store.identity",
    "inspect_checkpoint": "ckpt_lib.inspecting.inspection",
    "list_experiments": "ckpt_lib.experiment.listing",
    "open_store": "ckpt_lib.store",
    "to_dataframe": "ckpt_lib.analysis.frames",
}

__all__ = [
    "CheckpointComparison",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointManager",
    "CheckpointMetadata",
    "Condition",
    "ExperimentOverview",
    "ExperimentSummary",
    "ResumableLoader",
    "RetentionPlan",
    "TrainingState",
    "advise",
    "convert_checkpoint",
    "describe_experiments",
    "find_checkpoints",
    "init_store",
    "inspect_checkpoint",
    "list_experiments",
    "open_store",
    "to_dataframe",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("prefect-checkpoints")
    if name not in _HOMES:
        raise AttributeError(f"module 'ckpt_lib' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
