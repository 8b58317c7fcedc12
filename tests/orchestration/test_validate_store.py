"""The flow that validates and repairs a store, run to its end on Prefect's test server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StorageFullError
from prefect_checkpoints.flows import checkpoint_lifecycle, manage_backups, validate_store
from prefect_checkpoints.flows.validate import CHANGED, LOST, QUARANTINED, REPAIRABLE, REPAIRED
from tests.orchestration.runs import artifacts, damage, flip_a_byte, saved, saved_ids

pytestmark = pytest.mark.usefixtures("own_results")


def test_validate_store_reads_everything(config: CheckpointConfig) -> None:
    """Every checkpoint and backup of every experiment is read, remembered outcomes or not."""
    saved(config, "one")
    saved(config, "two")
    assert len(validate_store(config)) == 12
    state = validate_store(config, return_state=True)
    assert state.is_completed()
    published = artifacts(state)
    assert published["validation-store"].count('"intact"') >= 6
    assert published["validation-of-backups-store"].count('"intact"') >= 6


@pytest.mark.parametrize("copy", ["checkpoint", "backup"])
def test_validate_store_offers_and_makes_repairs(config: CheckpointConfig, copy: str) -> None:
    """Damage fails the run and is said to be repairable; with repair it is mended from the other copy."""
    first, *_ = saved(config)
    damage(config, first, "backups" if copy == "backup" else "")
    offered = validate_store(config, return_state=True)
    table = "validation-of-backups-store" if copy == "backup" else "validation-store"
    assert offered.is_failed()
    assert REPAIRABLE in artifacts(offered)[table]
    repaired = validate_store(config, repair=True, return_state=True)
    assert repaired.is_completed()
    assert REPAIRED in artifacts(repaired)[table]
    assert validate_store(config, return_state=True).is_completed()


def test_validate_store_sees_backups_whose_manifest_is_damaged(config: CheckpointConfig) -> None:
    """They are listed nowhere, but they are found, fail the run, and are made anew with repair."""
    first, *_ = saved(config)
    Path(config.checkpoint_dir, "run", "backups", f"{first}.json").write_text("{}")
    assert validate_store(config, return_state=True).is_failed()
    assert validate_store(config, repair=True, return_state=True).is_completed()
    assert validate_store(config, return_state=True).is_completed()


def test_a_backup_without_its_manifest_still_repairs(config: CheckpointConfig) -> None:
    """A damaged payload is mended from a backup of which only the manifest is damaged, and that is then made anew."""
    first, *_ = saved(config)
    damage(config, first)
    Path(config.checkpoint_dir, "run", "backups", f"{first}.json").write_text("{}")
    state = validate_store(config, repair=True, return_state=True)
    assert REPAIRED in artifacts(state)["validation-store"]
    validate_store(config, repair=True, return_state=True)
    assert validate_store(config, return_state=True).is_completed()


def test_validate_store_sets_aside_what_is_lost(config: CheckpointConfig) -> None:
    """With both copies damaged nothing can be repaired, which the reports say; nothing is changed without repair."""
    first, *others = saved(config)
    damage(config, first)
    damage(config, first, "backups")
    state = validate_store(config, return_state=True)
    assert state.is_failed()
    assert LOST in artifacts(state)["validation-store"]
    assert saved_ids(config) == [first, *others]
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_failed()
    published = artifacts(state)
    assert QUARANTINED in published["validation-store"]
    assert '"quarantined"' in published["doctor-run"]
    assert saved_ids(config) == others
    manager = CheckpointManager(config, "run")
    aside = [*manager.list_quarantined(), *manager.list_quarantined_backups()]
    assert [(item.checkpoint_id, item.is_backup) for item in aside] == [(first, False), (first, True)]
    assert validate_store(config, repair=True, return_state=True).is_completed()


def test_a_damaged_backup_of_nothing_fails_one_night(config: CheckpointConfig) -> None:
    """It is told as a backup and set aside; the next run is green, and the report names what is in quarantine."""
    first, *_ = saved(config)
    damage(config, first, "backups")
    manager = CheckpointManager(config.model_copy(update={"trash_seconds": 0}), "run")
    manager.delete_checkpoint(first)
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_failed()
    assert f"the backup of run/{first}" in str(state.message)
    assert QUARANTINED in artifacts(state)["validation-of-backups-store"]
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_completed()
    assert '"quarantined"' in artifacts(state)["doctor-run"]
    assert manage_backups(config, "run", (first,), dry_run=False)
    assert manager.list_quarantined_backups() == []


def test_validate_store_has_the_doctor_look(config: CheckpointConfig) -> None:
    """What no validation sees, such as a missing backup, is told of and, with repair, put right."""
    config = config.model_copy(update={"backup_checkpoints": True})
    first, *_ = saved(config)
    for suffix in (".pt", ".json"):
        Path(config.checkpoint_dir, "run", "backups", f"{first}{suffix}").unlink()
    state = validate_store(config, return_state=True)
    assert state.is_completed()
    assert '"PROBLEM"' in artifacts(state)["doctor-run"]
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_completed()
    assert "backed up" in artifacts(state)["doctor-run"]
    assert first in CheckpointManager(config, "run").backup_ids()


@pytest.mark.parametrize("repair", [False, True])
def test_validate_store_makes_one_whole_of_two_damaged_copies(config: CheckpointConfig, repair: bool) -> None:
    """Neither is intact, but together they are: that is said, and with repair done on both sides."""
    model = nn.Linear(3 * 2**20, 1)  # 12 MiB, which are two chunks
    only = CheckpointManager(config, "run").save_checkpoint(model=model, epoch=1)
    assert only is not None
    damage(config, only)
    backup = Path(config.checkpoint_dir, "run", "backups", f"{only}.pt")
    backup.write_bytes(backup.read_bytes()[:-1])
    state = validate_store(config, repair=repair, return_state=True)
    published = artifacts(state)
    for table in ("validation-store", "validation-of-backups-store"):
        assert (REPAIRED if repair else REPAIRABLE) in published[table]
    assert state.is_completed() == repair
    assert validate_store(config, return_state=True).is_completed() == repair


def test_validate_store_goes_on_where_it_was_stopped(config: CheckpointConfig) -> None:
    """What a run that was killed had read is not read again by the next, and is in its reports."""
    ids = saved(config)
    manager = CheckpointManager(config, "run")

    total = 2 * sum(item.file_size for item in manager.list_checkpoints())
    done = 0

    def stop(count: int) -> None:
        nonlocal done
        done += count
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manager.scrub(progress=stop, max_bytes_per_second=total)
    record = Path(config.checkpoint_dir, "run", ".ckpt-scrub.json")
    interrupted = json.loads(record.read_text())
    assert 0 < len(interrupted["outcomes"]) < 6
    reports = validate_store(config)
    assert [report.checkpoint_id for report in reports] == ids * 2
    completed = json.loads(record.read_text())
    assert completed["started_at"] == interrupted["started_at"]
    assert completed["outcomes"].items() >= interrupted["outcomes"].items()


def test_validate_store_tells_experiments_with_equal_ids_apart(config: CheckpointConfig) -> None:
    """An import keeps its id: that one experiment's copy was repaired does not hide that the other's is lost."""
    (only,) = saved(config, losses=(1.0,))
    folder = Path(config.checkpoint_dir)
    unbacked = CheckpointManager(config, "unbacked")
    assert unbacked.import_checkpoint(folder / "run" / f"{only}.pt") == only
    for experiment in ("run", "unbacked"):
        (folder / experiment / f"{only}.pt").write_bytes(b"rubbish")
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_failed()
    assert f"unbacked/{only}" in str(state.message)
    table = artifacts(state)["validation-store"]
    assert (table.count(REPAIRED), table.count(QUARANTINED)) == (1, 1)
    assert CheckpointManager(config, "run").validate_checkpoint(only)


def test_validate_store_goes_on_when_a_repair_fails(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair that fails is told of in the report, stops no other one, and fails the run."""
    first, second, _ = saved(config)
    damage(config, first)
    damage(config, second)
    repair = CheckpointManager.repair_checkpoint

    def without_space(self: CheckpointManager, checkpoint_id: str) -> Any:
        if checkpoint_id == first:
            raise StorageFullError("no space is left")
        return repair(self, checkpoint_id)

    monkeypatch.setattr(CheckpointManager, "repair_checkpoint", without_space)
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_failed()
    assert "repair failed: no space is left" in artifacts(state)["validation-store"]
    assert CheckpointManager(config, "run").validate_checkpoint(second)


