"""The same best, whichever way one asks: the first save records what is monitored."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.facts import GivenFacts
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, UnknownMetricError
from ckpt_lib.experiment import commit
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.policies.saving import AnyOf, EveryEpochs, OnImprovement
from ckpt_lib.saving import failover
from tests.cli.running import run_json
from tests.helpers import MakeManager, flip_bit, ids, payload_path, save
from tests.saving.failing_stores import strand

ACCURACY = {"monitor_metric": "accuracy", "monitor_mode": "max"}
VALUES = [(0.1, 0.01), (0.9, 5.0), (0.5, 1.0)]


def fill(manager: CheckpointManager, **more: Any) -> None:
    for epoch, (accuracy, loss) in enumerate(VALUES, start=1):
        metrics = {"accuracy": accuracy, "val_loss": loss}
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics=metrics, **more)


def best_epoch(manager: CheckpointManager) -> int | None:
    best = manager.get_best_checkpoint()
    return best.epoch if best else None


def test_every_spelling_of_a_configuration_gives_the_same_best(make_manager: MakeManager) -> None:
    """Defaults, written out by a form or a deployment or left out, do not change what a run has recorded."""
    run = make_manager(**ACCURACY)
    fill(run)
    plain = CheckpointConfig(checkpoint_dir=run.config.checkpoint_dir)
    for config in (
        plain,
        CheckpointConfig(**plain.model_dump()),
        CheckpointConfig(**json.loads(plain.model_dump_json())),
        plain.model_copy(update={"monitor_metric": "val_loss", "monitor_mode": "min"}),
    ):
        manager = CheckpointManager(config, run.experiment_name)
        assert best_epoch(manager) == 2
        assert manager.load_checkpoint("best")["epoch"] == 2
        assert manager.get_checkpoint_summary()["best_checkpoint"] == manager.get_checkpoint("best").checkpoint_id
        assert [item.epoch for item in manager.list_checkpoints() if item.is_best] == [2]
        assert manager.monitor == Monitor(metric="accuracy", mode="max")
        plan = manager.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True).plan
        assert len(plan.kept_ids) == 2


def test_a_question_may_name_its_own_metric(make_manager: MakeManager) -> None:
    """A metric that is asked for by name answers by itself."""
    manager = make_manager(**ACCURACY)
    fill(manager)
    best = manager.get_best_checkpoint("val_loss", "min")
    assert best is not None
    assert best.epoch == 1


def test_another_configuration_warns_and_changes_nothing(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A save with another monitor keeps the record, and says so once, naming both."""
    fill(make_manager(**ACCURACY))
    other = make_manager(monitor_metric="f1", monitor_mode="max")
    caplog.clear()
    fill(other)
    warnings = [record.message for record in caplog.records if "records" in record.message]
    assert len(warnings) == 1
    assert "f1 (max)" in warnings[0]
    assert "accuracy (max)" in warnings[0]
    assert other.monitor.metric == "accuracy"
    caplog.clear()
    fill(make_manager())
    assert "records" not in caplog.text


def ask_for_best(manager: CheckpointManager) -> None:
    manager.get_best_checkpoint()


def ask_for_loading(manager: CheckpointManager) -> None:
    manager.load_checkpoint("best")


def ask_for_resuming(manager: CheckpointManager) -> None:
    manager.resume(nn.Linear(1, 1))


def ask_for_a_plan(manager: CheckpointManager) -> None:
    manager.cleanup_checkpoints(dry_run=True)


def ask_for_a_summary(manager: CheckpointManager) -> None:
    manager.get_checkpoint_summary()


QUESTIONS = [fill, ask_for_best, ask_for_loading, ask_for_resuming, ask_for_a_plan, ask_for_a_summary]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_written_out_defaults_are_a_choice_too(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture, ask: Callable[[CheckpointManager], None]
) -> None:
    """Whatever uses the monitor first tells once that the configuration asks for another; a default asks for none."""
    fill(make_manager(**ACCURACY))
    caplog.clear()
    for config in ({}, ACCURACY):
        ask(make_manager(**config))
    assert "records" not in caplog.text
    manager = make_manager(monitor_metric="val_loss", monitor_mode="min")
    for question in (ask, *QUESTIONS):
        question(manager)
    warnings = [record.message for record in caplog.records if "records" in record.message]
    assert len(warnings) == 1
    assert "val_loss (min)" in warnings[0]
    assert "accuracy (max)" in warnings[0]


