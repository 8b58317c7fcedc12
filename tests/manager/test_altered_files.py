"""Altered files: every alteration is reported before anything is handed out."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, IntegrityError, UnsupportedSchemaError
from tests.helpers import (
    MakeManager,
    build,
    contents,
    experiment_folder,
    ids,
    manifest_path,
    payload_path,
    save,
    state_of,
)


@dataclass(frozen=True)
class Damaged:
    """One way to alter a checkpoint: what becomes of its payload and its manifest."""

    name: str
    payload: bytes
    manifest: bytes


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """An id and the files of an experiment with two checkpoints, by suffix; ``other`` are those of the second."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path_factory.mktemp("pristine"))), "run")
    parts = build()
    first = manager.save_checkpoint(**parts.kwargs(), epoch=1, metrics={"val_loss": 0.5}, tags=["t"], description="é")
    second = manager.save_checkpoint(**build(1).kwargs(), epoch=1, metrics={"val_loss": 0.5}, tags=["t"])
    assert first is not None
    assert second is not None
    files = {
        "payload": payload_path(manager, first).read_bytes(),
        "manifest": manifest_path(manager, first).read_bytes(),
        "other payload": payload_path(manager, second).read_bytes(),
        "other manifest": manifest_path(manager, second).read_bytes(),
    }
    assert len(files["payload"]) == len(files["other payload"])
    return first, files


def _alterations(files: dict[str, bytes]) -> Iterator[Damaged]:
    payload, manifest = files["payload"], files["manifest"]
    chance = random.Random(20231201)
    for _ in range(100):
        position, bit = chance.randrange(len(payload)), chance.randrange(8)
        yield Damaged(f"payload bit {position}.{bit}", _flipped(payload, position, bit), manifest)
    for _ in range(60):
        position, bit = chance.randrange(len(manifest)), chance.randrange(8)
        yield Damaged(f"manifest bit {position}.{bit}", payload, _flipped(manifest, position, bit))
    for size in (0, 1, len(payload) // 2, len(payload) - 1, *(chance.randrange(len(payload)) for _ in range(12))):
        yield Damaged(f"payload cut to {size}", payload[:size], manifest)
    for size in (0, 1, len(manifest) // 2, len(manifest) - 1, *(chance.randrange(len(manifest)) for _ in range(12))):
        yield Damaged(f"manifest cut to {size}", payload, manifest[:size])
    for more in (b"\0", b"\n", b" ", payload, b"x" * 70_000):
        yield Damaged(f"payload and {len(more)} bytes more", payload + more, manifest)
        yield Damaged(f"manifest and {len(more)} bytes more", payload, manifest + more)
    start = len(payload) // 3
    yield Damaged("a hole of zeros", payload[:start] + bytes(600) + payload[start + 600 :], manifest)
    yield Damaged("bytes moved", payload[start:] + payload[:start], manifest)
    yield Damaged("another payload", files["other payload"], manifest)
    yield Damaged("another manifest", payload, files["other manifest"])
    yield Damaged("files swapped", manifest, payload)
    yield Damaged("rebuilt by another program", _rezipped(payload), manifest)
    yield Damaged("manifest spelled otherwise", payload, json.dumps(json.loads(manifest)).encode())
    edited = {**json.loads(manifest), "epoch": 7}
    yield Damaged("manifest edited", payload, (json.dumps(edited, indent=2, sort_keys=True) + "\n").encode())


def _flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def _rezipped(payload: bytes) -> bytes:
    """The same contents in other bytes: what an archive tool would make of it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(payload)) as source, zipfile.ZipFile(target, "w") as archive:
        for item in source.infolist():
            archive.writestr(item.filename, source.read(item))
    return target.getvalue()


@pytest.mark.parametrize("part", range(8))
def test_every_alteration_is_reported_before_anything_is_handed_out(
    pristine: tuple[str, dict[str, bytes]], tmp_path: Path, part: int
) -> None:
    """Flips, cuts, extensions and swaps in either file: validate says so, load refuses, the model stays as it was."""
    checkpoint_id, files = pristine
    cases = list(_alterations(files))
    assert len(cases) >= 200
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    folder = experiment_folder(manager)
    folder.mkdir()
    parts = build(5)
    before = state_of(parts)
    for case in cases[part::8]:
        (folder / f"{checkpoint_id}.pt").write_bytes(case.payload)
        (folder / f"{checkpoint_id}.json").write_bytes(case.manifest)
        present = contents(folder)
        report = manager.validate_checkpoint(checkpoint_id)
        assert not report, case.name
        assert report.damages[0].message, case.name
        refusals = (IntegrityError, UnsupportedSchemaError)  # a flip may make the version's number larger
        with pytest.raises(refusals):
            manager.load_checkpoint(checkpoint_id, **parts.kwargs())
        with pytest.raises(IntegrityError):
            manager.resume(**parts.kwargs())
        with pytest.raises(refusals):
            manager.export_checkpoint(checkpoint_id, tmp_path / "exports")
        assert state_of(parts) == before, case.name
        assert contents(folder) == present, case.name
    assert not list(tmp_path.glob("exports/checkpoint*"))


def test_the_report_tells_where(pristine: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """Cuts and extensions are reported with the byte range that is missing or too much."""
    checkpoint_id, files = pristine
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    folder = experiment_folder(manager)
    folder.mkdir()
    (folder / f"{checkpoint_id}.json").write_bytes(files["manifest"])
    size = len(files["payload"])
    for content, kind, start, stop in (
        (files["payload"][:100], "truncated", 100, size),
        (files["payload"] + b"more", "extended", size, size + 4),
    ):
        (folder / f"{checkpoint_id}.pt").write_bytes(content)
        (damage,) = manager.validate_checkpoint(checkpoint_id).damages
        assert (damage.kind, damage.start, damage.stop) == (kind, start, stop)
        with pytest.raises(CorruptCheckpointError) as caught:
            manager.load_checkpoint(checkpoint_id)
        assert [(found.kind, found.start, found.stop) for found in caught.value.damages] == [(kind, start, stop)]
        assert caught.value.path == str(folder / f"{checkpoint_id}.pt")
        assert caught.value.checkpoint_id == checkpoint_id


def test_damage_of_one_checkpoint_hides_no_other(filled: CheckpointManager) -> None:
    """With an unreadable manifest in the folder, everything else is listed, loaded and saved as before."""
    path = manifest_path(filled, ids(filled)[0])
    content = path.read_bytes()
    try:
        for damage in (b"", b"\xff\xfe", b'{"a":' + b"[" * 50_000, b"null", b'{"schema_version": "1"}'):
            path.write_bytes(damage)
            assert len(ids(filled)) == 1
            assert filled.load_checkpoint("best")
            assert [bool(report) for report in filled.validate_all()] == [True, False]
    finally:
        path.write_bytes(content)


def test_without_validation_a_broken_file_is_still_a_typed_error(make_manager: MakeManager) -> None:
    """validate_checkpoints=False skips the reading ahead; a file that torch cannot read is reported all the same."""
    manager = make_manager(validate_checkpoints=False, backup_checkpoints=False)
    saved = save(manager, 1)
    assert manager.load_checkpoint(saved)["epoch"] == 1
    path = payload_path(manager, saved)
    content = path.read_bytes()
    for damaged in (b"", content[:-200], b"x" * len(content)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            manager.load_checkpoint(saved, model=nn.Linear(2, 1))
        assert not manager.validate_checkpoint(saved)
