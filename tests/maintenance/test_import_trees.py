"""Imports of trees: of each thing found, the report says what it is and what became of it."""

from __future__ import annotations

import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckpt_lib
from ckpt_lib import CheckpointManager
from ckpt_lib.errors import NotACheckpointError, StorageFullError
from ckpt_lib.experiment import commit
from tests.helpers import MakeManager, ids, save

IMPORTED, REFUSED, NONE = {"imported"}, {"refused", "damaged"}, {"no checkpoint"}


class _Canary:
    def __init__(self, path: Path) -> None:
        self._command = f"touch {path}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def _good(folder: Path) -> dict[str, set[str]]:
    """Write checkpoints that can be imported, in an order that is not that of their names."""
    folder.mkdir()
    expected = {}
    for number in range(12):
        name = f"good/run{11 - number:02}.pt"
        state = {"state_dict": nn.Linear(2, 2).state_dict(), "epoch": number, "global_step": number * 10}
        torch.save(state, folder / f"run{11 - number:02}.pt", _use_new_zipfile_serialization=number % 3 != 2)
        expected[name] = IMPORTED
    return expected


def _bad(folder: Path, canary: Path) -> dict[str, set[str]]:
    """Write what is cut off, half-written, hostile, or no checkpoint at all."""
    folder.mkdir()
    torch.save({"state_dict": nn.Linear(64, 64).state_dict(), "epoch": 1}, folder / "whole")
    whole = (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    save_file(nn.Linear(8, 8).state_dict(), folder / "cut.safetensors")
    cut = (folder / "cut.safetensors").read_bytes()
    files: dict[str, tuple[bytes, set[str]]] = {
        **{f"cut{share}.pt": (whole[: len(whole) * share // 10], REFUSED) for share in range(1, 10)},
        "empty.ckpt": (b"", REFUSED),
        "zeros.pt": (bytes(len(whole)), REFUSED),
        "holes.pt": (whole[:4000] + bytes(8000) + whole[12000:], REFUSED),
        "doubled.pt": (whole[:5000] + whole, REFUSED | IMPORTED),
        "cut.safetensors": (cut[:-20], REFUSED),
        "long.safetensors": (struct.pack("<Q", 2**31) + b"{", REFUSED),
        "deep.safetensors": (struct.pack("<Q", 100_000) + b'{"a":' * 20_000, REFUSED),
        "lying.safetensors": (_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}), REFUSED),
        "bomb.bin": (b"\x80\x02" + b"(" * 200_000 + b"l." * 200_000, REFUSED),
        "canary.pkl": (pickle.dumps(_Canary(canary)), REFUSED | NONE),
        "model.ckpt": (pickle.dumps({"state_dict": _Canary(canary)}), REFUSED),
        "cut.pkl": (pickle.dumps({"a": [1] * 1000})[:500], REFUSED | NONE),
        "legacy.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(50), REFUSED),
        "train.log": (b"epoch 1: loss 0.5\n", NONE),
        "notes.json": (b'{"a": 1}', NONE),
        "logs.tar.gz": (b"\x1f\x8b" + bytes(100), NONE),
        "image.png": (b"\x89PNG\r\n", NONE),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    torch.save({"state_dict": _Canary(canary)}, folder / "code.pt")
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "hook": _Canary(canary), "epoch": 99}, folder / "beside.pt")
    expected = {f"bad/{name}": results for name, (_, results) in files.items()}
    return {**expected, "bad/code.pt": REFUSED, "bad/beside.pt": IMPORTED}


def _header(entries: dict[str, Any]) -> bytes:
    import json

    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def test_files_beside_weights_are_told_of(make_manager: MakeManager, tmp_path: Path) -> None:
    """A folder that Transformers wrote is one checkpoint; what somebody else put there is not taken for its part."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    save_file(nn.Linear(2, 2).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 3}, folder / "mine.pt")
    (folder / "cut.pt").write_bytes((folder / "mine.pt").read_bytes()[:300])
    found = {item.path: item.result for item in make_manager("run").import_checkpoints(tmp_path).items}
    assert found == {"mixed": "imported", "mixed/mine.pt": "imported", "mixed/cut.pt": "damaged"}


def test_each_of_forty_files_gets_its_sentence(manager: CheckpointManager, tmp_path: Path) -> None:
    """Good, old, truncated, hostile and half-written ones: none stops the others, and no code is run."""
    tree, canary = tmp_path / "tree", tmp_path / "ran"
    tree.mkdir()
    expected = _good(tree / "good") | _bad(tree / "bad", canary)
    assert len(expected) >= 40
    started, counts = time.process_time(), []
    report = manager.import_checkpoints(tree, counted=lambda done, of: counts.append((done, of)))
    assert time.process_time() - started < 30
    found = {item.path: item for item in report.items}
    assert found.keys() == expected.keys()
    wrong = {path: (item.result, item.reason) for path, item in found.items() if item.result not in expected[path]}
    assert not wrong
    assert all(item.reason and item.title for item in report.items if item.result != "imported")
    assert not report
    assert not canary.exists()
    assert counts[-1][0] == counts[-1][1] == len(expected) - len(report.of("no checkpoint"))
    imported = manager.list_checkpoints()
    assert [item.checkpoint_id for item in imported] == list(report.checkpoint_ids)
    assert [item.step for item in imported if item.step] == [10 * number for number in range(1, 12)]
    assert all(manager.validate_all())
    again = manager.import_checkpoints(tree)
    assert len(again.of("already there")) == len(report.of("imported"))
    assert ids(manager) == list(report.checkpoint_ids)


def test_folders_links_and_our_own_are_found(make_manager: MakeManager, tmp_path: Path) -> None:
    """An experiment of ours in the tree comes with its facts; a linked file counts; a folder's files are one thing."""
    source = make_manager("source")
    first, second = save(source, 1), save(source, 2)
    tree = tmp_path / "store"
    (tree / "links").mkdir()
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 7}, tmp_path / "outside.pt")
    (tree / "links" / "linked.pt").symlink_to(tmp_path / "outside.pt")
    (tree / "links" / "dangling.pt").symlink_to(tmp_path / "nowhere.pt")
    target = make_manager("target", checkpoint_dir=str(tmp_path / "elsewhere"), max_checkpoints=10)
    report = target.import_checkpoints(tree)
    assert report
    assert set(report.checkpoint_ids) >= {first, second}
    assert [item.epoch for item in target.list_checkpoints() if item.checkpoint_id in (first, second)] == [1, 2]
    assert any(item.path == "links/linked.pt" and item.result == "imported" for item in report.items)


