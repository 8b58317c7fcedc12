"""The doctor: everything that is not as it should be is found; what can be is put right, once and for all."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager, DoctorReport
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import NotACheckpointError, NotAStoreError, UnsupportedSchemaError
from ckpt_lib.maintenance import doctor, recover
from ckpt_lib.maintenance.findings import Treatment
from ckpt_lib.maintenance.recover import ADOPTED_TAG
from ckpt_lib.store import folder_lock, leases
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    snapshot,
    start_python,
    truncate,
)
from tests.killer import Killer


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """What kills calls of this module's tests."""
    found = Killer()
    yield found
    found.close()


@pytest.fixture
def alone(make_manager: MakeManager) -> CheckpointManager:
    """A manager that makes no backups."""
    return make_manager(backup_checkpoints=False)


def kinds(report: DoctorReport) -> list[str]:
    return sorted(finding.kind for finding in report.findings)


def files(folder: Path) -> dict[str, str]:
    """Everything there but leases and locks, which come and go."""
    return {name: digest for name, digest in snapshot(folder).items() if ".ckpt-" not in name}


def cured(manager: CheckpointManager, *, deep: bool = False) -> DoctorReport:
    """Treat, and check that a second treatment finds nothing to do and changes nothing."""
    report = manager.doctor(fix=True, deep=deep)
    before = files(experiment_folder(manager))
    again = manager.doctor(fix=True, deep=deep)
    assert again.done == ()
    assert [finding.fix for finding in again.findings if finding.fix] == []
    assert again.findings == report.findings
    assert files(experiment_folder(manager)) == before
    return report


def looked_at(manager: CheckpointManager, *, deep: bool = False) -> DoctorReport:
    """Diagnose, and check that this changed nothing."""
    before = files(experiment_folder(manager))
    report = manager.doctor(deep=deep)
    assert files(experiment_folder(manager)) == before
    return report


# --- nothing to find ---


def test_a_sound_experiment_is_healthy(manager: CheckpointManager) -> None:
    """With checkpoints, backups, pins and tags; also when every byte is read."""
    for epoch in range(1, 4):
        save(manager, epoch, tags=["a"])
    manager.pin_checkpoint("latest")
    for deep in (False, True):
        assert looked_at(manager, deep=deep) == DoctorReport(experiment_name="run")
        assert manager.doctor(fix=True, deep=deep).is_healthy


def test_nothing_is_created_where_nothing_is(manager: CheckpointManager, store_path: Path) -> None:
    """A mistyped name stays a mistyped name, and is not healthy."""
    with pytest.raises(NotACheckpointError, match="nothing"):
        manager.doctor(fix=True, deep=True)
    assert not store_path.exists()


def test_backups_that_cannot_be_reached_are_not_missed(make_manager: MakeManager, tmp_path: Path) -> None:
    """Without checkpoints, only the backup location could tell what there was: its error is the answer."""
    elsewhere = tmp_path / "disk"
    elsewhere.symlink_to(tmp_path / "unmounted")
    with pytest.raises(NotAStoreError, match="link"):
        make_manager(backup_dir=str(elsewhere)).doctor()


def test_a_foreign_folder_is_left_as_it_is(make_manager: MakeManager, store_path: Path) -> None:
    """Not even a lock is made there, and it is not called healthy; one file of ours is enough to look."""
    folder = store_path / "thesis"
    (folder / "backups").mkdir(parents=True)
    (folder / "chapter.tex").write_text("mine")
    before = snapshot(store_path)
    with pytest.raises(NotACheckpointError, match="2 other files and folders"):
        make_manager("thesis").doctor(fix=True, deep=True)
    assert snapshot(store_path) == before
    (folder / "checkpoint_epoch_0001_step_000000_20250101_120000.pt").write_bytes(b"x")
    assert [item.kind for item in make_manager("thesis").doctor().problems] == ["no manifest"]