@pytest.mark.parametrize("flow", [validate_store, checkpoint_lifecycle])
def test_what_is_retired_meanwhile_fails_no_run(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: Any
) -> None:
    """A training that goes on retires checkpoints between their being listed and read; that is no damage."""
    first, *others = saved(config)
    list_ids = CheckpointManager.checkpoint_ids

    def then_retire(self: CheckpointManager) -> list[str]:
        listed = list_ids(self)
        CheckpointManager(config, "run").delete_checkpoint(first)
        return listed

    monkeypatch.setattr(CheckpointManager, "checkpoint_ids", then_retire)
    own = {} if flow is validate_store else {"experiment_name": "run", "export_dir": str(tmp_path / "out")}
    state = flow(config=config, **own, return_state=True)
    assert state.is_completed(), state.message
    table = artifacts(state)["validation-store" if flow is validate_store else "validation-run"]
    assert [first in table, *(other in table for other in others)] == [False, True, True]


@pytest.mark.parametrize("repair", [False, True])
def test_changed_files_of_other_programs_are_not_called_repairable(config: CheckpointConfig, repair: bool) -> None:
    """A file imported in place and written over stays as it is: the report says so, whatever its backup holds."""
    file = Path(config.checkpoint_dir, "run", "last.ckpt")
    file.parent.mkdir(parents=True)
    torch.save({"epoch": 1, "state_dict": nn.Linear(3, 2).state_dict()}, file)
    manager = CheckpointManager(config, "run")
    manager.backup_checkpoint(manager.import_checkpoint(file, in_place=True))
    flip_a_byte(file)
    changed = file.read_bytes()
    state = validate_store(config, repair=repair, return_state=True)
    assert state.is_failed()
    report = artifacts(state)["validation-store"]
    assert CHANGED in report
    assert REPAIRABLE not in report
    assert file.read_bytes() == changed
