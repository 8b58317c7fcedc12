"""The interface that was asked for, called as it was asked for, and the behaviour that goes with it."""

from __future__ import annotations

import hashlib
import json
import re
import site
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, CheckpointMetadata
from ckpt_lib.core.monitor import Mode
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, UnknownMetricError
from ckpt_lib.policies.retention import KeepAnyOf, KeepBest, KeepNewest, KeepTagged
from ckpt_lib.policies.saving import AllOf, AnyOf, EveryEpochs, EverySteps, OnImprovement, SaveContext, When
from tests.helpers import (
    MakeManager,
    Parts,
    backup_ids,
    build,
    contents,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    state_of,
    train,
)

ID = re.compile(r"checkpoint_epoch_\d{4,}_step_\d{6,}_\d{8}_\d{6}(_\d+)?")
PAYLOAD_KEYS = {
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "epoch",
    "step",
    "metrics",
    "config",
    "extra_state",
}


def test_manager_takes_the_experiment_name_by_keyword_and_by_position(store_path: Path) -> None:
    """Both spellings mean the same experiment."""
    config = CheckpointConfig(checkpoint_dir=str(store_path))
    saved = save(CheckpointManager(config, experiment_name="my_experiment"), 1)
    assert ids(CheckpointManager(config, "my_experiment")) == [saved]


def test_creating_a_manager_writes_nothing(make_manager: MakeManager, store_path: Path) -> None:
    """A manager that only looks leaves no trace, whatever it is asked."""
    manager = make_manager()
    assert manager.list_checkpoints() == []
    assert manager.get_latest_checkpoint() is None
    assert manager.get_best_checkpoint() is None
    assert manager.get_checkpoint_summary()["total_checkpoints"] == 0
    assert manager.resume() is None
    assert manager.cleanup_checkpoints().deleted_ids == ()
    assert list(manager.validate_all()) == []
    assert not store_path.exists()


def test_save_takes_all_that_was_asked_for_and_returns_the_id(manager: CheckpointManager, parts: Parts) -> None:
    """The full call works, and its facts come back."""
    checkpoint_id = manager.save_checkpoint(
        model=parts.model,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        epoch=1,
        step=100,
        metrics={"val_loss": 0.25, "accuracy": 0.9},
        tags=["baseline", "nightly"],
        description="first try",
    )
    assert checkpoint_id is not None
    assert ID.fullmatch(checkpoint_id)
    assert checkpoint_id.startswith("checkpoint_epoch_0001_step_000100_")
    found = manager.get_checkpoint(checkpoint_id)
    assert (found.epoch, found.step, found.tags) == (1, 100, ("baseline", "nightly"))
    assert (found.metrics, found.description) == ({"val_loss": 0.25, "accuracy": 0.9}, "first try")


def test_everything_but_model_and_epoch_may_be_left_out(manager: CheckpointManager) -> None:
    """The shortest call works; step is then 0 and the parts that were not given are None."""
    checkpoint_id = manager.save_checkpoint(model=nn.Linear(2, 1), epoch=3)
    assert checkpoint_id is not None
    payload = manager.load_checkpoint(checkpoint_id=checkpoint_id)
    assert (payload["epoch"], payload["step"], payload["metrics"]) == (3, 0, {})
    assert payload["optimizer_state_dict"] is None
    assert payload["scheduler_state_dict"] is None


def test_save_returns_none_when_the_policy_says_no(make_manager: MakeManager) -> None:
    """Between intervals nothing is written and None is returned."""
    manager = make_manager(save_interval=5)
    found = [manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch) for epoch in range(1, 11)]
    assert [epoch for epoch, item in enumerate(found, start=1) if item is not None] == [5, 10]
    assert len(ids(manager)) == 2


