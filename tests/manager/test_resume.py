"""Verified resume: what was saved comes back bit by bit, and damage is passed over with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    IntegrityError,
    NoValidCheckpointError,
    StateMismatchError,
)
from tests.helpers import (
    MakeManager,
    Parts,
    build,
    fingerprint,
    flip_bit,
    manifest_path,
    payload_path,
    save,
    state_of,
    train,
    truncate,
)

DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "flipped": (lambda payload, _: flip_bit(payload, payload.stat().st_size // 2), "was altered"),
    "truncated": (lambda payload, _: truncate(payload, 100), "ends after 100"),
    "emptied": (lambda payload, _: truncate(payload, 0), "ends after 0"),
    "missing": (lambda payload, _: payload.unlink(), "is missing"),
    "manifest flipped": (lambda _, manifest: flip_bit(manifest, 40), "manifest is damaged"),
    "manifest emptied": (lambda _, manifest: truncate(manifest, 0), "manifest is damaged"),
}


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    """A manager without backups, which would be taken for what is damaged: ``test_from_backups.py`` has them."""
    return make_manager(backup_checkpoints=False)


def test_resumed_training_is_the_uninterrupted_training(make_manager: MakeManager) -> None:
    """A run stopped after 3 of 6 epochs and resumed elsewhere ends with the very same bits."""
    whole = build()
    train(whole, range(6))
    first = build()
    train(first, range(3))
    make_manager().save_checkpoint(**first.kwargs(), epoch=3)

    resumed = build(seed=99)
    payload = make_manager().resume(resumed.model, resumed.optimizer, resumed.scheduler)
    assert payload is not None
    assert payload["passed_over"] == []
    assert state_of(resumed) == state_of(first)
    train(resumed, range(payload["epoch"], 6))
    assert state_of(resumed) == state_of(whole)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
        lambda parameters: torch.optim.RMSprop(parameters, centered=True, momentum=0.5),
        torch.optim.Adagrad,
        torch.optim.NAdam,
        lambda parameters: torch.optim.LBFGS(parameters, max_iter=2),
    ],
    ids=["sgd", "adam", "rmsprop", "adagrad", "nadam", "lbfgs"],
)
def test_optimizers_of_torch_come_back(manager: CheckpointManager, make_optimizer: Callable[[Any], Any]) -> None:
    """The state of each kind of optimizer is stored and restored bit by bit."""

    def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer: torch.optim.Optimizer = make_optimizer(model.parameters())

        def closure() -> float:
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean()
            torch.autograd.backward(loss)
            return float(loss.detach())

        for _ in range(steps):
            optimizer.step(closure)
        return model, optimizer

    model, optimizer = trained(3)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    other_model, other_optimizer = trained(0)
    manager.resume(other_model, other_optimizer)
    assert fingerprint(other_optimizer.state_dict()) == fingerprint(optimizer.state_dict())


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3]),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
            [2],
        ),
    ],
    ids=["lambda", "multistep", "restarts", "onecycle", "sequential"],
)
def test_schedulers_of_torch_come_back(manager: CheckpointManager, make_scheduler: Callable[[Any], Any]) -> None:
    """Each kind of scheduler goes on with the learning rates of the uninterrupted one."""

    def started(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make_scheduler(optimizer)
        advance(optimizer, scheduler, steps)
        return model, optimizer, scheduler

    def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    model, optimizer, scheduler = started(3)
    manager.save_checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, epoch=3)
    expected = advance(optimizer, scheduler, 4)
    resumed = started(0)
    manager.resume(*resumed)
    assert advance(resumed[1], resumed[2], 4) == expected


def test_extra_state_comes_back(manager: CheckpointManager) -> None:
    """Random number generators, counters and nested plain values survive a resume."""
    model = nn.Linear(2, 1)
    extra = {"torch": torch.get_rng_state(), "seen": {"samples": 10, "names": ["a", None, ("b", 1.5)]}, "flag": True}
    manager.save_checkpoint(model=model, epoch=1, extra_state=extra)
    expected = torch.rand(3)
    payload = manager.resume()
    assert payload is not None
    torch.set_rng_state(payload["extra_state"]["torch"])
    assert torch.equal(torch.rand(3), expected)
    assert payload["extra_state"]["seen"] == extra["seen"]


def test_what_happens_after_the_save_does_not_reach_it(manager: CheckpointManager, parts: Parts) -> None:
    """Training on after a save changes neither the file nor what is loaded from it."""
    train(parts, range(2))
    before = state_of(parts)
    manager.save_checkpoint(**parts.kwargs(), epoch=2)
    train(parts, range(2, 4))
    other = build(3)
    manager.resume(other.model, other.optimizer, other.scheduler)
    assert state_of(other) == before


@pytest.mark.parametrize("kind", DAMAGE)
def test_resume_walks_back_past_damage_and_says_why(
    manager: CheckpointManager, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest intact checkpoint is restored; each newer one is named, with its reason, in the log and the result."""
    damage, reason = DAMAGE[kind]
    states, saved = {}, []
    parts = build()
    for epoch in (1, 2, 3):
        train(parts, [epoch])
        checkpoint_id = manager.save_checkpoint(**parts.kwargs(), epoch=epoch)
        assert checkpoint_id is not None
        saved.append(checkpoint_id)
        states[epoch] = state_of(parts)
    for checkpoint_id in saved[1:]:
        damage(payload_path(manager, checkpoint_id), manifest_path(manager, checkpoint_id))

    other = build(9)
    with caplog.at_level(logging.WARNING, logger="ckpt_lib"):
        payload = manager.resume(other.model, other.optimizer, other.scheduler)
    assert payload is not None
    assert payload["checkpoint_id"] == saved[0]
    assert payload["epoch"] == 1
    assert state_of(other) == states[1]
    assert {item["checkpoint_id"] for item in payload["passed_over"]} == set(saved[1:])
    assert all(reason in item["reason"] for item in payload["passed_over"])
    for checkpoint_id in saved[1:]:
        assert any(checkpoint_id in message and reason in message for message in caplog.messages)