def test_more_checkpoints_than_backups_is_as_configured(make_manager: MakeManager) -> None:
    """What the backup location would retire again is not missing there; neither is what is not to be backed up."""
    manager = make_manager(max_checkpoints=6, max_backups=2)
    for epoch in range(1, 6):
        save(manager, epoch, 1 / epoch)
    assert looked_at(manager).is_healthy
    without_backups = make_manager("other", backup_checkpoints=False)
    save(without_backups, 1)
    assert without_backups.doctor().is_healthy
    best_only = make_manager("best", backup_only_best=True)
    for epoch, loss in enumerate([0.5, 0.4, 0.6], start=1):
        save(best_only, epoch, loss)
    assert best_only.doctor().is_healthy


@pytest.mark.parametrize("trained", [{"backup_checkpoints": False}, {"max_backups": 2}])
def test_a_default_is_no_wish_for_backups(make_manager: MakeManager, trained: dict[str, Any]) -> None:
    """Whoever asks without the training's configuration is not told that backups are missing, and gets none made."""
    manager = make_manager(max_checkpoints=6, **trained)
    saved = [save(manager, epoch, 1 / epoch) for epoch in range(1, 6)]
    manager.pin_checkpoint(saved[1])
    held = backup_ids(manager)
    assert looked_at(make_manager()).is_healthy
    assert cured(make_manager()).is_healthy
    assert backup_ids(manager) == held
    assert "no backup" in kinds(make_manager(backup_checkpoints=True).doctor())


def test_where_there_are_backups_the_newest_should_have_one(make_manager: MakeManager) -> None:
    """Each training that makes backups makes that."""
    manager = make_manager(max_backups=2)
    saved = [save(manager, epoch, epoch) for epoch in range(1, 5)]
    manager.delete_backup(saved[3])
    assert [(item.kind, item.name) for item in looked_at(make_manager()).problems] == [("no backup", saved[3])]
    assert cured(make_manager()).is_healthy


# --- what dead processes leave ---


def test_what_a_killed_save_leaves_at_each_step(alone: CheckpointManager, killer: Killer) -> None:
    """Unfinished files, locks, half saves: found, removed, and the checkpoints stay as they are."""
    first = save(alone, 1)
    steps = 0
    seen: set[str] = set()
    while killer.kills(alone, "save_checkpoint", steps + 1, epoch=9):
        steps += 1
        known = ids(alone)
        report = looked_at(alone)
        seen |= set(kinds(report))
        assert not report.is_healthy or len(known) > steps  # committed, and nothing was left
        assert cured(alone).is_healthy
        assert ids(alone) == known
        assert first in known
        assert [name for name in files(experiment_folder(alone)) if ".saving" in name] == []
        assert leases_of_others(alone) == []
    assert steps >= 5
    assert {"leftover", "half save"} <= seen


def test_what_a_killed_deletion_leaves_at_each_step(make_manager: MakeManager, killer: Killer) -> None:
    """A deletion that began ends, or did not begin."""
    alone = make_manager(backup_checkpoints=False, trash_seconds=0)
    seen: set[str] = set()
    for step in range(1, 20):
        doomed = save(alone, step)
        other = save(alone, step)
        was_killed = killer.kills(alone, "delete_checkpoint", step, checkpoint_id=doomed)
        listed = doomed in ids(alone)
        seen |= set(kinds(alone.doctor()))
        assert cured(alone).is_healthy
        assert (doomed in ids(alone)) == listed
        assert payload_path(alone, doomed).exists() == listed
        assert other in ids(alone)
        if not was_killed:
            break
    assert {"leftover", "half deletion"} <= seen


def test_what_is_in_the_trash_is_no_trouble(alone: CheckpointManager) -> None:
    """It is told how long it can be brought back, and stays."""
    checkpoint_id = save(alone, 1)
    alone.delete_checkpoint(checkpoint_id)
    report = cured(alone)
    assert kinds(report) == ["deleted"]
    assert report.is_healthy
    assert "undelete" in report.findings[0].message
    assert alone.undelete_checkpoint(checkpoint_id).checkpoint_id == checkpoint_id


def test_an_expired_deletion_is_finished(make_manager: MakeManager, alone: CheckpointManager) -> None:
    """By the age of its marker."""
    checkpoint_id = save(alone, 1)
    alone.delete_checkpoint(checkpoint_id)
    marker = experiment_folder(alone) / f".{checkpoint_id}.deleted"
    long_ago = time.time() - 2 * alone.config.trash_seconds
    os.utime(marker, (long_ago, long_ago))
    assert kinds(looked_at(alone)) == ["half deletion"]
    assert cured(alone).is_healthy
    assert not payload_path(alone, checkpoint_id).exists()