@pytest.mark.parametrize("name", ["id", "latest", "best", "golden"])
def test_load_by_id_keyword_or_tag_restores_every_part(manager: CheckpointManager, name: str) -> None:
    """Each way of naming a checkpoint restores model, optimizer and scheduler bit by bit."""
    parts = build(1)
    train(parts, range(3))
    saved = manager.save_checkpoint(**parts.kwargs(), epoch=3, metrics={"val_loss": 0.1}, tags=["golden"])
    assert saved is not None
    other = build(2)
    assert state_of(other) != state_of(parts)
    payload = manager.load_checkpoint(
        checkpoint_id=saved if name == "id" else name,
        model=other.model,
        optimizer=other.optimizer,
        scheduler=other.scheduler,
    )
    assert payload["epoch"] == 3
    assert payload["checkpoint_id"] == saved
    assert state_of(other) == state_of(parts)


def test_names_stand_for_the_right_checkpoint(manager: CheckpointManager) -> None:
    """latest is the last saved, best the best by the metric, a tag the newest that carries it."""
    saved = [
        save(manager, epoch, loss, tags=["t"] if epoch < 3 else []) for epoch, loss in ((1, 0.5), (2, 0.1), (3, 0.3))
    ]
    for name, expected in (("latest", saved[2]), ("best", saved[1]), ("t", saved[1])):
        assert manager.load_checkpoint(name)["checkpoint_id"] == expected
        assert manager.get_checkpoint(name).checkpoint_id == expected


def test_best_is_missing_while_no_value_competes(manager: CheckpointManager) -> None:
    """Asking for the best without a finite value says why there is none."""
    save(manager, 1, float("nan"))
    with pytest.raises(CheckpointNotFoundError, match="val_loss"):
        manager.load_checkpoint("best")


def test_validate_is_truthy_for_intact_and_falsy_with_the_place_for_damaged(manager: CheckpointManager) -> None:
    """The report is a boolean, and says what is wrong in which file and bytes."""
    saved = save(manager, 1)
    assert manager.validate_checkpoint(saved)
    flip_bit(payload_path(manager, saved), 200)
    report = manager.validate_checkpoint(saved)
    assert not report
    assert report.checkpoint_id == saved
    (damage,) = report.damages
    assert (damage.file, damage.kind) == (f"{saved}.pt", "altered")
    assert damage.start <= 200 < damage.stop
    assert saved in report.message


def test_compare_gives_metric_values_in_the_order_of_the_ids(manager: CheckpointManager) -> None:
    """metrics_comparison follows the ids as they were given, with None where nothing was recorded."""
    first = save(manager, 1, 0.9, metrics={"val_loss": 0.9, "only_first": 1})
    second, third = save(manager, 2, 0.5), save(manager, 3, 0.7)
    found = manager.compare_checkpoints([third, first, second])["metrics_comparison"]
    assert found == {"val_loss": [0.7, 0.9, 0.5], "only_first": [None, 1, None]}


def test_summary_has_the_keys_that_were_asked_for(manager: CheckpointManager) -> None:
    """Totals, the best, the latest, and statistics, with the right values."""
    saved = [save(manager, epoch, loss) for epoch, loss in ((1, 3.0), (2, 1.0), (3, 2.0))]
    summary = manager.get_checkpoint_summary()
    assert summary["total_checkpoints"] == 3
    assert summary["best_checkpoint"] == saved[1]
    assert summary["latest_checkpoint"] == saved[2]
    size = sum(payload_path(manager, item).stat().st_size for item in saved)
    assert summary["total_size_mb"] == pytest.approx(size / 2**20)
    statistics = summary["statistics"]["val_loss"]
    assert {"count": 3, "min": 1.0, "max": 3.0, "mean": 2.0, "first": 3.0, "last": 2.0}.items() <= statistics.items()
    json.dumps(summary)


def test_metadata_has_the_fourteen_fields(manager: CheckpointManager) -> None:
    """CheckpointMetadata holds what was asked for, each field with the right value."""
    saved = save(manager, 2, 0.5, step=7, tags=["a"], description="d", config={"lr": 0.1})
    found = manager.get_checkpoint(saved)
    assert isinstance(found, CheckpointMetadata)
    payload = payload_path(manager, saved)
    assert found.timestamp.utcoffset() == timedelta(0)
    assert found.timestamp.strftime("%Y%m%d_%H%M%S") in saved
    expected: dict[str, Any] = {
        "checkpoint_id": saved,
        "timestamp": found.timestamp,
        "epoch": 2,
        "step": 7,
        "model_name": "Linear",
        "experiment_name": "run",
        "file_size": payload.stat().st_size,
        "checksum": hashlib.sha256(payload.read_bytes()).hexdigest(),
        "metrics": {"val_loss": 0.5},
        "config": {"lr": 0.1},
        "tags": ("a",),
        "description": "d",
        "is_best": True,
        "is_latest": True,
    }
    assert {name: getattr(found, name) for name in expected} == expected


