"""Imports of checkpoints of other programs: copied, with all that a run needs, or refused with nothing written."""

from __future__ import annotations

import json
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, ConfigError, CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.reports import ImportedItem
from ckpt_lib.state.sameness import first_difference
from tests.helpers import MakeManager, flip_bit, ids, start_python

_SCRIPT = """
import json, os, signal, sys
import torch
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager


def train(path, killed_after, store):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    groups = [{"params": model[3].parameters(), "lr": 0.01}, {"params": model[:2].parameters(), "lr": 0.02}]
    optimizer = torch.optim.Adam(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    start = 0
    if store is not None:
        manager = CheckpointManager(CheckpointConfig(checkpoint_dir=store, save_rng=False), "run")
        start = manager.resume(model=model, optimizer=optimizer, scheduler=scheduler)["next_epoch"]
    for epoch in range(start, 5):
        data = torch.Generator().manual_seed(epoch)
        for _ in range(3):
            inputs = torch.randn(16, 4, generator=data)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)).backward()
            optimizer.step()
        scheduler.step()
        state = {
            "epoch": epoch,
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        torch.save(state, f"{path}.{epoch}.pt")
        if epoch == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)


for line in sys.stdin:
    child = os.fork()  # of a process that has loaded everything
    if child == 0:
        train(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def train() -> Iterator[Callable[..., int]]:
    """A training loop of five epochs in a process of its own, which saves each one with torch.save."""
    with start_python(_SCRIPT) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(path: Path, *, killed_after: int = -1, store: Path | None = None) -> int:
            print(json.dumps([str(path), killed_after, store and str(store)]), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield call
        process.stdin.close()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_plain_training_goes_on_as_if_it_had_not_been_killed(
    make_manager: MakeManager, store_path: Path, tmp_path: Path, train: Callable[..., int], in_place: bool
) -> None:
    """Saved by torch.save, killed, imported, resumed: model, optimizer and scheduler are those of one that ran on."""
    assert train(tmp_path / "whole") == 0
    folder = store_path / "run" if in_place else tmp_path / "run"
    folder.mkdir(parents=True)
    assert train(folder / "killed", killed_after=2) == -signal.SIGKILL
    report = make_manager().import_checkpoints(folder, in_place=in_place)
    assert [(item.result, item.epoch) for item in report.items] == [("imported", epoch) for epoch in range(3)]
    assert train(tmp_path / "resumed", store=store_path) == 0
    assert not (tmp_path / "resumed.2.pt").exists()
    whole, resumed = (torch.load(tmp_path / f"{name}.4.pt", weights_only=True) for name in ("whole", "resumed"))
    assert first_difference(resumed, whole) is None


def test_what_it_holds_and_says_is_kept(make_manager: MakeManager, tmp_path: Path) -> None:
    """States come under our keys, facts into the manifest, the rest into extra_state; the time is that of the file."""
    model = nn.Linear(3, 2)
    content = {"state_dict": model.state_dict(), "epoch": 7, "global_step": 70, "best_acc": 0.5, "note": "hello"}
    torch.save(content, tmp_path / "model.pth")
    os.utime(tmp_path / "model.pth", (1_600_000_000, 1_600_000_000))
    manager = make_manager(format="safetensors", compression="zstd")
    checkpoint_id = manager.import_checkpoint(tmp_path / "model.pth")
    found = manager.get_checkpoint(checkpoint_id)
    assert (found.epoch, found.step, found.tags, found.pinned) == (7, 70, ("adopted",), False)
    assert found.timestamp.timestamp() == 1_600_000_000
    assert str(tmp_path / "model.pth") in found.description
    assert found.original is None
    assert manager.validate_checkpoint(checkpoint_id)
    payload = manager.load_checkpoint(checkpoint_id)
    assert first_difference(payload["model_state_dict"], model.state_dict()) is None
    assert payload["extra_state"]["note"] == "hello"
    assert manager.import_checkpoint(tmp_path / "model.pth") == checkpoint_id
    assert ids(manager) == [checkpoint_id]


def test_a_key_map_says_what_unusual_names_are(manager: CheckpointManager, tmp_path: Path) -> None:
    """Without it the weights are not found; with it they are, and one that fits nothing is refused."""
    path = tmp_path / "odd.pt"
    torch.save({"zzz": nn.Linear(2, 2).state_dict(), "yyy": torch.ones(3)}, path)
    with pytest.raises(ConfigError, match="nosuch"):
        manager.import_checkpoint(path, key_map={"nosuch": "model"})
    with pytest.raises(ConfigError, match="key_map"):
        manager.import_checkpoint(path, key_map={"zzz": 1})  # type: ignore[dict-item]
    checkpoint_id = manager.import_checkpoint(path, key_map={"zzz": "model"})
    assert set(manager.load_checkpoint(checkpoint_id)["model_state_dict"]) == {"weight", "bias"}
    assert manager.import_checkpoint(path, key_map={"zzz": "model"}) == checkpoint_id


@pytest.mark.parametrize("start", [0, 3])
def test_a_key_map_is_believed(manager: CheckpointManager, tmp_path: Path, start: int) -> None:
    """The epoch is what key_map names, 0 too, and not the number under the usual name."""
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 7, "start": start}, tmp_path / "a.pt")
    checkpoint_id = manager.import_checkpoint(tmp_path / "a.pt", key_map={"start": "epoch"})
    assert manager.get_checkpoint(checkpoint_id).epoch == start
    assert manager.load_checkpoint(checkpoint_id)["epoch"] == start


def test_a_key_map_that_names_nothing_is_refused(manager: CheckpointManager, tmp_path: Path) -> None:
    """The whole file has no name: a bare state dict is known without one."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ConfigError, match="key_map"):
        manager.import_checkpoint(tmp_path / "bare.pt", key_map={"": "model"})
    assert manager.import_checkpoint(tmp_path / "bare.pt")


