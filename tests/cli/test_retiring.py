"""The commands of ``ckpt`` that take away: cleanup, delete and the trash, of checkpoints and of backups."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.cli import trash
from tests.cli.running import on_posix, run, run_json, run_on_terminal, tree
from tests.helpers import flip_bit, leave_unfinished


def test_cleanup_shows_its_plan_and_carries_it_out(store: Path, ids: list[str]) -> None:
    """A dry run changes nothing; with --yes what was planned goes, and the best by the run's own measure stays."""
    before = tree(store)
    text = run("cleanup", "--keep", "0", "--dry-run", store=store).stdout
    assert [re.split(r" {2,}", line)[:3] for line in text.splitlines()[1:]] == [
        [ids[2], "keep", "newest valid"],
        [ids[1], "keep", "best valid by accuracy"],
        [ids[0], "delete", "no rule keeps it"],
    ]
    assert run_json("cleanup", "--keep", "0", "--dry-run", store=store)["dry_run"] is True
    assert tree(store) == before
    assert "1 checkpoint deleted" in run("cleanup", "--keep", "0", "--yes", store=store).stderr
    assert run_json("cleanup", "--keep", "0", "--yes", store=store)["deleted_ids"] == []
    assert [item["checkpoint_id"] for item in run_json("list", store=store)["checkpoints"]] == ids[1:]


