"""Valid means loadable: what fits its digests and cannot be loaded without running code counts as damaged."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NoValidCheckpointError,
    UnsafePayloadError,
    UnsupportedStateError,
)
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.stream import StreamDigest
from ckpt_lib.testing.payloads import MemorySource
from tests.helpers import MakeManager, experiment_folder, flip_bit, payload_path
from tests.maintenance.records import manifest_in

FORMAT = TorchZipFormat()


class _Exploit:
    """Creates the canary when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.canary),)


def saved_by_torch(payload: Any) -> bytes:
    content = io.BytesIO()
    torch.save(payload, content)
    return content.getvalue()


def with_structure(structure: bytes) -> bytes:
    """A torch file of these steps."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + structure + b".")
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def nested(levels: int) -> bytes:
    text = b"X\x10\0\0\0model_state_dict"
    return with_structure(b"}(" + text + b"}X\x01\0\0\0x" + b"]" * levels + b"a" * (levels - 1) + b"su")


STATE = {"weight": torch.ones(2, 2)}
UNLOADABLE: dict[str, Callable[[str], bytes]] = {
    "code": lambda canary: saved_by_torch({"model_state_dict": STATE, "extra_state": _Exploit(canary)}),
    "code in the optimizer": lambda canary: saved_by_torch(
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}, "param_groups": [{"f": _Exploit(canary)}]}}
    ),
    "an object": lambda _: saved_by_torch({"model_state_dict": nn.Linear(2, 2)}),
    "nothing": lambda _: b"",
    "text": lambda _: b"not a torch file",
    "a bare pickle": lambda _: b"\x80\x02}.",
    "a list": lambda _: saved_by_torch([STATE]),
    "no weights": lambda _: saved_by_torch({"epoch": 2}),
    "weights that are no dict": lambda _: saved_by_torch({"model_state_dict": [STATE]}),
    "an optimizer that is no dict": lambda _: saved_by_torch({"model_state_dict": STATE, "optimizer_state_dict": [1]}),
    "another epoch": lambda _: saved_by_torch({"model_state_dict": STATE, "epoch": 7}),
    "a deep list": lambda _: nested(200),
    "half of a file": lambda _: saved_by_torch({"model_state_dict": STATE})[:300],
}
unloadable = pytest.mark.parametrize("kind", UNLOADABLE)


def save(manager: CheckpointManager, epoch: int, loss: float) -> str:
    saved = manager.save_checkpoint(model=nn.Linear(2, 2), epoch=epoch, metrics={"val_loss": loss})
    assert saved is not None
    return saved


def forge(folder: Path, checkpoint_id: str, content: bytes) -> None:
    """Exchange a payload, and make its manifest fit."""
    path = folder / f"{checkpoint_id}.json"
    digest = StreamDigest()
    digest.update(content)
    entry = FileEntry(name=f"{checkpoint_id}.pt", **digest.finish().__dict__)
    manifest = manifest_in(path)
    path.write_bytes(manifest.changed(files=(entry,)).to_bytes())
    (folder / entry.name).write_bytes(content)


@pytest.fixture
def good_and_bad(make_manager: MakeManager, tmp_path: Path, kind: str) -> tuple[str, str]:
    """An older checkpoint that can be loaded, and a newer and better one that cannot."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=5)
    good, bad = save(manager, 1, 1.0), save(manager, 2, 0.5)
    forge(experiment_folder(manager), bad, UNLOADABLE[kind](str(tmp_path / "canary")))
    return good, bad


@unloadable
@pytest.mark.parametrize("deep", [True, False])
def test_a_validation_says_what_cannot_be_loaded(
    make_manager: MakeManager, tmp_path: Path, good_and_bad: tuple[str, str], deep: bool
) -> None:
    """As a damage of a kind of its own, with the reason; no code has run."""
    manager = make_manager()
    good, bad = good_and_bad
    assert manager.validate_checkpoint(good, deep=deep)
    (damage,) = manager.validate_checkpoint(bad, deep=deep).damages
    assert damage.kind == "unloadable"
    assert "cannot be loaded: " in damage.message
    assert not (tmp_path / "canary").exists()