def test_best_and_latest_flags_move_with_the_facts(manager: CheckpointManager) -> None:
    """is_best and is_latest are computed when asked: exactly one of each, on the right checkpoint."""
    saved = [save(manager, epoch, loss) for epoch, loss in ((1, 0.5), (2, 0.2), (3, 0.9))]
    assert [item.is_best for item in manager.list_checkpoints()] == [False, True, False]
    assert [item.is_latest for item in manager.list_checkpoints()] == [False, False, True]
    manager.delete_checkpoint(saved[1])
    manager.delete_checkpoint(saved[2])
    (left,) = manager.list_checkpoints()
    assert left.is_best
    assert left.is_latest


def test_names_on_disk(manager: CheckpointManager) -> None:
    """Payload, manifest, checkpoint_metadata.json and backups/ lie where they were asked for; backups have pointers."""
    saved = save(manager, 1, step=100)
    folder = experiment_folder(manager)
    assert folder.name == "run"
    names = {name for name in contents(folder) if not name.startswith("backups/uids")}
    pair = {f"{saved}.pt", f"{saved}.json"}
    assert names == pair | {"checkpoint_metadata.json", "backups"} | {f"backups/{name}" for name in pair}


def test_checkpoint_metadata_json_lists_every_checkpoint(manager: CheckpointManager) -> None:
    """The file for people follows saves, edits and deletions."""
    saved = [save(manager, epoch) for epoch in (1, 2, 3)]
    manager.edit_checkpoint(saved[1], add_tags=["kept"])
    manager.delete_checkpoint(saved[0])
    content = json.loads((experiment_folder(manager) / "checkpoint_metadata.json").read_text())
    assert content["experiment_name"] == "run"
    assert [item["checkpoint_id"] for item in content["checkpoints"]] == saved[1:]
    assert content["checkpoints"][0]["tags"] == ["kept"]


def test_save_metadata_false_leaves_out_the_extras(make_manager: MakeManager) -> None:
    """Without metadata there is no snapshot and no run config, and the checkpoint is as good as any."""
    manager = make_manager(save_metadata=False)
    saved = save(manager, 1, config={"lr": 1})
    assert not (experiment_folder(manager) / "checkpoint_metadata.json").exists()
    assert manager.get_checkpoint(saved).config == {}
    assert manager.validate_checkpoint(saved)


# --- files ---


def test_sha256_is_what_other_tools_compute(manager: CheckpointManager) -> None:
    """The checksum is that of hashlib and of sha256sum over the payload file."""
    saved = save(manager, 1)
    path = payload_path(manager, saved)
    checksum = manager.get_checkpoint(saved).checksum
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    if sys.platform == "linux":
        printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
        assert checksum == printed.split()[0]


def test_plain_torch_reads_the_payload_without_our_code(manager: CheckpointManager, parts: Parts) -> None:
    """torch.load(weights_only=True) of a Python that cannot import us reads exactly the documented keys."""
    train(parts, range(2))
    saved = manager.save_checkpoint(
        **parts.kwargs(), epoch=4, step=8, metrics={"val_loss": 0.5}, config={"lr": 0.1}, extra_state={"rng": [1, 2]}
    )
    assert saved is not None
    code = """
import sys
sys.path.extend(sys.argv[2:])
import importlib.util, json, torch
assert importlib.util.find_spec("ckpt_lib") is None, "our code is on the path"
payload = torch.load(sys.argv[1], weights_only=True)
plain = {key: payload[key] for key in ("epoch", "step", "metrics", "config", "extra_state")}
print(json.dumps({"keys": sorted(payload), "plain": plain, "weight": payload["model_state_dict"]["0.weight"].tolist()}))
"""
    # Without the site module no .pth file is read, through which an editable installation would show.
    command = [sys.executable, "-I", "-S", "-c", code, str(payload_path(manager, saved)), *site.getsitepackages()]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=manager.config.checkpoint_dir, check=False)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert set(found["keys"]) == PAYLOAD_KEYS
    assert found["plain"] == {
        "epoch": 4,
        "step": 8,
        "metrics": {"val_loss": 0.5},
        "config": {"lr": 0.1},
        "extra_state": {"rng": [1, 2]},
    }
    assert found["weight"] == parts.model.state_dict()["0.weight"].tolist()


