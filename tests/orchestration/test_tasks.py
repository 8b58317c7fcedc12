"""Tasks, as a flow of a user's calls them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import pytest
import torch
from prefect import flow, get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import get_run_context
from prefect.exceptions import ObjectNotFound
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, CorruptCheckpointError, StateMismatchError, StoreError, StoreUnavailableError
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.saving.failover import RETRY_DELAYS_SECONDS
from ckpt_lib.store.local import LocalStore
from prefect_checkpoints import tasks
from prefect_checkpoints.tasks.report import artifact_key

pytestmark = pytest.mark.usefixtures("own_results")
EXPERIMENT = "run"
SECONDS_TO_WAIT = 30.0


class ByReference(nn.Linear):
    """A model that cannot be copied or pickled without this test failing."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise AssertionError("a model was copied or pickled")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise AssertionError("a model was copied")


def task_run(state: State[Any]) -> TaskRun:
    """What the server knows of the task run that ended in this state."""
    assert state.state_details.task_run_id is not None
    return read_task_run(state.state_details.task_run_id)


def read_task_run(task_run_id: UUID) -> TaskRun:
    """The server records task runs from events, a moment after they have ended."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            with suppress(ObjectNotFound):
                run = client.read_task_run(task_run_id)
                if run.state and run.state.is_final():
                    return run
            time.sleep(0.1)
    raise AssertionError(f"the server has not recorded the end of task run {task_run_id}")


def in_flow(call: Callable[[], State[Any]]) -> State[Any]:
    """Run ``call`` in a flow run of its own and return the task's state, which may be a failure."""
    states: list[State[Any]] = []

    @flow
    def around() -> None:
        states.append(call())

    around()
    return states[0]


def payload_file(config: CheckpointConfig, checkpoint_id: str) -> Path:
    return Path(config.checkpoint_dir) / EXPERIMENT / f"{checkpoint_id}.pt"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def saved(config: CheckpointConfig, epochs: int = 2, *, name: str = EXPERIMENT, **options: Any) -> list[str]:
    """Save some checkpoints without Prefect."""
    manager = CheckpointManager(config, name)
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": 1 / epoch}, **options)
        for epoch in range(1, epochs + 1)
    ]
    return [checkpoint_id for checkpoint_id in ids if checkpoint_id]


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
    tagged = {name for name in tasks.__all__ if getattr(tasks, name).tags == {"checkpoints"}}
    untagged = {name for name in tasks.__all__ if not getattr(tasks, name).tags}
    assert untagged == {"save_checkpoint", "load_checkpoint", "resume_training"}
    assert tagged | untagged == set(tasks.__all__)


def test_a_retried_flow_has_one_checkpoint_per_step(config: CheckpointConfig) -> None:
    """A flow run that fails after saving and is retried saves each (epoch, step) once, and gets the first id."""
    ids = []

    @flow(retries=1)
    def training() -> None:
        torch.manual_seed(0)
        ids.append(tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1, step=10))
        if get_run_context().flow_run.run_count == 1:  # type: ignore[union-attr]
            raise RuntimeError("the machine went away")

    training()
    assert len(ids) == 2
    assert CheckpointManager(config, EXPERIMENT).checkpoint_ids() == [ids[0]] == [ids[1]]


def test_two_flow_runs_have_checkpoints_of_their_own(config: CheckpointConfig) -> None:
    """The same step of another run is another checkpoint."""

    @flow
    def training() -> str | None:
        return tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1, step=10)

    assert training() != training()


