"""A run goes on from the newest checkpoint that verifies at home or in the backups; what was deleted stays away."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    NoValidCheckpointError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.experiment import deleted_by_name
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.saving import saver
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import (
    MakeManager,
    build,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    start_python,
    state_of,
    train,
    truncate,
)

_RESUME = """
import json, sys
from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.helpers import build, state_of, train

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], backup_dir=sys.argv[2]), "run")
parts = build(seed=7)
resumed = manager.resume(parts.model, parts.optimizer, parts.scheduler)
restored = state_of(parts)
train(parts, range(resumed["next_epoch"], 6))
found = [item.checkpoint_id for item in manager.list_checkpoints()]
print(json.dumps([resumed["checkpoint_id"], restored, state_of(parts), found]))
"""


class Vault:
    """Managers of one store whose backups are elsewhere, and the loss of the store's disk."""

    def __init__(self, make_manager: MakeManager, store: Path, vault: Path) -> None:
        self._make, self.store, self.path = make_manager, store, vault

    def manager(self, **options: Any) -> CheckpointManager:
        """A manager like that of a new process."""
        return self._make(**{"backup_dir": str(self.path), **options})

    def lose_disk(self) -> None:
        shutil.rmtree(self.store)

    def payload(self, checkpoint_id: str) -> Path:
        return self.path / "run" / f"{checkpoint_id}.pt"


@pytest.fixture
def vault(make_manager: MakeManager, store_path: Path, tmp_path: Path) -> Vault:
    return Vault(make_manager, store_path, tmp_path / "vault")


def resumed_id(manager: CheckpointManager) -> str:
    resumed = manager.resume()
    assert resumed is not None
    return str(resumed["checkpoint_id"])


def loaded_id(manager: CheckpointManager, name: str = "latest") -> str:
    return str(manager.load_checkpoint(name)["checkpoint_id"])


# --- a lost disk ---


def test_two_processes_go_on_from_a_backup_bit_for_bit(vault: Vault) -> None:
    """With the disk gone, two fresh processes at once restore one copy, and end as an uninterrupted run does."""
    parts = build()
    train(parts, range(1, 4))
    saved = vault.manager().save_checkpoint(**parts.kwargs(), epoch=3)
    before = state_of(parts)
    train(parts, range(4, 6))
    vault.lose_disk()
    children = [start_python(_RESUME, vault.store, vault.path) for _ in range(2)]
    for child in children:
        output, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        assert json.loads(output) == [saved, before, state_of(parts), [saved]]
    assert all(vault.manager().validate_all())


@pytest.mark.parametrize("name", ["latest", "best", "first"])
def test_names_and_ids_are_found_among_the_backups(vault: Vault, name: str) -> None:
    """On an empty disk, what is asked for by a keyword, a tag or an id comes back, and with it the best alone."""
    manager = vault.manager()
    saved = [
        save(manager, epoch, loss, tags=tags) for epoch, loss, tags in [(1, 0.5, ["first"]), (2, 0.1, []), (3, 0.3, [])]
    ]
    vault.lose_disk()
    wanted = {"latest": saved[2], "best": saved[1], "first": saved[0]}[name]
    again = vault.manager()
    assert again.list_checkpoints() == []
    assert loaded_id(again, name) == wanted
    assert ids(again) == sorted({wanted, saved[1]})
    assert loaded_id(again, saved[0]) == saved[0]


@pytest.mark.parametrize("name", ["latest", "best", "first"])
def test_names_are_restored_from_the_backups_of_an_empty_store(vault: Vault, name: str) -> None:
    """By a restore as by a load, without what was deleted by name; home's own checkpoints have the names after that."""
    manager = vault.manager()
    saved = [
        save(manager, epoch, loss, tags=tags)
        for epoch, loss, tags in [(1, 0.5, ["first"]), (2, 0.1, []), (3, 0.3, []), (4, 0.01, ["first"])]
    ]
    manager.delete_checkpoint(saved[3])
    vault.lose_disk()
    wanted = {"latest": saved[2], "best": saved[1], "first": saved[0]}[name]
    assert vault.manager().restore_checkpoint(name).checkpoint_id == wanted
    assert vault.manager().restore_checkpoint("latest").checkpoint_id == wanted
    with pytest.raises(CheckpointNotFoundError):
        vault.manager().restore_checkpoint("another")


