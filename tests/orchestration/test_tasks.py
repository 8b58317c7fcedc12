"""Tasks, as a flow of a user's calls them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.retention import KeepNewest
from prefect_checkpoints import tasks
from prefect_checkpoints.tasks.report import artifact_key
from tests.orchestration.runs import (
    EXPERIMENT,
    ByReference,
    damage,
    flip_a_byte,
    in_flow,
    payload_file,
    saved,
    task_run,
)

pytestmark = pytest.mark.usefixtures("own_results")


def test_save_passes_the_model_by_reference(config: CheckpointConfig) -> None:
    """The save task neither copies nor pickles the model."""
    model = ByReference()

    @flow
    def training() -> list[str | None]:
        return [tasks.save_checkpoint(config, EXPERIMENT, model=model, epoch=epoch) for epoch in (1, 2)]

    ids = training()
    assert ids == CheckpointManager(config, EXPERIMENT).checkpoint_ids()
    stored = torch.load(payload_file(config, str(ids[1])), weights_only=True)
    assert torch.equal(stored["model_state_dict"]["weight"], model.weight)


def test_save_persists_nothing(config: CheckpointConfig, tmp_path: Path) -> None:
    """Prefect stores neither parameters nor results of a save."""

    @flow
    def training() -> None:
        tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1)

    training()
    assert not list((tmp_path / "results").rglob("*"))


def test_save_is_named_after_what_it_saves(config: CheckpointConfig) -> None:
    """In the page a save reads as experiment, epoch and step."""
    run = task_run(
        in_flow(
            lambda: tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=3, step=40, return_state=True)
        )
    )
    assert (run.name, run.tags) == ("save run epoch 3 step 40", [])


def test_only_tasks_that_no_training_loop_waits_for_are_tagged() -> None:
    """A tag costs a request to the server at every call: save, load and resume have none, all others one."""
    found = {name: getattr(tasks, name) for name in tasks.__all__ if name != "checkpointing"}
    tagged = {name for name, task in found.items() if task.tags == {"checkpoints"}}
    untagged = {name for name, task in found.items() if not task.tags}
    assert untagged == {"save_checkpoint", "load_checkpoint", "resume_training"}
    assert tagged | untagged == set(found)


def test_load_and_resume_return_no_state_that_was_restored(config: CheckpointConfig) -> None:
    """The model gets its weights; what Prefect holds on to is small."""
    model, source = nn.Linear(3, 2), nn.Linear(3, 2)
    CheckpointManager(config, EXPERIMENT).save_checkpoint(model=source, epoch=4)

    @flow
    def training() -> list[Any]:
        return [
            tasks.load_checkpoint(config, EXPERIMENT, model=model),
            tasks.resume_training(config, EXPERIMENT, model=model),
            tasks.load_checkpoint(config, EXPERIMENT),
            tasks.resume_training(config, "nothing-there", model=model),
        ]

    loaded, resumed, whole, nothing = training()
    assert torch.equal(model.weight, source.weight)
    assert "model_state_dict" not in loaded | resumed
    assert (loaded["epoch"], resumed["epoch"], resumed["passed_over"]) == (4, 4, [])
    assert torch.equal(whole["model_state_dict"]["weight"], source.weight)
    assert nothing is None


def test_the_other_tasks_do_what_the_manager_does(config: CheckpointConfig, tmp_path: Path) -> None:
    """Backup, restore, export, import, cleanup and summary, each once through its task, and again without effect."""
    config = config.model_copy(update={"backup_checkpoints": False, "max_checkpoints": 2})
    first, second = saved(config, losses=(1.0, 0.5))

    @flow
    def life() -> dict[str, Any]:
        outcome: dict[str, Any] = {"backed_up": [tasks.backup_checkpoint(config, EXPERIMENT, first) for _ in range(2)]}
        payload_file(config, first).write_bytes(b"rubbish")
        outcome["restored"] = tasks.restore_checkpoint(config, EXPERIMENT, first).checkpoint_id
        outcome["backup"] = bool(tasks.validate_backup(config, EXPERIMENT, first))
        exported = tasks.export_checkpoint(config, EXPERIMENT, "best", str(tmp_path / "out"))
        outcome["imported"] = [tasks.import_checkpoint(config, "other", exported) for _ in range(2)]
        outcome["tree"] = tasks.import_checkpoints(config, "third", str(tmp_path / "out"))
        outcome["cleanup"] = tasks.cleanup_checkpoints(config, EXPERIMENT, dry_run=True)
        outcome["summary"] = tasks.summarize_checkpoints(config, EXPERIMENT)
        return outcome

    outcome = life()
    assert outcome["backed_up"] == [True, False]
    assert outcome["restored"] == first
    assert outcome["backup"]
    assert CheckpointManager(config, EXPERIMENT).validate_checkpoint(first)
    assert outcome["imported"] == [second, second]
    assert outcome["tree"].checkpoint_ids == (second,)
    assert outcome["cleanup"].plan.kept_ids == (second, first)
    assert outcome["summary"]["total_checkpoints"] == 2


def test_repairs_and_scrubs(config: CheckpointConfig) -> None:
    """Damage in both copies is found by a scrub, mended from either side, and gone for the next one."""
    first, second = saved(config, losses=(1.0, 0.5))
    backup = payload_file(config, second, "backups")
    damage(config, first)
    flip_a_byte(backup)

    @flow
    def life() -> list[Any]:
        return [
            tasks.scrub_checkpoints(config, EXPERIMENT),
            tasks.repair_checkpoint(config, EXPERIMENT, first),
            tasks.repair_backup(config, EXPERIMENT, second),
            tasks.repair_checkpoint(config, EXPERIMENT, first),
            tasks.scrub_checkpoints(config, EXPERIMENT, max_bytes_per_second=1e9, restart=True),
        ]

    before, here, there, again, after = life()
    assert [bool(report) for report in (*before.checkpoints, *before.backups)] == [False, True, True, False]
    assert [report.method for report in (here, there, again)] == ["file", "file", "none"]  # files of one chunk
    assert after
    assert after.bytes_read == before.bytes_read


def test_a_task_works_outside_of_a_flow(config: CheckpointConfig) -> None:
    """Called from a script or a notebook, a save is a run of its own."""
    ids = [tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1) for _ in range(2)]
    assert CheckpointManager(config, EXPERIMENT).checkpoint_ids() == ids


def test_what_is_stranded_comes_home_by_a_task(degraded: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save task returns the id of the stranded checkpoint; the report of the other says that it moved."""
    stranded = in_flow(
        lambda: tasks.save_checkpoint(degraded, EXPERIMENT, model=ByReference(), epoch=1, return_state=True)
    ).result()
    monkeypatch.undo()
    state = in_flow(lambda: tasks.reconcile_checkpoints(degraded, EXPERIMENT, return_state=True))
    assert state.result().moved == {stranded: stranded}
    assert task_run(state).name == "reconcile run"
    assert CheckpointManager(degraded, EXPERIMENT).checkpoint_ids() == [stranded]


