"""Thinning: an old checkpoint keeps its weights to the bit, and what it loses can come back for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    NoValidCheckpointError,
    ProtectedCheckpointError,
    StateMismatchError,
    StorageFullError,
    VersionConflictError,
)
from ckpt_lib.experiment import replacement
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.maintenance import thin as thinning
from ckpt_lib.state.sameness import first_difference
from ckpt_lib.store import open_store
from tests.formats.folder_format import NAME, FolderFormat
from tests.helpers import MakeManager, Parts, build, experiment_folder, flip_bit, ids, save, state_of, train

Made = tuple[CheckpointManager, list[str]]


def save_parts(manager: CheckpointManager, parts: Parts, epoch: int, **options: Any) -> str:
    train(parts, [epoch])
    made = manager.save_checkpoint(**parts.kwargs(), epoch=epoch, metrics={"val_loss": 1 / epoch}, **options)
    assert made is not None
    return made


@pytest.fixture(params=["torch", NAME])
def made(request: pytest.FixtureRequest, unlimited: CheckpointManager, folder_format: FolderFormat) -> Made:
    """A manager with three checkpoints of a trained model, in a format of one file and in one of a folder."""
    config = unlimited.config.model_copy(update={"format": request.param})
    manager, parts = CheckpointManager(config, "run"), build()
    return manager, [save_parts(manager, parts, epoch, extra_state={"seen": torch.arange(3)}) for epoch in (1, 2, 3)]


def home_of(manager: CheckpointManager) -> Experiment:
    return manager._locations.home


def manifest_of(manager: CheckpointManager, checkpoint_id: str) -> Manifest:
    return home_of(manager).get(checkpoint_id)


def payloads(manager: CheckpointManager) -> set[str]:
    """The names of all payload files."""
    entries = home_of(manager).store.list(manager.experiment_name, recursive=True)
    names = {entry.key.removeprefix(f"{manager.experiment_name}/") for entry in entries}
    return {name for name in names if name.startswith("checkpoint_epoch") and not name.endswith(".json")}


def named(manager: CheckpointManager) -> set[str]:
    return {file.name for item in home_of(manager).index.manifests() for file in item.files}


# --- what stays, and what goes ---


def test_the_weights_stay_to_the_bit_and_the_rest_goes(made: Made) -> None:
    """What was saved beside the weights stays too, and what was dropped is None; the checkpoint verifies."""
    manager, (first, *_) = made
    before = manager.load_checkpoint(first)
    size_bytes = manager.get_checkpoint(first).file_size
    thinned = manager.thin_checkpoint(first)
    after = manager.load_checkpoint(first)
    kept = {key: before[key] for key in ("model_state_dict", "epoch", "step", "metrics", "config", "extra_state")}
    assert first_difference({key: after[key] for key in kept}, kept) is None
    assert after["optimizer_state_dict"] is None
    assert after["scheduler_state_dict"] is None
    assert list(after) == list(before)
    assert thinned.is_thinned
    assert thinned.file_size < size_bytes / 2
    assert manager.get_checkpoint(first) == thinned
    assert manager.validate_checkpoint(first)
    model = build(seed=9).model
    manager.load_checkpoint(first, model=model)
    assert first_difference(model.state_dict(), before["model_state_dict"]) is None


def test_unknown_parts_of_a_payload_stay(unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that newer versions write: the random numbers and the data's position go, all others stay."""
    original = TorchZipFormat.prepare

    def with_more(self: TorchZipFormat, payload: Any) -> Any:
        more = {"rng_state": [{"torch": torch.ones(3)}], "data_state": [{"seen": 3}], "newer": {"ema": torch.ones(2)}}
        return original(self, payload if payload.get("rng_state") is None else {**payload, **more})

    monkeypatch.setattr(TorchZipFormat, "prepare", with_more)
    checkpoint_id = str(unlimited.save_checkpoint(**build().kwargs(), epoch=1))
    unlimited.thin_checkpoint(checkpoint_id)
    payload = unlimited.load_checkpoint(checkpoint_id)
    assert payload["rng_state"] is payload["data_state"] is None
    assert torch.equal(payload["newer"]["ema"], torch.ones(2))


