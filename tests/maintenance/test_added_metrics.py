"""Metrics that are added after a save: counted at every door, recorded with their source, and never lost."""

from __future__ import annotations

import json
import math
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ckpt_lib import CheckpointConfig, CheckpointManager, describe_experiments, find_checkpoints
from ckpt_lib.core.manifest import Manifest, parse_record
from ckpt_lib.core.metadata import MAX_METRICS, AddedMetric
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    InvalidMetricError,
    InvalidNameError,
    MetricConflictError,
    StoreError,
)
from ckpt_lib.events import Event
from ckpt_lib.maintenance import transfer
from ckpt_lib.maintenance.added_metrics import Addition
from ckpt_lib.policies.retention import KeepBest
from ckpt_lib.store.local import LocalStore
from tests.core.examples import example
from tests.helpers import (
    MakeManager,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    snapshot,
    start_python,
)

EVAL, OTHER = "eval/mnist-test", "eval/other"


def history(manager: CheckpointManager, checkpoint_id: str) -> list[tuple[str, Any, str | None]]:
    """What was recorded for each metric, oldest first."""
    return [(item.name, item.value, item.source) for item in manager.get_checkpoint(checkpoint_id).added_metrics]


def backup_manifest(manager: CheckpointManager, checkpoint_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((experiment_folder(manager) / "backups" / f"{checkpoint_id}.json").read_text())
    return found


def test_an_added_metric_counts_at_every_door(make_manager: MakeManager) -> None:
    """Lists, conditions, sorting, best, comparison, summary, retention and the index take it for any other metric."""
    manager = make_manager(backup_checkpoints=False)
    first, second, third = (save(manager, epoch) for epoch in (1, 2, 3))
    before = datetime.now(UTC).replace(microsecond=0)
    added = manager.add_metrics(first, {"accuracy": 0.91, "f1": 1}, source=EVAL)
    assert added.metrics == {"val_loss": 0.5, "accuracy": 0.91, "f1": 1}
    assert history(manager, first) == [("accuracy", 0.91, EVAL), ("f1", 1, EVAL)]
    assert before <= added.added_metrics[0].at <= datetime.now(UTC)
    manager.add_metrics("latest", {"accuracy": 0.95}, source=EVAL)
    assert [item.checkpoint_id for item in manager.list_checkpoints(where=["accuracy>0.9"])] == [first, third]
    ranked = manager.list_checkpoints(sort_by="accuracy", descending=True)
    assert [item.checkpoint_id for item in ranked] == [third, first, second]
    best = manager.get_best_checkpoint("accuracy", "max")
    assert best is not None
    assert best.checkpoint_id == third
    assert manager.compare_checkpoints([first, third])["metrics_comparison"]["accuracy"] == [0.91, 0.95]
    assert manager.get_checkpoint_summary()["statistics"]["accuracy"]["max"] == 0.95
    assert [item.checkpoint_id for item in find_checkpoints(manager.config, where=["accuracy>0.94"])] == [third]
    manager.set_monitor("accuracy", "max")
    assert [(item.best_checkpoint, item.best_value) for item in describe_experiments(manager.config)] == [(third, 0.95)]
    manager.cleanup_checkpoints(policy=KeepBest(count=1, metric="accuracy", mode="max"))
    assert third in ids(manager)
    assert second not in ids(manager)


def test_the_same_value_again_changes_nothing(manager: CheckpointManager) -> None:
    """Not a byte of the store: an evaluation that runs twice has one result."""
    saved = save(manager, 1, metrics={"val_loss": 0.5})
    same = {"accuracy": 0.91, "inf": math.inf, "nan": math.nan, "note": "x", "none": None, "val_loss": 0.5}
    manager.add_metrics(saved, same, source=EVAL)
    before = snapshot(Path(manager.config.checkpoint_dir))
    for replace in (False, True):
        manager.add_metrics(saved, same, source=EVAL, replace=replace)
    assert snapshot(Path(manager.config.checkpoint_dir)) == before


def test_the_same_value_from_another_source_is_noted(manager: CheckpointManager) -> None:
    """The values stay, and it is known who has measured them; else an evaluation would be made again and again."""
    saved = save(manager, 1, metrics={"val_loss": 0.5, "nan": math.nan})
    manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
    before = manager.get_checkpoint(saved).metrics
    found = manager.add_metrics(saved, {"accuracy": 0.91, "val_loss": 0.5, "nan": math.nan}, source=OTHER)
    assert repr(found.metrics) == repr(before)
    assert [(item.name, item.source) for item in found.added_metrics] == [
        ("accuracy", EVAL),
        *(("val_loss", None), ("nan", None)),
        *(("accuracy", OTHER), ("val_loss", OTHER), ("nan", OTHER)),
    ]


@pytest.mark.parametrize("value", [0.92, math.nan, "0.91", None])
def test_another_value_is_refused(manager: CheckpointManager, value: Any) -> None:
    """The error says who recorded which value; none of what was given beside it is added."""
    saved = save(manager, 1, loss=0.91)
    manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
    before = manifest_path(manager, saved).read_bytes()
    for name, recorded_by in (("accuracy", f"by '{EVAL}' at 20"), ("val_loss", "by the save")):
        with pytest.raises(MetricConflictError, match=recorded_by) as caught:
            manager.add_metrics(saved, {"new": 1.0, name: value}, source=OTHER)
        assert (caught.value.checkpoint_id, caught.value.expected) == (saved, "0.91")
        assert OTHER in str(caught.value.got)
    assert manifest_path(manager, saved).read_bytes() == before


def test_a_replaced_value_stays_on_record(manager: CheckpointManager) -> None:
    """Each earlier value with its time and source, that of the save included."""
    saved = save(manager, 1, loss=0.5)
    manager.add_metrics(saved, {"accuracy": 0.91, "val_loss": 0.4}, source=EVAL, replace=True)
    manager.add_metrics(saved, {"accuracy": 0.92}, source=OTHER, replace=True)
    replaced = manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL, replace=True)
    assert replaced.metrics == {"val_loss": 0.4, "accuracy": 0.91}
    assert history(manager, saved) == [
        ("val_loss", 0.5, None),
        ("accuracy", 0.91, EVAL),
        ("val_loss", 0.4, EVAL),
        ("accuracy", 0.92, OTHER),
        ("accuracy", 0.91, EVAL),
    ]
    assert replaced.added_metrics[0].at == replaced.timestamp


