"""Retirement: what a cleanup takes away, and what it never touches."""

from __future__ import annotations

import cProfile
import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.core import facts
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import ProtectedCheckpointError, StoreError
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.layout import SNAPSHOT_NAME
from ckpt_lib.maintenance import cleanup
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.policies.retention import KeepNewest, KeepTagged, plan_retention
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    leave_unfinished,
    manifest_path,
    payload_path,
    save,
    snapshot,
    start_python,
    truncate,
)
from tests.maintenance.records import manifest_in

NOTHING = KeepNewest(count=0)
PLAN = "ckpt_lib.maintenance.cleanup.plan_retention"


@pytest.fixture
def unlimited(make_manager: MakeManager) -> CheckpointManager:
    """A manager that retires nothing by itself and makes no backups."""
    return make_manager(max_checkpoints=1000, backup_checkpoints=False)


def cleaner(manager: CheckpointManager, **options: Any) -> CheckpointManager:
    """A manager of another process: it has loaded and saved nothing, and knows nothing to be intact."""
    return CheckpointManager(manager.config.model_copy(update=options), manager.experiment_name)


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda manager, saved: flip_bit(payload_path(manager, saved), 100),
        lambda manager, saved: truncate(payload_path(manager, saved), 100),
        lambda manager, saved: payload_path(manager, saved).unlink(),
        lambda manager, saved: flip_bit(manifest_path(manager, saved), 100),
    ],
    ids=["flipped", "truncated", "missing", "manifest"],
)
def test_a_damaged_checkpoint_never_counts_as_kept(
    unlimited: CheckpointManager, damage: Callable[[CheckpointManager, str], None]
) -> None:
    """With the best and the newest damaged, the best and the newest of the valid ones stay; the damaged wait."""
    saved = [save(unlimited, epoch, loss) for epoch, loss in enumerate((0.1, 0.2, 0.9, 0.8, 0.7), start=1)]
    damage(unlimited, saved[0])
    damage(unlimited, saved[4])
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert set(report.deleted_ids) == {saved[2]}
    names = set(os.listdir(experiment_folder(unlimited)))
    for checkpoint_id in (saved[0], saved[1], saved[3], saved[4]):
        assert f"{checkpoint_id}.json" in names
    assert unlimited.validate_checkpoint(saved[1])
    assert unlimited.validate_checkpoint(saved[3])


def test_damaged_checkpoints_use_up_no_place(unlimited: CheckpointManager) -> None:
    """Of six, the two newest half gone: a policy that keeps two keeps the two newest whole ones besides those."""
    saved = [save(unlimited, epoch, float("nan")) for epoch in range(6)]
    for checkpoint_id in saved[4:]:
        truncate(payload_path(unlimited, checkpoint_id), 100)
    report = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=2))
    assert set(report.deleted_ids) == set(saved[:2])
    assert {item.checkpoint_id for item in report.plan.decisions if item.status == "damaged"} == set(saved[4:])


def test_the_last_valid_checkpoint_stays_under_any_policy(unlimited: CheckpointManager) -> None:
    """When everything newer is damaged, the one that can be resumed from survives a policy that keeps nothing."""
    saved = [save(unlimited, epoch, float("nan")) for epoch in range(4)]
    for checkpoint_id in saved[1:]:
        flip_bit(payload_path(unlimited, checkpoint_id), -1)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert report.deleted_ids == ()
    payload = unlimited.resume()
    assert payload is not None
    assert payload["checkpoint_id"] == saved[0]


def test_the_cleanup_after_a_save_finds_damage_too(make_manager: MakeManager) -> None:
    """A best checkpoint damaged behind the manager's back is not what the next saves rely on."""
    manager = make_manager(max_checkpoints=1, backup_checkpoints=False)
    best = save(manager, 1, 0.1)
    second = save(manager, 2, 0.2)
    flip_bit(payload_path(manager, best), 100)
    save(manager, 3, 0.3)
    last = save(manager, 4, 0.4)
    assert ids(manager) == [best, second, last]
    assert manager.validate_checkpoint(second)


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