@pytest.mark.parametrize("is_all_lost", [True, False])
def test_the_best_counts_after_a_lost_disk(vault: Vault, is_all_lost: bool) -> None:
    """A better checkpoint that only the backups have comes back with the one that is resumed from."""
    manager = vault.manager()
    saved = [save(manager, epoch, loss) for epoch, loss in [(1, 0.4), (2, 0.1), (3, 0.3)]]
    if is_all_lost:
        vault.lose_disk()
    else:
        for path in (payload_path(manager, saved[1]), manifest_path(manager, saved[1])):
            path.unlink()
    again = vault.manager()
    assert resumed_id(again) == saved[2]
    best = again.get_best_checkpoint()
    assert best is not None
    assert best.checkpoint_id == loaded_id(again, "best") == saved[1]
    assert not again.get_checkpoint(save(again, 4, 0.2)).is_best
    assert ids(again)[:-1] == (saved[1:] if is_all_lost else saved)
    assert all(again.validate_all())


@pytest.mark.parametrize("why", ["damaged", "deleted"])
def test_a_better_backup_that_cannot_count_is_told_or_left(
    vault: Vault, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, and the best is the best of the others."""
    manager = vault.manager()
    saved = [save(manager, epoch, loss) for epoch, loss in [(1, 0.2), (2, 0.1), (3, 0.3)]]
    if why == "damaged":
        flip_bit(vault.payload(saved[1]), 200)
    else:
        manager.delete_checkpoint(saved[1])
    vault.lose_disk()
    again = vault.manager()
    assert again.resume() is not None
    assert loaded_id(again, "best") == saved[0]
    told = f"{saved[1]}, the best checkpoint, is in the backups alone" in caplog.text
    assert told == (why == "damaged")


def test_a_save_after_a_lost_disk_is_the_newest(vault: Vault) -> None:
    """Also where a newer backup was passed over, because it is damaged: the run does not fall back to it later."""
    manager = vault.manager()
    saved = [save(manager, epoch) for epoch in (1, 2, 3)]
    flip_bit(vault.payload(saved[2]), 200)
    vault.lose_disk()
    again = vault.manager()
    resumed = again.resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved[1]
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [saved[2]]
    new = save(again, 4)
    assert again.get_checkpoint(new).sequence > 3
    assert resumed_id(vault.manager()) == new


def test_a_run_that_did_not_resume_is_the_newest_too(vault: Vault) -> None:
    """Its disk is lost as well: its backups come after those of the run before, which it has not looked at."""
    for epoch in (1, 2, 3):
        save(vault.manager(), epoch)
    vault.lose_disk()
    last = save(vault.manager(), epoch=0)
    vault.lose_disk()
    assert resumed_id(vault.manager()) == last


def test_a_backup_location_that_hangs_keeps_no_first_save(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it holds is looked at for a moment only."""
    monkeypatch.setattr(saver, "PATIENCE_SECONDS", 0.05)
    gate = threading.Event()

    def hold(operation: str, key: str) -> None:
        if operation == "list" and threading.current_thread().name == "ckpt-look":
            assert gate.wait(60)

    with faults_injected(FaultPlan()) as plan:
        plan.between = hold
        manager = vault.manager(backup_checkpoints=False)
        try:
            assert save(manager, epoch=1) in ids(manager)
        finally:
            gate.set()


def test_a_thinned_checkpoint_is_whole_in_its_backup(vault: Vault) -> None:
    """Where nothing newer verifies anywhere, a run goes on from that, and says why not from the others."""
    manager, parts = vault.manager(), build()
    train(parts, [1])
    first, second, third = (str(manager.save_checkpoint(**vars(parts), epoch=epoch)) for epoch in (1, 2, 3))
    for checkpoint_id in (first, second):
        assert manager.thin_checkpoint(checkpoint_id).is_thinned
    for path in (payload_path(manager, third), vault.payload(third)):
        flip_bit(path, 200)
    resumed = vault.manager().resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == second
    assert not vault.manager().get_checkpoint(second).is_thinned
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [third, first]


def test_a_half_restored_store_resumes_from_the_newest(vault: Vault) -> None:
    """An older checkpoint that was restored first does not hide the newer ones of its run."""
    manager = vault.manager()
    saved = [save(manager, epoch) for epoch in (1, 2, 3)]
    vault.lose_disk()
    vault.manager().restore_checkpoint(saved[0])
    assert resumed_id(vault.manager()) == saved[2]
    assert ids(vault.manager()) == [saved[0], saved[2]]


def test_an_unmounted_disk_is_not_an_empty_one(vault: Vault) -> None:
    """A process that knows its store writes nothing into the mount point, neither what it saves nor a backup."""
    manager = vault.manager()
    saved = save(manager, 1)
    vault.store.rename(vault.store.parent / "unmounted")
    vault.store.mkdir()
    for ask in (manager.resume, manager.load_checkpoint, lambda: manager.load_checkpoint(saved)):
        with pytest.raises(StoreUnavailableError, match="not the one that was saved to before"):
            ask()
    assert list(vault.store.iterdir()) == []


# --- damage at home ---

DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "flipped": lambda payload, _: flip_bit(payload, payload.stat().st_size // 2),
    "truncated": lambda payload, _: truncate(payload, 100),
    "missing": lambda payload, _: payload.unlink(),
    "manifest flipped": lambda _, manifest: flip_bit(manifest, 40),
    "manifest missing": lambda _, manifest: manifest.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_at_home_costs_no_checkpoint(vault: Vault, kind: str) -> None:
    """A run goes on from the newest one, repaired from its backup, and passes over none."""
    manager, parts = vault.manager(), build()
    save(manager, 1)
    train(parts, range(2))
    saved = manager.save_checkpoint(**parts.kwargs(), epoch=2)
    assert saved is not None
    DAMAGE[kind](payload_path(manager, saved), manifest_path(manager, saved))
    other = build(3)
    resumed = vault.manager().resume(other.model, other.optimizer, other.scheduler)
    assert resumed is not None
    assert (resumed["checkpoint_id"], resumed["passed_over"]) == (saved, [])
    assert state_of(other) == state_of(parts)
    assert all(vault.manager().validate_all())


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_loaded_by_its_id(vault: Vault, kind: str) -> None:
    """Its backup takes its place, and it is whole at home afterwards."""
    manager = vault.manager()
    saved = save(manager, 1)
    DAMAGE[kind](payload_path(manager, saved), manifest_path(manager, saved))
    assert loaded_id(vault.manager(), saved) == saved
    assert vault.manager().validate_checkpoint(saved)


def test_damage_in_both_places_is_an_error(vault: Vault) -> None:
    """A load raises what it would have raised without a backup; a resume goes back to an older one and says so."""
    manager = vault.manager()
    saved = [save(manager, epoch) for epoch in (1, 2)]
    for path in (payload_path(manager, saved[1]), vault.payload(saved[1])):
        flip_bit(path, 200)
    with pytest.raises(CorruptCheckpointError, match="was altered"):
        manager.load_checkpoint()
    resumed = vault.manager().resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved[0]
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [saved[1]]


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_backup_is_loaded_from_its_place_where_home_takes_nothing(
    vault: Vault, is_lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A home that can be read and not written to: the run gets its state all the same, and the log says from where."""
    parts = build()
    train(parts, range(2))
    saved = vault.manager().save_checkpoint(**parts.kwargs(), epoch=2)
    assert saved is not None
    path = payload_path(vault.manager(), saved)
    if is_lost:
        manifest_path(vault.manager(), saved).unlink()
    path.unlink()
    plan = FaultPlan(fail_at=1, persistent=True, only=frozenset({"put", "open_write"}), error=StorePermissionError)
    with faults_injected(plan):
        manager, other = vault.manager(), build(3)
        resumed = manager.resume(other.model, other.optimizer, other.scheduler)
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved
    assert state_of(other) == state_of(parts)
    assert not path.exists()
    assert "is loaded from its backup" in caplog.text


# --- what was deleted ---


@pytest.mark.parametrize("disk", ["there", "lost"])
@pytest.mark.parametrize("trash", ["kept", "emptied"])
def test_what_was_deleted_by_name_does_not_come_back(vault: Vault, disk: str, trash: str) -> None:
    """Its backup stays, and answers to its id alone: after the trash was emptied, and after the disk was lost."""
    manager = vault.manager()
    saved = [save(manager, epoch) for epoch in (1, 2)]
    manager.delete_checkpoint(saved[1])
    if trash == "emptied":
        manager.empty_trash()
    if disk == "lost":
        vault.lose_disk()
    assert resumed_id(vault.manager()) == saved[0]
    assert loaded_id(vault.manager()) == saved[0]
    with pytest.raises(CheckpointNotFoundError):
        vault.manager().load_checkpoint(saved[1])
    vault.manager().restore_checkpoint(saved[1])
    assert resumed_id(vault.manager()) == saved[1]
    vault.lose_disk()
    assert resumed_id(vault.manager()) == saved[1]


@pytest.mark.parametrize("back_by", ["undelete_checkpoint", "restore_checkpoint"])
def test_what_is_deleted_again_while_it_comes_back_stays_away(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, back_by: str
) -> None:
    """The second deletion marked it before the mark of the first one was taken away."""
    manager = vault.manager()
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2)]
    manager.delete_checkpoint(saved[1])
    if back_by == "restore_checkpoint":
        manager.empty_trash()
    unmark, others = deleted_by_name.unmark, [vault.manager()]

    def unmark_late(*args: Any) -> None:
        if others:
            other = others.pop()
            other.delete_checkpoint(saved[1])
            other.empty_trash()
        unmark(*args)

    monkeypatch.setattr(deleted_by_name, "unmark", unmark_late)
    getattr(manager, back_by)(saved[1])
    assert resumed_id(vault.manager()) == saved[0]
    vault.lose_disk()
    assert resumed_id(vault.manager()) == saved[0]


def test_what_is_deleted_while_another_comes_back_with_its_mark_stays_away(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who brought it back before takes the mark away before the deletion itself."""
    manager = vault.manager()
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2)]
    mark, times = deleted_by_name.mark, [1]

    def mark_in_vain(experiment: Experiment, manifest: Manifest) -> None:
        mark(experiment, manifest)
        if times:
            times.pop()
            deleted_by_name.unmark(experiment, manifest.uid)

    monkeypatch.setattr(deleted_by_name, "mark", mark_in_vain)
    manager.delete_checkpoint(saved[1])
    manager.empty_trash()
    assert deleted_by_name.is_marked(manager._locations.home, manager._locations.backups.get(saved[1]).uid)
    assert resumed_id(vault.manager()) == saved[0]


@pytest.mark.parametrize("at_first", ["live", "deleted"])
def test_a_pass_over_the_backups_leaves_the_mark_that_is_right(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, at_first: str
) -> None:
    """What is deleted, or comes back, once the pass has listed what is there: the last one of the two counts."""
    manager, other = vault.manager(), vault.manager()
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2)]
    home, backups = manager._locations.home, manager._locations.backups
    is_marked = deleted_by_name.is_marked
    changes: list[Callable[[str], object]] = [other.delete_checkpoint]
    if at_first == "live":
        deleted_by_name.mark(backups, backups.get(saved[1]))  # they did not answer when it came back
    else:
        other.delete_checkpoint(saved[1])
        deleted_by_name.unmark(backups, backups.get(saved[1]).uid)  # nor when it was deleted
        changes = [other.undelete_checkpoint]

    def changed_then(experiment: Experiment, uid: str) -> bool:
        found = is_marked(experiment, uid)
        if changes:
            changes.pop()(saved[1])
        return found

    monkeypatch.setattr(deleted_by_name, "is_marked", changed_then)
    deleted_by_name.follow(home, backups)
    assert not changes
    vault.lose_disk()
    assert resumed_id(vault.manager()) == saved[0 if at_first == "live" else 1]