@given(
    calls=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 0.5, 1.0, math.nan, None, "t"]), min_size=1),
            st.sampled_from([EVAL, OTHER]),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_the_record_explains_every_value(calls: list[tuple[dict[str, Any], str, bool]]) -> None:
    """Whatever is added in whatever order: it only grows, its last entry is the value, and it survives the file."""
    manifest = example()
    for metrics, source, replace in calls:
        before = manifest
        try:
            manifest = Addition.of(metrics, source, replace=replace)(before)
        except MetricConflictError:
            assert not replace
        assert manifest.added_metrics[: len(before.added_metrics)] == before.added_metrics
        again = Addition.of(metrics, source, replace=False)
        if manifest is not before:
            assert again(manifest) is manifest
    read = parse_record(manifest.to_bytes(), path="x.json")
    assert isinstance(read, Manifest)
    assert read.to_bytes() == manifest.to_bytes()
    last = {item.name: item.value for item in read.added_metrics}
    assert repr({name: read.metrics[name] for name in last}) == repr(last)
    assert read.metrics.keys() == example().metrics.keys() | last.keys()


@pytest.mark.parametrize(
    ("metrics", "source", "error"),
    [
        ({}, EVAL, InvalidMetricError),
        (None, EVAL, InvalidMetricError),
        ([("accuracy", 1)], EVAL, InvalidMetricError),
        ({"accuracy": [1]}, EVAL, InvalidMetricError),
        ({"": 1}, EVAL, InvalidMetricError),
        ({f"m{number}": 1 for number in range(MAX_METRICS)}, EVAL, InvalidMetricError),
        ({"accuracy": 1}, "", InvalidNameError),
        ({"accuracy": 1}, " eval", InvalidNameError),
        ({"accuracy": 1}, "e\nval", InvalidNameError),
        ({"accuracy": 1}, "e" * 101, InvalidNameError),
        ({"accuracy": 1}, None, InvalidNameError),
    ],
)
def test_what_cannot_be_added_is_refused(
    manager: CheckpointManager, metrics: Any, source: Any, error: type[Exception]
) -> None:
    """With a typed error, before anything is written; with those of the save there would be too many."""
    saved = save(manager, 1)
    before = manifest_path(manager, saved).read_bytes()
    with pytest.raises(error):
        manager.add_metrics(saved, metrics, source=source)
    assert manifest_path(manager, saved).read_bytes() == before


