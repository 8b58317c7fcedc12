"""The interface that was asked for, called as it was asked for."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, CheckpointMetadata
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError
from tests.helpers import MakeManager, Parts, build, flip_bit, ids, manifest_path, payload_path, save, state_of, train

ID = re.compile(r"checkpoint_epoch_\d{4,}_step_\d{6,}_\d{8}_\d{6}(_\d+)?")


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


def test_config_keys_that_become_the_same_text_are_refused(manager: CheckpointManager) -> None:
    """Keys become text; where two would become one, no value is lost silently."""
    assert manager.save_checkpoint(model=build().model, epoch=1, config={1: "a"}) is not None
    with pytest.raises(ConfigError, match="the same text"):
        manager.save_checkpoint(model=build().model, epoch=2, config={1: "a", "1": "b"})