def _trained(folder: Path) -> set[str]:
    """Write the last model of a training, with its checkpoints and those of other programs beside it."""
    state = nn.Linear(2, 2).state_dict()
    for step, name in enumerate(("", "checkpoint-500", "checkpoint-1000", "epoch_1"), start=1):
        (folder / name).mkdir(parents=True)
        save_file(state, folder / name / "model.safetensors")
        if name.startswith("checkpoint"):
            (folder / name / "trainer_state.json").write_text(f'{{"global_step": {step}, "log_history": []}}')
            torch.save({}, folder / name / "scheduler.pt")
    for name in ("1.bin", "epoch=2-step=10.ckpt", "last.ckpt"):
        torch.save({"epoch": 1, "state_dict": state}, folder / name)
    (folder / "config.json").write_text("{}")
    return {"checkpoint-500", "checkpoint-1000", "epoch_1", "1.bin", "epoch=2-step=10.ckpt", "last.ckpt"}


@pytest.mark.parametrize("below", ["", "exp"])
def test_what_lies_beside_a_model_is_found(manager: CheckpointManager, tmp_path: Path, below: str) -> None:
    """The folder of a training, named itself or below: the advisor and the import find the same checkpoints in it."""
    names = _trained(tmp_path / "tree" / below)
    expected = {f"{below}/{name}".strip("/") for name in names} | {below}
    report = manager.import_checkpoints(tmp_path / "tree")
    assert report
    assert {item.path for item in report.of("imported")} == expected
    assert not report.of("no checkpoint")
    advice = ckpt_lib.advise(tmp_path / "tree")
    advised = {item.name for item in advice.kept} | {item.name for item in advice.suggestions}
    assert advised == {path or "." for path in expected}


