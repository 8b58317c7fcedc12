"""Retirement: what a cleanup takes away, and what it never touches."""

from __future__ import annotations

import cProfile
import os
from collections.abc import Callable

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.core import facts
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import ProtectedCheckpointError
from ckpt_lib.experiment import edits
from ckpt_lib.maintenance import cleanup
from ckpt_lib.policies.retention import KeepNewest, KeepTagged
from tests.helpers import MakeManager, backup_ids, experiment_folder, ids, save, snapshot
from tests.maintenance.cleaning import NOTHING, cleaner


@pytest.mark.parametrize(
    ("max_checkpoints", "losses", "kept"),
    [
        (0, [0.1, 0.2, 0.3], [0, 2]),
        (0, [0.3, 0.2, 0.1], [2]),
        (1, [0.1, 0.2, 0.3], [0, 2]),
        (1, [0.3, 0.2, 0.1], [2]),
        (2, [0.1, 0.2, 0.3], [0, 2]),
        (3, [0.1, 0.2, 0.3], [0, 1, 2]),
        (2, [0.1, 0.5, 0.1, 0.4], [0, 3]),
    ],
)
def test_max_checkpoints(make_manager: MakeManager, max_checkpoints: int, losses: list[float], kept: list[int]) -> None:
    """The best and the newest stay whatever the number, and no more than the number besides them."""
    manager = make_manager(max_checkpoints=max_checkpoints)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate(losses, start=1)]
    assert ids(manager) == [saved[position] for position in kept]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_values_that_do_not_compare_do_not_protect(make_manager: MakeManager, mode: str) -> None:
    """NaN, infinities, text and None are neither the best nor in the way of the best."""
    manager = make_manager(max_checkpoints=2, monitor_mode=mode)
    odd = [float("nan"), float("-inf"), float("inf"), None, "diverged"]
    saved = [save(manager, epoch, value) for epoch, value in enumerate([*odd, 0.5, *odd, 0.5, *odd])]
    assert ids(manager) == [saved[len(odd)], saved[-1]]


def test_without_any_number_the_newest_stay(make_manager: MakeManager) -> None:
    """An experiment whose metric never was a number keeps its newest."""
    manager = make_manager(max_checkpoints=2)
    saved = [save(manager, epoch, float("nan")) for epoch in range(5)]
    assert ids(manager) == saved[-2:]


def test_pinned_stay_and_do_not_count(make_manager: MakeManager) -> None:
    """A pinned checkpoint stays besides the number, and goes once it is unpinned."""
    manager = make_manager(max_checkpoints=2)
    pinned = save(manager, 1)
    assert manager.pin_checkpoint(pinned).pinned
    saved = [save(manager, epoch, 1 / epoch) for epoch in (2, 3, 4)]
    assert ids(manager) == [pinned, *saved[-2:]]
    with pytest.raises(ProtectedCheckpointError):
        manager.delete_checkpoint(pinned)
    assert not manager.unpin_checkpoint(pinned).pinned
    assert manager.cleanup_checkpoints().deleted_ids == (pinned,)
    assert ids(manager) == saved[-2:]


def test_the_one_in_use_stays(unlimited: CheckpointManager) -> None:
    """What this process resumed from is not taken away under it."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]
    evaluating = cleaner(unlimited)
    evaluating.load_checkpoint(saved[1])
    report = evaluating.cleanup_checkpoints(policy=NOTHING)
    assert set(report.deleted_ids) == {saved[0], saved[2]}
    assert any("in use" in item.reason for item in report.plan.decisions if item.checkpoint_id == saved[1])


def test_a_plan_says_what_is_in_use(unlimited: CheckpointManager) -> None:
    """By another process, which has resumed from it a while ago."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 4)]
    edits.mark_in_use(unlimited._locations.home, saved[0])
    plan = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, dry_run=True).plan
    assert plan.deleted_ids == (saved[1],)
    assert "in use: a run has resumed from it" in plan.decisions[-1].reason


def test_a_pinned_one_is_not_deleted(unlimited: CheckpointManager) -> None:
    """Until it is unpinned."""
    saved = save(unlimited, 1)
    unlimited.pin_checkpoint(saved)
    with pytest.raises(ProtectedCheckpointError, match="pinned"):
        unlimited.delete_checkpoint(saved)
    assert ids(unlimited) == [saved]
    unlimited.unpin_checkpoint(saved)
    assert unlimited.delete_checkpoint(saved) == saved


def test_what_this_process_saved_last_stays(unlimited: CheckpointManager) -> None:
    """It goes on from it, though others have saved newer and better ones since."""
    own = save(unlimited, 1, 0.9)
    for epoch in (2, 3):
        save(cleaner(unlimited), epoch, 1 / epoch)
    assert unlimited.cleanup_checkpoints(policy=NOTHING).plan.kept_ids[-1] == own
    assert own in ids(unlimited)


def test_the_best_by_what_a_run_monitored_stays(make_manager: MakeManager) -> None:
    """A cleanup configured for another metric, or none, does not take the run's own best."""
    run = make_manager(monitor_metric="accuracy", monitor_mode="max", max_checkpoints=100)
    saved = [
        save(run, epoch, metrics={"accuracy": accuracy, "val_loss": loss})
        for epoch, (accuracy, loss) in enumerate(((0.9, 5.0), (0.1, 0.1), (0.5, 3.0), (0.4, 4.0)), start=1)
    ]
    report = make_manager(monitor_metric="val_loss").cleanup_checkpoints(policy=NOTHING)
    assert set(report.deleted_ids) == {saved[1], saved[2]}
    assert ids(run) == [saved[0], saved[3]]