@pytest.mark.parametrize("disk", ["there", "lost"])
def test_no_list_calls_a_deleted_backup_the_latest_or_the_best(vault: Vault, disk: str) -> None:
    """Nor does the doctor offer it; once its checkpoint is back, it is what it was."""
    manager = vault.manager()
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2, 3)]
    manager.delete_checkpoint(saved[2])
    manager.empty_trash()
    if disk == "lost":
        vault.lose_disk()
    again = vault.manager()
    assert [(item.is_best, item.is_latest) for item in again.list_backups()] == [
        (False, False),
        (True,) * 2,
        (False,) * 2,
    ]
    assert [again.get_backup(name).checkpoint_id for name in ("best", "latest", saved[2])] == [
        *saved[1:2] * 2,
        saved[2],
    ]
    (finding,) = [item for item in again.doctor().findings if item.name == saved[2]]
    assert "restore" not in finding.message
    again.restore_checkpoint(saved[2])
    assert [(item.is_best, item.is_latest) for item in again.list_backups()][2] == (True, True)


def test_a_mark_of_what_is_live_counts_for_nothing(vault: Vault) -> None:
    """A deletion that was killed after its mark has deleted nothing: the backup is the latest, as its checkpoint is."""
    manager = vault.manager()
    saved = save(manager, 1)
    home = manager._locations.home
    deleted_by_name.mark(home, home.get(saved))
    assert vault.manager().get_backup("latest").is_latest