def test_no_key_map_gets_around_what_cannot_be_read(manager: CheckpointManager, tmp_path: Path) -> None:
    """One of several files of a model is refused, whatever its names are called."""
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="one of several files"):
        manager.import_checkpoint(path, key_map={"a": "model"})


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("with_checksums", [False, True])
def test_files_without_checksums_are_told(
    make_manager: MakeManager, store_path: Path, in_place: bool, with_checksums: bool
) -> None:
    """What nobody could compare is in the description; of a file of torch.save, it was compared."""
    (store_path / "run").mkdir(parents=True)
    path = store_path / "run" / ("model.pt" if with_checksums else "model.safetensors")
    (torch.save if with_checksums else save_file)(nn.Linear(2, 2).state_dict(), path)
    manager = make_manager()
    description = manager.get_checkpoint(manager.import_checkpoint(path, in_place=in_place)).description
    assert (f"No checksums came with {path.name}" in description) is not with_checksums


def test_our_own_safetensors_without_a_manifest_are_unproven(make_manager: MakeManager, tmp_path: Path) -> None:
    """A payload in the format safetensors is taken in by its folder, all of it, and said to be unproven."""
    model = nn.Linear(2, 2)
    other = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "lost"), format="safetensors"), "run")
    saved = other.save_checkpoint(model=model, epoch=4)
    (tmp_path / "lost" / "run" / f"{saved}.json").unlink()
    manager = make_manager()
    imported = manager.get_checkpoint(manager.import_checkpoint(tmp_path / "lost" / "run" / str(saved)))
    assert (imported.epoch, imported.tags) == (4, ("adopted",))
    assert "No checksums came with" in imported.description
    payload = manager.load_checkpoint(imported.checkpoint_id)
    assert first_difference(payload["model_state_dict"], model.state_dict()) is None


def test_who_asks_is_told_what_became_of_it(manager: CheckpointManager, tmp_path: Path) -> None:
    """Whether it is new, and what was left out."""
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "lr": Decimal("0.1")}, tmp_path / "a.pt")
    told: list[ImportedItem] = []
    imported = [manager.import_checkpoint(tmp_path / "a.pt", told=told.append) for _ in range(2)]
    assert [(item.checkpoint_id, item.result) for item in told] == list(
        zip(imported, ("imported", "already there"), strict=True)
    )
    assert all("lr (decimal.Decimal)" in " ".join(item.left_out) for item in told)


def test_a_flipped_bit_is_not_imported(manager: CheckpointManager, tmp_path: Path) -> None:
    """The archive's own checksums find a bit that changed in a tensor, copied or in place; nothing is written."""
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"weight": torch.full((1000,), 0.5)}}, path)
    data = bytearray(path.read_bytes())
    position = data.index(torch.full((4,), 0.5).numpy().tobytes()) + 400
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        manager.import_checkpoint(path)
    assert ids(manager) == []


def test_weights_with_nan_are_imported_and_not_resumed_from(make_manager: MakeManager, tmp_path: Path) -> None:
    """They are said to be unhealthy, as those of a save where health is checked."""
    manager = make_manager(health_check=True)
    torch.save({"state_dict": {"weight": torch.full((2, 2), float("nan")), "bias": torch.ones(2)}}, tmp_path / "a.pt")
    checkpoint_id = manager.import_checkpoint(tmp_path / "a.pt")
    assert not manager.get_checkpoint(checkpoint_id).healthy
    with pytest.raises(CheckpointError):
        manager.resume(model=nn.Linear(2, 2))


def test_importing_again_does_not_call_a_damaged_copy_intact(make_manager: MakeManager, tmp_path: Path) -> None:
    """Whoever is told that it is there already may delete the only sound one."""
    manager = make_manager(backup_checkpoints=False)
    torch.save({"state_dict": nn.Linear(20, 20).state_dict()}, tmp_path / "a.pt")
    checkpoint_id = manager.import_checkpoint(tmp_path / "a.pt")
    flip_bit(next(tmp_path.rglob(f"{checkpoint_id}.pt")), 900)
    with pytest.raises(CorruptCheckpointError, match="imported before"):
        manager.import_checkpoint(tmp_path / "a.pt")


class _Canary:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def test_code_is_never_run(manager: CheckpointManager, tmp_path: Path) -> None:
    """What a pickle calls beside the model is left out and told; a model that is one such call is refused."""
    canary = _Canary(f"touch {tmp_path}/ran")
    torch.save({"state_dict": OrderedDict(weight=torch.ones(2)), "hook": canary}, tmp_path / "beside.pt")
    torch.save({"state_dict": canary}, tmp_path / "model.pt")
    checkpoint_id = manager.import_checkpoint(tmp_path / "beside.pt")
    assert "hook" in manager.get_checkpoint(checkpoint_id).description
    with pytest.raises((UnsafePayloadError, CheckpointError)):
        manager.import_checkpoint(tmp_path / "model.pt")
    assert ids(manager) == [checkpoint_id]
    assert not (tmp_path / "ran").exists()
