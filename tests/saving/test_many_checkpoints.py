"""Saves into large experiments: what each of them asks of the store does not grow with the checkpoints."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest

from ckpt_lib.experiment import index
from ckpt_lib.maintenance.cleaners import SpreadCleanup
from ckpt_lib.testing.faulty_store import FaultPlan, faults_injected
from tests.helpers import MakeManager, backup_ids, save


def listings_of_saves(make_manager: MakeManager, metrics: list[float], **options: Any) -> list[int]:
    """Return how many listings each save made, once the process had saved a few times."""
    listings = []
    plan = FaultPlan(only=frozenset({"list"}))
    with faults_injected(plan):
        manager = make_manager(**options)
        for epoch, value in enumerate([9.0, 9.0, 9.0, *metrics]):
            before = len(plan.calls)
            save(manager, epoch, value)
            listings.append(len(plan.calls) - before)
    return listings[3:]


@pytest.mark.parametrize("better", [False, True])
def test_a_save_lists_nothing_where_that_takes_long(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    """Nor does the best so far: a loss that falls is the rule. Backups and their retention are no exception."""
    monkeypatch.setattr(index, "_MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(index, "_LISTING_SHARE", 1e-6)  # what a listing shows is good enough for hours
    metrics = [1.0 / number if better else 10.0 for number in range(2, 6)]
    assert listings_of_saves(make_manager, metrics, max_checkpoints=100, max_backups=100) == [0, 0, 0, 0]


def test_a_save_that_retires_a_backup_does_not_list_the_checkpoints(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the checkpoint of the backup that is to go, and at no other."""
    monkeypatch.setattr(index, "_MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(index, "_LISTING_SHARE", 1e-6)
    plan = FaultPlan(only=frozenset({"list"}))
    with faults_injected(plan):
        manager = make_manager(max_checkpoints=100, max_backups=2)
        for epoch in range(4):
            save(manager, epoch)
        plan.calls.clear()
        save(manager, 5)
    assert plan.calls
    assert all(call.endswith("/backups") for call in plan.calls)


def test_a_save_is_the_best_once_a_better_one_is_gone(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has deleted that: it is noticed at once, and the save gets the backup of the best."""
    monkeypatch.setattr(index, "_MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(index, "_LISTING_SHARE", 1e-6)
    options: dict[str, Any] = {"max_checkpoints": 100, "backup_only_best": True}
    manager = make_manager(**options)
    best = save(manager, 1, 0.1)
    save(manager, 2, 0.9)
    make_manager(**options).delete_checkpoint(best)
    better = save(manager, 3, 0.5)
    assert backup_ids(manager) == [best, better]


@pytest.mark.parametrize(("count", "each"), [(1, 1), (10, 1), (99, 1), (100, 2), (1_000, 11), (10_000, 101)])
def test_cleanups_after_saves_cost_each_save_the_same(count: int, each: int) -> None:
    """One looks at all checkpoints: of hundreds, after so many more saves. The first is due at once."""
    spread, cleaned = SpreadCleanup(), Counter[int]()
    for number in range(5 * each):
        spread.after_save(count, partial(cleaned.update, [number]))
    assert sorted(cleaned) == [each * turns for turns in range(5)]


def test_a_cleanup_comes_sooner_when_less_is_kept() -> None:
    """Saves that may go by are those of the limit of now."""
    spread, cleaned = SpreadCleanup(), list[int]()
    spread.after_save(100_000, lambda: cleaned.append(1))
    spread.after_save(10, lambda: cleaned.append(2))
    assert cleaned == [1, 2]


def test_a_few_checkpoints_are_cleaned_up_with_every_save(make_manager: MakeManager) -> None:
    """There are never more than ``max_checkpoints``."""
    manager = make_manager(max_checkpoints=2, backup_checkpoints=False)
    for epoch in range(6):
        save(manager, epoch, 1.0 / (epoch + 1))
        assert len(manager.checkpoint_ids()) <= 2