def test_save_optimizer_and_scheduler_may_be_switched_off(make_manager: MakeManager, parts: Parts) -> None:
    """The payload then holds None in their place, and loading the model alone works."""
    manager = make_manager(save_optimizer=False, save_scheduler=False)
    manager.save_checkpoint(**parts.kwargs(), epoch=1)
    payload = manager.load_checkpoint("latest", model=build(5).model)
    assert payload["optimizer_state_dict"] is None
    assert payload["scheduler_state_dict"] is None


# --- when to save ---


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


# --- tags, descriptions, search ---


def test_tags_and_description_are_editable_and_searchable(manager: CheckpointManager) -> None:
    """An edit changes the facts and never the payload, and search finds the new facts and not the old."""
    first, second = save(manager, 1, tags=["draft"], description="Before the fix"), save(manager, 2)
    payload = payload_path(manager, first).read_bytes()
    edited = manager.edit_checkpoint(first, add_tags=["prod", "prod"], remove_tags=["draft"], description="Größer: gut")
    assert (edited.tags, edited.description) == (("prod",), "Größer: gut")
    assert payload_path(manager, first).read_bytes() == payload

    def found(**query: Any) -> list[str]:
        return [item.checkpoint_id for item in manager.list_checkpoints(**query)]

    assert found(tags=["prod"]) == [first]
    assert found(tags=["draft"]) == []
    assert found(search="GRÖSSER") == [first]
    assert found(search="before") == []
    assert found(search="") == [first, second]
    manager.edit_checkpoint(second, description="no tags here")
    assert manager.get_checkpoint(second).tags == ()


def test_tags_are_found_however_their_accents_are_spelled(manager: CheckpointManager) -> None:
    """Composed and decomposed Unicode are one tag, when saved, searched and loaded."""
    saved = save(manager, 1, tags=["cafe\u0301"])
    for spelling in ("caf\u00e9", "cafe\u0301"):
        assert [item.checkpoint_id for item in manager.list_checkpoints(tags=[spelling])] == [saved]
        assert [item.checkpoint_id for item in manager.list_checkpoints(search=spelling)] == [saved]
        assert manager.load_checkpoint(spelling)["checkpoint_id"] == saved


def test_lists_can_be_filtered_sorted_and_limited(manager: CheckpointManager) -> None:
    """Epoch range, order by facts or metrics, and limit do what they say; values that do not compare come last."""
    rows = ((1, 0.5), (2, float("nan")), (3, 0.1), (4, 0.3))
    saved = {epoch: save(manager, epoch, loss) for epoch, loss in rows}

    def epochs(**query: Any) -> list[int]:
        return [item.epoch for item in manager.list_checkpoints(**query)]

    assert len(saved) == 4
    assert epochs(min_epoch=2, max_epoch=3) == [2, 3]
    assert epochs(sort_by="epoch", descending=True, limit=2) == [4, 3]
    assert epochs(sort_by="val_loss") == [3, 4, 1, 2]
    assert epochs(sort_by="val_loss", descending=True) == [1, 4, 3, 2]
    assert epochs(limit=0) == []
    with pytest.raises(UnknownMetricError, match="val_los"):
        epochs(sort_by="val_los")


# --- backups ---