def leases_of_others(manager: CheckpointManager) -> list[Path]:
    own = {lease.name for lease in leases.leases._leases.values()}
    return [path for path in experiment_folder(manager).glob(".ckpt-lease-*") if path.name not in own]


HOLDS_ON = """
import sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.store import open_store

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], backup_checkpoints=False), "run")
manager.load_checkpoint("latest")
pending = open_store(sys.argv[1]).open_write("run")
pending.write(b"x" * 1000)
print("ready", flush=True)
sys.stdin.readline()
pending.discard()
"""


def test_what_a_living_process_is_at_work_on_is_left_alone(alone: CheckpointManager) -> None:
    """Its unfinished files, its lease, and what it goes on from, even if that is damaged."""
    checkpoint_id = save(alone, 1)
    child = start_python(HOLDS_ON, alone.config.checkpoint_dir)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert looked_at(alone).is_healthy
        flip_bit(payload_path(alone, checkpoint_id), 200)
        report = alone.doctor(fix=True, deep=True)
        assert [item.succeeded for item in report.done] == [False]
        assert "loaded" in report.done[0].outcome
        assert ids(alone) == [checkpoint_id]
        unfinished = [
            path for lease in leases_of_others(alone) for path in lease.iterdir() if path.stat().st_size == 1000
        ]
        assert len(unfinished) == 1
    finally:
        child.communicate("\n", timeout=60)
    assert alone.doctor(fix=True, deep=True).done[0].succeeded


def test_a_lease_of_another_machine_is_watched_before_it_goes(
    alone: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be proven of its owner; one that is renewed stays."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    save(alone, 1)
    content = {
        "token": "0123456789abcdef",
        "owner": {"host": "elsewhere", "system": "another", "pid": 1, "started": "1"},
        "taken_at": "2026-01-01T00:00:00+00:00",
        "ttl_seconds": 0.5,
    }
    folder = experiment_folder(alone) / ".ckpt-lease-0123456789abcdef"
    folder.mkdir()
    lease = folder / "lease"
    lease.write_text(json.dumps(content))
    (folder / "0").write_bytes(b"x" * 100)
    assert alone.doctor().is_healthy  # just renewed
    os.utime(lease, (time.time() - 60, time.time() - 60))
    report = looked_at(alone)
    assert kinds(report) == ["stale lease"]
    assert "elsewhere" in report.findings[0].message
    started = time.monotonic()
    assert cured(alone).is_healthy
    assert time.monotonic() - started >= 0.4
    assert not folder.exists()


# --- damage ---


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "missing", "manifest"])
@pytest.mark.parametrize("side", ["checkpoints", "backups"])
def test_damage_is_repaired_from_the_other_copy(manager: CheckpointManager, side: str, damage: str) -> None:
    """On either side; what only all bytes tell is found when they are read."""
    checkpoint_id = save(manager, 1)
    folder = experiment_folder(manager) / ("backups" if side == "backups" else "")
    inflict(damage, folder / f"{checkpoint_id}.pt")
    if damage == "flip":
        assert manager.doctor().is_healthy
    report = looked_at(manager, deep=True)
    assert [(item.kind, item.place) for item in report.findings if item.kind != "stale snapshot"] == [("damaged", side)]
    assert cured(manager, deep=True).is_healthy
    assert manager.validate_checkpoint(checkpoint_id)
    assert manager.validate_backup(checkpoint_id)


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "missing", "manifest"])
def test_what_cannot_be_repaired_is_set_aside(alone: CheckpointManager, damage: str) -> None:
    """It is a problem until a person decides, and no treatment goes round in circles over it."""
    lost, other = save(alone, 1), save(alone, 2)
    inflict(damage, payload_path(alone, lost))
    report = cured(alone, deep=True)
    assert [item.kind for item in report.problems] == ["quarantined"]
    assert report.problems[0].name == lost
    assert not report
    assert [item.checkpoint_id for item in alone.list_quarantined()] == [lost]
    assert ids(alone) == [other]
    alone.delete_quarantined(lost)
    assert cured(alone, deep=True).is_healthy


