"""Advice about an experiment: what it suggests, and that the commands free what it says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.advice import savings
from ckpt_lib.advice.results import Advice, Suggestion
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.policies.retention import KeepNewest
from tests.helpers import (
    MakeManager,
    experiment_folder,
    is_bookkeeping,
    leave_unfinished,
    payload_path,
    snapshot,
    truncate,
)

WIDTH = 256


def stored_bytes(manager: CheckpointManager) -> int:
    """The size of all payloads on disk, whatever any record says."""
    files = [path for path in experiment_folder(manager).glob("checkpoint_epoch_*") if path.suffix != ".json"]
    below = [inner for path in files if path.is_dir() for inner in path.rglob("*")]
    own = [path for path in (*files, *below) if path.is_file() and not is_bookkeeping(str(path))]
    return sum(path.stat().st_size for path in own)


def train_and_save(manager: CheckpointManager, losses: list[float], **options: object) -> list[str]:
    """Save a model with the state of Adam for each loss, so large that thinning frees two thirds."""
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.Adam(model.parameters())
    made = []
    for epoch, loss in enumerate(losses, start=1):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(8, WIDTH)).square().sum())
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
    assert advice.total_bytes == stored_bytes(manager) == advice.freed_bytes + advice.kept_bytes
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
    assert (found[ids[0]].action, found[ids[0]].command) == ("delete", f"ckpt delete {ids[0]}")
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
    assert [item.freed_bytes for item in advice.of_kind("leftover")] == [12345]
    assert advice.of_kind("optimizer state")
    freed = {"delete": 0, "thin": 0, "empty_trash": 0}
    before = stored_bytes(keeper)
    reader.empty_trash()
    freed["empty_trash"], before = before - stored_bytes(keeper), stored_bytes(keeper)
    for item in advice.suggestions:
        if item.action == "delete":
            reader.delete_checkpoint(item.name)
            reader.empty_trash()
        elif item.action == "thin":
            reader.thin_checkpoint(item.name)
            reader.empty_trash()
        freed[str(item.action)] += before - stored_bytes(keeper)
        before = stored_bytes(keeper)
    wanted = {action: sum(i.freed_bytes for i in advice.suggestions if i.action == action) for action in freed}
    assert (freed["empty_trash"], freed["delete"]) == (wanted["empty_trash"], wanted["delete"])
    assert freed["thin"] == pytest.approx(wanted["thin"], rel=0.01)
    assert sum(item.size_bytes for item in advice.kept) == pytest.approx(before, rel=0.01)
    assert reader.get_best_checkpoint() is not None


def test_a_second_advice_finds_nothing(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """What was advised is done: the same question has no answer any more."""
    train_and_save(keeper, [0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.05, 0.95])
    for item in reader.advise().suggestions:
        (reader.delete_checkpoint if item.action == "delete" else reader.thin_checkpoint)(item.name)
    reader.empty_trash()
    assert reader.advise().suggestions == ()


def test_damage_is_repaired_where_a_backup_is(make_manager: MakeManager) -> None:
    """With a backup a damaged one stays and is repaired; without one it goes, unless it is tagged or all there is."""
    manager = make_manager(max_checkpoints=100)
    first, second, third, tagged, last = train_and_save(manager, [0.9, 0.8, 0.7, 0.6, 0.5])
    manager.edit_checkpoint(tagged, add_tags=["paper"])
    for name in (second, third, tagged):
        truncate(payload_path(manager, name), 1000)
    manager.delete_backup(second)
    manager.delete_backup(tagged)
    advice = CheckpointManager(manager.config, "run").advise()
    found = by_name(advice)
    check_sums(manager, advice)
    facts = {name: (found[name].command, found[name].freed_bytes) for name in (second, third, tagged)}
    assert facts == {
        second: (f"ckpt delete {second}", 1000),
        third: (f"ckpt repair {third}", 0),
        tagged: (f"ckpt quarantine {tagged}", 0),
    }
    for name in (first, last):
        truncate(payload_path(manager, name), 1000)
    for name in (first, last):
        manager.delete_backup(name)
    alone = CheckpointManager(manager.config, "run").advise()
    assert not any(item.action == "delete" for item in alone.suggestions)


def test_quarantined_ones_without_a_backup_go_for_good(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """What validation has set aside frees what is left of it."""
    ids = train_and_save(keeper, [0.3, 0.2, 0.1])
    truncate(payload_path(keeper, ids[1]), 2000)
    keeper.quarantine_checkpoint(ids[1])
    advice = reader.advise()
    check_sums(keeper, advice)
    assert (by_name(advice)[ids[1]].kind, by_name(advice)[ids[1]].freed_bytes) == ("damaged", 2000)
    assert reader.delete_quarantined(ids[1]) == 2000


def test_copies_go_and_the_newest_of_them_stays(
    keeper: CheckpointManager, reader: CheckpointManager, tmp_path: Path
) -> None:
    """An import of what is there already holds the same; a metric that only one of them has keeps both."""
    ids = train_and_save(keeper, [0.3])
    exported = keeper.export_checkpoint(ids[0], tmp_path / "exported")
    copied = make_copy(keeper, exported)
    train_and_save(keeper, [0.2])
    found = by_name(reader.advise())
    assert (found[ids[0]].kind, found[ids[0]].certainty) == ("duplicate", "certain")
    assert copied in found[ids[0]].why
    keeper.add_metrics(ids[0], {"accuracy": 0.5}, source="eval")
    assert "duplicate" not in {item.kind for item in reader.advise().suggestions}


def test_the_tag_of_imports_protects_nothing(
    keeper: CheckpointManager, reader: CheckpointManager, tmp_path: Path
) -> None:
    """Each import is tagged: that says nothing of its worth, as for a cleanup; a tag that a person sets does."""
    for epoch, loss in enumerate([0.9, 0.8, 0.1, 0.5], start=1):
        state = {"epoch": epoch, "state_dict": {"weight": torch.full((9, 9), loss)}, "val_loss": loss}
        torch.save(state, tmp_path / f"epoch_{epoch}.pt")
    ids = [keeper.import_checkpoint(str(tmp_path / f"epoch_{epoch}.pt")) for epoch in (1, 2, 3, 4)]
    assert {item.name for item in reader.advise().of_kind("dominated")} == set(ids[:2])
    keeper.edit_checkpoint(ids[0], add_tags=["paper"])
    assert {item.name for item in reader.advise().of_kind("dominated")} == {ids[1]}
    assert {item.name: item.reason for item in reader.advise().kept}[ids[0]] == "tagged paper"


def test_backups_are_counted_apart(make_manager: MakeManager) -> None:
    """They are in no other sum, and together they are what lies on the disk."""
    manager = make_manager(max_checkpoints=100)
    train_and_save(manager, [0.9, 0.1, 0.2])
    advice = CheckpointManager(manager.config, "run").advise()
    check_sums(manager, advice)
    files = [path for path in (experiment_folder(manager) / "backups").rglob("*") if path.is_file()]
    payloads = sum(path.stat().st_size for path in files if path.suffix == ".pt")
    assert payloads <= advice.backup_bytes <= sum(path.stat().st_size for path in files)


def make_copy(manager: CheckpointManager, exported: str) -> str:
    """Import a payload without its manifest, which makes a checkpoint of its own."""
    shutil.move(exported, f"{os.path.dirname(exported)}/alone.pt")
    return manager.import_checkpoint(f"{os.path.dirname(exported)}/alone.pt")


def test_the_trash_stays_while_nothing_else_is_sound(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """Where all is deleted, its bytes are the last that can be brought back."""
    for name in train_and_save(keeper, [0.3, 0.2]):
        keeper.delete_checkpoint(name)
    advice = reader.advise()
    assert advice.suggestions == ()
    check_sums(keeper, advice)
    assert all("no sound checkpoint is left" in item.reason for item in advice.kept)


def test_a_better_one_that_is_in_the_trash_is_told(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """Of those that cannot be loaded any more, the best is named; where there is no such one, it cannot be told."""
    ids = train_and_save(keeper, [0.3, 0.1, 0.2])
    best = reader.advise().best[0]
    assert (best.saved_name, best.is_saved) == (ids[1], None)
    assert "cannot be told" in best.message
    keeper.delete_checkpoint(ids[1])
    best = reader.advise().best[0]
    assert (best.saved_value, best.value) == (0.2, 0.1)
    assert f"ckpt undelete {ids[1]}" in best.message


def test_policies_say_what_a_cleanup_does(keeper: CheckpointManager, reader: CheckpointManager) -> None:
    """The numbers are those of the cleanup that the command runs, and of a policy that is given."""
    train_and_save(keeper, [0.3, 0.1, 0.2, 0.5, 0.4, 0.6])
    advice = reader.advise(policy=KeepNewest(count=1))
    outcomes = {item.policy: item for item in advice.policies}
    assert outcomes["newest 1"].deleted_count == 4
    planned = reader.cleanup_checkpoints(dry_run=True, policy=KeepNewest(count=1)).plan
    assert outcomes["newest 1"].freed_bytes == planned.freed_bytes
    assert outcomes["max_checkpoints=3"].command == "ckpt cleanup --keep 3"
    three = CheckpointManager(CheckpointConfig(**{**reader.config.model_dump(), "max_checkpoints": 3}), "run")
    plan = three.cleanup_checkpoints(dry_run=True).plan
    assert (len(plan.deleted_ids), plan.freed_bytes) == (
        outcomes["max_checkpoints=3"].deleted_count,
        outcomes["max_checkpoints=3"].freed_bytes,
    )


@pytest.mark.parametrize("options", [{"format": "safetensors"}, {"compression": True}])
def test_thinning_is_told_for_every_format(make_manager: MakeManager, options: dict[str, Any]) -> None:
    """Within a tenth, also where the payload is a folder, or where one compressed frame holds many tensors."""
    manager = make_manager(max_checkpoints=100, backup_checkpoints=False, **options)
    ids = train_and_save(manager, [0.1, 0.2, 0.3, 0.4, 0.5])
    reader = make_manager(backup_checkpoints=False, **options)
    advice = reader.advise()
    check_sums(manager, advice)
    (item,) = advice.of_kind("optimizer state")
    assert item.name == ids[1]
    before = stored_bytes(manager)
    reader.thin_checkpoint(item.name)
    reader.empty_trash()
    assert before - stored_bytes(manager) == pytest.approx(item.freed_bytes, rel=0.1)


def test_few_payloads_are_opened(
    keeper: CheckpointManager, reader: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The structure of one payload stands for those of the same run and size, so many checkpoints cost little."""
    train_and_save(keeper, [0.01 * epoch for epoch in range(1, 21)])
    opened: list[str] = []
    before = savings.Savings._share

    def share(found: savings.Savings, item: Manifest) -> float:
        opened.append(item.checkpoint_id)
        return before(found, item)

    monkeypatch.setattr(savings.Savings, "_share", share)
    assert len(reader.advise().of_kind("optimizer state")) == 16
    assert len(opened) <= 3