def test_where_all_was_deleted_by_name_a_person_decides(vault: Vault) -> None:
    """A run neither begins from nothing nor takes back what was given up; undeleting it is a decision."""
    manager = vault.manager()
    saved = save(manager, 1)
    manager.delete_checkpoint(saved)
    with pytest.raises(NoValidCheckpointError, match=f"ckpt restore {saved}"):
        vault.manager().resume()
    manager.undelete_checkpoint(saved)
    vault.lose_disk()
    assert resumed_id(vault.manager()) == saved


def test_a_refused_deletion_leaves_no_mark(vault: Vault) -> None:
    """A pinned checkpoint that was not deleted comes back from its backup like any other."""
    manager = vault.manager()
    saved = save(manager, 1)
    manager.pin_checkpoint(saved)
    with pytest.raises(PermissionError):
        manager.delete_checkpoint(saved)
    vault.lose_disk()
    assert resumed_id(vault.manager()) == saved


def test_a_deletion_while_the_backups_are_away_is_repeated_there(make_manager: MakeManager, store_path: Path) -> None:
    """The mark at home counts at once, and the next backup takes it to the others, for when the disk is lost."""
    url = f"memory://{store_path.name}-marks"
    manager = make_manager(backup_dir=url)
    saved = [save(manager, epoch) for epoch in (1, 2)]
    plan = FaultPlan(fail_at=1, persistent=True, error=StoreUnavailableError)
    with faults_injected(plan, scheme="memory"):
        make_manager(backup_dir=url).delete_checkpoint(saved[1])
    assert resumed_id(make_manager(backup_dir=url)) == saved[0]
    again = make_manager(backup_dir=url)
    third = save(again, 3)
    again.delete_backup(third)
    shutil.rmtree(store_path)
    assert resumed_id(make_manager(backup_dir=url)) == saved[0]