def test_a_manifest_has_room_for_so_many_additions() -> None:
    """A writer refuses what a reader would refuse."""
    entry = AddedMetric(name="a", value=1, at=datetime(2026, 1, 1, tzinfo=UTC), source=EVAL)
    full = example(metrics={"a": 1}, added_metrics=(entry,) * MAX_METRICS)
    assert isinstance(parse_record(full.to_bytes(), path="x.json"), Manifest)
    with pytest.raises(InvalidMetricError, match="no room"):
        Addition.of({"a": 2}, EVAL, replace=True)(full)


def test_additions_at_once_all_survive(make_manager: MakeManager) -> None:
    """Of different metrics by different processes, each is there with its source; of one value, each source."""
    manager = make_manager()
    saved = save(manager, 1)
    managers = [make_manager() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda pair: pair[1].add_metrics(saved, {f"m{pair[0]}": pair[0], "same": 1}, source=f"s{pair[0]}"),
                enumerate(managers),
            )
        )
    found = history(manager, saved)
    assert sorted(item for item in found if item[0] != "same") == [(f"m{n}", n, f"s{n}") for n in range(8)]
    assert sorted(item for item in found if item[0] == "same") == [("same", 1, f"s{n}") for n in range(8)]
    assert backup_manifest(manager, saved)["metrics"] == manager.get_checkpoint(saved).metrics


def test_what_is_added_decides_the_best(manager: CheckpointManager) -> None:
    """And is told: what was added, and then that another one is the best. NaN and what is unhealthy never are."""
    heard: list[Event] = []
    first, second = save(manager, 1, metrics={"val_loss": 1}), save(manager, 2, metrics={"val_loss": 1})
    manager.add_metrics(first, {"accuracy": 0.5}, source=EVAL)
    manager.set_monitor("accuracy", "max")
    manager.on_event(heard.append)
    changed = manager.add_metrics(second, {"accuracy": 0.9}, source=EVAL)
    assert changed.is_best
    assert [(event.kind, event.checkpoint_id) for event in heard] == [
        ("checkpoint.metrics_added", second),
        ("checkpoint.best_changed", second),
    ]
    assert heard[0].details == {"source": EVAL, "metrics": ["accuracy"]}
    assert heard[0].checkpoint is not None
    assert heard[0].checkpoint.metrics["accuracy"] == 0.9
    manager.add_metrics(second, {"accuracy": 0.9}, source=EVAL)
    assert [event.key for event in heard[2:]] == [event.key for event in heard[:2]]
    assert not manager.add_metrics(second, {"accuracy": math.nan}, source=OTHER, replace=True).is_best
    assert heard[-1].kind == "checkpoint.best_changed"
    assert heard[-1].checkpoint_id == first


TELLS = ("checkpoint.metrics_added", "checkpoint.best_changed")


