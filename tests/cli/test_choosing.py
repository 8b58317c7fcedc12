"""Conditions select checkpoints for every command that takes ids, and select nothing by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.cli.app import app
from tests.cli.running import run, run_json, tree

TAKES_ONE = {"convert", "inspect", "import", "why", "runs", "watch"}
"""Commands about one thing, which is no checkpoint of the store alone."""


def manager_of(store: Path) -> CheckpointManager:
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "digits")


def test_every_command_that_takes_ids_takes_conditions() -> None:
    """No command has a grammar of its own."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        takes_ids = any(item.name in ("checkpoint_id", "checkpoint_ids") for item in command.params)
        options = {option for item in command.params for option in item.opts}
        if takes_ids and name not in TAKES_ONE:
            assert {"--where", "--tag"} <= options, name


def test_conditions_select(store: Path, ids: list[str]) -> None:
    """All conditions must hold; facts, metrics and tags are asked alike."""
    found = run_json("show", "--where", "loss<0.9", "--where", "epoch<3", store=store)
    assert [item["checkpoint_id"] for item in found["checkpoints"]] == [ids[1]]
    assert run_json("validate", "--tag", "baseline", store=store)["reports"][0]["checkpoint_id"] == ids[0]
    copied = run_json("backup", "--where", "epoch>=2", store=store)["backups"]
    assert [item["checkpoint_id"] for item in copied] == ids[1:]
    compared = run_json("compare", "--where", "epoch<=2", store=store)
    assert compared["checkpoint_ids"] == ids[:2]


def test_conditions_edit_and_export(store: Path, ids: list[str], tmp_path: Path) -> None:
    """Each selected checkpoint is changed, and no other; exports of several share a folder."""
    run("pin", "--where", "epoch!=2", store=store)
    run("tag", "--where", "pinned=true", "--add", "kept", store=store)
    run("metrics", "--tag", "kept", "f1=0.5", "--source", "eval/x", store=store)
    assert [
        (item.pinned, "kept" in item.tags, "f1" in item.metrics) for item in manager_of(store).list_checkpoints()
    ] == [
        (True, True, True),
        (False, False, False),
        (True, True, True),
    ]
    exports = run_json("export", "--tag", "kept", tmp_path / "out" / "best", store=store)["exports"]
    assert [item["checkpoint_id"] for item in exports] == [ids[0], ids[2]]
    assert all(Path(item["path"]).is_file() for item in exports)
    several = run("export", "--tag", "kept", tmp_path / "one.pt", store=store, code=2)
    assert "several checkpoints cannot go into one file" in several.stderr


@pytest.mark.parametrize("command", ["delete", "thin"])
def test_a_dry_run_shows_what_would_go(store: Path, ids: list[str], command: str) -> None:
    """Nothing changes, no question is asked, and the list is what a deletion would take."""
    before = tree(store)
    shown = run(command, "--where", "epoch<=2", "--dry-run", store=store)
    assert (ids[0] in shown.stdout, ids[1] in shown.stdout, ids[2] in shown.stdout) == (True, True, False)
    document = run_json(command, "--where", "epoch<=2", "--dry-run", store=store)
    assert document["dry_run"] is True
    assert [item["checkpoint_id"] for item in document["selected"]] == ids[:2]
    assert tree(store) == before


def test_a_dry_run_of_the_trash_keeps_it(store: Path) -> None:
    """What ``--empty`` would remove is listed and stays."""
    run("delete", "baseline", "--yes", store=store)
    assert len(run_json("trash", "--empty", "--dry-run", "--yes", store=store)["deleted"]) == 1
    assert len(run_json("trash", store=store)["deleted"]) == 1


def test_deleted_by_condition_and_brought_back(store: Path, ids: list[str]) -> None:
    """``undelete`` selects among the deleted ones."""
    assert run_json("delete", "--where", "epoch<=2", "--yes", store=store)["deleted_ids"] == ids[:2]
    assert run_json("undelete", "--tag", "baseline", store=store)["undeleted_ids"] == ids[:1]
    assert manager_of(store).checkpoint_ids() == [ids[0], ids[2]]


@pytest.mark.parametrize("command", ["delete", "thin", "pin", "show", "validate", "backup", "restore", "repair"])
def test_an_empty_selection_is_refused(store: Path, command: str) -> None:
    """A condition that nothing meets, or nothing at all, changes nothing and says so."""
    before = tree(store)
    refused = run(command, "--where", "epoch>99", store=store, code=2)
    assert "epoch>99" in refused.stderr
    assert "Did you mean 'baseline'?" in run(command, "--tag", "basline", store=store, code=2).stderr
    assert "by name or by conditions" in run(command, "latest", "--where", "epoch=1", store=store, code=2).stderr
    if command not in ("validate", "backup"):
        assert "no checkpoint is named" in run(command, store=store, code=2).stderr
    assert "no condition" in run(command, "--where", "epoch", store=store, code=2).stderr
    assert tree(store) == before
