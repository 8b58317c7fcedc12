"""When to save, and what is the best: policies, the monitored metric, and the values that compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.monitor import Mode
from ckpt_lib.errors import ConfigError, UnknownMetricError
from ckpt_lib.policies.saving import AllOf, AnyOf, EveryEpochs, EverySteps, OnImprovement, SaveContext, When
from tests.helpers import MakeManager, build, payload_path, save


@pytest.mark.parametrize(
    ("mode", "values", "saved_epochs"),
    [
        ("min", [0.5, 0.6, 0.4, 0.4, float("nan"), -1.0, float("-inf"), -2.0], [1, 3, 6, 8]),
        ("max", [0.5, 0.6, 0.4, 0.6, float("nan"), 0.7, float("inf"), 0.8], [1, 2, 6, 8]),
    ],
)
def test_best_only_saves_improvements_alone(
    make_manager: MakeManager, mode: Mode, values: list[float], saved_epochs: list[int]
) -> None:
    """A tie, a worse value, NaN and infinity save nothing; an improvement on all that is stored does."""
    manager = make_manager(save_best_only=True, monitor_metric="score", monitor_mode=mode)
    for epoch, value in enumerate(values, start=1):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"score": value})
    assert [item.epoch for item in manager.list_checkpoints()] == saved_epochs


def test_best_only_remembers_across_managers(make_manager: MakeManager) -> None:
    """A run that goes on in a new process does not take its first value for the best: the stored ones count."""
    save(make_manager(save_best_only=True), 1, 0.2)
    again = make_manager(save_best_only=True)
    assert again.resume(nn.Linear(2, 1)) is not None
    assert again.save_checkpoint(model=nn.Linear(2, 1), epoch=2, metrics={"val_loss": 0.3}) is None


def test_best_only_without_its_metric_is_an_error(make_manager: MakeManager) -> None:
    """A misspelt metric is refused, instead of never saving anything."""
    manager = make_manager(save_best_only=True)
    with pytest.raises(UnknownMetricError, match="val_loss"):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1, metrics={"valid_loss": 0.1})


def test_custom_and_combined_policies_decide(store_path: Path) -> None:
    """A custom condition, all-of and any-of choose exactly the epochs they should."""
    config = CheckpointConfig(checkpoint_dir=str(store_path), max_checkpoints=100)

    def plateau(context: SaveContext) -> bool:
        return context.metrics["val_loss"] == 0.5

    def saved_epochs(name: str, policy: Any) -> list[int]:
        manager = CheckpointManager(config, name, save_policy=policy)
        for epoch, loss in enumerate((0.9, 0.5, 0.7, 0.4, 0.5, 0.3), start=1):
            manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, step=epoch * 10, metrics={"val_loss": loss})
        return [item.epoch for item in manager.list_checkpoints()]

    assert saved_epochs("custom", When(plateau)) == [2, 5]
    assert saved_epochs("steps", EverySteps(30)) == [3, 6]
    assert saved_epochs("all", AllOf(EveryEpochs(2), OnImprovement())) == [2, 4, 6]
    assert saved_epochs("any", AnyOf(When(plateau), EveryEpochs(3))) == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("metric", "mode", "position"),
    [("loss", "min", 1), ("loss", "max", 2), ("accuracy", "max", 0), ("accuracy", "min", 2)],
)
def test_best_by_any_metric_either_way(manager: CheckpointManager, metric: str, mode: Mode, position: int) -> None:
    """The best can be asked by every recorded metric, as minimum and as maximum."""
    rows = [(0.5, 0.9), (0.1, 0.8), (0.7, 0.1), (float("nan"), float("inf"))]
    saved = [
        save(manager, epoch, metrics={"loss": loss, "accuracy": accuracy})
        for epoch, (loss, accuracy) in enumerate(rows, start=1)
    ]
    best = manager.get_best_checkpoint(metric, mode)
    assert best is not None
    assert best.checkpoint_id == saved[position]
    latest = manager.get_latest_checkpoint()
    assert latest is not None
    assert latest.checkpoint_id == saved[-1]


def test_the_monitored_metric_may_be_a_maximum(make_manager: MakeManager) -> None:
    """monitor_metric and monitor_mode decide what best means everywhere, for a later reader too."""
    manager = make_manager(monitor_metric="accuracy", monitor_mode="max")
    saved = [save(manager, epoch, metrics={"accuracy": value}) for epoch, value in ((1, 0.2), (2, 0.9), (3, 0.5))]
    for reader in (manager, make_manager()):
        assert reader.get_checkpoint("best").checkpoint_id == saved[1]
        assert reader.get_checkpoint_summary()["best_checkpoint"] == saved[1]


@pytest.mark.parametrize("mode", ["minimum", "MIN", "", 1])
def test_an_unknown_mode_is_refused_and_not_taken_for_the_other(manager: CheckpointManager, mode: Any) -> None:
    """A misspelt mode would return the worst checkpoint as the best."""
    save(manager, 1)
    with pytest.raises(ConfigError, match="mode"):
        manager.get_best_checkpoint("val_loss", mode)
    with pytest.raises(ConfigError, match="mode"):
        OnImprovement("val_loss", mode)


def test_best_only_goes_on_after_the_best_was_lost(make_manager: MakeManager) -> None:
    """A best checkpoint whose payload is gone does not keep the next ones from being saved."""
    manager = make_manager(save_best_only=True)
    best = save(manager, 1, 0.1)
    assert save_or_not(manager, 2, 0.5) is None
    payload_path(manager, best).unlink()
    assert save_or_not(manager, 3, 0.5) is not None


def test_a_policy_is_shown_what_is_there_now(make_manager: MakeManager) -> None:
    """As many checkpoints as at the last save may be others: one was deleted, and one saved."""
    manager = make_manager()
    for epoch in range(3):
        save_or_not(manager, epoch, 1.0)
    policy, saved = manager._saver._policy, manager._locations.home.index.manifests()
    assert [record.epoch for record in policy._records_of(saved[:2])] == [0, 1]
    assert [record.epoch for record in policy._records_of(saved[1:])] == [1, 2]
    assert [record.epoch for record in policy._records_of(saved)] == [0, 1, 2]


def save_or_not(manager: CheckpointManager, epoch: int, loss: float) -> str | None:
    return manager.save_checkpoint(model=build().model, epoch=epoch, metrics={"val_loss": loss})
