"""Loading through the manager: parts by name, memory of one's own, and payloads that are kept in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import ConfigError, CorruptCheckpointError
from tests.helpers import MakeManager, Parts, build, fingerprint, flip_bit, payload_path, save, state_of, train


def save_parts(manager: CheckpointManager, parts: Parts) -> str:
    """Save all three after some steps, so that the optimizer has tensors of its own."""
    train(parts, [1])
    saved = manager.save_checkpoint(**parts.kwargs(), epoch=1)
    assert saved is not None
    return saved


def test_a_part_is_returned_by_name(manager: CheckpointManager, parts: Parts) -> None:
    """Of the payload only what is named, with the id; dotted names go into it."""
    save_parts(manager, parts)
    loaded = manager.load_checkpoint(keys=["model_state_dict.0.weight", "epoch"])
    assert set(loaded) == {"model_state_dict", "epoch", "checkpoint_id"}
    assert list(loaded["model_state_dict"]) == ["0.weight"]
    assert torch.equal(loaded["model_state_dict"]["0.weight"], parts.model.state_dict()["0.weight"])


def test_damage_elsewhere_does_not_keep_a_part_from_being_loaded(make_manager: MakeManager) -> None:
    """Of a file of many chunks, those that are not needed are not even looked at; those that are, are."""
    manager = make_manager(backup_checkpoints=False)
    model = nn.ParameterDict({"first": torch.zeros(2**22), "second": torch.ones(2**22)})
    saved = manager.save_checkpoint(model=model, epoch=1)
    assert saved is not None
    path = payload_path(manager, saved)
    flip_bit(path, path.stat().st_size // 4)
    loaded = manager.load_checkpoint(keys=["model_state_dict.second"])
    assert loaded["model_state_dict"]["second"].sum() == 2**22
    with pytest.raises(CorruptCheckpointError) as refused:
        manager.load_checkpoint(keys=["model_state_dict.first"])
    assert refused.value.checkpoint_id == saved
    with pytest.raises(CorruptCheckpointError):
        manager.load_checkpoint()


def test_a_model_is_restored_from_its_part(manager: CheckpointManager, parts: Parts) -> None:
    """With keys that hold the state of what is passed, and nothing else."""
    save_parts(manager, parts)
    fresh = build(seed=1)
    loaded = manager.load_checkpoint(model=fresh.model, keys=["model_state_dict"])
    told = {"replaced", "changed_values", "not_restored", "approximate", "next_epoch"}
    assert set(loaded) == {"model_state_dict", "checkpoint_id", *told}
    assert fingerprint(fresh.model.state_dict()) == fingerprint(parts.model.state_dict())


@pytest.mark.parametrize("keys", [["epoch"], ["model_state_dict.0.weight"], ["optimizer_state_dict", "epoch"]], ids=str)
def test_keys_without_the_state_of_what_is_passed_are_refused(
    manager: CheckpointManager, parts: Parts, keys: list[str]
) -> None:
    """Before anything is read: half a model would be restored, or none."""
    save_parts(manager, parts)
    before = state_of(parts)
    with pytest.raises(ConfigError, match="model="):
        manager.load_checkpoint(model=parts.model, keys=keys)
    assert state_of(parts) == before


def test_an_unknown_key_names_the_checkpoint_and_what_is_like_it(manager: CheckpointManager, parts: Parts) -> None:
    """A typing error is found by reading the message."""
    saved = save_parts(manager, parts)
    with pytest.raises(ConfigError) as refused:
        manager.load_checkpoint(keys=["model_state_dict.0.wieght"])
    assert refused.value.checkpoint_id == saved
    assert "'model_state_dict.0.weight'" in str(refused.value)


def test_an_optimizer_takes_nothing_over_from_what_is_returned(manager: CheckpointManager, parts: Parts) -> None:
    """Training on changes neither the returned payload nor the file; and changing the payload no training."""
    saved = save_parts(manager, parts)
    data = payload_path(manager, saved).read_bytes()
    fresh = build(seed=1)
    loaded = manager.load_checkpoint(saved, fresh.model, fresh.optimizer, fresh.scheduler)
    tensors = [
        value
        for state in loaded["optimizer_state_dict"]["state"].values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    before = [tensor.clone() for tensor in tensors]
    assert tensors
    train(fresh, [2])
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    trained = state_of(fresh)
    for tensor in tensors:
        tensor.zero_()
    for tensor in loaded["model_state_dict"].values():
        tensor.zero_()
    assert state_of(fresh) == trained
    assert payload_path(manager, saved).read_bytes() == data


def test_what_was_loaded_survives_its_checkpoint(manager: CheckpointManager) -> None:
    """A deleted file leaves the tensors as they are."""
    saved = save(manager, 1)
    loaded = manager.load_checkpoint(saved)
    weight = loaded["model_state_dict"]["weight"].clone()
    manager.delete_checkpoint(saved)
    assert torch.equal(loaded["model_state_dict"]["weight"], weight)


# --- payloads kept in memory ---


@pytest.fixture
def caching(make_manager: MakeManager) -> CheckpointManager:
    return make_manager(cache_size_bytes=2**20, backup_checkpoints=False)


def test_a_payload_in_memory_is_not_read_again(caching: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads after the first open no file, give the same, and share nothing with each other."""
    saved = save(caching, 1)
    first = caching.load_checkpoint(saved)["model_state_dict"]["weight"]
    wanted = first.clone()
    monkeypatch.delattr("ckpt_lib.experiment.stored_payload.open_file")
    first.zero_()
    second = caching.load_checkpoint(saved)["model_state_dict"]["weight"]
    assert torch.equal(second, wanted)
    assert torch.equal(caching.load_checkpoint(keys=["model_state_dict"])["model_state_dict"]["weight"], wanted)
    assert first.sum() == 0