@pytest.mark.parametrize("dies_at", range(3))
def test_a_process_that_is_killed_is_made_up_for(make_manager: MakeManager, dies_at: int) -> None:
    """Killed before one of the events or after both: a repeat emits both, with the keys that they had."""
    manager = make_manager()
    worse, better = save(manager, 1), save(manager, 2)
    folder = manager.config.checkpoint_dir
    with start_python(_ADD_AND_DIE, folder, better, str(dies_at)) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    before = [tuple(line.split()) for line in Path(folder, "told").read_text().splitlines()]
    assert [kind for kind, _ in before] == list(TELLS[:dies_at])
    told: list[Event] = []
    again = make_manager()
    again.on_event(told.append)
    for _ in range(2):
        again.add_metrics(better, {"val_loss": 0.1}, source=EVAL, replace=True)
    assert [event.kind for event in told] == [*TELLS, *TELLS]
    assert {event.checkpoint_id for event in told} == {better}
    assert [event.details["before"] for event in told if "before" in event.details] == [worse, worse]
    assert len({(event.kind, event.key) for event in told} | set(before)) == 2


_ADD_AND_DIE = f"""
import os, signal, sys
from pathlib import Path
from ckpt_lib import CheckpointConfig, CheckpointManager

folder, checkpoint_id, dies_at = sys.argv[1:]

def note(event):
    told = Path(folder, "told")
    if len(told.read_text().splitlines()) == int(dies_at):
        os.kill(os.getpid(), signal.SIGKILL)
    with told.open("a") as file:
        print(event.kind, event.key, file=file)

Path(folder, "told").touch()
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder), "run")
manager.on_event(note)
manager.add_metrics(checkpoint_id, {{"val_loss": 0.1}}, source={EVAL!r}, replace=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_repeat_tells_nothing_of_what_others_have_made_the_best(make_manager: MakeManager) -> None:
    """The save of the one that is the best now has told that."""
    manager = make_manager()
    save(manager, 1)
    second = save(manager, 2)
    manager.add_metrics(second, {"val_loss": 0.1}, source=EVAL, replace=True)
    save(manager, 3, metrics={"val_loss": 0.01})
    kinds: list[str] = []
    again = make_manager()
    again.on_event(lambda event: kinds.append(event.kind))
    again.add_metrics(second, {"val_loss": 0.1}, source=EVAL, replace=True)
    assert kinds == ["checkpoint.metrics_added"]


def test_additions_have_keys_of_their_own(make_manager: MakeManager) -> None:
    """Also one that records only a part of its metrics, since the same source has recorded the others."""
    manager = make_manager()
    first, second = save(manager, 1), save(manager, 2)
    told: list[Event] = []
    manager.on_event(told.append)
    manager.add_metrics(first, {"accuracy": 0.1}, source=EVAL)
    manager.add_metrics(first, {"accuracy": 0.1, "f1": 0.1}, source=EVAL)
    manager.add_metrics(first, {"f1": 0.1}, source=OTHER)
    manager.add_metrics(second, {"accuracy": 0.1}, source=EVAL)
    assert len({event.key for event in told}) == len(told) == 4


def test_a_source_that_was_replaced_says_the_same_again(make_manager: MakeManager) -> None:
    """Nothing changes: what another source has measured since is not taken for its own value."""
    manager = make_manager()
    saved = save(manager, 1)
    manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
    manager.add_metrics(saved, {"accuracy": 0.89}, source=OTHER, replace=True)
    before = snapshot(Path(manager.config.checkpoint_dir))
    assert manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL).metrics["accuracy"] == 0.89
    assert snapshot(Path(manager.config.checkpoint_dir)) == before
    assert manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL, replace=True).metrics["accuracy"] == 0.91


def test_one_that_is_not_there(manager: CheckpointManager) -> None:
    """Deleted, in quarantine or never saved: not found, as for any edit."""
    first, second, _ = save(manager, 1), save(manager, 2), save(manager, 3)
    manager.delete_checkpoint(first)
    flip_bit(payload_path(manager, second), 500)
    flip_bit(experiment_folder(manager) / "backups" / f"{second}.pt", 500)
    manager.quarantine_checkpoint(second)
    for name in (first, second, "no-such-tag", "checkpoint_epoch_0009_step_000000_20250101_120000"):
        with pytest.raises(CheckpointNotFoundError):
            manager.add_metrics(name, {"accuracy": 1}, source=EVAL)


def test_copies_carry_what_was_added(make_manager: MakeManager, tmp_path: Path) -> None:
    """A backup made before gets it, a later one has it; restores, exports and imports keep it with its source."""
    manager = make_manager(trash_seconds=0)
    saved, _ = save(manager, 1), save(manager, 2)
    manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
    kept = manager.get_checkpoint(saved)
    assert manager.get_backup(saved).added_metrics == kept.added_metrics
    manager.delete_checkpoint(saved)
    manager.empty_trash()
    assert manager.restore_checkpoint(saved).added_metrics == kept.added_metrics
    manager.delete_backup(saved)
    manager.backup_checkpoint(saved)
    assert manager.get_backup(saved).metrics == kept.metrics
    manager.export_checkpoint(saved, tmp_path / "exported")
    other = make_manager("other")
    imported = other.get_checkpoint(other.import_checkpoint(tmp_path / "exported" / f"{saved}.pt"))
    assert (imported.metrics, imported.added_metrics) == (kept.metrics, kept.added_metrics)


def test_backups_are_ranked_by_what_was_added(make_manager: MakeManager) -> None:
    """The backup of the best by an added metric stays, although it was made before that was known."""
    manager = make_manager(max_backups=2)
    first = save(manager, 1)
    manager.add_metrics(first, {"accuracy": 0.9}, source=EVAL)
    manager.set_monitor("accuracy", "max")
    latest = [save(manager, epoch) for epoch in (2, 3, 4)][-1]
    assert [item.checkpoint_id for item in manager.list_backups()] == [first, latest]


def test_a_backup_that_is_made_meanwhile_gets_it_too(
    manager: CheckpointManager, make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was added after the copier had read the manifest, and before the backup was there."""
    saved = save(manager, 1)
    manager.delete_backup(saved)
    real = transfer.backup

    def slow(*args: Any, **options: Any) -> bool:
        make_manager().add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
        return real(*args, **options)

    monkeypatch.setattr(transfer, "backup", slow)
    manager.backup_checkpoint(saved)
    assert backup_manifest(manager, saved)["metrics"]["accuracy"] == 0.91