def test_backups_have_their_own_folder_and_their_own_retention(make_manager: MakeManager) -> None:
    """Each save is backed up, and backups are retired by max_backups alone."""
    manager = make_manager(max_checkpoints=2, max_backups=4)
    saved = [save(manager, epoch, 1 / epoch) for epoch in range(1, 7)]
    assert ids(manager) == saved[-2:]
    assert backup_ids(manager) == saved[-4:]
    folder = experiment_folder(manager) / "backups"
    assert {path.name for path in folder.glob("*.pt")} == {f"{item}.pt" for item in saved[-4:]}


def test_only_the_best_are_backed_up_when_asked(make_manager: MakeManager) -> None:
    """backup_only_best copies what is the best so far, and nothing else."""
    manager = make_manager(backup_only_best=True)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate((0.5, 0.7, 0.3, 0.4, float("nan")), start=1)]
    assert backup_ids(manager) == [saved[0], saved[2]]


def test_no_backups_when_switched_off(make_manager: MakeManager) -> None:
    """backup_checkpoints=False makes no copy until one is asked for."""
    manager = make_manager(backup_checkpoints=False)
    saved = save(manager, 1)
    assert backup_ids(manager) == []
    assert not (experiment_folder(manager) / "backups").exists()
    assert manager.backup_checkpoint(saved)
    assert backup_ids(manager) == [saved]


# --- export, import, cleanup ---


def test_export_and_import_through_a_folder(make_manager: MakeManager, tmp_path: Path) -> None:
    """An export is a plain torch file with its manifest; importing it elsewhere gives the same checkpoint."""
    source, target = make_manager("a"), make_manager("b", checkpoint_dir=str(tmp_path / "other"))
    saved = save(source, 1, tags=["golden"], description="d")
    location = source.export_checkpoint(saved, tmp_path / "exports")
    assert Path(location) == tmp_path / "exports" / f"{saved}.pt"
    assert set(torch.load(location, weights_only=True)) == PAYLOAD_KEYS
    imported = target.import_checkpoint(location)
    assert imported == saved
    found = target.get_checkpoint(imported)
    assert (found.experiment_name, found.tags, found.description) == ("b", ("golden",), "d")
    assert found.checksum == source.get_checkpoint(saved).checksum
    assert target.validate_checkpoint(imported)


def test_old_checkpoints_are_retired_automatically(make_manager: MakeManager) -> None:
    """After each save at most max_checkpoints are left, the best and the newest among them."""
    manager = make_manager(max_checkpoints=3)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate((0.9, 0.1, 0.8, 0.7, 0.6, 0.5), start=1)]
    assert ids(manager) == [saved[1], saved[4], saved[5]]
    assert {path.name for path in experiment_folder(manager).glob("*.pt")} == {f"{item}.pt" for item in ids(manager)}


def test_cleanup_on_demand_takes_another_policy(manager: CheckpointManager) -> None:
    """A retention policy given to the call decides, and every decision has its reason."""
    saved = [
        save(manager, epoch, loss, tags=["keep"] if epoch == 2 else [])
        for epoch, loss in enumerate((0.9, 0.8, 0.1, 0.7, 0.6), start=1)
    ]
    policy = KeepAnyOf(policies=(KeepNewest(count=1), KeepBest(count=1), KeepTagged(tags=("keep",))))
    planned = manager.cleanup_checkpoints(policy=policy, dry_run=True)
    assert ids(manager) == saved
    report = manager.cleanup_checkpoints(policy=policy)
    assert report.plan == planned.plan
    assert set(report.deleted_ids) == {saved[0], saved[3]}
    assert ids(manager) == [saved[1], saved[2], saved[4]]
    assert all(decision.reason for decision in report.plan.decisions)
    assert report.trashed_bytes == planned.plan.freed_bytes > 0 == report.freed_bytes


