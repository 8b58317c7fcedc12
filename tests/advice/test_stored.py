"""Advice about an experiment: what it suggests, and that the commands free what it says."""

from __future__ import annotations

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.advice.results import Advice, Suggestion
from tests.helpers import MakeManager, experiment_folder, leave_unfinished, snapshot

WIDTH = 256


def stored_bytes(manager: CheckpointManager) -> int:
    """The size of all payloads on disk, whatever any record says."""
    files = [path for path in experiment_folder(manager).glob("checkpoint_epoch_*") if path.suffix != ".json"]
    below = [inner for path in files if path.is_dir() for inner in path.rglob("*")]
    return sum(path.stat().st_size for path in (*files, *below) if path.is_file())


def train_and_save(manager: CheckpointManager, losses: list[float], **options: object) -> list[str]:
    """Save a model with the state of Adam for each loss, so large that thinning frees two thirds."""
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.Adam(model.parameters())
    made = []
    for epoch, loss in enumerate(losses, start=1):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.ones(1, WIDTH)).sum())
        optimizer.step()
        metrics = {"val_loss": loss, "lr": 0.1 / epoch}
        saved = manager.save_checkpoint(model=model, optimizer=optimizer, epoch=epoch, metrics=metrics, **options)  # type: ignore[arg-type]
        made.append(str(saved))
    return made


def by_name(advice: Advice) -> dict[str, Suggestion]:
    """The suggestions by name; fails when a checkpoint has two."""
    assert len({item.name for item in advice.suggestions}) == len(advice.suggestions)
    return {item.name: item for item in advice.suggestions}


def check_sums(manager: CheckpointManager, advice: Advice) -> None:
    """All bytes on disk are counted, each once."""
    assert advice.total_bytes == stored_bytes(manager) == advice.frees_bytes + advice.kept_bytes
    assert sum(item.share for item in advice.kept) <= 1.0


@pytest.fixture
def keeper(make_manager: MakeManager) -> CheckpointManager:
    """A manager that retires nothing by itself, makes no backups and has an empty trash at once."""
    return make_manager(max_checkpoints=1000, backup_checkpoints=False)


@pytest.fixture
def reader(make_manager: MakeManager) -> CheckpointManager:
    """A manager that goes on from nothing."""
    return make_manager(backup_checkpoints=False)


def test_worse_ones_go_and_older_ones_lose_their_optimizer(
    keeper: CheckpointManager, reader: CheckpointManager
) -> None:
    """The best, the newest, pinned and tagged ones stay; a checkpoint that is worse than a later one goes."""
    ids = train_and_save(keeper, [0.9, 0.8, 0.1, 0.5, 0.6, 0.7, 0.4, 0.3])
    keeper.pin_checkpoint(ids[1])
    keeper.edit_checkpoint(ids[5], add_tags=["paper"])
    before = snapshot(experiment_folder(keeper))
    advice = reader.advise()
    assert snapshot(experiment_folder(keeper)) == before
    found = by_name(advice)
    assert {name for name, item in found.items() if item.kind == "dominated"} == {ids[0], ids[3], ids[4], ids[6]}
    assert found[ids[0]].command == f"ckpt delete {ids[0]}"
    assert ids[2] in found[ids[0]].why
    assert [item.name for item in advice.kept] == [ids[7], ids[5], ids[2], ids[1]]
    reasons = {item.name: item.reason for item in advice.kept}
    assert "newest" in reasons[ids[7]]
    assert "tagged paper" in reasons[ids[5]]
    assert "best by val_loss" in reasons[ids[2]]
    assert reasons[ids[1]] == "pinned"
    check_sums(keeper, advice)


def test_the_commands_free_what_the_advice_says(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """Deletions to the byte, thinning within a hundredth: measured on disk after the trash is emptied."""
    ids = train_and_save(keeper, [0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.05, 0.95])
    train_and_save(keeper, [0.01 * epoch for epoch in range(1, 9)])
    gone = keeper.delete_checkpoint(ids[2])
    leave_unfinished(experiment_folder(keeper), b"x" * 12345)
    advice = reader.advise()
    check_sums(keeper, advice)
    found = by_name(advice)
    assert found[gone].kind == "trash"
    assert [item.frees_bytes for item in advice.of_kind("leftover")] == [12345]
    assert advice.of_kind("optimizer state")
    freed = {"delete": 0, "thin": 0, "trash": 0}
    before = stored_bytes(keeper)
    reader.empty_trash()
    freed["trash"], before = before - stored_bytes(keeper), stored_bytes(keeper)
    for item in advice.suggestions:
        verb, name = str(item.command).split()[1:]
        if verb == "delete":
            reader.delete_checkpoint(name)
            reader.empty_trash()
        elif verb == "thin":
            reader.thin_checkpoint(name)
            reader.empty_trash()
        freed[verb] += before - stored_bytes(keeper)
        before = stored_bytes(keeper)
    wanted = {
        verb: sum(i.frees_bytes for i in advice.suggestions if str(i.command).split()[1] == verb) for verb in freed
    }
    assert (freed["trash"], freed["delete"]) == (wanted["trash"], wanted["delete"])
    assert freed["thin"] == pytest.approx(wanted["thin"], rel=0.01)
    assert sum(item.size_bytes for item in advice.kept) == pytest.approx(before, rel=0.01)
    assert reader.get_best_checkpoint() is not None


def test_a_second_advice_finds_nothing(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """What was advised is done: the same question has no answer any more."""
    train_and_save(keeper, [0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.05, 0.95])
    for item in reader.advise().suggestions:
        verb, name = str(item.command).split()[1:]
        (reader.delete_checkpoint if verb == "delete" else reader.thin_checkpoint)(name)
    reader.empty_trash()
    assert reader.advise().suggestions == ()