def test_what_a_policy_retired_outranks_nothing_newer(vault: Vault) -> None:
    """Older backups stay behind what home has; when nothing newer verifies anywhere, they are what is left."""
    manager = vault.manager(max_checkpoints=1)
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2, 3)]
    assert ids(manager) == saved[2:]
    manager.cleanup_checkpoints(policy=KeepNewest(count=1))
    assert resumed_id(vault.manager()) == saved[2]
    for path in (payload_path(manager, saved[2]), vault.payload(saved[2])):
        flip_bit(path, 200)
    assert resumed_id(vault.manager()) == saved[1]


def test_backups_of_another_run_are_not_taken_for_its_own(vault: Vault, tmp_path: Path) -> None:
    """Two stores that share a backup location and a name: each run goes on from its own, and says what it left."""
    mine = save(vault.manager(), 1)
    other = vault.manager(checkpoint_dir=str(tmp_path / "other"))
    theirs = [save(other, epoch, 0.1) for epoch in (7, 8)]
    resumed = vault.manager().resume()
    assert loaded_id(vault.manager(), "best") == mine
    assert resumed is not None
    assert resumed["checkpoint_id"] == mine
    assert {item["checkpoint_id"] for item in resumed["passed_over"]} == set(theirs)


# --- backups that do not answer ---