def test_the_newest_is_found_by_sequence_and_not_by_clock(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stamps that go backwards change neither latest nor the order of lists."""
    import datetime as standard

    from ckpt_lib.core import facts

    class Clock(standard.datetime):
        hour_now = 12

        @classmethod
        def now(cls, tz: standard.tzinfo | None = None) -> Clock:
            return cls(2023, 12, 1, cls.hour_now, 30, 22, tzinfo=tz)

    monkeypatch.setattr(facts, "datetime", Clock)
    saved = []
    for hour in (12, 9, 6):
        Clock.hour_now = hour
        saved.append(save(manager, 1))
    assert saved == [f"checkpoint_epoch_0001_step_000000_20231201_{hour}3022" for hour in ("12", "09", "06")]
    assert ids(manager) == saved
    assert manager.get_checkpoint("latest").checkpoint_id == saved[-1]
    assert [item.sequence for item in manager.list_checkpoints()] == [1, 2, 3]


def test_saves_of_one_second_get_ids_of_their_own(manager: CheckpointManager) -> None:
    """Epoch and step repeated within a second never overwrite: ids differ by a suffix, and order is kept."""
    saved = [save(manager, 1) for _ in range(4)]
    assert len(set(saved)) == 4
    assert ids(manager) == saved
    assert all(manager.validate_checkpoint(item) for item in saved)


def test_an_id_and_a_sequence_are_not_given_again_while_a_backup_has_them(manager: CheckpointManager) -> None:
    """What is saved after a deletion cannot be confused with what a backup may bring back, nor come before it."""
    first, second = save(manager, 1), save(manager, 9)
    manager.delete_checkpoint(second)
    third = save(manager, 2)
    fourth = save(manager, 9)
    manager.restore_checkpoint(second)
    assert fourth != second
    assert ids(manager) == [first, second, third, fourth]
    assert len({item.sequence for item in manager.list_checkpoints()}) == 4


@pytest.mark.parametrize("backup", [True, False])
def test_a_damaged_manifest_keeps_its_place_in_the_order(make_manager: MakeManager, backup: bool) -> None:
    """The next save comes after the checkpoint whose manifest cannot be read, also once that is back."""
    manager = make_manager(backup_checkpoints=backup)
    first, second = save(manager, 1), save(manager, 9)
    content = manifest_path(manager, second).read_bytes()
    flip_bit(manifest_path(manager, second), 50)
    third = save(manager, 2)
    manifest_path(manager, second).write_bytes(content)
    assert ids(manager) == [first, second, third]
    assert manager.get_checkpoint("latest").checkpoint_id == third


def test_an_id_that_retention_freed_is_not_given_again(make_manager: MakeManager) -> None:
    """Many saves of one second and few places: each save still gets an id of its own."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=2)
    saved = [save(manager, 1) for _ in range(8)]
    assert len(set(saved)) == len(saved)


def test_best_only_goes_on_after_the_best_was_lost(make_manager: MakeManager) -> None:
    """A best checkpoint whose payload is gone does not keep the next ones from being saved."""
    manager = make_manager(save_best_only=True)
    best = save(manager, 1, 0.1)
    assert save_or_not(manager, 2, 0.5) is None
    payload_path(manager, best).unlink()
    assert save_or_not(manager, 3, 0.5) is not None


def test_the_summary_and_latest_tell_of_what_cannot_be_read(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint with a damaged manifest is counted apart, and asking for the latest warns of it."""
    manager = make_manager()
    first, second = save(manager, 1, 0.5), save(manager, 2, 0.4)
    manifest_path(manager, second).write_text("{}")
    assert manager.get_checkpoint_summary()["unreadable_checkpoints"] == [second]
    assert manager.load_checkpoint("latest")["checkpoint_id"] == first
    assert f"{second} may be newer" in caplog.text


def save_or_not(manager: CheckpointManager, epoch: int, loss: float) -> str | None:
    return manager.save_checkpoint(model=build().model, epoch=epoch, metrics={"val_loss": loss})


def test_config_keys_that_become_the_same_text_are_refused(manager: CheckpointManager) -> None:
    """Keys become text; where two would become one, no value is lost silently."""
    assert manager.save_checkpoint(model=build().model, epoch=1, config={1: "a"}) is not None
    with pytest.raises(ConfigError, match="the same text"):
        manager.save_checkpoint(model=build().model, epoch=2, config={1: "a", "1": "b"})
