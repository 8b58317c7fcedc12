"""What the store says about why there is no newer checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.advice.unsaved import _pace, reasons_stored
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.experiment import commit
from tests.helpers import MakeManager, save


@pytest.fixture
def saved_each_hour(make_manager: MakeManager) -> Sequence[Manifest]:
    """The manifests of a run with a checkpoint each hour."""
    manager = make_manager()
    for epoch in range(1, 6):
        save(manager, epoch)
    manifests = manager._locations.home.index.view().usable
    start = manifests[0].timestamp
    return [item.model_copy(update={"timestamp": start + timedelta(hours=item.epoch)}) for item in manifests]


@pytest.mark.parametrize(
    ("age", "kind"),
    [(timedelta(minutes=20), "interval"), (timedelta(hours=2), "interval"), (timedelta(hours=4), "overdue")],
)
def test_the_age_is_compared_with_the_usual_interval(
    saved_each_hour: Sequence[Manifest], age: timedelta, kind: str
) -> None:
    """A run that saved each hour is overdue after three of them, and else the reason says how long to wait."""
    newest = saved_each_hour[-1]
    (reason,) = _pace(saved_each_hour, newest.timestamp + age)
    assert (reason.kind, reason.checkpoint_id) == (kind, newest.checkpoint_id)
    assert "every 1 h" in reason.message
    if kind == "interval":
        assert reason.seconds_left == max(0.0, (timedelta(hours=1) - age).total_seconds())


def test_other_runs_do_not_count(saved_each_hour: Sequence[Manifest]) -> None:
    """The first checkpoint of a run says nothing about its interval, whatever runs before it did."""
    newest = saved_each_hour[-1].model_copy(update={"run_id": "f" * 32})
    (reason,) = _pace([*saved_each_hour[:-1], newest], newest.timestamp + timedelta(days=1))
    assert reason.kind == "unknown"
    assert "too early" in reason.message


def test_a_new_experiment_has_nothing_to_tell(manager: CheckpointManager) -> None:
    """No error, and nothing is created."""
    (reason,) = reasons_stored(manager._locations)
    assert (reason.kind, reason.message) == ("unknown", "the experiment has no checkpoint yet")


def test_a_save_under_way_is_told(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a process is at work on an id that it has claimed, that is the reason, and a diagnosis knows of it."""
    save(manager, 1)
    seen = []
    original = commit.Payload.open

    def look(*arguments: Any, **options: Any) -> Any:
        other = CheckpointManager(manager.config, manager.experiment_name)
        (reason,) = [item for item in reasons_stored(other._locations) if item.kind == "under_way"]
        seen.append((reason.checkpoint_id, other.why_not_loaded(str(reason.checkpoint_id)).state))
        return original(*arguments, **options)

    monkeypatch.setattr(commit.Payload, "open", look)
    saved = save(manager, 2)
    assert seen == [(saved, "unfinished")]
