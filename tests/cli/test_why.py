"""``ckpt why`` and ``runs``: what the store and live runs tell from outside of the training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import on_posix, payload, run, run_json
from tests.helpers import leave_unfinished
from tests.live.test_sharing import only_run, waited_for

pytestmark = on_posix


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def shared(store: Path) -> Iterator[CheckpointManager]:
    """A live run of the store, which saves every tenth epoch."""
    config = CheckpointConfig(checkpoint_dir=str(store), save_interval=10)
    manager = CheckpointManager(config, "digits")
    manager.resume(nn.Linear(4, 2))
    with manager.share():
        yield manager


def diagnosis(store: Path, name: str, code: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = run_json("why", name, store=store, code=code)
    return found


def test_a_checkpoint_is_diagnosed_wherever_it_is(store: Path, ids: list[str]) -> None:
    """Each place and each kind of damage has its state and the command that helps, which works when it is typed."""
    assert diagnosis(store, "best", code=0)["state"] == "sound"
    payload(store, ids[0]).write_bytes(b"damaged")
    found = diagnosis(store, "baseline")
    assert (found["state"], found["commands"]) == ("damaged", [f"ckpt repair {ids[0]}"])
    run(*found["commands"][0].split()[1:], store=store)
    assert diagnosis(store, "baseline", code=0)["state"] == "sound"

    for copy in (payload(store, ids[0]), store / "digits" / "backups" / f"{ids[0]}.pt"):
        copy.write_bytes(b"damaged")
    found = diagnosis(store, ids[0])
    assert found["commands"][0] == f"ckpt quarantine {ids[0]}"
    run("quarantine", ids[0], store=store)
    assert diagnosis(store, "epoch_1")["state"] == "in quarantine"

    run("delete", ids[1], "--yes", store=store)
    found = diagnosis(store, "epoch_2")
    assert (found["state"], found["commands"]) == ("deleted", [f"ckpt undelete {ids[1]}"])
    run("trash", "--empty", "--yes", store=store)
    found = diagnosis(store, ids[1])
    assert (found["state"], found["commands"]) == ("only a backup", [f"ckpt restore {ids[1]}"])
    run(*found["commands"][0].split()[1:], store=store)
    assert diagnosis(store, ids[1], code=0)["state"] == "sound"
    found = diagnosis(store, "nosuch")
    assert (found["state"], found["checkpoint_id"]) == ("unknown", None)


def test_a_tag_says_more_than_the_short_form_of_an_id(store: Path, ids: list[str]) -> None:
    """Of two deleted checkpoints, the diagnosis is about the one that an undeletion brings back by that name."""
    run("tag", ids[0], "--add", "epoch_2", store=store)
    run("delete", ids[0], ids[1], "--yes", store=store)
    found = diagnosis(store, "epoch_2")
    assert (found["state"], found["checkpoint_id"]) == ("deleted", ids[0])
    assert run_json("undelete", "epoch_2", store=store)["undeleted_ids"] == [ids[0]]


def test_a_damaged_manifest_is_diagnosed(store: Path, ids: list[str]) -> None:
    """One that cannot be read is damage, and its backup repairs it."""
    (store / "digits" / f"{ids[2]}.json").write_bytes(b"{}")
    found = diagnosis(store, ids[2])
    assert (found["state"], found["damages"][0]["kind"]) == ("damaged", "manifest")
    run(*found["commands"][0].split()[1:], store=store)
    assert diagnosis(store, ids[2], code=0)["state"] == "sound"


def test_the_state_is_readable(store: Path, ids: list[str]) -> None:
    """People get the same, with the typed options in the commands."""
    payload(store, ids[0]).unlink()
    output = run("why", ids[0], "--store", store, code=1).stdout
    assert "damaged" in output
    assert f"ckpt repair {ids[0]} --store {store}" in output


def test_the_store_tells_why_nothing_is_saved(store: Path, tmp_path: Path) -> None:
    """The save of a killed process, and what the options of the configuration wait for."""
    unfinished = leave_unfinished(store / "digits")
    settings = tmp_path / "run.yaml"
    settings.write_text("save_interval: 5\nsave_best_only: true\n")
    found = run_json("why", "--config", settings, store=store)
    assert found["live_runs"] == []
    by_kind = {reason["kind"]: reason for reason in found["store"]}
    assert by_kind["unfinished"]["checkpoint_id"] == unfinished
    assert by_kind["not_better"]["best"] == 0.9
    assert by_kind["interval"]["next_epoch"] == 5
    output = run("why", "--store", store)
    assert f"`ckpt doctor --fix --store {store}`" in output.stdout
    assert "No live run of the experiment has registered on this machine" in " ".join(output.stderr.split())


def test_too_little_space_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next checkpoint would not fit: what can go is a question for the advisor."""
    monkeypatch.setattr("ckpt_lib.store.local.local_store.LocalStore.free_bytes", lambda _: 1000)
    first = run_json("why", store=store)["store"][0]
    assert first["kind"] == "no_space"
    assert "ckpt advise" in first["hint"]


def test_a_live_run_answers(shared: CheckpointManager, store: Path) -> None:
    """It is listed, and its own reasons come before those of the store."""
    assert shared.save_checkpoint(model=nn.Linear(4, 2), epoch=4, metrics={"accuracy": 0.1}) is None
    (live,) = run_json("why", store=store)["live_runs"]
    assert live["status"]["not_saved"][0]["next_epoch"] == 10
    assert "epoch 4 is between saves" in run("why", store=store).stdout
    (listed,) = run_json("runs")["runs"]
    assert (listed["owner"]["pid"], listed["experiment_name"], listed["error"]) == (os.getpid(), "digits", None)
    assert str(os.getpid()) in run("runs").stdout
    assert run_json("runs", "--experiment", "other") == {"runs": []}


def test_a_live_run_saves_when_it_is_asked(shared: CheckpointManager, store: Path) -> None:
    """The command waits for the loop and prints the id."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(run_json, "runs", "--save", "--timeout", "20")
        waited_for(only_run())
        saved = shared.save_checkpoint(model=nn.Linear(4, 2), epoch=4, metrics={"accuracy": 0.1})
        assert asked.result(20)["checkpoint_id"] == saved is not None
    assert "takes no loads" in run("runs", "--load", "best", code=2).stderr


def test_a_run_that_is_not_there_is_an_error() -> None:
    """With the exit code of what does not answer."""
    assert "ckpt runs" in run("runs", "--save", code=3).stderr
    assert run_json("runs", "--save", code=3)["error"]["type"] == "RunUnavailableError"
    assert "--save and --load" in run("runs", "--save", "--load", "best", code=2).stderr