def inflict(damage: str, payload: Path) -> None:
    match damage:
        case "flip":
            flip_bit(payload, 200)
        case "truncate":
            truncate(payload, 100)
        case "extend":
            payload.write_bytes(payload.read_bytes() + b"x")
        case "missing":
            payload.unlink()
        case "manifest":
            flip_bit(payload.with_suffix(".json"), 40)


def test_a_missing_backup_is_made(make_manager: MakeManager) -> None:
    """Of a checkpoint that is whole."""
    manager = make_manager(backup_checkpoints=True)
    checkpoint_id = save(manager, 1)
    for suffix in (".pt", ".json"):
        (experiment_folder(manager) / "backups" / f"{checkpoint_id}{suffix}").unlink()
    assert kinds(looked_at(manager)) == ["no backup"]
    assert cured(manager).is_healthy
    assert manager.validate_backup(checkpoint_id)


def test_a_checkpoint_that_turns_out_damaged_while_it_is_backed_up(manager: CheckpointManager) -> None:
    """Is set aside: nobody has what it lacks."""
    save(manager, 1)
    checkpoint_id = save(manager, 2)
    for suffix in (".pt", ".json"):
        (experiment_folder(manager) / "backups" / f"{checkpoint_id}{suffix}").unlink()
    flip_bit(payload_path(manager, checkpoint_id), 200)
    assert [item.kind for item in cured(manager).problems] == ["quarantined"]


def test_a_backup_without_its_checkpoint_is_worth_knowing(manager: CheckpointManager) -> None:
    """It is what a backup is for."""
    checkpoint_id = save(manager, 1)
    manager.delete_checkpoint(checkpoint_id)
    manager.empty_trash()
    report = cured(manager)
    assert kinds(report) == ["backup only"]
    assert report.is_healthy
    assert backup_ids(manager) == [checkpoint_id]


def test_a_damaged_backup_of_nothing_is_set_aside(manager: CheckpointManager) -> None:
    """There is nothing to repair it from; a person decides."""
    checkpoint_id = save(manager, 1)
    manager.delete_checkpoint(checkpoint_id)
    manager.empty_trash()
    flip_bit(experiment_folder(manager) / "backups" / f"{checkpoint_id}.pt", 200)
    report = cured(manager, deep=True)
    assert [(item.kind, item.place) for item in report.problems] == [("quarantined", "backups")]


def test_what_was_set_aside_comes_back_when_a_backup_turns_up(make_manager: MakeManager, tmp_path: Path) -> None:
    """The doctor tries it; not before."""
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    checkpoint_id = save(manager, 1)
    (tmp_path / "backups").rename(tmp_path / "away")
    truncate(payload_path(manager, checkpoint_id), 10)
    assert [item.kind for item in cured(manager).problems] == ["quarantined"]
    (tmp_path / "away").rename(tmp_path / "backups")
    assert cured(manager).is_healthy
    assert manager.validate_checkpoint(checkpoint_id)


# --- payloads without manifests ---


def test_a_payload_gets_its_manifest_back_from_its_backup(manager: CheckpointManager) -> None:
    """With SHA-256 as proof, so that it is what it was."""
    checkpoint_id = save(manager, 1, tags=["a"])
    lost = manifest_path(manager, checkpoint_id).read_bytes()
    manifest_path(manager, checkpoint_id).unlink()
    assert "no manifest" in kinds(looked_at(manager))
    assert cured(manager).is_healthy
    assert manifest_path(manager, checkpoint_id).read_bytes() == lost


def test_a_backup_gets_its_manifest_back_from_its_checkpoint(manager: CheckpointManager) -> None:
    """The same the other way round."""
    checkpoint_id = save(manager, 1)
    lost = experiment_folder(manager) / "backups" / f"{checkpoint_id}.json"
    data = lost.read_bytes()
    lost.unlink()
    assert cured(manager).is_healthy
    assert lost.read_bytes() == data