def test_a_backup_that_cannot_be_reached_fails_nothing(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, the checkpoint has its metrics, and the same call again gives them to the backup."""
    saved = save(manager, 1)
    real = LocalStore.put

    def refuse(store: LocalStore, key: str, *args: Any, **options: Any) -> Any:
        if "backups" in key:
            raise StoreError("the store failed: Input/output error")
        return real(store, key, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", refuse)
        manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
    assert "adding metrics to the backup" in caplog.text
    assert manager.get_checkpoint(saved).metrics["accuracy"] == 0.91
    assert "accuracy" not in backup_manifest(manager, saved)["metrics"]
    manager.add_metrics(saved, {"accuracy": 0.91}, source=EVAL)
    assert backup_manifest(manager, saved)["metrics"]["accuracy"] == 0.91


def test_unknown_fields_of_an_addition_survive(manager: CheckpointManager) -> None:
    """What newer versions record of it stays through a rewrite by this one."""
    entry = {"name": "a", "value": 1, "at": "2026-01-01T00:00:00Z", "source": EVAL, "by": "somebody"}
    manifest = example(added_metrics=[entry], metrics={"a": 1})
    changed = Addition.of({"a": 2}, OTHER, replace=True)(manifest)
    assert json.loads(changed.to_bytes())["added_metrics"][0] == entry


def test_a_manifest_with_a_source_that_cannot_be_shown_is_refused() -> None:
    """As with any field that no writer stores."""
    with pytest.raises(ValidationError, match="cannot be the source"):
        example(added_metrics=[{"name": "a", "value": 1, "at": "2026-01-01T00:00:00Z", "source": "e\x1bval"}])


def test_in_a_store_that_is_not_local(tmp_path: Path) -> None:
    """A store without folders has the same."""
    config = CheckpointConfig(checkpoint_dir=f"memory://{tmp_path.name}", backup_checkpoints=False)
    manager = CheckpointManager(config, "run")
    saved = save(manager, 1)
    assert manager.add_metrics(saved, {"accuracy": 0.9}, source=EVAL).metrics["accuracy"] == 0.9
