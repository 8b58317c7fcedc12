"""Flows, run to their end on Prefect's test server."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import torch
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, State
from prefect.utilities import schema_tools
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, init_store
from ckpt_lib.errors import (
    CorruptCheckpointError,
    ExperimentNotFoundError,
    NotAStoreError,
    StorageFullError,
    StorePermissionError,
)
from ckpt_lib.policies.retention import KeepNewest, RetentionPolicy
from prefect_checkpoints.flows import (
    TrainingParameters,
    checkpoint_lifecycle,
    cleanup_store,
    manage_backups,
    train,
    validate_store,
)
from prefect_checkpoints.flows.validate import LOST, QUARANTINED, REPAIRABLE, REPAIRED
from prefect_checkpoints.tasks import _progress, report_checkpoints, report_comparison

pytestmark = pytest.mark.usefixtures("own_results")
SMALL = {"batch_size": 256, "channels": 4}


def artifacts(state: State[Any]) -> dict[str, Any]:
    """Content of everything the flow run published, by kind and experiment: the key without its digest."""
    return {key: artifact.data for key, artifact in found_artifacts(state).items()}


def descriptions(state: State[Any]) -> dict[str, str]:
    """The titles of the same."""
    return {key: str(artifact.description) for key, artifact in found_artifacts(state).items()}


def found_artifacts(state: State[Any]) -> dict[str, Artifact]:
    """What the flow run published, by kind and experiment."""
    assert state.state_details.flow_run_id is not None
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=chosen)
    return {str(artifact.key).rpartition("-")[0]: artifact for artifact in found}


def saved(config: CheckpointConfig, experiment: str = "run", losses: tuple[float, ...] = (3.0, 1.0, 2.0)) -> list[str]:
    manager = CheckpointManager(config, experiment)
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": loss})
        for epoch, loss in enumerate(losses, start=1)
    ]
    return [checkpoint_id for checkpoint_id in ids if checkpoint_id]


def saved_ids(config: CheckpointConfig) -> list[str]:
    return CheckpointManager(config, "run").checkpoint_ids()


def damage(config: CheckpointConfig, checkpoint_id: str, folder: str = "") -> None:
    path = Path(config.checkpoint_dir, "run", folder, f"{checkpoint_id}.pt")
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)


def test_train_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """A run in two parts ends bit-equal to one in a single part, and publishes table, plot and progress."""
    halves = CheckpointConfig(checkpoint_dir=str(tmp_path / "halves"))
    whole = CheckpointConfig(checkpoint_dir=str(tmp_path / "whole"))
    train("digits", halves, TrainingParameters(epochs=2, **SMALL))
    state = train("digits", halves, TrainingParameters(epochs=4, **SMALL), return_state=True)
    train("digits", whole, TrainingParameters(epochs=4, **SMALL))

    first, second = (CheckpointManager(config, "digits").load_checkpoint("latest") for config in (halves, whole))
    assert first["epoch"] == second["epoch"] == 4
    for name, tensor in first["model_state_dict"].items():
        assert torch.equal(tensor, second["model_state_dict"][name]), name
    assert first["metrics"] == second["metrics"]
    assert state.result()["total_checkpoints"] == 4
    published = artifacts(state)
    assert published.keys() == {"training-digits", "checkpoints-digits", "metrics-digits"}
    assert published["training-digits"] == 100.0
    header, _, picture = published["metrics-digits"].partition(",")
    assert header == "data:image/svg+xml;base64"
    drawn = base64.b64decode(picture)
    assert b"<svg" in drawn
    assert drawn.count(b'<g id="axes_') == 2  # losses and accuracy


def test_training_outlives_the_progress_bar(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes no update of the progress bar costs a warning, not the training."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(_progress, "update_progress_artifact", unreachable)
    assert train("digits", config, TrainingParameters(epochs=1, **SMALL))["total_checkpoints"] == 1


def test_train_learns(tmp_path: Path) -> None:
    """The training is real: after four epochs more than nine in ten unseen digits are right."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path))
    train("digits", config, TrainingParameters(epochs=4))
    best = CheckpointManager(config, "digits").get_best_checkpoint()
    assert best is not None
    assert float(best.metrics["val_accuracy"] or 0) > 0.9