def test_a_file_that_changed_is_read_again(caching: CheckpointManager) -> None:
    """What is in memory answers for the version that was read, and not for another."""
    saved = save(caching, 1)
    caching.load_checkpoint(saved)
    flip_bit(payload_path(caching, saved), 1000)
    with pytest.raises(CorruptCheckpointError):
        caching.load_checkpoint(saved)


def test_rot_after_verifying_does_not_reach_what_is_in_memory(
    caching: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version of a file says nothing of bits that rot; the bytes in memory are those that were verified."""
    key = ("a file", "whose version stays", "as it is")
    monkeypatch.setattr("ckpt_lib.experiment.stored_payload._cache_key", lambda *_: key)
    saved = save(caching, 1)
    wanted = caching.load_checkpoint(saved)["model_state_dict"]["weight"]
    flip_bit(payload_path(caching, saved), 1000)
    assert torch.equal(caching.load_checkpoint(saved)["model_state_dict"]["weight"], wanted)


def test_a_damaged_payload_is_refused_with_a_cache_too(caching: CheckpointManager, parts: Parts) -> None:
    """Missing, short and altered files are told as they are without one, and nothing is restored."""
    for damage in ("altered", "truncated", "missing"):
        saved = save_parts(caching, build())
        path = payload_path(caching, saved)
        if damage == "altered":
            flip_bit(path, -1)
        elif damage == "truncated":
            os.truncate(path, 500)
        else:
            path.unlink()
        before = state_of(parts)
        with pytest.raises(CorruptCheckpointError) as refused:
            caching.load_checkpoint(saved, parts.model)
        assert [found.kind for found in refused.value.damages] == [damage]
        assert refused.value.checkpoint_id == saved
        assert state_of(parts) == before


def test_without_verification_nothing_is_kept(make_manager: MakeManager) -> None:
    """The cache holds verified bytes; what nobody verified does not become trusted by it."""
    manager = make_manager(cache_size_bytes=2**20, validate_checkpoints=False)
    saved = save(manager, 1)
    manager.load_checkpoint(saved)
    assert manager._loader.cache is not None
    assert manager._loader.cache.size_bytes == 0


class Counting(nn.Module):
    """A module with a tensor of its own making beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.seen = torch.ones(3)

    def get_extra_state(self) -> torch.Tensor:
        return self.seen

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen = state


def test_extra_state_of_modules_is_their_own(make_manager: MakeManager) -> None:
    """A module keeps what it is given as extra state: it shares no memory with what was returned."""
    manager, model = make_manager(), Counting()
    manager.save_checkpoint(model=model, epoch=1)
    model.seen = torch.zeros(3)
    payload = manager.load_checkpoint(model=model)
    payload["model_state_dict"]["_extra_state"].zero_()
    assert model.seen.tolist() == [1, 1, 1]


def test_cached_payloads_are_read_by_many_at_once(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files cannot be mapped as well: each load reads the kept copy from its own position."""
    manager = make_manager(cache_size_bytes=2**20)
    weights = torch.arange(20_000.0)
    manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1, extra_state={"a": weights})
    manager.load_checkpoint()

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("no mapping here")

    monkeypatch.setattr("ckpt_lib.stream.mapping._map", refuse)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: manager.load_checkpoint()["extra_state"]["a"], range(40)))
    assert all(torch.equal(tensor, weights) for tensor in found)