def test_a_dry_run_writes_nothing(unlimited: CheckpointManager) -> None:
    """It gives the plan that the cleanup then carries out, and leaves every byte, leftovers included."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]
    folder = experiment_folder(unlimited)
    leftover = leave_unfinished(folder)
    before = snapshot(folder)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, dry_run=True)
    assert snapshot(folder) == before
    assert report.dry_run
    assert report.deleted_ids == report.swept == ()
    assert set(report.plan.deleted_ids) == set(saved[:3])
    done = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert done.plan == report.plan
    assert set(done.deleted_ids) == set(report.plan.deleted_ids)
    assert done.swept == (leftover,)


def test_a_dry_run_of_nothing_creates_nothing(make_manager: MakeManager, store_path: Path) -> None:
    """Neither a plan nor a cleanup of an experiment that is not there creates its folder."""
    make_manager("mistyped").cleanup_checkpoints(dry_run=True)
    make_manager("mistyped").cleanup_checkpoints()
    assert not store_path.exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda manager, saved: manager.edit_checkpoint(saved, add_tags=["keep me"]),
        lambda manager, saved: manager.edit_checkpoint(saved, description="the one in the paper"),
        lambda manager, saved: manager.pin_checkpoint(saved),
    ],
    ids=["tag", "description", "pin"],
)
def test_an_edit_between_plan_and_execution_spares(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch, edit: Callable[[CheckpointManager, str], object]
) -> None:
    """A checkpoint that someone edits after the plan was made is not deleted by that plan."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]
    other = cleaner(unlimited)

    def planned_and_then_edited(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = plan_retention(*arguments, **options)
        edit(unlimited, saved[1])
        return made

    monkeypatch.setattr(PLAN, planned_and_then_edited)
    report = other.cleanup_checkpoints(policy=NOTHING)
    assert saved[1] in report.plan.deleted_ids
    assert set(report.deleted_ids) == {saved[0], saved[2]}
    assert list(report.spared) == [saved[1]]
    assert saved[1] in ids(unlimited)


@pytest.mark.parametrize("what", ["manifest", "payload"])
def test_what_a_plan_relies_on_is_still_there_when_it_deletes(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """When what the plan meant to keep is deleted or lost, the plan stops before it takes the last one."""
    saved = [save(unlimited, epoch, float("nan")) for epoch in range(3)]
    other = cleaner(unlimited)

    def planned_and_then_lost(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = plan_retention(*arguments, **options)
        if what == "manifest":
            unlimited.delete_checkpoint(saved[2])
        else:
            payload_path(unlimited, saved[2]).unlink()
        return made

    monkeypatch.setattr(PLAN, planned_and_then_lost)
    other.cleanup_checkpoints(policy=NOTHING)
    assert ids(unlimited) != []
    assert unlimited.resume() is not None


def test_a_store_that_fails_half_way_says_what_is_gone(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches deleted before stay deleted; the error names them, and the snapshot shows what is left."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 8)]
    monkeypatch.setattr(cleanup, "_MIN_BATCH", 2)
    plan = FaultPlan(only=frozenset({"put"}), fail_at=7)
    with faults_injected(plan):
        other = cleaner(unlimited)
    with pytest.raises(StoreError) as caught:
        other.cleanup_checkpoints(policy=NOTHING)
    assert "6 checkpoints to delete, 2 are gone: " in caught.value.message
    assert all(name in str(caught.value) for name in saved[:2])
    assert ids(unlimited) == saved[2:]
    shown = json.loads((experiment_folder(unlimited) / SNAPSHOT_NAME).read_text())
    assert [item["checkpoint_id"] for item in shown["checkpoints"]] == saved[2:]


def test_a_deletion_that_fails_half_way_leaves_a_true_snapshot(unlimited: CheckpointManager) -> None:
    """It is deleted, and so is its entry."""
    saved = [save(unlimited, epoch) for epoch in (1, 2)]
    with faults_injected(FaultPlan(only=frozenset({"put"}), fail_at=5)):
        other = cleaner(unlimited, trash_seconds=0)
    with pytest.raises(StoreError):
        other.delete_checkpoint(saved[0])
    assert ids(unlimited) == saved[1:]
    shown = json.loads((experiment_folder(unlimited) / SNAPSHOT_NAME).read_text())
    assert [item["checkpoint_id"] for item in shown["checkpoints"]] == saved[1:]


def test_another_cleanup_may_be_faster(unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cleanups with one plan delete each checkpoint once, and neither fails."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]

    def planned_and_then_done_by_another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = plan_retention(*arguments, **options)
        assert set(cleaner(unlimited).cleanup_checkpoints(policy=NOTHING).deleted_ids) == set(saved[:3])
        return made

    monkeypatch.setattr(PLAN, planned_and_then_done_by_another)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert report.deleted_ids == ()
    assert report.freed_bytes == 0
    assert ids(unlimited) == saved[-1:]


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


# --- backups ---


def test_backups_of_damaged_checkpoints_stay(make_manager: MakeManager) -> None:
    """A backup that is needed for a repair is not retired, whatever max_backups says."""
    manager = make_manager(max_backups=1, max_checkpoints=100)
    first = save(manager, 1, 0.9)
    flip_bit(manifest_path(manager, first), 30)
    second = save(manager, 2, 0.8)
    truncate(payload_path(manager, second), 10)
    for epoch in (3, 4, 5):
        save(manager, epoch, 1 / epoch)
    assert {first, second} <= set(backup_ids(manager))
    manager.restore_checkpoint(first)
    manager.restore_checkpoint(second)
    assert all(manager.validate_all())


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


# --- leftovers ---

_HANGING_SAVE = """
import sys, time
import torch
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.store.local.upload import LocalUpload

def hang(self, data):
    print("writing", flush=True)
    time.sleep(600)

LocalUpload.write = hang
CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run").save_checkpoint(
    model=torch.nn.Linear(100, 100), epoch=7, metrics={"val_loss": 0.1}
)
"""


@pytest.mark.skipif(os.name != "posix", reason="killing a process at once is a matter of POSIX signals")
def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_are_not(unlimited: CheckpointManager) -> None:
    """A save under way is left alone; once its process is killed in the middle of it, its claim ends."""
    saved = save(unlimited, 1)
    child = start_python(_HANGING_SAVE, unlimited.config.checkpoint_dir)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n", child.communicate()[1]
        (claim,) = experiment_folder(unlimited).glob("checkpoint_epoch_0007_*.json")
        assert unlimited.cleanup_checkpoints().swept == ()
        save(unlimited, 2)
        assert json.loads(claim.read_text())["state"] == "saving"
        assert [item.epoch for item in unlimited.list_checkpoints()] == [1, 2]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert unlimited.cleanup_checkpoints().swept == (claim.stem,)
    assert json.loads(claim.read_text())["state"] == "gone"
    assert [item.epoch for item in unlimited.list_checkpoints()] == [1, 2]
    assert unlimited.validate_checkpoint(saved)


def test_saves_sweep_leftovers_by_themselves(unlimited: CheckpointManager) -> None:
    """No one has to call cleanup: the first save of a process removes what a dead one left."""
    save(unlimited, 1)
    leftover = experiment_folder(unlimited) / f"{leave_unfinished(experiment_folder(unlimited))}.pt"
    save(CheckpointManager(unlimited.config, unlimited.experiment_name), 2)
    assert not leftover.exists()


def test_a_deletion_whose_time_is_over_is_finished(unlimited: CheckpointManager) -> None:
    """The payload is removed then; nobody saw half a checkpoint."""
    saved = [save(unlimited, epoch) for epoch in (1, 2)]
    folder, path = experiment_folder(unlimited), manifest_path(unlimited, saved[0])
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    path.write_bytes(manifest_in(path).changed(state="deleted", deleted_at=long_ago).to_bytes())
    assert ids(unlimited) == saved[1:]
    report = unlimited.cleanup_checkpoints()
    assert (report.expired_ids, report.swept) == ((saved[0],), ())
    assert report.expired_bytes > 0
    assert [path.name for path in folder.glob("*.pt")] == [f"{saved[1]}.pt"]


def test_a_deletion_that_did_not_take_effect_changes_nothing(unlimited: CheckpointManager) -> None:
    """Killed before it was decided, the checkpoint is there for everyone."""
    saved = save(unlimited, 1)
    path = manifest_path(unlimited, saved)
    path.write_bytes(manifest_in(path).changed(state="leaving").to_bytes())
    unlimited.cleanup_checkpoints()
    assert ids(unlimited) == [saved]
    assert unlimited.validate_checkpoint(saved)


def test_the_last_one_that_a_person_deletes_does_not_come_back(make_manager: MakeManager) -> None:
    """It is what was asked for: no cleanup undoes it, and no cleanup removes its bytes while nothing else is left."""
    manager = make_manager(backup_checkpoints=False, trash_seconds=0)
    saved = save(manager, 1)
    manager.delete_checkpoint(saved)
    manager.cleanup_checkpoints()
    assert ids(manager) == []
    assert manager.undelete_checkpoint(saved).checkpoint_id == saved
    manager.delete_checkpoint(saved)
    assert manager.empty_trash() == [saved]
    assert not payload_path(manager, saved).exists()


def test_deletion_is_complete(unlimited: CheckpointManager) -> None:
    """A deleted checkpoint leaves no payload, and is gone for every reader; its backup can still be restored."""
    saved = save(unlimited, 1)
    unlimited.backup_checkpoint(saved)
    assert unlimited.delete_checkpoint("latest") == saved
    leftover = experiment_folder(unlimited) / f"{leave_unfinished(experiment_folder(unlimited))}.pt"
    assert unlimited.empty_trash() == [saved]
    assert not leftover.exists()
    assert not list(experiment_folder(unlimited).glob("*.pt"))
    assert backup_ids(unlimited) == [saved]
    assert unlimited.get_latest_checkpoint() is None
    assert unlimited.restore_checkpoint(saved).checkpoint_id == saved


def test_saving_does_not_read_the_best_again_each_time(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run reads the stored best once to be sure of it, and not with every save."""
    save(make_manager(backup_checkpoints=False), 1, 0.1)
    resumed = make_manager(backup_checkpoints=False, max_checkpoints=2)
    read: list[str] = []

    def counted(folder: Any, manifest: Any, *rest: Any) -> Any:
        read.append(manifest.checkpoint_id)
        return validate(folder, manifest, *rest)

    monkeypatch.setattr("ckpt_lib.maintenance.cleanup.validate", counted)
    for epoch in range(2, 6):
        save(resumed, epoch, 0.5)
    assert len(read) == 1


def test_silent_rot_takes_no_place(unlimited: CheckpointManager) -> None:
    """A cleanup by hand reads what is to stay while others go: a rotten one keeps no good one out."""
    oldest, second, third, newest = (save(unlimited, epoch, loss) for epoch, loss in enumerate((4, 3, 2, 1), start=1))
    flip_bit(payload_path(unlimited, third), 100)
    report = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=2))
    assert report.deleted_ids == (oldest,)
    assert ids(unlimited) == [second, third, newest]
    statuses = {decision.checkpoint_id: decision.status for decision in report.plan.decisions if decision.keep}
    assert statuses == {newest: "valid", third: "damaged", second: "valid"}


def test_a_cleanup_that_deletes_nothing_reads_little(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing is to go, only the newest and the best are read."""
    for epoch in range(1, 5):
        save(unlimited, epoch, 1 / epoch)
    read: list[str] = []

    def counted(folder: Any, manifest: Any, *arguments: Any) -> Any:
        read.append(manifest.checkpoint_id)
        return validate(folder, manifest, *arguments)

    monkeypatch.setattr("ckpt_lib.maintenance.cleanup.validate", counted)
    assert cleaner(unlimited).cleanup_checkpoints().deleted_ids == ()
    assert read == ids(unlimited)[-1:]


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
