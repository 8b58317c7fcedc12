"""The thirty tasks of ``docs/tasks.md``: each command does to a store what its task says, and nothing else."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import Result

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import run, tree
from tests.helpers import flip_bit, leave_unfinished

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
COMMANDS = dict(re.findall(r"^\| ([^|]+?) \| `((?:\w+=\w+ )*ckpt [^`]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE))
BEST = 4


def perform(task: str, code: int = 0) -> Result:
    """Run the command of a task as the page has it."""
    words = shlex.split(COMMANDS[task])
    start = words.index("ckpt")
    return run(*words[start + 1 :], env=dict(word.split("=", 1) for word in words[:start]), code=code)


def manager(experiment_name: str = "mlp") -> CheckpointManager:
    """Look at an experiment as another process does."""
    return CheckpointManager(CheckpointConfig(), experiment_name)


def epochs() -> list[int]:
    return [item.epoch for item in manager().list_checkpoints()]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of six checkpoints, the fourth of which is the best, and a file of another program."""
    folder = tmp_path_factory.mktemp("trained")
    config = CheckpointConfig(checkpoint_dir=str(folder / "checkpoints"), monitor_metric="val_loss")
    run_manager = CheckpointManager(config, "mlp")
    model = nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch, loss in enumerate([0.9, 0.5, 0.4, 0.2, 0.6, 0.7], start=1):
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
        metrics = {"val_loss": loss, "accuracy": epoch / 10}
        run_manager.save_checkpoint(model=model, optimizer=optimizer, epoch=epoch, metrics=metrics)
    (folder / "old").mkdir()
    run("find", "--store", folder / "checkpoints")  # imports what most commands need, before a test is timed
    torch.save({"epoch": 2, "state_dict": nn.Linear(64, 64).state_dict()}, folder / "old" / "model.pt")
    return folder


@pytest.fixture(autouse=True)
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    there = Path(shutil.copytree(trained, tmp_path / "there"))
    monkeypatch.chdir(there)
    return there


@pytest.fixture
def ids() -> dict[int, str]:
    """The id of each epoch."""
    return {item.epoch: item.checkpoint_id for item in manager().list_checkpoints()}


def payload(checkpoint_id: str, *, backup: bool = False) -> Path:
    return Path("checkpoints/mlp", "backups" if backup else "", f"{checkpoint_id}.pt")


def damage(checkpoint_id: str, *, backup: bool = False) -> None:
    flip_bit(payload(checkpoint_id, backup=backup), 300)


def assert_is_taken_in() -> None:
    """The file of the other program is a checkpoint of a new experiment, and the other experiment is as it was."""
    (found,) = manager("old").list_checkpoints()
    assert (found.epoch, found.tags) == (2, ("adopted",))
    model = nn.Linear(64, 64)
    manager("old").load_checkpoint("latest", model=model)
    assert torch.equal(model.weight, torch.load("old/model.pt", weights_only=True)["state_dict"]["weight"])
    assert epochs() == [1, 2, 3, 4, 5, 6]


def test_each_task_has_its_test() -> None:
    """The page has thirty tasks, and this module performs each."""
    performed = re.findall(r"perform\(\"([^\"]+)\"", Path(__file__).read_text("utf-8"))
    assert len(COMMANDS) == 30
    assert sorted(performed) == sorted(COMMANDS)


# --- to look ---


def test_see_what_is_there(folder: Path, ids: dict[int, str]) -> None:
    """See what is there."""
    before = tree(folder)
    shown = perform("see what is there").stdout
    assert all(checkpoint_id in shown for checkpoint_id in ids.values())
    assert tree(folder) == before


def test_find_the_best_since_a_day(folder: Path, ids: dict[int, str]) -> None:
    """Find the best of the last week."""
    before = tree(folder)
    shown = perform("find the best of the last week").stdout
    assert [name for name in ids.values() if name in shown] == [ids[BEST]]
    assert tree(folder) == before