def test_a_payload_that_is_not_what_its_backup_is_stays(manager: CheckpointManager) -> None:
    """Whose file it is cannot be told."""
    checkpoint_id = save(manager, 1)
    manifest_path(manager, checkpoint_id).unlink()
    flip_bit(payload_path(manager, checkpoint_id), 200)
    before = payload_path(manager, checkpoint_id).read_bytes()
    report = cured(manager)
    assert [item.kind for item in report.problems] == ["no manifest"]
    assert "ckpt restore" in report.problems[0].message
    assert payload_path(manager, checkpoint_id).read_bytes() == before
    manager.restore_checkpoint(checkpoint_id)
    assert cured(manager).is_healthy


def test_a_payload_without_any_manifest_is_adopted(alone: CheckpointManager) -> None:
    """By what is in the file, under its id, with the order of before; and it is said that this is no proof."""
    saved = [save(alone, epoch, 1 / epoch, config={"lr": 0.1}, tags=["mine"]) for epoch in (1, 2, 3)]
    before = {item.checkpoint_id: item for item in alone.list_checkpoints()}
    for checkpoint_id in saved[:2]:
        manifest_path(alone, checkpoint_id).unlink()
    report = looked_at(alone)
    assert kinds(report) == ["no manifest", "no manifest", "stale snapshot"]
    assert {item.fix for item in report.problems} == {"adopt it, without proof"}
    assert cured(alone, deep=True).is_healthy
    assert ids(alone) == saved
    for item in alone.list_checkpoints()[:2]:
        known = before[item.checkpoint_id]
        for fact in ("epoch", "step", "timestamp", "metrics", "config", "checksum", "file_size", "sequence"):
            assert getattr(item, fact) == getattr(known, fact)
        assert item.tags == (ADOPTED_TAG,)
        assert "cannot be proven" in item.description
    assert alone.load_checkpoint("latest")["checkpoint_id"] == saved[2]
    assert alone.load_checkpoint(saved[0], model=nn.Linear(2, 1))["epoch"] == 1


def test_an_adopted_one_is_never_newer_than_what_was_saved_later(alone: CheckpointManager, tmp_path: Path) -> None:
    """Where no number is free, as of a file that was copied here; the newest stays the newest."""
    foreign = save(alone, 1)
    payload = payload_path(alone, foreign)
    payload.rename(tmp_path / payload.name)
    manifest_path(alone, foreign).unlink()
    time.sleep(1.1)
    kept = [save(alone, epoch) for epoch in (2, 3)]
    (tmp_path / payload.name).rename(payload)
    assert cured(alone).is_healthy
    assert ids(alone) == [foreign, *kept]


def test_the_newest_payload_is_adopted_as_the_newest(alone: CheckpointManager) -> None:
    """And what is saved afterwards is newer."""
    first, second = save(alone, 1), save(alone, 2)
    manifest_path(alone, second).unlink()
    assert cured(alone).is_healthy
    third = save(alone, 3)
    assert ids(alone) == [first, second, third]
    sequences = [item.sequence for item in alone.list_checkpoints()]
    assert len(set(sequences)) == 3


@pytest.mark.parametrize("kind", ["flip", "tensor", "cut", "text", "empty", "plain", "epoch", "compressed", "pickle"])
def test_what_cannot_be_adopted_is_set_aside(alone: CheckpointManager, tmp_path: Path, kind: str) -> None:
    """Damaged, or nothing that was saved here; no code of it runs, and the file stays as it is."""
    checkpoint_id = save(alone, 1)
    payload, canary = payload_path(alone, checkpoint_id), tmp_path / "canary"
    manifest_path(alone, checkpoint_id).unlink()
    spoil(kind, payload, canary)
    before = payload.read_bytes()
    report = cured(alone)
    assert [item.kind for item in report.problems] == ["quarantined"]
    assert "cannot be adopted" in report.problems[0].message
    assert payload.read_bytes() == before
    assert not canary.exists()
    assert alone.delete_quarantined(checkpoint_id) == len(before)
    assert not payload.exists()