def test_who_changes_the_record_is_not_told_of_it(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """After set_monitor the difference is known, whichever of the two the configuration asked for."""
    fill(make_manager(**ACCURACY))
    make_manager(monitor_metric="val_loss").set_monitor("val_loss", "min")
    manager = make_manager(monitor_metric="val_loss")
    manager.set_monitor(metric="accuracy", mode="max")
    ask_for_best(manager)
    assert "records" not in caplog.text


def test_the_record_of_backups_is_not_compared(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """Backups made before the record was changed are no reason to warn."""
    manager = make_manager(**ACCURACY)
    fill(manager)
    manager.set_monitor("val_loss", "min")
    caplog.clear()
    other = make_manager(monitor_metric="val_loss")
    other.get_backup("best")
    other.cleanup_backups(dry_run=True)
    assert "records" not in caplog.text


def test_the_command_line_tells_of_another_choice(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables choose no other best: `ckpt` warns, and answers by the record."""
    manager = make_manager(**ACCURACY)
    fill(manager)
    monkeypatch.setenv("CKPT_MONITOR_METRIC", "val_loss")
    shown = run_json("monitor", store=Path(manager.config.checkpoint_dir))
    assert shown["metric"] == "accuracy"
    assert "monitor_metric is val_loss (min), but the experiment records accuracy (max)" in caplog.text


@pytest.mark.parametrize(
    "options", [{"save_best_only": True}, {"save_interval": 10, "save_best_only": True}, {"on_missing_metric": "raise"}]
)
def test_a_check_refuses_a_metric_as_a_save_does(make_manager: MakeManager, options: dict[str, Any]) -> None:
    """What a save would refuse for want of the monitored metric is refused before training, with the same words."""
    manager = make_manager(monitor_metric="acuracy", **options)
    asked: dict[str, Any] = {"model": nn.Linear(1, 1), "metrics": {"accuracy": 0.5}}
    with pytest.raises(UnknownMetricError) as of_check:
        manager.check(**asked)
    with pytest.raises(UnknownMetricError) as of_save:
        manager.save_checkpoint(**asked, epoch=10)
    assert str(of_check.value) == str(of_save.value)
    assert "monitor_metric in the configuration" in str(of_check.value)
    manager.check(model=nn.Linear(1, 1), metrics={"acuracy": 0.5})


def test_a_check_looks_into_combined_policies(tmp_path: Path) -> None:
    """Whichever rule a save asks first, the check finds the metric that another one will want."""
    policy = AnyOf(EveryEpochs(5), OnImprovement("f1", "max"))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), save_policy=policy)
    with pytest.raises(UnknownMetricError, match="give OnImprovement a metric"):
        manager.check(model=nn.Linear(1, 1), metrics={"accuracy": 0.5})
    manager.check(model=nn.Linear(1, 1), metrics={"accuracy": 0.5, "f1": 0.5})


def test_the_advice_can_be_followed(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """Before the first save the configuration decides what is monitored, and then the record; errors say which."""
    manager = make_manager(monitor_metric="acuracy", save_best_only=True)
    model = nn.Linear(1, 1)
    with pytest.raises(UnknownMetricError, match="set monitor_metric in the configuration"):
        manager.save_checkpoint(model=model, epoch=1, metrics={"accuracy": 0.5})
    assert "Nothing has been saved yet: set monitor_metric in the configuration" in caplog.text
    with pytest.raises(CheckpointNotFoundError, match="Change monitor_metric of the configuration"):
        manager.set_monitor("accuracy", "max")
    manager.save_checkpoint(model=model, epoch=1, metrics={"accuracy": 0.5}, force=True)
    with pytest.raises(UnknownMetricError, match="set_monitor"):
        manager.save_checkpoint(model=model, epoch=2, metrics={"accuracy": 0.6})
    manager.set_monitor("accuracy", "max")
    assert manager.save_checkpoint(model=model, epoch=2, metrics={"accuracy": 0.6})


def test_the_record_can_be_changed(make_manager: MakeManager) -> None:
    """After set_monitor, every manager and every later save goes by the new metric."""
    manager = make_manager(**ACCURACY)
    fill(manager)
    manager.set_monitor("val_loss", "min")
    assert best_epoch(manager) == best_epoch(make_manager(**ACCURACY)) == 1
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=4, metrics={"accuracy": 1.0, "val_loss": 0.001})
    manager.delete_checkpoint("latest")
    assert best_epoch(make_manager()) == 1


def test_a_record_that_cannot_be_is_refused(make_manager: MakeManager) -> None:
    """A metric that was never logged, a mode that is none, and an experiment without checkpoints."""
    manager = make_manager(**ACCURACY)
    with pytest.raises(CheckpointNotFoundError, match="nothing has been saved"):
        manager.set_monitor("accuracy", "max")
    fill(manager)
    with pytest.raises(UnknownMetricError):
        manager.set_monitor("acuracy", "max")
    with pytest.raises(ConfigError):
        manager.set_monitor("accuracy", "most")  # type: ignore[arg-type]
    assert best_epoch(manager) == 2


def test_best_only_goes_by_the_record(make_manager: MakeManager) -> None:
    """A configuration that says nothing saves what improves on the recorded metric."""
    fill(make_manager(**ACCURACY))
    manager = make_manager(save_best_only=True)
    manager.resume(nn.Linear(1, 1))
    saved = [
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"accuracy": accuracy, "val_loss": 0.0})
        for epoch, accuracy in enumerate((0.8, 0.95, 0.94), start=4)
    ]
    assert [item is not None for item in saved] == [False, True, False]


def test_an_import_takes_over_the_record(make_manager: MakeManager, tmp_path: Any) -> None:
    """A checkpoint of a run that monitored something else does not change what this experiment goes by."""
    fill(make_manager("theirs"))
    exported = make_manager("theirs").export_checkpoint("latest", tmp_path / "export")
    ours = make_manager("ours", **ACCURACY)
    fill(ours)
    ours.import_checkpoint(exported)
    assert ours.monitor.metric == "accuracy"


def coming_home(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    strand(manager, 4)
    set_monitor()
    assert manager.reconcile().moved


def coming_out_of_the_trash(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    newest = ids(manager)[-1]
    manager.delete_checkpoint(newest)
    set_monitor()
    manager.undelete_checkpoint(newest)


def the_last_coming_out_of_the_trash(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    newest = ids(manager)[-1]
    manager.delete_checkpoint(newest)
    set_monitor()
    for checkpoint_id in ids(manager):
        manager.delete_checkpoint(checkpoint_id)
    manager.undelete_checkpoint(newest)


def coming_from_a_backup(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    newest = ids(manager)[-1]
    manager.delete_checkpoint(newest)
    manager.empty_trash()
    set_monitor()
    manager.restore_checkpoint(newest)


def coming_back_for_a_quarantine(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    first, *others = ids(manager)
    for checkpoint_id in (first, *others[1:]):
        manager.delete_checkpoint(checkpoint_id)
    set_monitor()
    for path in (payload_path(manager, others[0]), manager._locations.backups.location(f"{others[0]}.pt")):
        flip_bit(Path(path), 1000)
    manager.quarantine_checkpoint(others[0])


def leaving_quarantine(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    newest = ids(manager)[-1]
    paths = [payload_path(manager, newest), Path(manager._locations.backups.location(f"{newest}.pt"))]
    for path in paths:
        flip_bit(path, 1000)
    manager.quarantine_checkpoint(newest)
    set_monitor()
    flip_bit(paths[1], 1000)
    manager.restore_checkpoint(newest)


def a_save_under_way(manager: CheckpointManager, set_monitor: Callable[[], object]) -> None:
    def write(payload: Any) -> None:
        with payload.open() as stream:
            stream.write(b"bytes")
        set_monitor()

    facts = GivenFacts(epoch=9, metrics={"val_loss": 3.0, "accuracy": 0.0}).checked(
        model_name="model", experiment_name="run", monitor=manager.monitor, with_environment=False
    )
    commit.save(manager._locations.home, facts, write, format_name="torch", suffix=".pt")


@pytest.mark.parametrize(
    "coming",
    [
        coming_home,
        coming_out_of_the_trash,
        the_last_coming_out_of_the_trash,
        coming_from_a_backup,
        coming_back_for_a_quarantine,
        leaving_quarantine,
        a_save_under_way,
    ],
)
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_what_appears_keeps_the_monitor_that_was_set(
    make_manager: MakeManager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    coming: Callable[[CheckpointManager, Callable[[], object]], None],
    is_elsewhere: bool,
) -> None:
    """What a call of set_monitor could not see takes over what it set, and so does every save after it."""
    monkeypatch.setattr(failover, "RETRY_DELAYS_SECONDS", ())
    manager = make_manager(backup_checkpoints=True, fallback_dir=str(tmp_path / "fallback"), max_checkpoints=20)
    fill(manager)
    setter = make_manager() if is_elsewhere else manager
    coming(manager, lambda: setter.set_monitor("accuracy", "max"))
    expected = Monitor(metric="accuracy", mode="max")
    assert (manager.monitor, make_manager().monitor) == (expected, expected)
    save(manager, 10)
    assert {item.monitor for item in manager._locations.home.index.view().usable} == {expected}


def test_a_backup_keeps_its_own_monitor(make_manager: MakeManager) -> None:
    """Older backups, which set_monitor leaves as they are, do not answer for the checkpoint."""
    manager = make_manager(backup_checkpoints=True)
    fill(manager)
    manager.set_monitor("accuracy", "max")
    saved = save(manager, 4)
    assert manager._locations.backups.get(saved).monitor.metric == "accuracy"


def test_a_metric_that_is_never_logged_is_told(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """One warning at the save, and one in the summary, the list and every retention plan, with the closest name."""
    manager = make_manager(monitor_metric="acuracy", monitor_mode="max")
    fill(manager)
    told = [record for record in caplog.records if "'acuracy'" in record.message]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING
    assert "Did you mean 'accuracy'?" in told[0].message
    assert "accuracy" in str(manager.get_checkpoint_summary()["monitor_warning"])
    assert "accuracy" in str(manager.cleanup_checkpoints(dry_run=True).plan.warning)
    assert manager.monitor_warning is not None
    manager.set_monitor("accuracy", "max")
    assert manager.monitor_warning is None
    assert manager.cleanup_checkpoints(dry_run=True).plan.warning is None


def test_a_metric_that_is_logged_now_and_then_is_no_reason_to_warn(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Validation every few epochs is usual, and a run without metrics has nothing to be warned of."""
    manager = make_manager(monitor_metric="val_loss")
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=2, metrics={"val_loss": 1.0})
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=3, metrics={"train_loss": 1.0})
    assert "never logged" not in caplog.text


def test_a_missing_metric_is_an_error_on_request(make_manager: MakeManager) -> None:
    """With on_missing_metric="raise", nothing is saved that could never be the best."""
    manager = make_manager(monitor_metric="acuracy", on_missing_metric="raise")
    with pytest.raises(UnknownMetricError, match="Did you mean 'accuracy'"):
        fill(manager)
    assert manager.list_checkpoints() == []


def test_the_command_shows_and_changes_the_record(make_manager: MakeManager) -> None:
    """`ckpt monitor` without a metric shows what decides, and with one changes it."""
    manager = make_manager(**ACCURACY)
    fill(manager)
    store = Path(manager.config.checkpoint_dir)
    shown = run_json("monitor", store=store)
    assert (shown["metric"], shown["mode"]) == ("accuracy", "max")
    changed = run_json("monitor", "val_loss", "--mode", "min", store=store)
    assert changed["best_checkpoint"] == manager.list_checkpoints()[0].checkpoint_id
    assert run_json("monitor", "val_loss", store=store, code=2)["error"]["type"] == "ConfigError"


def test_a_monitor_that_somebody_sets_during_a_run_stays(make_manager: MakeManager) -> None:
    """The next save of the run records it, too: it does not bring back what the run knew before."""
    run = make_manager(**ACCURACY, max_checkpoints=100)
    for _ in range(5):  # at once after each other, so that no listing is due
        fill(run)
        CheckpointManager(CheckpointConfig(checkpoint_dir=run.config.checkpoint_dir), run.experiment_name).set_monitor(
            "val_loss", "min"
        )
        run.save_checkpoint(model=nn.Linear(1, 1), epoch=9, metrics={"accuracy": 0.2, "val_loss": 9.0})
        assert run.monitor == Monitor(metric="val_loss", mode="min")
        run.set_monitor("accuracy", "max")