def test_find_good_ones_in_all_experiments(folder: Path, ids: dict[int, str]) -> None:
    """Find good ones in all experiments."""
    before = tree(folder)
    shown = perform("find good ones in all experiments").stdout
    assert [name for name in ids.values() if name in shown] == [ids[BEST]]
    assert tree(folder) == before


def test_compare_two(folder: Path, ids: dict[int, str]) -> None:
    """Compare two."""
    before = tree(folder)
    shown = perform("compare two").stdout
    assert [name for name in ids.values() if name in shown] == [ids[BEST], ids[6]]
    assert tree(folder) == before


def test_know_what_a_file_holds(folder: Path) -> None:
    """Know what a file holds."""
    before = tree(folder)
    assert re.search(r"^epoch +2$", perform("know what a file holds").stdout, re.MULTILINE)
    assert tree(folder) == before


def test_know_why_one_cannot_be_loaded(folder: Path, ids: dict[int, str]) -> None:
    """Know why one cannot be loaded."""
    damage(ids[3])
    before = tree(folder)
    assert f"ckpt repair {ids[3]}" in perform("know why one cannot be loaded", code=1).stdout
    assert tree(folder) == before


def test_know_why_nothing_was_saved(folder: Path) -> None:
    """Know why nothing was saved."""
    unfinished = leave_unfinished(folder / "checkpoints" / "mlp")
    before = tree(folder)
    assert unfinished in perform("know why nothing was saved").stdout
    assert tree(folder) == before


def test_read_every_byte(folder: Path, ids: dict[int, str]) -> None:
    """Read every byte."""
    damage(ids[3])
    before = tree(folder)
    assert "6 checkpoints validated, 1 damaged" in perform("read every byte", code=1).stderr
    assert tree(folder) == before


def test_know_what_can_be_deleted(folder: Path, ids: dict[int, str]) -> None:
    """Know what can be deleted."""
    before = tree(folder)
    shown = perform("know what can be deleted").stdout
    fix = next(line for line in shown.splitlines() if "fix: ckpt delete" in line)
    assert [epoch for epoch, name in ids.items() if name in fix] == [1, 2, 3]
    assert tree(folder) == before


# --- to hand on ---


def test_get_the_best_weights(ids: dict[int, str]) -> None:
    """Get the best weights in bf16 as safetensors."""
    perform("get the best weights in bf16 as safetensors")
    saved = manager().load_checkpoint(ids[BEST])["model_state_dict"]
    found = load_file("best.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.bfloat16().tolist() for name, tensor in saved.items()
    }
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_hand_the_best_over(ids: dict[int, str]) -> None:
    """Hand the best over, with its manifest."""
    perform("hand the best over, with its manifest")
    receiver = CheckpointManager(CheckpointConfig(checkpoint_dir="elsewhere"), "theirs")
    assert receiver.import_checkpoint("handover") == ids[BEST]
    assert receiver.get_checkpoint(ids[BEST]).checksum == manager().get_checkpoint(ids[BEST]).checksum


def test_load_with_from_pretrained(ids: dict[int, str]) -> None:
    """Load the weights with `from_pretrained`."""
    perform("load the weights with `from_pretrained`")
    found = load_file("hub/model.safetensors")
    saved = manager().load_checkpoint(ids[BEST])["model_state_dict"]
    assert all(torch.equal(found[name], saved[name]) for name in saved | found)


def test_convert_a_file() -> None:
    """Convert a file of another program."""
    perform("convert a file of another program")
    saved = torch.load("old/model.pt", weights_only=True)["state_dict"]
    found = load_file("model.safetensors")
    assert all(torch.equal(found[name], saved[name]) for name in saved | found)


# --- to take in ---


def test_take_in_a_file() -> None:
    """Take in a file of another program."""
    perform("take in a file of another program")
    assert_is_taken_in()


def test_take_in_a_folder() -> None:
    """Take in a folder of files."""
    perform("take in a folder of files")
    assert_is_taken_in()


def test_take_it_in_compressed() -> None:
    """Take it in compressed."""
    perform("take it in compressed")
    (found,) = manager("old").list_checkpoints()
    assert found.file_size < 0.95 * found.uncompressed_size


