"""A manager on ``memory://``: the same protocol on a store without files, as object stores are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.store import open_store
from tests.helpers import backup_ids, build, ids, save, state_of, train

_numbers = count()


@pytest.fixture
def manager() -> Iterator[CheckpointManager]:
    """A manager of a store in this process, which is emptied at the end."""
    url = f"memory://manager-{next(_numbers)}"
    yield CheckpointManager(CheckpointConfig(checkpoint_dir=url, max_checkpoints=3), "run")
    store = open_store(url)
    for entry in store.list("", recursive=True):
        store.delete(entry.key)


def again(manager: CheckpointManager) -> CheckpointManager:
    """Return a manager as another process would make it."""
    return CheckpointManager(manager.config, "run")


def test_a_run_goes_on_from_where_it_was(manager: CheckpointManager) -> None:
    """Model, optimizer and scheduler, bit for bit."""
    parts, fresh = build(), build(seed=1)
    train(parts, [1, 2])
    saved = manager.save_checkpoint(**parts.kwargs(), epoch=2, metrics={"val_loss": 0.5})
    resumed = again(manager).resume(**fresh.kwargs())
    assert resumed is not None
    assert (resumed["checkpoint_id"], resumed["next_epoch"]) == (saved, 3)
    assert state_of(fresh) == state_of(parts)


def test_saves_are_backed_up_validated_and_retired(manager: CheckpointManager) -> None:
    """As in a folder: the newest and the best stay, each with its backup."""
    saved = [save(manager, epoch, abs(epoch - 1) + 0.1) for epoch in range(5)]
    assert ids(again(manager)) == [saved[1], *saved[3:]]
    assert set(ids(manager)) <= set(backup_ids(manager))
    assert all(manager.validate_all())
    assert manager.get_checkpoint("best").checkpoint_id == saved[1]


def test_what_is_deleted_comes_back(manager: CheckpointManager) -> None:
    """Until the trash is emptied."""
    first, second = save(manager, 1), save(manager, 2)
    manager.delete_checkpoint(first)
    assert ids(manager) == [second]
    assert manager.undelete_checkpoint(first).checkpoint_id == first
    manager.delete_checkpoint(first)
    assert manager.empty_trash() == [first]
    with pytest.raises(CheckpointNotFoundError):
        manager.undelete_checkpoint(first)


def test_tensors_outlive_their_checkpoint(manager: CheckpointManager) -> None:
    """They were read into memory, as nothing can be mapped."""
    model = torch.nn.Linear(2, 1)
    saved = str(manager.save_checkpoint(model=model, epoch=1))
    payload = manager.load_checkpoint(saved)
    save(manager, 2)
    manager.delete_checkpoint(saved)
    manager.empty_trash()
    assert torch.equal(payload["model_state_dict"]["weight"], model.weight)