@unloadable
def test_a_scrub_says_it_too(make_manager: MakeManager, good_and_bad: tuple[str, str]) -> None:
    """A scrub that found everything intact would be believed."""
    reports = make_manager().scrub().checkpoints
    assert [report.is_valid for report in reports] == [True, False]
    assert reports[1].damages[0].kind == "unloadable"


@unloadable
def test_resuming_passes_over_what_cannot_be_loaded(
    make_manager: MakeManager, tmp_path: Path, good_and_bad: tuple[str, str]
) -> None:
    """Down to the newest that can, and the reason is told; loaded by its name, or as the best, it is a typed error."""
    manager = make_manager()
    good, bad = good_and_bad
    resumed = manager.resume(model=nn.Linear(2, 2))
    assert resumed is not None
    assert resumed["checkpoint_id"] == good
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [bad]
    assert resumed["passed_over"][0]["reason"]
    for name in (bad, "best", "latest"):
        with pytest.raises((UnsafePayloadError, CorruptCheckpointError)) as refused:
            manager.load_checkpoint(name)
        assert refused.value.checkpoint_id == bad
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["code", "no weights"])
def test_nothing_that_can_be_loaded_is_an_error(make_manager: MakeManager, good_and_bad: tuple[str, str]) -> None:
    """Beginning again from nothing stays a person's decision."""
    manager = make_manager()
    manager.delete_checkpoint(good_and_bad[0])
    with pytest.raises(NoValidCheckpointError, match=good_and_bad[1]):
        manager.resume()


@unloadable
def test_a_cleanup_keeps_what_can_be_loaded(make_manager: MakeManager, good_and_bad: tuple[str, str]) -> None:
    """What cannot counts as damaged: it takes no place, be it the newest and the best."""
    manager = make_manager(max_checkpoints=1)
    report = manager.cleanup_checkpoints()
    assert report.deleted_ids == ()
    assert {item.checkpoint_id: item.status for item in report.plan.decisions} == {
        good_and_bad[0]: "valid",
        good_and_bad[1]: "damaged",
    }


@pytest.mark.parametrize("kind", ["code"])
def test_so_does_the_retention_after_a_save(make_manager: MakeManager, good_and_bad: tuple[str, str]) -> None:
    """The checkpoint just saved is the newest; the best that can be loaded stays beside it."""
    manager = make_manager(max_checkpoints=1, backup_checkpoints=False)
    newest = save(manager, 3, 2.0)
    assert [item.checkpoint_id for item in manager.list_checkpoints()] == [*good_and_bad, newest]