def test_thinning_twenty_checkpoints_of_adam_takes_two_thirds_away(unlimited: CheckpointManager) -> None:
    """Once the trash is empty, they take at most 0.36 of the bytes; each verifies and loads into a model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    optimizer, weights = torch.optim.Adam(model.parameters()), {}
    for epoch in range(1, 21):
        torch.autograd.backward(model(torch.randn(4, 128)).square().mean())
        optimizer.step()
        made = unlimited.save_checkpoint(model=model, optimizer=optimizer, epoch=epoch)
        weights[made] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before_bytes = sum(item.file_size for item in unlimited.list_checkpoints())
    for checkpoint_id in weights:
        unlimited.thin_checkpoint(str(checkpoint_id))
    unlimited.empty_trash()
    folder = experiment_folder(unlimited)
    after_bytes = sum(path.stat().st_size for path in folder.glob("*.pt"))
    print(f"{before_bytes} bytes before, {after_bytes} after: {after_bytes / before_bytes:.3f}")
    assert after_bytes <= 0.36 * before_bytes
    assert all(unlimited.validate_all())
    for checkpoint_id, wanted in weights.items():
        unlimited.load_checkpoint(str(checkpoint_id), model=model)
        assert first_difference(dict(model.state_dict()), wanted) is None


def test_what_has_nothing_to_drop_stays_as_it_is(unlimited: CheckpointManager) -> None:
    """It was saved without an optimizer: it is not called thinned, and runs resume from it as before."""
    checkpoint_id = save(unlimited, 1)
    before = manifest_of(unlimited, checkpoint_id)
    assert not unlimited.thin_checkpoint(checkpoint_id).is_thinned
    assert manifest_of(unlimited, checkpoint_id) == before
    assert unlimited.resume() is not None


# --- the way back ---


def test_what_was_dropped_comes_back(made: Made) -> None:
    """The old files again; the thinned ones go the way that the old ones would have gone."""
    manager, (first, *_) = made
    before = manifest_of(manager, first)
    manager.thin_checkpoint(first)
    back = manager.unthin_checkpoint(first)
    assert not back.is_thinned
    assert manifest_of(manager, first).files == before.files
    assert manager.load_checkpoint(first)["optimizer_state_dict"] is not None
    manager.empty_trash()
    assert payloads(manager) == named(manager)
    assert manifest_of(manager, first).obsolete == ()
    assert manager.thin_checkpoint(first).is_thinned


def test_it_is_gone_once_the_trash_is_empty(made: Made) -> None:
    """The files go and the manifest forgets them; the way back says where else to look."""
    manager, (first, *_) = made
    manager.thin_checkpoint(first)
    assert list(manager.dropped_bytes()) == [first]
    manager.empty_trash()
    assert manager.dropped_bytes() == {}
    assert payloads(manager) == named(manager)
    with pytest.raises(CheckpointNotFoundError, match="has been removed") as refused:
        manager.unthin_checkpoint(first)
    assert "ckpt restore" in str(refused.value)
    assert manager.thin_checkpoint(first).is_thinned  # once more changes nothing


def test_a_damaged_old_payload_does_not_come_back(unlimited: CheckpointManager) -> None:
    """It is read before it takes the place of weights that are whole."""
    first = save_parts(unlimited, build(), 1)
    unlimited.thin_checkpoint(first)
    flip_bit(experiment_folder(unlimited) / f"{first}.pt", 2_000)
    with pytest.raises(CorruptCheckpointError, match="what was dropped"):
        unlimited.unthin_checkpoint(first)
    assert unlimited.validate_checkpoint(first)


def test_the_old_payload_stays_while_the_new_one_is_damaged(unlimited: CheckpointManager) -> None:
    """It is the only whole one, and brings the checkpoint back, from quarantine as well."""
    first, _ = (save_parts(unlimited, build(), epoch) for epoch in (1, 2))
    unlimited.thin_checkpoint(first)
    flip_bit(experiment_folder(unlimited) / manifest_of(unlimited, first).payload_name, 2_000)
    again = CheckpointManager(unlimited.config, "run")
    again.empty_trash()
    assert list(again.dropped_bytes()) == [first]
    again.quarantine_checkpoint(first)
    assert not again.unthin_checkpoint(first).is_thinned
    assert again.validate_checkpoint(first)
    assert first in ids(again)


def test_the_trash_keeps_it_for_its_time(make_manager: MakeManager) -> None:
    """A cleanup leaves it alone until then, and one that keeps nothing frees it at once."""
    manager = make_manager(backup_checkpoints=False)
    first, _ = (save_parts(manager, build(), epoch) for epoch in (1, 2))
    manager.thin_checkpoint(first)
    assert manager.cleanup_checkpoints().expired_bytes == 0
    old_bytes = manager.dropped_bytes()[first]
    report = make_manager(backup_checkpoints=False, trash_seconds=0).cleanup_checkpoints()
    assert report.expired_bytes == old_bytes
    assert payloads(manager) == named(manager)


# --- resuming ---


def test_a_run_does_not_resume_from_it(made: Made) -> None:
    """It goes on from the newest one with all of its state, and is told why."""
    manager, (_, second, third) = made
    manager.thin_checkpoint(third)
    resumed = manager.resume(**build(seed=5).kwargs())
    assert resumed is not None
    assert resumed["checkpoint_id"] == second
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [third]
    assert "only its weights" in resumed["passed_over"][0]["reason"]


def test_a_run_may_take_its_weights(made: Made) -> None:
    """On request, and not with an optimizer, whose state would be another one's."""
    manager, (_, _, third) = made
    manager.thin_checkpoint(third)
    parts = build(seed=5)
    before = state_of(parts)
    with pytest.raises(StateMismatchError, match="thinned") as refused:
        manager.resume(**parts.kwargs(), allow_thinned=True)
    assert "optimizer and the scheduler" in str(refused.value)
    assert state_of(parts) == before
    resumed = manager.resume(parts.model, allow_thinned=True)
    assert resumed is not None
    assert (resumed["checkpoint_id"], resumed["passed_over"]) == (third, [])