def test_what_was_not_shown_stays(store: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is the best by the time that the plan is confirmed: nothing is deleted, and the exit code is 4."""
    monkeypatch.setattr("ckpt_lib.cli.cleanup.refuse_to_ask", lambda **_: None)
    monkeypatch.setattr("ckpt_lib.cli.cleanup.confirm", lambda _: run("monitor", "loss", "--mode", "min", store=store))
    refused = run("cleanup", "--keep", "0", store=store, code=4)
    assert "no longer the one that was shown" in refused.stderr
    assert [item["checkpoint_id"] for item in run_json("list", store=store)["checkpoints"]] == ids
    assert "2 checkpoints deleted" in run("cleanup", "--keep", "0", store=store).stderr


def test_cleanup_says_that_a_number_is_the_default(store: Path, ids: list[str]) -> None:
    """That of the training is not known here."""
    said = "Keeps 10, the default of max_checkpoints"
    assert said in run("cleanup", "--dry-run", store=store).stderr
    assert said not in run("cleanup", "--keep", "0", "--dry-run", store=store).stderr
    assert "Keeps 10, the default of max_backups" in run("cleanup", "--backups", "--dry-run", store=store).stderr


def test_undelete_tells_what_is_in_quarantine(store: Path, ids: list[str]) -> None:
    """It was never deleted, and another command brings it back."""
    for path in store.rglob(f"{ids[0]}.pt"):
        flip_bit(path, 300)
    run("quarantine", ids[0], store=store)
    assert "it is in quarantine" in run("undelete", ids[0], store=store).stderr


@on_posix
def test_cleanup_with_nothing_to_delete_asks_nothing(store: Path, ids: list[str]) -> None:
    """It clears up what dead processes left, for which nobody is asked."""
    unfinished = leave_unfinished(store / "digits")
    code, output = run_on_terminal("cleanup", "--store", store, columns=200)
    assert code == 0
    assert "[y/N]" not in output
    assert "0 checkpoints deleted, 0 B freed; 1 leftover removed." in output
    assert not list((store / "digits").glob(f"{unfinished}*"))


def test_cleanup_follows_the_configuration(store: Path, ids: list[str], tmp_path: Path) -> None:
    """max_checkpoints comes from the file; a variable overrides it, and an option overrides that."""
    file = tmp_path / "config.yaml"
    file.write_text("max_checkpoints: 0\n")

    def planned(*options: str | Path, **env: str) -> int:
        report = run_json("cleanup", "--dry-run", *options, store=store, env=env)
        return sum(not decision["keep"] for decision in report["plan"]["decisions"])

    assert planned() == 0
    assert planned("--config", file) == 1
    assert planned("--config", file, CKPT_MAX_CHECKPOINTS="3") == 0
    assert planned("--config", file, "--keep", "0", CKPT_MAX_CHECKPOINTS="3") == 1


def test_cleanup_by_a_policy_file(store: Path, ids: list[str], tmp_path: Path) -> None:
    """--policy takes the place of the number, and the plan says which rule decided; both at once are refused."""
    file = tmp_path / "policy.yaml"
    file.write_text("kind: any_of\npolicies:\n- {kind: every, epochs: 100}\n- {kind: tagged, tags: [none]}\n")
    text = run("cleanup", "--policy", file, "--dry-run", store=store).stdout
    assert [re.split(r" {2,}", line)[1:3] for line in text.splitlines()[1:]] == [
        ["keep", "newest valid"],
        ["keep", "best valid by accuracy"],
        ["keep", "first of its 100 epochs"],
    ]
    file.write_text("kind: newer_than\nseconds: 1\n")
    before = tree(store)
    assert "cannot be combined" in run("cleanup", "--policy", file, "--keep", "1", "--yes", store=store, code=2).stderr
    broken = run_json("cleanup", "--policy", tmp_path / "missing.yaml", "--yes", store=store, code=2)
    assert broken["error"]["type"] == "ConfigError"
    assert tree(store) == before
    time.sleep(2.1)  # time stamps have whole seconds
    assert run_json("cleanup", "--policy", file, "--yes", store=store)["deleted_ids"] == [ids[0]]


def test_delete(store: Path, ids: list[str]) -> None:
    """`delete` resolves names first, so that `latest` means what was the latest, and leaves the backup."""
    assert run_json("delete", "latest", ids[2], "baseline", "-y", store=store)["deleted_ids"] == [ids[2], ids[0]]
    assert ids[1] in run("delete", "latest", "--yes", store=store).stdout
    assert run_json("list", store=store, code=2)["error"]["type"] == "CheckpointNotFoundError"
    assert len(list((store / "digits" / "backups").glob("*.pt"))) == 3


def test_undelete_and_trash(store: Path, ids: list[str]) -> None:
    """What was deleted is listed, comes back as it was, and goes for good when the trash is emptied."""
    before = run_json("list", store=store)["checkpoints"]
    told = " ".join(run("delete", ids[0], ids[1], "--yes", store=store).stderr.split())
    assert "stay in the trash for 1 d: `ckpt undelete ID" in told
    listed = run_json("trash", store=store)
    assert ([item["checkpoint_id"] for item in listed["deleted"]], listed["trash_seconds"]) == (ids[:2], 86_400)
    shown = run("trash", "--store", store)
    assert ids[0] in shown.stdout
    assert f"`ckpt undelete ID --store {store}` brings one back within 1 d of" in " ".join(shown.stderr.split())
    assert run_json("undelete", ids[0], ids[1], store=store)["undeleted_ids"] == ids[:2]
    assert f"{ids[0]} was not deleted: it is live." in run("undelete", ids[0], store=store).stderr
    assert run_json("list", store=store)["checkpoints"] == before
    run("delete", ids[2], "--yes", store=store)
    run("undelete", ids[2], "--pin", store=store)
    found = run_json("list", store=store)["checkpoints"]
    assert [item["checkpoint_id"] for item in found if item["pinned"]] == [ids[2]]
    run("delete", ids[0], "--yes", store=store)
    assert run_json("trash", "--empty", store=store, code=4)["error"]["type"] == "ConfirmationError"
    assert run_json("trash", "--empty", "--yes", store=store)["removed"] == [ids[0]]
    assert run_json("trash", "--empty", store=store)["removed"] == []  # nothing to ask about
    assert run_json("undelete", ids[0], store=store, code=2)["error"]["type"] == "CheckpointNotFoundError"


def test_undelete_takes_the_names_that_other_commands_take(store: Path, ids: list[str]) -> None:
    """The short form of an id and a tag stand for deleted checkpoints; what several answer to, or none, is refused."""
    run("delete", "--where", "epoch<=2", "--yes", store=store)
    assert run_json("undelete", "epoch_2_step_20", "@baseline", store=store)["undeleted_ids"] == [ids[1], ids[0]]
    run("delete", "epoch_1", "--yes", store=store)
    assert run_json("undelete", "epoch_1", store=store)["undeleted_ids"] == [ids[0]]
    for name in ("epoch_2", "epoch_1_step_11", "latest", "epoch_1~1", "nothing"):
        error = run_json("undelete", name, store=store, code=2)["error"]
        assert error["message"] == f"no deleted checkpoint answers to {name!r}"
    again = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "digits")
    again.save_checkpoint(model=torch.nn.Linear(4, 2), epoch=1, step=11, metrics={"loss": 1.0, "accuracy": 0.5})
    run("delete", "--where", "epoch=1", "--yes", store=store)
    assert ids[0] in run_json("undelete", "epoch_1", store=store, code=2)["error"]["got"]
    rest = ids[0].removeprefix("checkpoint_")
    assert run_json("undelete", rest[:-1], store=store)["undeleted_ids"] == [ids[0]]


def test_what_expired_is_told_from_leftovers(store: Path, ids: list[str]) -> None:
    """Neither the trash nor a cleanup counts what a killed writer left for a checkpoint, or the reverse."""
    run("delete", ids[0], "-y", store=store)
    leave_unfinished(store / "digits")
    assert "1 checkpoint deleted for good, " in run("trash", "--empty", "--yes", store=store).stderr
    run("delete", ids[1], "-y", store=store)
    shown = run("cleanup", "--yes", store=store, env={"CKPT_TRASH_SECONDS": "0"}).stderr
    assert "0 checkpoints deleted, 0 B freed.\n" in shown
    assert re.search(r"1 checkpoint from the trash deleted for good, \d+\.\d KiB freed\.", shown)
    assert "leftover" not in shown


def test_backups_are_deleted_and_cleaned_up_by_themselves(store: Path, ids: list[str]) -> None:
    """--backups leaves the checkpoints, and a plan shows what a cleanup of checkpoints does to backups."""

    def held() -> list[str]:
        return [item["checkpoint_id"] for item in run_json("list", "--backups", store=store)["checkpoints"]]

    shown = run("cleanup", "--dry-run", store=store, env={"CKPT_MAX_BACKUPS": "0"})
    assert "Backups" in shown.stdout
    assert "Would delete 0 checkpoints (0 B) and, for good, 1 backup (" in shown.stderr
    assert "Would delete 1 backup (" in run("cleanup", "--backups", "--keep", "0", "--dry-run", store=store).stderr
    assert held() == ids
    assert "1 backup deleted" in run("cleanup", "--backups", "--keep", "0", "--yes", store=store).stderr
    assert held() == ids[1:]
    assert "no backup of" in run("delete", "--backups", "--yes", ids[0], ids[1], store=store, code=2).stderr
    assert held() == ids[1:]
    freed = run_json("delete", "--backups", "--yes", "best", store=store)
    assert freed["deleted_ids"] == [ids[1]]
    assert freed["freed_bytes"] > 0
    assert held() == ids[2:]
    assert [item["checkpoint_id"] for item in run_json("list", store=store)["checkpoints"]] == ids


def test_backups_are_all_that_is_left(store: Path, ids: list[str], tmp_path: Path) -> None:
    """What is about backups works without a checkpoint, and names resolve among the backups; a typing error is told."""
    elsewhere = {"CKPT_BACKUP_DIR": str(tmp_path / "backups")}
    (tmp_path / "backups").mkdir()
    (store / "digits/backups").rename(tmp_path / "backups/digits")
    shutil.rmtree(store / "digits")
    run("validate", "--backups", "--all", "-e", "digits", store=store, env=elsewhere)
    validated = run_json("validate", "--backups", "best", "latest", "-e", "digits", store=store, env=elsewhere)
    assert [item["checkpoint_id"] for item in validated["reports"]] == ids[1:]
    run("quarantine", "--backups", "-e", "digits", store=store, env=elsewhere)
    for command in (["cleanup", "--backups", "--dry-run"], ["quarantine", "--backups"], ["validate", "--backups"]):
        error = run_json(*command, "-e", "digist", store=store, env=elsewhere, code=2)["error"]
        assert error["type"] == "ExperimentNotFoundError"
        assert "'digits'" in error["hint"]
    cleaned = run_json("cleanup", "--backups", "--keep", "0", "-e", "digits", "-y", store=store, env=elsewhere)
    assert cleaned["deleted_ids"] == ids[:1]
    deleted = run_json("delete", "--backups", "best", "-e", "digits", "-y", store=store, env=elsewhere)
    assert deleted["deleted_ids"] == [ids[1]]


def test_backups_that_are_away_stop_no_work_on_checkpoints(store: Path, ids: list[str], tmp_path: Path) -> None:
    """It is done and told, and a cleanup that left the backups ends with 3."""
    (tmp_path / "backups").write_text("mine")
    away = {"CKPT_BACKUP_DIR": str(tmp_path / "backups"), "CKPT_TRASH_SECONDS": "0", "CKPT_MAX_BACKUPS": "9"}
    planned = run("cleanup", "--keep", "0", "--dry-run", store=store, env=away, code=3)
    assert "The backups cannot be cleaned up: " in planned.stderr
    done = run("cleanup", "--keep", "0", "--yes", store=store, env=away, code=3)
    assert "1 checkpoint deleted" in done.stderr
    assert "The backups were not cleaned up: " in done.stderr
    assert str(tmp_path / "backups") in run_json("cleanup", "-y", store=store, env=away, code=3)["backups_error"]
    assert "The backups cannot be listed" in run("quarantine", store=store, env=away).stderr
    run("quarantine", "--backups", store=store, env=away, code=3)
    assert run_json("delete", ids[1], "-y", store=store, env=away)["deleted_ids"] == [ids[1]]


@pytest.mark.parametrize("command", [["delete", "latest"], ["cleanup", "--keep", "0"]])
def test_unconfirmed_deletion_is_refused(store: Path, command: list[str]) -> None:
    """Where nobody can be asked, nothing is deleted without --yes, and the exit code is 4."""
    before = tree(store)
    assert "--yes" in run(*command, store=store, code=4).stderr
    assert run_json(*command, store=store, code=4)["error"]["type"] == "ConfirmationError"
    assert tree(store) == before


@on_posix
def test_the_end_of_the_input_confirms_nothing(store: Path, ids: list[str]) -> None:
    """Ctrl-D at the question is a no: exit code 4, and nothing is deleted."""
    code, output = run_on_terminal("delete", ids[0], "--store", store, columns=80, answer="\x04")
    assert (code, "not confirmed; nothing was changed" in " ".join(output.split())) == (4, True)
    assert ids[0] in run("list", store=store).stdout


def test_what_comes_into_the_trash_while_a_person_is_asked_stays(
    store: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program deletes a checkpoint meanwhile: nobody has said that it may go for good."""
    run("delete", ids[0], "--yes", store=store)

    def confirmed(_: str) -> None:
        run("delete", ids[1], "--yes", store=store)

    monkeypatch.setattr(trash, "confirm", confirmed)
    monkeypatch.setattr(trash, "refuse_to_ask", lambda **_: None)
    assert run_json("trash", "--empty", store=store)["removed"] == [ids[0]]
    assert [item["checkpoint_id"] for item in run_json("trash", store=store)["deleted"]] == [ids[1]]


def test_an_empty_trash_has_no_table(store: Path, ids: list[str]) -> None:
    """Only the sentence says so, and undelete says where to look for ids."""
    found = run("trash", store=store)
    assert (found.stdout, found.stderr.strip()) == ("", "The trash is empty.")
    run("delete", ids[0], "--yes", store=store)
    assert "`ckpt trash" in run("undelete", "best", store=store, code=2).stderr


def test_an_export_of_damage_says_what_to_do(store: Path, ids: list[str], tmp_path: Path) -> None:
    """The error names the repair."""
    flip_bit(next(store.glob(f"*/{ids[2]}.pt")), 700)
    shown = " ".join(run("export", ids[2], tmp_path / "out", store=store, code=1).stderr.split())
    assert f"`ckpt repair {ids[2]}" in shown
