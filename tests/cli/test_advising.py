"""``ckpt advise``: what can go, and the commands for it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import on_posix, run, run_json, run_on_terminal, tree


@pytest.fixture(scope="module")
def advised_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two experiments, in one of which two checkpoints are worse than a later one."""
    root = tmp_path_factory.mktemp("advised") / "store"
    config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=100, backup_checkpoints=False)
    for name, losses in (("digits", [0.9, 0.8, 0.1, 0.2]), ("other", [0.5])):
        manager = CheckpointManager(config, name)
        for epoch, loss in enumerate(losses, start=1):
            manager.save_checkpoint(model=torch.nn.Linear(8, 8), epoch=epoch, metrics={"val_loss": loss})
    return root


@pytest.fixture
def advised(advised_template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(advised_template, tmp_path / "store"))


def ids(store: Path) -> list[str]:
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "digits").checkpoint_ids()


def test_the_printed_command_does_it(advised: Path) -> None:
    """Nothing is changed by the advice; its command, as printed, deletes what it names and frees what it says."""
    first, second, *_ = ids(advised)
    before = tree(advised)
    result = run("advise", "--store", advised, "--experiment", "digits")
    assert tree(advised) == before
    (fix,) = [line.partition("fix: ")[2] for line in result.stdout.splitlines() if "fix:" in line]
    assert fix == f"ckpt delete {first} {second} --store {advised} --experiment digits"
    assert "Worse than a later one in every metric" in result.stdout
    assert "digits: 5" in result.stderr or "can go" in result.stderr
    freed_bytes = run_json("advise", "--store", advised, "--experiment", "digits")["advice"][0]["freed_bytes"]
    sizes = sum(path.stat().st_size for path in advised.rglob("*.pt"))
    run(*shlex.split(fix)[1:], "--yes")
    run("trash", "--empty", "--yes", "--store", advised, "--experiment", "digits")
    assert sizes - sum(path.stat().st_size for path in advised.rglob("*.pt")) == freed_bytes > 0
    assert "fix:" not in run("advise", "--store", advised, "--experiment", "digits").stdout


def test_json_is_one_document_for_all_experiments(advised: Path) -> None:
    """With --all, or the store's folder as the argument, in the same form as for one."""
    one = run_json("advise", "--store", advised, "--experiment", "digits")["advice"]
    both = run_json("advise", "--all", store=advised)["advice"]
    assert [item["place"] for item in both] == ["digits", "other"]
    assert both[0] == one[0]
    assert run_json("advise", advised)["advice"] == both
    assert run_json("advise", advised / "digits")["advice"] == one
    assert run_json("advise", advised, "--experiment", "digits")["advice"] == one
    named = f"--store {advised} --experiment digits"
    assert both[0]["commands"] == [f"ckpt delete {' '.join(ids(advised)[:2])} {named}"]
    assert both[0]["freed_bytes"] + both[0]["kept_bytes"] == both[0]["total_bytes"]


def test_commands_for_a_named_folder_name_its_store(advised: Path) -> None:
    """They can be copied, though no option was typed, and are told apart by experiment."""
    result = run("advise", advised)
    assert f"--store {advised} --experiment digits" in result.stdout
    assert "--- other ---" in result.stdout


def test_all_commands_name_the_store(advised: Path) -> None:
    """Those of suggestions, of policies and in sentences."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(advised)), "digits")
    manager.delete_checkpoint(ids(advised)[2])
    named = f"--store {advised} --experiment digits"
    (advice,) = run_json("advise", "--store", advised, "--experiment", "digits")["advice"]
    rows = [*advice["suggestions"], *advice["policies"]]
    commands = [*advice["commands"], *(item["command"] for item in rows)]
    assert len(commands) > 4
    assert all(command.endswith(f" {named}") for command in commands)
    assert f"undelete {ids_deleted(manager)} {named}`" in advice["best"][0]["message"]


def ids_deleted(manager: CheckpointManager) -> str:
    """The only id in the trash."""
    (found,) = manager.list_deleted()
    return found.checkpoint_id


def test_the_text_tells_of_backups_older_ones_and_policies(tmp_path: Path) -> None:
    """The backups are a sum of their own, one more row is an older one, and a policy's command names the store."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), max_checkpoints=100), "run")
    for epoch in range(11):
        manager.save_checkpoint(model=torch.nn.Linear(8, 8), epoch=epoch, metrics={"val_loss": float(epoch)})
    result = run("advise", "--store", tmp_path)
    assert "The backups hold another" in result.stderr
    assert "1 older one: " in result.stderr
    assert f"ckpt cleanup --keep 3 --store {tmp_path} --experiment run" in result.stdout


def test_a_plain_folder_is_advised_on_by_its_paths(tmp_path: Path) -> None:
    """It prints what to remove, and removes nothing, whatever store the environment names."""
    for epoch, loss in enumerate([0.9, 0.1, 0.2]):
        torch.save(
            {"epoch": epoch, "state_dict": {"w": torch.ones(9)}, "val_loss": loss}, tmp_path / f"epoch {epoch}.pt"
        )
    before = tree(tmp_path)
    result = run("advise", tmp_path, env={"CKPT_CHECKPOINT_DIR": "elsewhere", "CKPT_EXPERIMENT": "none"})
    assert tree(tmp_path) == before
    assert f"  remove: '{tmp_path}/epoch 0.pt'" in result.stdout
    assert run_json("advise", tmp_path)["advice"][0]["suggestions"][0]["paths"] == [f"{tmp_path}/epoch 0.pt"]


def test_a_policy_is_weighed(advised: Path, tmp_path: Path) -> None:
    """What a policy in a file would do is the first row of the policies."""
    (tmp_path / "keep.yaml").write_text("{kind: newest, count: 1}")
    arguments = ("advise", "--experiment", "digits", "--policy", tmp_path / "keep.yaml")
    first = run_json(*arguments, store=advised)["advice"][0]["policies"][0]
    assert (first["policy"], first["kept_count"], first["deleted_count"]) == ("newest 1", 2, 2)
    assert "newest 1" in run(*arguments, store=advised).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("FOLDER", "--store", "x"),
        ("FOLDER", "--all"),
        ("FOLDER", "--experiment", "digits"),
        ("STORE/digits", "--experiment", "other"),
        ("STORE", "--experiment", "missing"),
        ("FOLDER", "--policy", "x.yaml"),
        ("--all", "--experiment", "digits"),
        ("missing",),
        ("--store", "missing"),
    ],
)
def test_what_does_not_go_together_is_refused(advised: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Options that would be ignored, and places without anything, are errors."""
    (tmp_path / "plain").mkdir()
    found = [item.replace("FOLDER", str(tmp_path / "plain")).replace("STORE", str(advised)) for item in arguments]
    assert run("advise", *found, store=advised, code=2).stderr.startswith("Error")


@on_posix
def test_eighty_columns_hold_it(advised: Path) -> None:
    """No line but commands to copy is wider than the terminal."""
    code, output = run_on_terminal("advise", "--store", advised, "--experiment", "digits", columns=80)
    assert code == 0
    assert "What a policy would do instead" in output
    lines = [line for line in output.split("\n") if "fix:" not in line and "\x1b[" not in line]
    assert max(map(len, lines)) <= 80