def test_a_load_of_its_optimizer_is_refused(made: Made) -> None:
    """With the reason; the model stays as it was."""
    manager, (first, *_) = made
    manager.thin_checkpoint(first)
    parts = build(seed=5)
    before = state_of(parts)
    with pytest.raises(StateMismatchError, match="only its weights are left"):
        manager.load_checkpoint(first, parts.model, parts.optimizer)
    assert state_of(parts) == before


def test_where_all_are_thinned_it_says_what_to_do(made: Made) -> None:
    """No run begins anew by itself."""
    manager, all_ids = made
    for checkpoint_id in all_ids:
        manager.thin_checkpoint(checkpoint_id)
    with pytest.raises(NoValidCheckpointError, match="ckpt thin --undo") as refused:
        manager.resume()
    assert "allow_thinned=True" in str(refused.value)


def test_the_newest_whole_one_is_never_retired(make_manager: MakeManager) -> None:
    """A thinned one that is newer is nothing that a run can go on from."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=3)
    older, newer, newest = (save_parts(manager, build(), epoch) for epoch in (1, 2, 3))
    manager.thin_checkpoint(newest)
    report = make_manager(backup_checkpoints=False, max_checkpoints=1).cleanup_checkpoints()
    assert report.deleted_ids == (older,)
    assert "with all of its state" in next(item.reason for item in report.plan.decisions if item.checkpoint_id == newer)


# --- refusals ---


def test_a_damaged_one_is_refused(made: Made) -> None:
    """Wherever it is damaged: what is dropped could not come back."""
    manager, (first, *_) = made
    before = manifest_of(manager, first)
    for file in before.files:
        path, middle = experiment_folder(manager) / file.name, file.size_bytes // 2
        flip_bit(path, middle)
        with pytest.raises(CorruptCheckpointError):
            manager.thin_checkpoint(first)
        flip_bit(path, middle)
    (experiment_folder(manager) / before.files[0].name).unlink()
    with pytest.raises(CorruptCheckpointError, match="missing"):
        manager.thin_checkpoint(first)
    assert manifest_of(manager, first) == before


def test_a_pinned_one_and_one_in_use_are_refused(made: Made) -> None:
    """As they are by a deletion."""
    manager, (first, _, third) = made
    manager.pin_checkpoint(first)
    with pytest.raises(ProtectedCheckpointError, match="pinned"):
        manager.thin_checkpoint(first)
    manager.resume()
    with pytest.raises(ProtectedCheckpointError, match="a run has resumed"):
        manager.thin_checkpoint(third)
    assert manager.dropped_bytes() == {}


def test_a_pin_that_comes_while_it_is_written_is_obeyed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest that is replaced decides; what was written goes."""
    manager, (first, *_) = made
    before = payloads(manager)
    original = thinning._compare

    def pinned(*arguments: Any) -> None:
        original(*arguments)
        manager.pin_checkpoint(first)

    monkeypatch.setattr(thinning, "_compare", pinned)
    with pytest.raises(ProtectedCheckpointError, match="pinned"):
        manager.thin_checkpoint(first)
    assert payloads(manager) == before
    assert manifest_of(manager, first).next is None
    assert manifest_of(manager, first).pinned