class _Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_what_is_adopted_is_what_was_read(alone: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that change between digest and reading are none of an adopted checkpoint; and it is held meanwhile."""
    checkpoint_id = save(alone, 1)
    payload = payload_path(alone, checkpoint_id)
    manifest_path(alone, checkpoint_id).unlink()
    entry = alone._folder.store.stat(f"run/{payload.name}")
    assert entry is not None
    orphan = recover.Orphan(alone._folder, payload.name, entry.version)
    check = recover._check_archive
    held: list[str] = []

    def late(found: recover.Orphan) -> None:
        held.extend(alone._folder.held())
        check(found)
        spoil("tensor", payload, payload)

    monkeypatch.setattr(recover, "_check_archive", late)
    with pytest.raises(NotACheckpointError):
        recover.examine(orphan, "run", alone.monitor)
    assert held == [checkpoint_id]


def spoil(kind: str, payload: Path, canary: Path) -> None:
    match kind:
        case "flip":
            flip_bit(payload, payload.read_bytes().index(b"model_state_dict"))
        case "tensor":
            weights = torch.load(payload, weights_only=True)["model_state_dict"]["weight"].numpy().tobytes()
            flip_bit(payload, payload.read_bytes().index(weights))
        case "cut":
            truncate(payload, payload.stat().st_size - 30)
        case "text":
            payload.write_text("not a checkpoint")
        case "empty":
            payload.write_bytes(b"")
        case "plain":
            torch.save({"weight": torch.ones(3)}, payload)
        case "epoch":
            torch.save({**torch.load(payload, weights_only=True), "epoch": 7}, payload)
        case "pickle":
            torch.save({**torch.load(payload, weights_only=True), "config": _Evil(canary)}, payload)
        case "compressed":
            with zipfile.ZipFile(payload) as archive:
                records = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(payload, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in records.items():
                    archive.writestr(name, data)


def test_a_torn_marker_gives_its_payload_free(alone: CheckpointManager) -> None:
    """What it said is lost; what it spoke of is a payload without a manifest, and is adopted as one."""
    checkpoint_id = save(alone, 1)
    manifest = manifest_path(alone, checkpoint_id)
    (experiment_folder(alone) / f".{checkpoint_id}.saving").write_bytes(manifest.read_bytes()[:50])
    manifest.unlink()
    assert "damaged marker" in kinds(looked_at(alone))
    report = cured(alone)
    assert report.is_healthy
    assert [item.finding.kind for item in report.done if item.finding.kind != "stale snapshot"] == [
        "damaged marker",
        "no manifest",
    ]
    assert ids(alone) == [checkpoint_id]


# --- what is not ours ---


def test_foreign_files_are_told_of_and_never_touched(manager: CheckpointManager) -> None:
    """Files, folders, links, and names that are almost ours."""
    checkpoint_id = save(manager, 1)
    folder = experiment_folder(manager)
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "checkpoint_epoch_1.pt").write_bytes(b"x")
    (folder / f"{checkpoint_id}.txt").write_text("mine")
    (folder / "link").symlink_to("notes.txt")
    report = cured(manager, deep=True)
    assert report.is_healthy
    assert {(item.kind, item.name) for item in report.findings} == {
        ("unknown", "notes.txt"),
        ("unknown", "plots"),
        ("unknown", "checkpoint_epoch_1.pt"),
        ("unknown", f"{checkpoint_id}.txt"),
        ("link", "link"),
    }
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_link_in_place_of_a_payload_takes_a_person(alone: CheckpointManager, tmp_path: Path) -> None:
    """It is never followed, and the checkpoint is neither replaced nor set aside."""
    checkpoint_id = save(alone, 1)
    payload = payload_path(alone, checkpoint_id)
    payload.rename(tmp_path / "elsewhere.pt")
    payload.symlink_to(tmp_path / "elsewhere.pt")
    report = cured(alone)
    assert [item.kind for item in report.problems] == ["damaged"]
    assert "link" in report.problems[0].message
    assert ids(alone) == [checkpoint_id]
    assert payload.is_symlink()


def test_backups_that_are_a_link_are_told_of(manager: CheckpointManager, tmp_path: Path) -> None:
    """They are never written to; the checkpoints are looked at all the same."""
    save(manager, 1)
    backups = experiment_folder(manager) / "backups"
    backups.rename(tmp_path / "elsewhere")
    backups.symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    report = cured(manager)
    assert "backup location" in [item.kind for item in report.problems]
    assert snapshot(tmp_path / "elsewhere") == before


def test_another_runs_folder_is_no_place_for_backups(make_manager: MakeManager, tmp_path: Path) -> None:
    """Its checkpoints would be retired as backups: nothing is done there."""
    other = make_manager(checkpoint_dir=str(tmp_path / "other"))
    save(other, 1)
    manager = make_manager(backup_dir=str(tmp_path / "other"), backup_checkpoints=False)
    save(manager, 2)
    before = files(tmp_path / "other")
    report = cured(make_manager(backup_dir=str(tmp_path / "other")))
    assert [item.kind for item in report.problems] == ["backup location"]
    assert files(tmp_path / "other") == before


def test_a_different_checkpoint_of_the_same_id_is_told_of(manager: CheckpointManager) -> None:
    """In the backups, where it would be taken for a copy."""
    checkpoint_id = save(manager, 1)
    twin = experiment_folder(manager) / "backups" / f"{checkpoint_id}.json"
    manifest = Manifest.from_bytes(twin.read_bytes(), path="")
    twin.write_bytes(manifest.changed(uid="0" * 32).to_bytes())
    report = cured(manager)
    assert [item.kind for item in report.problems] == ["other checkpoint"]


def test_a_manifest_of_a_newer_version_is_left_alone(alone: CheckpointManager) -> None:
    """Someone else can read it."""
    checkpoint_id = save(alone, 1)
    manifest = Manifest.from_bytes(manifest_path(alone, checkpoint_id).read_bytes(), path="")
    manifest_path(alone, checkpoint_id).write_bytes(manifest.changed(schema_version=99).to_bytes())
    report = cured(alone, deep=True)
    assert [item.kind for item in report.findings] == ["newer version"]
    assert report.is_healthy
    assert payload_path(alone, checkpoint_id).exists()


def test_one_that_a_newer_version_set_aside_hides_nothing(alone: CheckpointManager) -> None:
    """It is listed, left alone, and keeps nobody from seeing, treating or backing up the others."""
    checkpoint_id, other = save(alone, 1), save(alone, 2)
    flip_bit(payload_path(alone, checkpoint_id), 200)
    alone.quarantine_checkpoint(checkpoint_id)
    marker = experiment_folder(alone) / f".{checkpoint_id}.quarantined"
    kept, _, report = marker.read_bytes().removesuffix(b"\n").rpartition(b"\n")
    newer = Manifest.from_bytes(kept, path="").changed(schema_version=99).to_bytes()
    marker.write_bytes(newer + b"\n" + report + b"\n")
    found = alone.list_quarantined()
    assert [(item.checkpoint_id, item.checkpoint) for item in found] == [(checkpoint_id, None)]
    assert found[0].report.damages
    assert [item.kind for item in cured(alone).findings] == ["quarantined"]
    assert alone.backup_checkpoint(other)
    for call in (alone.delete_quarantined, alone.repair_checkpoint):
        with pytest.raises(UnsupportedSchemaError):
            call(checkpoint_id)
    assert payload_path(alone, checkpoint_id).exists()


def test_a_stale_snapshot_is_written_anew(alone: CheckpointManager) -> None:
    """Missing, old or damaged: nothing goes by it, so it is no problem."""
    save(alone, 1)
    path = experiment_folder(alone) / "checkpoint_metadata.json"
    good = path.read_bytes()
    for data in (None, b"", good[:-1] + b" ", good + b"x"):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        report = looked_at(alone)
        assert kinds(report) == ["stale snapshot"]
        assert report.is_healthy
        assert cured(alone).findings == ()
        assert path.read_bytes() == good


# --- whenever ---


def mess(manager: CheckpointManager) -> set[str]:
    """An experiment in which much is wrong; returns the ids of what is whole and what can be."""
    saved = [save(manager, epoch) for epoch in range(1, 6)]
    folder = experiment_folder(manager)
    manifest_path(manager, saved[0]).unlink()
    flip_bit(payload_path(manager, saved[1]), 200)
    (folder / f".{saved[2]}.deleted").write_bytes(manifest_path(manager, saved[2]).read_bytes())
    doomed = manifest_path(manager, saved[3]).read_bytes()
    manifest_path(manager, saved[3]).unlink()
    (folder / f".{saved[3]}.saving").write_bytes(doomed)
    (folder / ".ckpt-broken-00000000000000aa-1").mkdir()
    (folder / ".ckpt-broken-00000000000000aa-1/0").write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    return {saved[0], saved[2], saved[4]}


def test_killed_at_every_step_the_next_treatment_does_the_rest(make_manager: MakeManager, killer: Killer) -> None:
    """Wherever it stopped, the end is the same."""
    for step in range(1, 60):
        manager = make_manager(f"run{step}", backup_checkpoints=False)
        wanted = mess(manager)
        was_killed = killer.kills(manager, "doctor", step, fix=True, deep=True)
        report = cured(manager, deep=True)
        assert set(ids(manager)) == wanted
        assert [item.kind for item in report.problems] == ["quarantined"]
        assert (experiment_folder(manager) / "notes.txt").read_text() == "mine"
        if not was_killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert step > 10


SAVES = """
import sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], max_checkpoints=4, trash_seconds=0), "run")
for epoch in range(1, 41):
    print(manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"val_loss": 1 / epoch}), flush=True)