def test_what_this_process_wrote_is_not_inspected(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer refused what cannot be loaded: saves, backups and the retention after them ask no further."""
    monkeypatch.setattr(TorchZipFormat, "inspect", lambda *_: pytest.fail("it was inspected"))
    manager = make_manager(max_checkpoints=1, max_backups=1)
    for epoch in range(4):
        save(manager, epoch, 1.0 - epoch / 10)
    assert len(manager.list_checkpoints()) == len(manager.backup_ids()) == 1


@unloadable
def test_an_import_refuses_what_cannot_be_loaded(
    make_manager: MakeManager, tmp_path: Path, good_and_bad: tuple[str, str]
) -> None:
    """Before anything is written; the export as it is stays where it is."""
    exported = make_manager().export_checkpoint(good_and_bad[1], tmp_path / "exports")
    other = make_manager("other")
    with pytest.raises((UnsafePayloadError, CorruptCheckpointError)) as refused:
        other.import_checkpoint(exported)
    assert refused.value.path == exported
    assert other.list_checkpoints() == []
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["code", "no weights"])
def test_no_copy_can_mend_it(make_manager: MakeManager, good_and_bad: tuple[str, str]) -> None:
    """A repair says so, quarantine sets it aside, and neither a repair nor its backup brings it back."""
    manager = make_manager()
    good, bad = good_and_bad
    manager.backup_checkpoint(bad)
    assert not manager.validate_backup(bad)
    with pytest.raises(CorruptCheckpointError, match="no copy can help"):
        manager.repair_checkpoint(bad)
    assert manager.quarantine_checkpoint(bad).repair is None
    with pytest.raises(CorruptCheckpointError, match="no copy can help"):
        manager.repair_checkpoint(bad)
    flip_bit(experiment_folder(manager) / f"{bad}.pt", 9)  # damaged as well: the backup has these bytes, no others
    with pytest.raises(CorruptCheckpointError, match="no copy can help"):
        manager.repair_checkpoint(bad)
    assert [item.checkpoint_id for item in manager.list_quarantined()] == [bad]
    best = manager.get_best_checkpoint()
    assert best is not None
    assert best.checkpoint_id == good


@pytest.mark.parametrize("kind", ["code"])
def test_a_backup_that_cannot_be_loaded_takes_no_place(
    make_manager: MakeManager, good_and_bad: tuple[str, str]
) -> None:
    """The limit of backups is filled by those that would help."""
    manager = make_manager(max_backups=1, backup_checkpoints=False)
    for checkpoint_id in good_and_bad:
        manager.backup_checkpoint(checkpoint_id)
    manager.cleanup_checkpoints()
    assert good_and_bad[0] in manager.backup_ids()


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64).conj(),
        {1, 2},
        torch.float16,
        b"bytes",
        nn.Parameter(torch.ones(2)),
        torch.ones(3).to(torch.float8_e4m3fn),
    ],
    ids=lambda value: ascii(type(value)),
)
def test_whatever_can_be_saved_is_valid(manager: CheckpointManager, value: Any) -> None:
    """Kinds that only torch itself can read are inspected by torch itself."""
    saved = manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, extra_state={"value": value})
    assert saved is not None
    report = manager.validate_checkpoint(saved)
    assert report, report.message


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.eye(3).to_sparse_csr(),
    ],
    ids=["nested", "quantized", "sparse rows"],
)
def test_what_is_made_from_its_bytes_is_valid(manager: CheckpointManager, make: Callable[[], torch.Tensor]) -> None:
    """Some kinds cannot be made without them, and are read then."""
    value = make()
    saved = manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, extra_state={"value": value})
    assert saved is not None
    assert manager.validate_checkpoint(saved)


@pytest.mark.parametrize("record", [b"/data/1", b"/version"])
def test_a_record_that_is_not_what_the_directory_says_is_found(manager: CheckpointManager, record: bytes) -> None:
    """A load fails there, whatever the digests say, also where no tensor needs the record: ``torch.load`` would."""
    saved = save(manager, 1, 1.0)
    content = bytearray(payload_path(manager, saved).read_bytes())
    at = content.index(record, content.index(b"PK\3\4"))
    content[at : at + len(record)] = record[::-1]
    forge(experiment_folder(manager), saved, bytes(content))
    assert [damage.kind for damage in manager.validate_checkpoint(saved).damages] == ["unloadable"]
    with pytest.raises(CheckpointError):
        manager.load_checkpoint(saved)


# --- values nested too deeply ---


@pytest.mark.parametrize("levels", [101, 800_000])
def test_deep_values_are_refused_at_once(levels: int) -> None:
    """By a reader, whatever the length of the file."""
    with pytest.raises(UnsafePayloadError, match="more than 100 levels"):
        FORMAT.read(MemorySource({"": nested(levels)}))


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_writer_refuses_what_a_reader_refuses(kind: Any) -> None:
    """A hundred levels below an entry of the payload are read back, one more is refused before anything is written."""
    state: Any = 1
    for _ in range(100):
        state = kind([state]) if kind is not dict else {"a": state}
    FORMAT.prepare({"extra_state": state})
    with pytest.raises(UnsupportedStateError, match="nested too deeply"):
        FORMAT.prepare({"extra_state": [state]})