# --- to say what counts ---


def test_protect_the_best(ids: dict[int, str]) -> None:
    """Protect the best from every deletion."""
    perform("protect the best from every deletion")
    assert [item.epoch for item in manager().list_checkpoints() if item.pinned] == [BEST]
    run("delete", ids[BEST], "--yes", code=4)


def test_tag_the_best() -> None:
    """Tag the best."""
    perform("tag the best")
    assert manager().get_checkpoint("release").epoch == BEST


def test_add_a_metric() -> None:
    """Add a metric that was measured later."""
    perform("add a metric that was measured later")
    assert [item.epoch for item in manager().list_checkpoints(where=["bleu=31.5"])] == [BEST]


def test_choose_what_the_best_is_measured_by() -> None:
    """Choose what the best is measured by."""
    perform("choose what the best is measured by")
    assert manager().get_checkpoint("best").epoch == 6


# --- to mend ---


def test_repair_a_damaged_one(ids: dict[int, str]) -> None:
    """Repair a damaged one."""
    whole = payload(ids[3]).read_bytes()
    damage(ids[3])
    perform("repair a damaged one")
    assert payload(ids[3]).read_bytes() == whole
    assert all(manager().validate_all())


def test_set_aside_one_that_nothing_can_repair(ids: dict[int, str]) -> None:
    """Set aside one that nothing can repair."""
    damage(ids[3])
    damage(ids[3], backup=True)
    perform("set aside one that nothing can repair")
    assert epochs() == [1, 2, 4, 5, 6]
    assert [item.checkpoint_id for item in manager().list_quarantined()] == [ids[3]]


def test_bring_back_one_whose_file_is_gone(ids: dict[int, str]) -> None:
    """Bring back one whose file is gone."""
    payload(ids[3]).unlink()
    perform("bring back one whose file is gone")
    assert manager().validate_checkpoint(ids[3])


def test_copy_all_to_the_backups(ids: dict[int, str]) -> None:
    """Copy all to the backups."""
    for checkpoint_id in manager().backup_ids():
        manager().delete_backup(checkpoint_id)
    perform("copy all to the backups")
    assert manager().backup_ids() == list(ids.values())
    assert all(manager().validate_all_backups())


def test_clear_up_what_a_kill_has_left(folder: Path) -> None:
    """Clear up what a kill has left."""
    unfinished = leave_unfinished(folder / "checkpoints" / "mlp")
    perform("clear up what a kill has left")
    assert not list(folder.rglob(f"{unfinished}*"))
    assert epochs() == [1, 2, 3, 4, 5, 6]


# --- to take away ---


def test_keep_the_best_and_the_newest() -> None:
    """Keep the best and the newest."""
    perform("keep the best and the newest")
    assert epochs() == [BEST, 6]


def test_delete_those_of_early_epochs() -> None:
    """Delete those of early epochs."""
    perform("delete those of early epochs")
    assert epochs() == [3, 4, 5, 6]
    assert [item.epoch for item in manager().list_deleted()] == [1, 2]


def test_bring_back_a_deleted_one(ids: dict[int, str]) -> None:
    """Bring back a deleted one."""
    for epoch in (1, 2):
        manager().delete_checkpoint(ids[epoch])
    perform("bring back a deleted one")
    assert epochs() == [2, 3, 4, 5, 6]
    assert manager().validate_checkpoint(ids[2])


def test_free_what_the_trash_takes(ids: dict[int, str]) -> None:
    """Free what the trash takes."""
    manager().delete_checkpoint(ids[1])
    perform("free what the trash takes")
    assert not manager().list_deleted()
    assert not payload(ids[1]).exists()


def test_keep_only_the_weights_of_early_epochs(ids: dict[int, str]) -> None:
    """Keep only the weights of early epochs."""
    before = manager().load_checkpoint(ids[1])["model_state_dict"]
    perform("keep only the weights of early epochs")
    assert [item.epoch for item in manager().list_checkpoints() if item.is_thinned] == [1, 2, 3, 4]
    after = manager().load_checkpoint(ids[1])["model_state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)