def test_lifecycle_takes_all_steps(config: CheckpointConfig, tmp_path: Path) -> None:
    """Everything is validated, backed up, compared, exported, retired by the given policy, and published."""
    config = config.model_copy(update={"backup_checkpoints": False})
    first, best, latest = saved(config)
    state = checkpoint_lifecycle("run", config, str(tmp_path / "out"), KeepNewest(count=1), return_state=True)
    outcome = state.result()
    manager = CheckpointManager(config, "run")
    assert manager.checkpoint_ids() == [best, latest]
    assert [item.checkpoint_id for item in manager.list_backups()] == [first, best, latest]
    assert Path(outcome["exported"]) == tmp_path / "out" / f"{best}.pt"
    assert torch.load(outcome["exported"], weights_only=True)["epoch"] == 2
    assert outcome["comparison"]["checkpoint_ids"] == [best, latest, first]
    assert outcome["total_checkpoints"] == 2
    published = artifacts(state)
    assert published.keys() >= {"validation-run", "comparison-run", "cleanup-run", "checkpoints-run", "metrics-run"}
    assert '"deleted"' in published["cleanup-run"]
    assert "no rule keeps it" in published["cleanup-run"]


def test_lifecycle_serves_the_rest_and_fails_on_damage(config: CheckpointConfig, tmp_path: Path) -> None:
    """A damaged checkpoint stops no other step, is neither backed up nor exported, and fails the run at its end."""
    config = config.model_copy(update={"backup_checkpoints": False})
    first, best, latest = saved(config)
    damage(config, best)
    state = checkpoint_lifecycle("run", config, str(tmp_path / "out"), return_state=True)
    assert state.is_failed()
    with pytest.raises(CorruptCheckpointError, match=best):
        state.result()
    manager = CheckpointManager(config, "run")
    assert [item.checkpoint_id for item in manager.list_backups()] == [first, latest]
    assert manager.checkpoint_ids() == [first, best, latest]
    assert not (tmp_path / "out").exists()
    published = artifacts(state)["validation-run"]
    assert "DAMAGED" in published
    assert LOST in published


@pytest.mark.parametrize(("only_best", "epochs"), [(False, [1, 2, 5]), (True, [1, 2])])
def test_lifecycle_makes_no_backup_that_would_be_retired(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_best: bool, epochs: list[int]
) -> None:
    """The backups are the best, the pinned and the newest; a second run copies nothing."""
    options = {"max_backups": 2, "backup_checkpoints": False, "backup_only_best": only_best}
    config = config.model_copy(update=options)
    pinned, *_ = saved(config, losses=(4.0, 1.0, 2.0, 3.0, 2.0))
    CheckpointManager(config, "run").pin_checkpoint(pinned)
    copied: list[str] = []
    back_up = CheckpointManager.backup_checkpoint

    def noted(self: CheckpointManager, checkpoint_id: str, **arguments: Any) -> bool:
        if made := back_up(self, checkpoint_id, **arguments):
            copied.append(checkpoint_id)
        return made

    monkeypatch.setattr(CheckpointManager, "backup_checkpoint", noted)
    for _ in range(2):
        checkpoint_lifecycle("run", config, str(tmp_path / "out"))
        assert [item.epoch for item in CheckpointManager(config, "run").list_backups()] == epochs
    assert len(copied) == len(epochs)