def test_the_top_of_a_tree_owns_no_folder_that_is_no_part(manager: CheckpointManager, tmp_path: Path) -> None:
    """A model at the top of what was named as a tree hides nothing in the folders below it."""
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "other" / "inner").mkdir(parents=True)
    torch.save({"epoch": 5, "state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "other" / "inner" / "a.pt")
    report = manager.import_checkpoints(tmp_path)
    assert {item.path for item in report.of("imported")} >= {"", "other/inner/a.pt"}


def test_a_full_store_ends_it(manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the first that found no room is not tried, and says so."""
    _good(tmp_path / "good")
    calls = []

    def full(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        raise StorageFullError("no space left")

    monkeypatch.setattr(commit, "save", full)
    report = manager.import_checkpoints(tmp_path / "good")
    assert len(calls) == 1
    assert [item.result for item in report.items] == ["refused"] + ["not tried"] * 11
    assert not report


def test_a_tree_is_a_folder(manager: CheckpointManager, tmp_path: Path) -> None:
    """A file is none, and neither is nothing; an empty folder holds nothing."""
    (tmp_path / "a.pt").write_bytes(b"PK")
    for name in ("a.pt", "missing"):
        with pytest.raises(NotACheckpointError):
            manager.import_checkpoints(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert manager.import_checkpoints(tmp_path / "empty").message == "nothing was found"


def test_the_order_is_that_of_the_epochs_that_a_key_map_names(manager: CheckpointManager, tmp_path: Path) -> None:
    """The last epoch is the latest, whenever its file was written."""
    for epoch in (1, 2, 3):
        path = tmp_path / "tree" / f"{'bca'[epoch - 1]}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save({"net": nn.Linear(2, 2).state_dict(), "when": epoch}, path)
        os.utime(path, (1_600_000_000 - epoch, 1_600_000_000 - epoch))
    report = manager.import_checkpoints(tmp_path / "tree", key_map={"when": "epoch"})
    assert [item.epoch for item in report.items] == [1, 2, 3]
    assert manager.get_checkpoint("latest").epoch == 3


def test_what_says_no_epoch_comes_first(manager: CheckpointManager, tmp_path: Path) -> None:
    """One file without an epoch does not put the others into the order of their times."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for epoch in (1, 2, 3):
        torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": epoch}, folder / f"{epoch}.pt")
        os.utime(folder / f"{epoch}.pt", (1_600_000_000 - epoch, 1_600_000_000 - epoch))
    torch.save(nn.Linear(2, 2).state_dict(), folder / "weights.pt")
    manager.import_checkpoints(folder)
    assert manager.get_checkpoint("latest").epoch == 3


@pytest.mark.parametrize("with_manifest", [True, False])
def test_exports_of_ours_do_not_set_a_run_back(make_manager: MakeManager, tmp_path: Path, with_manifest: bool) -> None:
    """Those of a tree that are older than the latest are refused, as other programs' are; by itself, one is not."""
    origin, manager = make_manager("origin"), make_manager("run")
    for epoch in (1, 2, 9):
        saved = origin.save_checkpoint(model=nn.Linear(2, 2), epoch=epoch)
        assert saved is not None
        name = f"{epoch}/" if with_manifest else f"{epoch}/{saved}.pt"
        origin.export_checkpoint(saved, f"{tmp_path}/tree/{name}")
    manager.save_checkpoint(model=nn.Linear(2, 2), epoch=5)
    report = manager.import_checkpoints(tmp_path / "tree")
    assert [(item.epoch, item.result) for item in report.items] == [(1, "refused"), (2, "refused"), (9, "imported")]
    assert manager.get_checkpoint("latest").epoch == 9
    again = manager.import_checkpoints(tmp_path / "tree")
    assert [item.result for item in again.items] == ["refused", "refused", "already there"]
    (first,) = (tmp_path / "tree" / "1").glob("*.pt")
    manager.import_checkpoint(first)
    assert manager.get_checkpoint("latest").epoch == 1


def test_a_run_that_has_gone_on_is_not_set_back(manager: CheckpointManager, tmp_path: Path) -> None:
    """Importing a tree again after retention, or killed on the way, makes no old checkpoint the latest."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for epoch in (1, 2, 3):
        torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": epoch}, folder / f"{epoch}.pt")
    first = manager.import_checkpoints(folder)
    latest = manager.save_checkpoint(model=nn.Linear(2, 2), epoch=4)
    assert first.items[0].checkpoint_id is not None
    manager.delete_checkpoint(first.items[0].checkpoint_id)
    manager.empty_trash()
    again = manager.import_checkpoints(folder)
    assert [item.result for item in again.items] == ["refused", "already there", "already there"]
    assert "has reached epoch 4" in (again.items[0].reason or "")
    assert manager.get_checkpoint("latest").checkpoint_id == latest