def test_a_save_after_a_walk_back_is_the_newest(manager: CheckpointManager) -> None:
    """What is saved after resuming from an older checkpoint comes after the damaged ones, with its parent recorded."""
    saved = [save(manager, epoch) for epoch in (1, 2, 3)]
    flip_bit(payload_path(manager, saved[2]), 100)
    manager.resume()
    new = save(manager, 2)
    assert manager.get_checkpoint("latest").checkpoint_id == new
    assert manager.get_checkpoint(new).parent_id == saved[1]


def test_resume_without_checkpoints_is_none(manager: CheckpointManager, parts: Parts, store_path: Path) -> None:
    """A first start gets None, with model and disk untouched."""
    before = state_of(parts)
    assert manager.resume(parts.model, parts.optimizer, parts.scheduler) is None
    assert state_of(parts) == before
    assert not store_path.exists()


@pytest.mark.parametrize("kind", DAMAGE)
def test_resume_with_nothing_valid_is_an_error(manager: CheckpointManager, parts: Parts, kind: str) -> None:
    """When every checkpoint is damaged, beginning anew is not decided silently: all reasons are in the error."""
    damage, reason = DAMAGE[kind]
    saved = [save(manager, epoch) for epoch in (1, 2)]
    for checkpoint_id in saved:
        damage(payload_path(manager, checkpoint_id), manifest_path(manager, checkpoint_id))
    before = state_of(parts)
    with pytest.raises(NoValidCheckpointError, match=reason) as caught:
        manager.resume(parts.model, parts.optimizer, parts.scheduler)
    assert all(checkpoint_id in str(caught.value) for checkpoint_id in saved)
    assert isinstance(caught.value, IntegrityError)
    assert state_of(parts) == before


@pytest.mark.parametrize("kind", DAMAGE)
def test_resume_works_again_after_a_restore(make_manager: MakeManager, kind: str) -> None:
    """Each kind of damage to the newest checkpoint is undone by its backup."""
    damage, _ = DAMAGE[kind]
    manager = make_manager()
    parts = build()
    train(parts, range(2))
    saved = manager.save_checkpoint(**parts.kwargs(), epoch=2)
    assert saved is not None
    damage(payload_path(manager, saved), manifest_path(manager, saved))
    manager.restore_checkpoint(saved)
    other = build(4)
    payload = make_manager().resume(other.model, other.optimizer, other.scheduler)
    assert payload is not None
    assert payload["passed_over"] == []
    assert state_of(other) == state_of(parts)


def test_damage_is_not_hidden_by_having_been_intact(manager: CheckpointManager) -> None:
    """A file that this process saved, validated and loaded is read again, even with its times set back."""
    import os

    saved = save(manager, 1)
    assert manager.validate_checkpoint(saved)
    manager.load_checkpoint(saved)
    path = payload_path(manager, saved)
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(300)
        byte = file.read(1)
        file.seek(300)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert not manager.validate_checkpoint(saved)
    with pytest.raises(CorruptCheckpointError):
        manager.load_checkpoint(saved)


# --- state that does not fit ---


def _wider() -> Parts:
    return build(1, width=9)


def _adam_for_sgd() -> Parts:
    parts = build(1)
    optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.1, momentum=0.9)
    return Parts(parts.model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))


def _lambda_for_step() -> Parts:
    parts = build(1)
    return Parts(
        parts.model, parts.optimizer, torch.optim.lr_scheduler.LambdaLR(parts.optimizer, lambda epoch: 0.5**epoch)
    )


def _other_groups() -> Parts:
    parts = build(1)
    groups = [{"params": [item]} for item in parts.model.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    return Parts(parts.model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))