def _away() -> AbstractContextManager[FaultPlan]:
    return faults_injected(FaultPlan(fail_at=1, persistent=True, error=StoreUnavailableError), scheme="memory")


def test_home_is_enough_where_the_backups_do_not_answer(
    make_manager: MakeManager, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run goes on from home with a warning; with nothing at home, it does not begin from nothing."""
    url = f"memory://{store_path.name}-away"
    saved = save(make_manager(backup_dir=url), 1)
    with _away():
        with caplog.at_level(logging.WARNING, logger="ckpt_lib"):
            assert resumed_id(make_manager(backup_dir=url)) == saved
        assert "resuming without the backups" in caplog.text
        shutil.rmtree(store_path)
        for ask in (CheckpointManager.resume, CheckpointManager.load_checkpoint):
            with pytest.raises(StoreUnavailableError, match="its backups cannot be looked at"):
                ask(make_manager(backup_dir=url))
    assert resumed_id(make_manager(backup_dir=url)) == saved


def test_backups_that_go_away_while_they_are_read_cost_nothing_at_home(
    make_manager: MakeManager, store_path: Path
) -> None:
    """A newer backup that cannot be read to its end is passed over for what home has; alone, it is an error."""
    url = f"memory://{store_path.name}-leaving"
    manager = make_manager(backup_dir=url)
    saved = [save(manager, epoch) for epoch in (1, 2)]
    payload_path(manager, saved[1]).unlink()
    manifest_path(manager, saved[1]).unlink()
    plan = FaultPlan(fail_at=1, persistent=True, only=frozenset({"read"}), error=StoreUnavailableError)

    def spare_records(_operation: str, key: str) -> None:
        if not key.endswith(".pt"):
            plan.fail_at = len(plan.calls) + 2  # the one after this

    plan.between = spare_records

    with faults_injected(plan, scheme="memory"):
        assert resumed_id(make_manager(backup_dir=url)) == saved[0]
    shutil.rmtree(store_path)
    plan.calls.clear()
    with faults_injected(plan, scheme="memory"), pytest.raises(StoreUnavailableError):
        make_manager(backup_dir=url).resume()


def test_reads_do_not_ask_the_backups_while_home_has_checkpoints(make_manager: MakeManager, store_path: Path) -> None:
    """Lists, the latest, the best and loads cost no call to where the backups are, however far that is."""
    url = f"memory://{store_path.name}-far"
    saved = save(make_manager(backup_dir=url), 1)
    plan = FaultPlan()
    with faults_injected(plan, scheme="memory"):
        manager = make_manager(backup_dir=url)
        assert loaded_id(manager) == loaded_id(manager, "best") == loaded_id(manager, saved) == saved
        assert manager.get_latest_checkpoint() == manager.get_best_checkpoint()
        assert [item.checkpoint_id for item in manager.list_checkpoints()] == [saved]
    assert plan.calls == []


def test_tensors_of_a_backup_that_came_back_are_those_saved(vault: Vault) -> None:
    """What load_checkpoint hands out is what was saved, bit by bit."""
    parts = build()
    saved = vault.manager().save_checkpoint(**parts.kwargs(), epoch=1)
    assert saved is not None
    vault.lose_disk()
    loaded = vault.manager().load_checkpoint()["model_state_dict"]
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    assert experiment_folder(vault.manager()).joinpath(f"{saved}.json").exists()


# --- others save meanwhile ---


@pytest.mark.parametrize("listed", ["catalogue", "backup_catalogue"])
def test_what_another_saves_while_resume_looks_around_is_not_lost(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, listed: str
) -> None:
    """It is in the backups, and was not at home a moment ago; nothing has to be brought back, nor is it said."""
    ours, other = vault.manager(), vault.manager()
    first = save(ours, epoch=1)
    catalogue = getattr(ours._locations, listed)
    list_all = catalogue.manifests
    later: list[str] = []

    def list_after_a_save() -> list[Manifest]:
        if not later:
            later.append(save(other, epoch=2))
        found: list[Manifest] = list_all()
        return found

    monkeypatch.setattr(catalogue, "manifests", list_after_a_save)
    with caplog.at_level(logging.WARNING, logger="ckpt_lib"):
        assert resumed_id(ours) in {first, *later}
    assert later
    assert caplog.messages == []