def test_rot_that_a_remembered_validation_missed_stops_no_other_step(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits that rot behind a remembered validation fail the export and the run, after all reports were published."""
    *_, best = saved(config, losses=(2.0, 1.0))
    versions = {item: CheckpointManager(config, "run").payload_version(item) for item in saved_ids(config)}
    assert checkpoint_lifecycle("run", config, str(tmp_path / "before"), return_state=True).is_completed()
    damage(config, best)
    # As rot does: the file system notices nothing.
    monkeypatch.setattr(CheckpointManager, "payload_version", lambda _, checkpoint_id: versions[checkpoint_id])
    state = checkpoint_lifecycle("run", config, str(tmp_path / "after"), return_state=True)
    assert state.is_failed()
    assert artifacts(state).keys() >= {"validation-run", "cleanup-run", "checkpoints-run", "metrics-run"}
    with pytest.raises(CorruptCheckpointError, match="was altered"):
        state.result()


def test_lifecycle_with_one_checkpoint_and_infinite_metrics(config: CheckpointConfig, tmp_path: Path) -> None:
    """With nothing to compare and no finite metric the latest is exported, and the tables hold no bare infinity."""
    (only,) = saved(config, losses=(float("inf"),))
    state = checkpoint_lifecycle("run", config, str(tmp_path / "out"), return_state=True)
    assert Path(state.result()["exported"]).stem == only
    assert '"inf"' in artifacts(state)["checkpoints-run"]


def test_tables_show_every_value(config: CheckpointConfig) -> None:
    """Tiny values are not rounded to 0, names that columns have hide nothing, and no row lacks a metric."""
    manager = CheckpointManager(config, "run")
    for epoch, metrics in ((1, {"late": 1.0}), (2, {"lr": 3.25e-7, "size": 7.5})):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics=metrics, config={"lr": epoch})

    @flow
    def report() -> None:
        report_checkpoints(config, "run")
        report_comparison(config, "run", manager.compare_checkpoints(manager.checkpoint_ids()))

    published = artifacts(report(return_state=True))
    newest, oldest = json.loads(published["checkpoints-run"])
    assert newest.keys() == oldest.keys()
    assert (newest["lr"], newest["metric size"], newest["late"], oldest["late"]) == (3.25e-7, 7.5, None, 1.0)
    assert newest["size"].endswith("KiB")
    compared = json.loads(published["comparison-run"])
    assert [(row["kind"], row["name"]) for row in compared if row["name"] == "lr"] == [
        ("metrics", "lr"),
        ("config", "lr"),
    ]


def test_lifecycle_names_what_there_is(config: CheckpointConfig) -> None:
    """A mistyped experiment is told apart from an empty one."""
    saved(config)
    with pytest.raises(ExperimentNotFoundError, match="Did you mean 'run'"):
        checkpoint_lifecycle("runn", config)


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
    assert manage_backups("run", config, (first,), dry_run=False)
    assert manager.list_quarantined_backups() == []


def test_manage_backups_lists_plans_and_deletes(config: CheckpointConfig) -> None:
    """By default nothing is deleted; then what was named goes, and what is beyond the limit."""
    config = config.model_copy(update={"max_backups": 0})
    _first, best, latest = ids = saved(config.model_copy(update={"max_backups": 10}))
    assert manage_backups("run", config, (latest,), return_state=True).is_failed()
    published = artifacts(manage_backups("run", config, return_state=True))
    assert "would delete" in published["cleanup-of-backups-run"]
    assert all(checkpoint_id in published["backups-run"] for checkpoint_id in ids)
    manager = CheckpointManager(config, "run")
    assert manager.backup_ids() == ids
    left = manage_backups("run", config, (latest,), dry_run=False)
    assert [item.checkpoint_id for item in left] == [best] == manager.backup_ids()
    assert manager.checkpoint_ids() == ids
    state = manage_backups("run", config, (latest,), dry_run=False, return_state=True)
    assert state.message == "1 backup; 0 B freed"


def test_manage_backups_of_an_experiment_that_has_nothing_else(config: CheckpointConfig, tmp_path: Path) -> None:
    """It lists and deletes them; a name without checkpoints and backups is refused with the closest one."""
    config = config.model_copy(update={"backup_dir": str(tmp_path / "backups")})
    ids = saved(config)
    shutil.rmtree(Path(config.checkpoint_dir) / "run")
    assert [item.checkpoint_id for item in manage_backups("run", config)] == ids
    assert manage_backups("run", config, tuple(ids), dry_run=False) == []
    saved(config, "other")
    with pytest.raises(ExperimentNotFoundError, match="Did you mean 'other'"):
        manage_backups("othr", config)
    with pytest.raises(ExperimentNotFoundError):
        manage_backups("run", config)


@pytest.mark.parametrize("flow", [cleanup_store, checkpoint_lifecycle])
def test_backups_that_cannot_be_cleaned_up_fail_the_run_at_its_end(
    config: CheckpointConfig, tmp_path: Path, flow: Any
) -> None:
    """The checkpoints are cleaned up all the same, and the table says what was not done."""
    config = config.model_copy(update={"backup_checkpoints": False, "backup_dir": str(tmp_path / "backups")})
    first, *others = saved(config)
    (tmp_path / "backups").write_text("mine")
    arguments = {"experiment_name": "run", "export_dir": str(tmp_path / "exports")} if flow != cleanup_store else {}
    state = flow(checkpoints=config, retention=KeepNewest(count=1), **arguments, return_state=True)
    assert state.is_failed()
    assert CheckpointManager(config, "run").checkpoint_ids() == others
    assert first in artifacts(state)["cleanup-run"]
    if flow == cleanup_store:
        assert "the backups of 1 of 1 experiments were not cleaned up" in str(state.message)
        assert "THE BACKUPS WERE NOT CLEANED UP" in descriptions(state)["cleanup-run"]


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
    state = flow(checkpoints=config, **own, return_state=True)
    assert state.is_completed(), state.message
    table = artifacts(state)["validation-store" if flow is validate_store else "validation-run"]
    assert [first in table, *(other in table for other in others)] == [False, True, True]


def test_scheduled_flows_wait_for_the_first_checkpoint(config: CheckpointConfig) -> None:
    """In a store that was initialised and holds nothing yet, validation and cleanup have nothing to do, and say so."""
    init_store(config.checkpoint_dir)
    assert validate_store(config) == []
    assert cleanup_store(config) == {}


@pytest.mark.parametrize("flow", [validate_store, cleanup_store])
@pytest.mark.parametrize("is_mount_point", [True, False])
def test_a_missing_store_fails_a_schedule(config: CheckpointConfig, flow: Any, is_mount_point: bool) -> None:
    """A mistyped store and the empty mount point of a missing disk fail the run, unless that was allowed."""
    if is_mount_point:
        Path(config.checkpoint_dir).mkdir()
    state = flow(config, return_state=True)
    assert state.is_failed()
    assert "ckpt init" in state.message
    assert flow(config, allow_missing=True, return_state=True).is_completed()
    assert Path(config.checkpoint_dir).exists() == is_mount_point


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """A folder of other files is not taken for an empty store."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotAStoreError):
        cleanup_store(CheckpointConfig(checkpoint_dir=str(tmp_path)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_cleanup_store_plans_and_deletes(config: CheckpointConfig) -> None:
    """A dry run publishes reasons and deletes nothing; the real one deletes in every experiment."""
    ids = {name: saved(config, name) for name in ("one", "two")}
    planned = cleanup_store(config, KeepNewest(count=1), dry_run=True, return_state=True)
    assert "would delete" in artifacts(planned)["cleanup-one"]
    assert CheckpointManager(config, "one").checkpoint_ids() == ids["one"]
    published = artifacts(cleanup_store(config.model_copy(update={"max_backups": 0}), dry_run=True, return_state=True))
    assert "would delete" in published["cleanup-of-backups-one"]
    reports = cleanup_store(config, KeepNewest(count=1))
    for name, (first, best, latest) in ids.items():
        assert reports[name].deleted_ids == (first,)
        assert CheckpointManager(config, name).checkpoint_ids() == [best, latest]


def test_cleanup_store_takes_every_rule(config: CheckpointConfig) -> None:
    """What the form sends passes the server's check and the flow's, and the artifact shows what decided."""
    first, best, latest = saved(config, "run")
    rules: list[dict[str, Any]] = [
        {"kind": "newest", "count": 0},
        {"kind": "best", "count": 0},
        {"kind": "at_most", "count": 0},
        {"kind": "within", "budget_bytes": 0},
        {"kind": "tagged", "tags": ["none"]},
        {"kind": "pinned"},
        {"kind": "not", "policy": {"kind": "newer_than", "days": 1000}},
        {"kind": "all_of", "policies": [{"kind": "every", "epochs": 100}, {"kind": "periods", "daily": 1}]},
        {"kind": "every", "hours": 1_000_000},
    ]
    policy: Any = {"kind": "any_of", "policies": rules}
    kinds = {rule["kind"] for rule in (policy, *rules, *rules[-2]["policies"], rules[-3]["policy"])}
    known = {kind.model_fields["kind"].default for kind in get_args(get_args(RetentionPolicy)[0])}
    assert kinds == known
    parameters = {"checkpoints": config.model_dump(exclude_unset=True), "retention": policy, "dry_run": True}
    schema_tools.validate(parameters, cleanup_store.parameters.model_dump())
    planned = cleanup_store(config, policy, dry_run=True, return_state=True)
    table = artifacts(planned)["cleanup-run"]
    assert "first of its 1000000 hours" in table
    assert "newest valid" in table
    assert set(CheckpointManager(config, "run").checkpoint_ids()) == {first, best, latest}


def test_cleanup_store_serves_the_other_experiments(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment whose cleanup fails stops no other one and hides no report, and fails the run."""
    for name in ("one", "two"):
        saved(config, name)
    clean = CheckpointManager.cleanup_checkpoints

    def refused(self: CheckpointManager, **options: Any) -> Any:
        if self.experiment_name == "one":
            raise StorePermissionError("the folder is read-only")
        return clean(self, **options)

    monkeypatch.setattr(CheckpointManager, "cleanup_checkpoints", refused)
    state = cleanup_store(config, KeepNewest(count=1), return_state=True)
    assert state.is_failed()
    published = artifacts(state)
    assert "cleanup-two" in published
    assert "cleanup-one" not in published
    assert len(CheckpointManager(config, "two").checkpoint_ids()) == 2


@pytest.mark.parametrize("flow", [train, checkpoint_lifecycle, validate_store, cleanup_store, manage_backups])
def test_forms_describe_every_option(flow: Any) -> None:
    """The form of a flow describes every parameter, and every option of the configuration and the training."""
    schema = flow.parameters.model_dump()
    assert all(parameter.get("description") for parameter in schema["properties"].values())
    training = schema["definitions"].get("TrainingParameters", {"properties": {}})["properties"]
    assert all(field.get("description") for field in training.values())
    options = schema["definitions"]["CheckpointConfig"]["properties"]
    assert all(option["description"] for option in options.values())
    rules = [item["properties"] for name, item in schema["definitions"].items() if name.startswith("Keep")]
    fields = [field for rule in rules for name, field in rule.items() if name != "kind"]
    assert all(field.get("description") for field in fields)


def test_wrong_parameters_are_refused_before_anything_runs(config: CheckpointConfig) -> None:
    """What the form would refuse, the flow refuses."""
    state = train.with_options()("digits", {"save_interval": 0}, return_state=True)
    assert state.is_failed()
    assert "save_interval" in str(state.message)
    assert not Path(config.checkpoint_dir).exists()