@pytest.mark.parametrize("how", ["submit", "map", "delay", "apply_async"])
def test_a_save_is_never_put_off(config: CheckpointConfig, how: str) -> None:
    """Submitted, a save would store later weights: every way to put it off is refused, and nothing is written."""
    arguments: dict[str, Any] = {"model": nn.Linear(2, 2), "epoch": 1}
    put_off = getattr(tasks.save_checkpoint.with_options(retries=1), how)
    call = partial(put_off, (config, EXPERIMENT), arguments) if how == "apply_async" else partial(put_off, **arguments)
    with pytest.raises(ConfigError, match="save_checkpoint_async"):
        call()
    assert CheckpointManager(config, EXPERIMENT).list_checkpoints() == []


@pytest.mark.parametrize("task", [tasks.load_checkpoint, tasks.resume_training])
def test_nothing_is_restored_elsewhere(config: CheckpointConfig, task: Any) -> None:
    """A submitted load that restores is refused, since its model may be a copy; one that only reads is not."""
    CheckpointManager(config, EXPERIMENT).save_checkpoint(model=nn.Linear(2, 2), epoch=3)
    with pytest.raises(ConfigError, match="in the process of the flow") as refused:
        task.submit(config, EXPERIMENT, model=nn.Linear(2, 2))
    assert "direct call" in str(refused.value)
    assert "save" not in str(refused.value)

    @flow
    def reads() -> int:
        return int(tasks.load_checkpoint.submit(config, EXPERIMENT).result()["epoch"])

    assert reads() == 3


def test_a_configuration_is_one_value_to_map(config: CheckpointConfig) -> None:
    """`map` takes a configuration and a policy as they are, also where there are as many ids as options."""
    manager = CheckpointManager(config.model_copy(update={"max_checkpoints": 99}), EXPERIMENT)
    count = len(CheckpointConfig.model_fields)
    ids = [manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch) for epoch in range(count)]

    @flow
    def maps() -> tuple[int, int]:
        reports = [future.result() for future in tasks.validate_checkpoint.map(config, EXPERIMENT, ids)]
        plans = tasks.cleanup_checkpoints.map(config, [EXPERIMENT], policy=KeepNewest(count=2), dry_run=True)
        return sum(map(bool, reports)), len(plans[0].result().plan.deleted_ids)

    assert maps() == (count, count - 2)


def test_timelines_are_of_one_thing(tmp_path: Path) -> None:
    """Stores, experiments and kinds whose names look alike in an artifact key have keys of their own."""
    configs = [CheckpointConfig(checkpoint_dir=str(tmp_path / name)) for name in ("a", "b")]
    names = [None, "store", "run-1", "run.1", "run_1", "RUN.1"]
    kinds = ["validation", "validation-of-backups", "checkpoints"]
    keys = {artifact_key(kind, config, name) for kind in kinds for config in configs for name in names}
    assert len(keys) == len(kinds) * len(configs) * len(names)
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in keys)
    assert artifact_key("x", configs[0], "run") == artifact_key("x", configs[0].model_copy(), "run")


def test_a_report_never_fails_its_run(config: CheckpointConfig, caplog: pytest.LogCaptureFixture) -> None:
    """Text that a plot cannot draw, numbers beyond any axis, a store that is gone: a warning, and the run goes on."""
    manager = CheckpointManager(config, EXPERIMENT)
    for sign in (1, -1):
        metrics = {"cost_$_per_$": sign * 1.0, "$x_{$": sign * 2.0, "m": sign * 1e308}
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, metrics=metrics)
    nowhere = config.model_copy(update={"checkpoint_dir": "/dev/null/store"})

    @flow
    def reports() -> str:
        for store in (config, nowhere):
            tasks.report_metrics(store, EXPERIMENT)
            tasks.report_checkpoints(store, EXPERIMENT)
            tasks.report_comparison(store, EXPERIMENT, {})  # type: ignore[call-overload]
        return "done"

    assert reports() == "done"
    assert "No report was published" in caplog.text


def test_thin_keeps_the_weights(config: CheckpointConfig) -> None:
    """Run again, it changes nothing more."""
    manager, model = CheckpointManager(config, EXPERIMENT), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    first = manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)

    @flow
    def twice() -> list[Any]:
        return [tasks.thin_checkpoint(config, EXPERIMENT, str(first)) for _ in range(2)]

    thinned = twice()
    assert thinned[0].is_thinned
    assert thinned[0] == thinned[1]