@pytest.mark.parametrize("make", [_wider, _adam_for_sgd, _lambda_for_step, _other_groups])
def test_state_that_does_not_fit_changes_nothing(manager: CheckpointManager, make: Callable[[], Parts]) -> None:
    """Other shapes, another kind of optimizer or scheduler, other parameter groups: refused, and all is as before."""
    saved = build()
    train(saved, range(3))
    manager.save_checkpoint(**saved.kwargs(), epoch=3)
    parts = make()
    train(parts, range(2))
    before = state_of(parts)
    with pytest.raises(StateMismatchError):
        manager.load_checkpoint("latest", **parts.kwargs())
    assert state_of(parts) == before
    train(parts, range(2, 3))  # and it still trains


def test_the_message_of_a_mismatch_names_the_checkpoint(manager: CheckpointManager, tmp_path: Path) -> None:
    """What was imported by mistake, and is the newest now, is told when a run cannot go on from it."""
    model = nn.Linear(2, 3)
    manager.save_checkpoint(model=model, epoch=1)
    torch.save({"state_dict": nn.Sequential(nn.Linear(4, 4)).state_dict(), "epoch": 7}, tmp_path / "old.pt")
    imported = manager.import_checkpoint(tmp_path / "old.pt")
    with pytest.raises(
        StateMismatchError, match=rf"{imported}\. It is the newest, and described as: Imported from .*old\.pt"
    ):
        manager.resume(model=model)
    manager.delete_checkpoint(imported)
    resumed = manager.resume(model=model)
    assert resumed is not None
    assert resumed["epoch"] == 1


def test_the_message_of_a_mismatch_names_the_tensors(manager: CheckpointManager) -> None:
    """Missing, unexpected and differently shaped tensors are named."""
    manager.save_checkpoint(model=nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), epoch=1)
    other = nn.Sequential(nn.Linear(2, 4), nn.Identity(), nn.Linear(3, 1))
    with pytest.raises(
        StateMismatchError, match=r"(?s)not stored: 2\.bias.*not in the model: 1\.bias.*0\.weight \(3, 2\)"
    ):
        manager.load_checkpoint("latest", model=other)


def test_a_part_that_was_not_saved_is_refused(manager: CheckpointManager, parts: Parts) -> None:
    """Restoring an optimizer from a checkpoint without one changes not even the model."""
    manager.save_checkpoint(model=build(2).model, epoch=1)
    before = state_of(parts)
    with pytest.raises(StateMismatchError, match="no optimizer state"):
        manager.load_checkpoint("latest", model=parts.model, optimizer=parts.optimizer)
    assert state_of(parts) == before


class _Remembering(nn.Module):
    """A module with state of its own beside its tensors."""

    def __init__(self, memory: Any) -> None:
        super().__init__()
        self.memory = memory

    def get_extra_state(self) -> Any:
        return self.memory

    def set_extra_state(self, state: Any) -> None:
        self.memory = state


def test_extra_state_of_modules(manager: CheckpointManager) -> None:
    """get_extra_state() values are stored and restored, whatever the module had before."""
    manager.save_checkpoint(model=_Remembering({"seen": 5}), epoch=1)
    model = _Remembering(None)
    manager.load_checkpoint("latest", model=model)
    assert model.memory == {"seen": 5}
    model = _Remembering(torch.zeros(2))
    manager.load_checkpoint("latest", model=model)
    assert model.memory == {"seen": 5}


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler"])
def test_what_cannot_be_restored_into_is_refused(manager: CheckpointManager, part: str) -> None:
    """An object without load_state_dict() is one typed error that names it."""
    save(manager, 1)
    arguments: dict[str, Any] = {part: object()}
    with pytest.raises(ConfigError, match=part):
        manager.load_checkpoint("latest", **arguments)


def test_a_checkpoint_that_is_gone_is_not_called_damaged(manager: CheckpointManager) -> None:
    """After a deletion its id is unknown; it is not reported as corruption."""
    saved = save(manager, 1)
    manager.delete_checkpoint(saved)
    for ask in (manager.load_checkpoint, manager.validate_checkpoint, manager.get_checkpoint):
        with pytest.raises(CheckpointNotFoundError):
            ask(saved)


def test_resume_verifies_whatever_the_configuration_says(make_manager: MakeManager) -> None:
    """`validate_checkpoints=False` spares loads the check, and never the resuming of a run."""
    manager = make_manager(validate_checkpoints=False, backup_checkpoints=False)
    first = save(manager, 1, 1.0)
    weight = (model := nn.Linear(3, 2)).weight.detach().numpy()
    second = manager.save_checkpoint(model=model, epoch=2)
    assert second is not None
    flip_bit(path := payload_path(manager, second), path.read_bytes().index(weight.tobytes()))  # no structure to break
    resumed = manager.resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == first
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [second]


def test_a_lazy_module_takes_its_shapes_from_the_checkpoint(manager: CheckpointManager) -> None:
    """Its parameters have no shape yet that could be compared."""
    model, lazy = nn.Linear(3, 2), nn.LazyLinear(2)
    manager.save_checkpoint(model=model, epoch=1)
    manager.load_checkpoint("latest", lazy)
    assert torch.equal(lazy.weight, model.weight)