def test_a_format_that_loses_a_bit_is_found_out(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read back and compared before it takes the place of anything."""
    manager, (first, *_) = made
    before, files = manifest_of(manager, first), payloads(manager)
    name = "prepare"
    kind: Any = FolderFormat if manager.config.format == NAME else TorchZipFormat
    original = getattr(kind, name)

    def lossy(self: Any, payload: Any) -> Any:
        weights = {key: value.half().float() for key, value in payload["model_state_dict"].items()}
        return original(self, {**payload, "model_state_dict": weights})

    monkeypatch.setattr(kind, name, lossy)
    with pytest.raises(CorruptCheckpointError, match="does not give back what was written"):
        manager.thin_checkpoint(first)
    after = manifest_of(manager, first)
    assert (after.files, after.thinned, after.next) == (before.files, None, None)
    assert payloads(manager) == files


def test_a_full_store_is_left_as_it_is(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    manager, (first, *_) = made
    before = manifest_of(manager, first)
    monkeypatch.setattr(type(home_of(manager).store), "free_bytes", lambda _: 1000)
    with pytest.raises(StorageFullError, match="not enough space"):
        manager.thin_checkpoint(first)
    assert manifest_of(manager, first) == before


# --- others ---


def test_two_at_once_are_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first at work; of the dead it takes over."""
    manager, (first, *_) = made
    home, other = home_of(manager), CheckpointManager(manager.config, "run")
    source = home.get(first)

    def write(_: replacement.HeldNext) -> Any:
        with pytest.raises(VersionConflictError, match="is writing another payload"):
            other.thin_checkpoint(first)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replacement.replace_payload(home, source, ".pt", write, thinned=None)
    monkeypatch.setattr(replacement, "_give_up", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        replacement.replace_payload(home, source, ".pt", write, thinned=None)
    monkeypatch.undo()
    dead = home.read(first)
    owner = dead.manifest.next
    assert owner is not None
    gone = owner.model_copy(update={"owner": owner.owner.model_copy(update={"started": "0"})})
    home.put_record(dead.manifest.changed(next=gone), dead.version)
    assert other.thin_checkpoint(first).is_thinned


def test_a_load_finds_the_new_files_when_the_old_ones_go(made: Made) -> None:
    """Who has read the old manifest is told that nothing is damaged, and reads again."""
    manager, (first, *_) = made
    home = home_of(manager)
    before = home.get(first)
    manager.thin_checkpoint(first)
    manager.empty_trash()
    with pytest.raises(CheckpointNotFoundError, match="replaced by others meanwhile"):
        home.check_current(before)
    assert manager.load_checkpoint(first)["optimizer_state_dict"] is None


def test_a_deletion_takes_everything_along(made: Made) -> None:
    """The old payload too; an undeletion brings both back."""
    manager, (first, *_) = made
    manager.thin_checkpoint(first)
    manager.delete_checkpoint(first)
    assert manager.undelete_checkpoint(first).is_thinned
    assert not manager.unthin_checkpoint(first).is_thinned
    manager.thin_checkpoint(first)
    manager.delete_checkpoint(first)
    manager.empty_trash()
    assert not [name for name in payloads(manager) if name.startswith(first)]


def test_a_sweep_and_the_doctor_know_all_files(made: Made) -> None:
    """Neither the old payload nor the one being written is a leftover; the doctor says what can be undone."""
    manager, (first, second, _) = made
    home = home_of(manager)
    manager.thin_checkpoint(first)
    before = payloads(manager)

    def write(held: replacement.HeldNext) -> Any:
        key = home.key(held.file_name("part" if held.payload.files[0].endswith("/") else ""))
        home.store.put(key, b"being written")
        found = Experiment(home.store, "run", "run")
        assert sweep(found).files == []
        assert home.store.stat(key)
        assert [item.kind for item in manager.doctor().findings] == ["thinned"]
        raise KeyboardInterrupt

    suffix = "/" if manager.config.format == NAME else ".pt"
    with pytest.raises(KeyboardInterrupt):
        replacement.replace_payload(home, home.get(second), suffix, write, thinned=None)
    assert payloads(manager) == before
    assert manager.doctor(deep=True).is_healthy


def test_the_same_save_is_still_the_same(unlimited: CheckpointManager) -> None:
    """A save that is tried again finds what was thinned meanwhile, by its key and by its content."""
    parts = build()
    train(parts, [1])
    saved = {**parts.kwargs(), "epoch": 1, "idempotency_key": "k"}
    first = unlimited.save_checkpoint(**saved)
    unlimited.thin_checkpoint(str(first))
    assert unlimited.save_checkpoint(**saved) == first
    assert unlimited.save_checkpoint(**saved, compare_content=True) == first


def test_a_store_in_memory_works_as_well(tmp_path: Path) -> None:
    """Where nothing is mapped, and open files do not outlive their names."""
    manager = CheckpointManager(
        CheckpointConfig(checkpoint_dir=f"memory://{tmp_path.name}", backup_checkpoints=False), "run"
    )
    first = save_parts(manager, build(), 1)
    manager.thin_checkpoint(first)
    manager.empty_trash()
    assert manager.load_checkpoint(first)["optimizer_state_dict"] is None
    assert payloads(manager) == named(manager)
    store = open_store(manager.config.checkpoint_dir)
    for entry in store.list("", recursive=True):
        store.delete(entry.key)