def test_a_store_that_does_not_answer_is_tried_again(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient error that outlasts the save's own attempts is retried, and one checkpoint comes of it."""
    failures = iter([StoreUnavailableError("the store did not answer")] * (1 + len(RETRY_DELAYS_SECONDS)))
    real = LocalStore.open_write

    def flaky(self: LocalStore, key: str) -> Any:
        if key.startswith(f"{EXPERIMENT}/checkpoint") and (error := next(failures, None)):
            raise error
        return real(self, key)

    monkeypatch.setattr(LocalStore, "open_write", flaky)
    quick = tasks.save_checkpoint.with_options(retry_delay_seconds=0)

    run = task_run(in_flow(lambda: quick(config, EXPERIMENT, model=ByReference(), epoch=1, return_state=True)))
    assert run.run_count == 2
    assert len(CheckpointManager(config, EXPERIMENT).checkpoint_ids()) == 1


@pytest.mark.parametrize("damaged", [True, False])
def test_damage_and_bad_input_are_not_tried_again(config: CheckpointConfig, damaged: bool) -> None:
    """Neither corruption nor a model that does not fit is retried; the typed error reaches the caller."""
    (checkpoint_id,) = saved(config, epochs=1, optimizer=None)
    if damaged:
        flip_a_byte(payload_file(config, checkpoint_id))
    model = nn.Linear(3, 2) if damaged else nn.Linear(4, 4)
    state = in_flow(lambda: tasks.load_checkpoint(config, EXPERIMENT, checkpoint_id, model=model, return_state=True))
    assert state.is_failed()
    assert task_run(state).run_count == 1
    with pytest.raises(CorruptCheckpointError if damaged else StateMismatchError):
        state.result()


def test_validation_is_remembered_until_the_file_changes(config: CheckpointConfig) -> None:
    """Another flow run gets the remembered report; a rewritten file, and a scrub, are read again."""
    (checkpoint_id,) = saved(config, epochs=1)
    path = payload_file(config, checkpoint_id)

    def check(refresh: bool = False) -> State[Any]:
        validate = tasks.validate_checkpoint.with_options(refresh_cache=refresh)
        return in_flow(lambda: validate(config, EXPERIMENT, "latest", return_state=True))

    first, second = check(), check()
    assert (first.name, second.name) == ("Completed", "Cached")
    assert first.result() == second.result()
    assert first.result()
    assert check(refresh=True).name == "Completed"
    flip_a_byte(path)
    damaged = check()
    assert damaged.name == "Completed"
    assert not damaged.result()


def test_comparison_is_remembered_until_something_it_shows_changes(config: CheckpointConfig) -> None:
    """Equal comparisons come from the cache, with equal values; an edited tag makes it a new one."""
    ids = saved(config)

    def compare() -> State[Any]:
        return in_flow(lambda: tasks.compare_checkpoints(config, EXPERIMENT, ids, tensors=True, return_state=True))

    first, second = compare(), compare()
    assert (first.name, second.name) == ("Completed", "Cached")
    assert first.result() == second.result()
    CheckpointManager(config, EXPERIMENT).edit_checkpoint(ids[0], add_tags=["new"])
    third = compare()
    assert third.name == "Completed"
    assert third.result()["tags_comparison"] == {"new": [True, False]}


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
    first, second = saved(config)

    @flow
    def life() -> dict[str, Any]:
        outcome: dict[str, Any] = {"backed_up": [tasks.backup_checkpoint(config, EXPERIMENT, first) for _ in range(2)]}
        payload_file(config, first).write_bytes(b"rubbish")
        outcome["restored"] = tasks.restore_checkpoint(config, EXPERIMENT, first).checkpoint_id
        outcome["backup"] = bool(tasks.validate_backup(config, EXPERIMENT, first))
        exported = tasks.export_checkpoint(config, EXPERIMENT, "best", str(tmp_path / "out"))
        outcome["imported"] = [tasks.import_checkpoint(config, "other", exported) for _ in range(2)]
        outcome["cleanup"] = tasks.cleanup_checkpoints(config, EXPERIMENT, dry_run=True)
        outcome["summary"] = tasks.summarize_checkpoints(config, EXPERIMENT)
        return outcome

    outcome = life()
    assert outcome["backed_up"] == [True, False]
    assert outcome["restored"] == first
    assert outcome["backup"]
    assert CheckpointManager(config, EXPERIMENT).validate_checkpoint(first)
    assert outcome["imported"] == [second, second]
    assert outcome["cleanup"].plan.kept_ids == (second, first)
    assert outcome["summary"]["total_checkpoints"] == 2


def test_repairs_and_scrubs(config: CheckpointConfig) -> None:
    """Damage in both copies is found by a scrub, mended from either side, and gone for the next one."""
    first, second = saved(config)
    backup = payload_file(config, second).parent / "backups" / f"{second}.pt"
    flip_a_byte(payload_file(config, first))
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


def test_a_repair_that_cannot_succeed_is_not_tried_again(config: CheckpointConfig) -> None:
    """Damage in both copies fails the task at once, with the typed error."""
    (only,) = saved(config, epochs=1)
    for path in (payload_file(config, only), payload_file(config, only).parent / "backups" / f"{only}.pt"):
        flip_a_byte(path)
    state = in_flow(lambda: tasks.repair_checkpoint(config, EXPERIMENT, only, return_state=True))
    assert task_run(state).run_count == 1
    with pytest.raises(CorruptCheckpointError, match="in both copies"):
        state.result()


def test_a_task_works_outside_of_a_flow(config: CheckpointConfig) -> None:
    """Called from a script or a notebook, a save is a run of its own."""
    ids = [tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1) for _ in range(2)]
    assert CheckpointManager(config, EXPERIMENT).checkpoint_ids() == ids