def test_the_best_stays_when_the_monitor_was_changed_halfway(make_manager: MakeManager) -> None:
    """A change of the record that was killed has rewritten the newest alone; the others' best stays as well."""
    run = make_manager(monitor_metric="accuracy", monitor_mode="max", max_checkpoints=100)
    saved = [
        save(run, epoch, metrics={"accuracy": accuracy, "val_loss": loss})
        for epoch, (accuracy, loss) in enumerate(((0.9, 5.0), (0.1, 0.1), (0.5, 3.0), (0.4, 4.0)), start=1)
    ]
    edits.edit(
        run._locations.home, saved[-1], lambda found: found.changed(monitor=Monitor(metric="val_loss", mode="min"))
    )
    assert run.cleanup_checkpoints(policy=NOTHING).deleted_ids == (saved[2],)
    assert ids(run) == [saved[0], saved[1], saved[3]]


def test_foreign_files_are_never_touched(unlimited: CheckpointManager) -> None:
    """Files of others stay byte for byte, those too whose names resemble ours."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]
    folder = experiment_folder(unlimited)
    ours = saved[0]
    foreign = {
        "notes.txt",
        "model.pt",
        ".something.tmp",
        ".notes.txt.swp",
        f"{ours}.txt",
        f"{ours}.pt.bak",
        f"{ours} copy.pt",
        f"{ours}_1.pt.txt",
        f"{ours.upper()}.JSON",
        "checkpoint_epoch_0001.pt",
        "checkpoint_epoch_0001.json",
        "checkpoint_epoch_0001_step_000000_20231301_143022.json",
        "checkpoint_epoch_0001_step_000000_20231201_143022.pt",
        ".checkpoint_epoch_0001.deleted",
        "results.json",
    }
    for name in foreign:
        (folder / name).write_text(name)
    (folder / "plots").mkdir()
    (folder / "plots" / f"{saved[1]}.pt").write_text("a copy in another folder")
    before = {
        name: content for name, content in snapshot(folder).items() if name in foreign or name.startswith("plots")
    }
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert set(report.deleted_ids) == set(saved[:3])
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before


def test_order_is_by_sequence_and_not_by_clock(unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes backwards, and file times that say the opposite, the last saved are the newest."""
    import datetime as standard

    class Clock(standard.datetime):
        year_now = 2030

        @classmethod
        def now(cls, tz: standard.tzinfo | None = None) -> Clock:
            return cls(cls.year_now, 1, 1, tzinfo=tz)

    monkeypatch.setattr(facts, "datetime", Clock)
    saved = []
    for age, year in enumerate((2030, 2025, 2020, 2000)):
        Clock.year_now = year
        saved.append(save(unlimited, 1, float("nan")))
        for path in experiment_folder(unlimited).glob(f"{saved[-1]}.*"):
            os.utime(path, (2_000_000_000 - age * 1_000_000, 2_000_000_000 - age * 1_000_000))
    report = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=2))
    assert set(report.deleted_ids) == set(saved[:2])
    assert ids(unlimited) == saved[2:]


def test_backups_are_retired_apart_from_checkpoints(make_manager: MakeManager) -> None:
    """max_backups=0 leaves the best and the newest backup; the checkpoints are all there."""
    manager = make_manager(max_backups=0)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate((0.5, 0.1, 0.4, 0.3), start=1)]
    assert backup_ids(manager) == [saved[1], saved[3]]
    assert ids(manager) == saved


def test_a_backup_that_was_just_made_stays(make_manager: MakeManager) -> None:
    """Of an old checkpoint, asked for by name: nobody asks for it to be removed at once."""
    manager = make_manager(max_backups=1, backup_checkpoints=False)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate((0.5, 0.4, 0.3), start=1)]
    manager.backup_checkpoint(saved[2])
    assert manager.backup_checkpoint(saved[0])
    assert saved[0] in backup_ids(manager)


@pytest.mark.parametrize(
    "is_deleted", [lambda number: number % 2 == 0, lambda number: number >= 5], ids=["half", "all but 5"]
)
def test_a_cleanup_takes_time_in_proportion_to_what_it_cleans(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, is_deleted: Callable[[int], bool]
) -> None:
    """Four times as many checkpoints take four times as many calls, whatever share of them stays."""
    monkeypatch.setattr(cleanup, "_MIN_BATCH", 1)
    monkeypatch.setattr(cleanup, "_MAX_LOOKS", 8)

    def calls_per_deletion(count: int) -> float:
        manager = make_manager(f"run of {count}", max_checkpoints=1000, backup_checkpoints=False)
        for number in range(count):
            save(manager, number, tags=[] if is_deleted(number) else ["stays"])
        other = cleaner(manager)
        profile = cProfile.Profile()
        deleted = profile.runcall(other.cleanup_checkpoints, policy=KeepTagged(tags=("stays",))).deleted_ids
        assert len(deleted) > count // 3
        return sum(entry.callcount for entry in profile.getstats()) / len(deleted)

    assert calls_per_deletion(160) < 1.5 * calls_per_deletion(40)