"""


def test_it_runs_beside_a_training(make_manager: MakeManager) -> None:
    """Nothing of the training's is taken for a leftover, and no save fails."""
    manager = make_manager(max_checkpoints=4, trash_seconds=0)
    child = start_python(SAVES, manager.config.checkpoint_dir)
    done: list[Treatment] = []
    while child.poll() is None:
        with contextlib.suppress(NotACheckpointError):  # before the first save
            done += manager.doctor(fix=True, deep=True).done
    output, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    saved = output.split()
    assert len(saved) == 40
    assert ids(manager)[-1] == saved[-1]
    assert {item.finding.kind for item in done} <= {"no backup", "stale snapshot"}
    assert cured(manager, deep=True).is_healthy


@pytest.mark.parametrize("way", ["held", "changed"])
def test_a_treatment_that_did_not_happen_has_not_succeeded(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What somebody holds by then is still there; what somebody else has adopted is not adopted again."""
    manager = make_manager(backup_checkpoints=False, trash_seconds=0)
    saved = save(manager, 1)
    kept = manifest_path(manager, saved).read_bytes()
    if way == "held":
        with manager._folder.hold(saved, "being read"):
            manager.delete_checkpoint(saved)
    else:
        manifest_path(manager, saved).unlink()
    treated = doctor._treated

    def after_somebody_came(case: Any) -> Treatment:
        if way == "changed":
            manifest_path(manager, saved).write_bytes(kept)
            return treated(case)
        with manager._folder.hold(saved, "being read"):
            return treated(case)

    monkeypatch.setattr(doctor, "_treated", after_somebody_came)
    first = manager.doctor(fix=True).done[0]
    assert not first.succeeded
    assert first.outcome in {
        "it is still there: somebody is at work on it, or holds it",
        "somebody else changed it meanwhile",
    }
    monkeypatch.undo()
    assert manager.doctor(fix=True).is_healthy


def test_a_treatment_that_fails_stops_no_other(alone: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told of."""
    first, second = save(alone, 1), save(alone, 2)
    flip_bit(payload_path(alone, first), 200)
    manifest_path(alone, second).unlink()
    real: Callable[..., Any] = folder_lock.LocalFolderLock.put

    def failing(self: Any, path: str, content: bytes, **options: Any) -> None:
        if path.endswith(".quarantined"):
            raise OSError(5, "the disk")
        real(self, path, content, **options)

    monkeypatch.setattr(folder_lock.LocalFolderLock, "put", lambda *a, **k: _typed(failing, *a, **k))
    report = alone.doctor(fix=True, deep=True)
    outcomes = {item.finding.kind: item.succeeded for item in report.done}
    assert outcomes["damaged"] is False
    assert outcomes["no manifest"] is True
    assert [item.kind for item in report.problems] == ["damaged"]


def _typed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from ckpt_lib.store.os_errors import typed_errors

    with typed_errors(Path("store")):
        return call(*args, **kwargs)