# --- a failing store ---


@pytest.fixture
def degraded(config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointConfig:
    """A configuration whose store refuses to be written to until the patch is undone."""
    safe = config.model_copy(update={"fallback_dir": str(tmp_path / "fallback"), "backup_checkpoints": False})
    original = LocalStore.open_write

    def refuse(store: LocalStore, key: str) -> Any:
        if store.url == safe.checkpoint_dir:
            raise StoreError("the store failed: Input/output error")
        return original(store, key)

    monkeypatch.setattr(LocalStore, "open_write", refuse)
    return safe


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


def prefect_events(experiment: str, until: str) -> list[dict[str, Any]]:
    """The events of an experiment that the server has heard of, once one of the kind ``until`` is among them."""
    resource = {"id": [f"prefect-checkpoints.experiment.{experiment}"]}
    wanted = {"filter": {"event": {"prefix": ["prefect-checkpoints."]}, "resource": resource, "order": "ASC"}}
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = client._client.post("/events/filter", json=wanted).json()["events"]
            if any(event["event"] == f"prefect-checkpoints.{until}" for event in found):
                return found
            time.sleep(0.1)
    raise AssertionError(f"the server has not heard of {until}")


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"].partition(".")[2] for event in events]


def test_events_reach_prefect(degraded: CheckpointConfig) -> None:
    """With the experiment as resource and the run beside it, so that an automation can react."""
    name = "telling"
    in_flow(lambda: tasks.save_checkpoint(degraded, name, model=ByReference(), epoch=1, return_state=True)).result()
    found = prefect_events(name, until="checkpoint.stranded")
    assert kinds_of(found) == ["save.degraded", "checkpoint.stranded"]
    assert found[0]["payload"]["details"]["error"] == "StoreError"
    assert found[1]["resource"]["prefect.resource.id"] == f"prefect-checkpoints.experiment.{name}"
    related = {item["prefect.resource.role"] for item in found[1]["related"]}
    assert {"flow-run", "task-run"} <= related


def test_a_retried_run_tells_prefect_once(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event per checkpoint and kind, though the task and the flow are tried again; its metadata goes with it."""
    name = "retried"
    failures = iter([StoreUnavailableError("the store did not answer")])
    real = CheckpointManager.save_checkpoint

    def answer_lost(self: CheckpointManager, **arguments: Any) -> str | None:
        saved = real(self, **arguments)
        if error := next(failures, None):
            raise error
        return saved

    monkeypatch.setattr(CheckpointManager, "save_checkpoint", answer_lost)
    quick = tasks.save_checkpoint.with_options(retry_delay_seconds=0)
    attempts: list[str | None] = []

    @flow(retries=1)
    def training() -> None:
        torch.manual_seed(0)
        attempts.append(quick(config, name, model=ByReference(), epoch=1, metrics={"val_loss": 1.0}))
        attempts.append(quick(config, name, model=ByReference(), epoch=2))
        if len(attempts) == 2:
            raise RuntimeError("the machine went away")
        tasks.validate_checkpoint(config, name)
        CheckpointManager(config, name).delete_checkpoint("latest")

    training()
    first, second = attempts[:2]
    assert attempts[2:] == [first, second]
    found = prefect_events(name, until="checkpoint.deleted")
    assert [(kind, event["payload"]["checkpoint_id"]) for kind, event in zip(kinds_of(found), found, strict=True)] == [
        ("checkpoint.saved", first),
        ("checkpoint.best_changed", first),
        ("checkpoint.backed_up", first),
        ("checkpoint.saved", second),
        ("checkpoint.backed_up", second),
        ("checkpoint.deleted", second),
    ]
    assert found[0]["payload"]["checkpoint"]["metrics"] == {"val_loss": 1.0}


def test_prefect_hears_of_a_verdict_that_changes(config: CheckpointConfig) -> None:
    """Damage once in a run, however often it is found, and that it is gone; intact ones are no news."""
    name = "verdicts"
    (checkpoint_id, _) = saved(config, name=name)
    path = Path(config.checkpoint_dir) / name / f"{checkpoint_id}.pt"

    @flow
    def night() -> None:
        tasks.validate_checkpoint(config, name, checkpoint_id)
        flip_a_byte(path)
        for _ in range(2):
            tasks.scrub_checkpoints(config, name, restart=True)
            tasks.validate_checkpoint(config, name, checkpoint_id)
        tasks.repair_checkpoint(config, name, checkpoint_id)
        tasks.scrub_checkpoints(config, name, restart=True)

    night()
    found = prefect_events(name, until="checkpoint.validated")
    assert kinds_of(found) == ["checkpoint.corrupted", "checkpoint.repaired", "checkpoint.validated"]
    assert {event["payload"]["checkpoint_id"] for event in found} == {checkpoint_id}


def test_outside_of_a_run_prefect_hears_nothing(degraded: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that is used by itself asks no server for anything."""
    monkeypatch.setattr("prefect_checkpoints.tasks._events.emit_event", lambda **_: pytest.fail("an event"))
    saved(degraded, epochs=1)


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


@pytest.mark.parametrize("difference", ["weights", "metrics", "tags", "description", "run_config", "extra_state"])
def test_another_state_of_the_same_step_is_saved(config: CheckpointConfig, difference: str) -> None:
    """In one flow run, whatever differs at the same epoch and step is a save of its own; each repeat is none."""
    model = nn.Linear(2, 2)
    others: dict[str, Any] = {
        "metrics": {"val_loss": 1.0},
        "tags": ["seed-2"],
        "description": "again",
        "run_config": {"seed": 2},
        "extra_state": {"seed": 2},
    }

    @flow
    def saves() -> list[str | None]:
        ids = [tasks.save_checkpoint(config, EXPERIMENT, model=model, epoch=1) for _ in range(2)]
        changed = {difference: others[difference]} if difference in others else {}
        if not changed:
            nn.init.zeros_(model.weight)
        ids += [tasks.save_checkpoint(config, EXPERIMENT, model=model, epoch=1, **changed) for _ in range(2)]
        return ids

    first, repeated, other, other_repeated = saves()
    assert first == repeated
    assert other == other_repeated
    assert first != other
    assert len(CheckpointManager(config, EXPERIMENT).list_checkpoints()) == 2


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
