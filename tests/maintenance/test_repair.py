"""Repair: bit-equal from whatever two copies still hold together, or a typed error and nothing written."""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StorageFullError,
)
from ckpt_lib.experiment.deletion import delete_all, purge
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import replace_file
from ckpt_lib.maintenance.validate import ValidationReport, compare
from ckpt_lib.stream import StreamDigest
from tests.helpers import flip_bit, truncate
from tests.maintenance.records import manifest_in
from tests.torture.kill_methods import Fault, functions_of, injected, struck

CHUNK_BYTES = 256


@dataclass(frozen=True)
class Copies:
    """A checkpoint in a store of its own, with its backup, both with a table of small chunks."""

    root: Path
    checkpoint_id: str

    @property
    def manager(self) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(checkpoint_dir=str(self.root)), "run")

    @property
    def payload(self) -> Path:
        return self.root / "run" / f"{self.checkpoint_id}.pt"

    @property
    def backup(self) -> Path:
        return self.root / "run" / "backups" / f"{self.checkpoint_id}.pt"

    @property
    def manifests(self) -> list[Path]:
        return [path.with_suffix(".json") for path in (self.payload, self.backup)]

    def both(self) -> tuple[bytes, bytes]:
        return self.payload.read_bytes(), self.backup.read_bytes()

    def edit_manifest(self, path: Path, **facts: Any) -> None:
        path.write_bytes(manifest_in(path).changed(**facts).to_bytes())


def rechunked(path: Path, chunk_size_bytes: int = CHUNK_BYTES) -> FileEntry:
    """The entry of a payload with a table of small chunks."""
    digest = StreamDigest(chunk_size_bytes)
    digest.update(path.read_bytes())
    return FileEntry(name=path.name, **digest.finish().__dict__)


def build(root: Path) -> Copies:
    torch.manual_seed(1)
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(root)), "run")
    model = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, 2))
    checkpoint_id = manager.save_checkpoint(model=model, epoch=1)
    assert checkpoint_id is not None
    copies = Copies(root, checkpoint_id)
    for path in copies.manifests:
        copies.edit_manifest(path, files=(rechunked(copies.payload),))
    return copies


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    return build(tmp_path_factory.mktemp("copies") / "store")


def fresh(template: Copies, root: Path) -> Copies:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template.root, root)
    return Copies(root, template.checkpoint_id)


@pytest.fixture
def copies(template: Copies, tmp_path: Path) -> Copies:
    return fresh(template, tmp_path / "store")


@pytest.fixture
def original(template: Copies) -> bytes:
    return template.payload.read_bytes()


# --- what is repaired ---


def test_only_the_damaged_chunk_comes_from_the_other_copy(copies: Copies, original: bytes) -> None:
    """The file is whole again; the report tells what was wrong with it, and how much was brought back."""
    flip_bit(copies.payload, 3 * CHUNK_BYTES + 7)
    report = copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert (report.method, report.chunks_rewritten, report.bytes_rewritten) == ("chunks", 1, CHUNK_BYTES)
    assert [(damage.kind, damage.start, damage.stop) for damage in report.damages] == [
        ("altered", 3 * CHUNK_BYTES, 4 * CHUNK_BYTES)
    ]
    assert copies.both() == (original, original)
    assert copies.manager.validate_checkpoint(copies.checkpoint_id)


def test_who_has_the_damaged_file_open_keeps_it(copies: Copies, original: bytes) -> None:
    """A repair replaces the file and writes to no file that is there: bytes under a reader do not change."""
    flip_bit(copies.payload, 600)
    damaged = copies.payload.read_bytes()
    with copies.payload.open("rb") as file:
        copies.manager.repair_checkpoint(copies.checkpoint_id)
        assert file.read() == damaged
    assert copies.payload.read_bytes() == original


def test_what_is_intact_is_left_alone(copies: Copies) -> None:
    """Nothing to do is no error, names no damage and writes nothing, whatever the state of the other copy."""
    copies.backup.unlink()
    before = copies.payload.stat().st_mtime_ns
    report = copies.manager.repair_checkpoint()
    assert (report.method, report.damages, report.bytes_rewritten) == ("none", (), 0)
    assert report.message == "intact, nothing to repair"
    assert copies.payload.stat().st_mtime_ns == before


def test_a_backup_is_repaired_from_its_checkpoint(copies: Copies, original: bytes) -> None:
    """The roles exchanged: chunks, a missing payload and a damaged manifest."""
    flip_bit(copies.backup, 600)
    assert copies.manager.repair_backup(copies.checkpoint_id).method == "chunks"
    copies.backup.unlink()
    assert copies.manager.repair_backup(copies.checkpoint_id).method == "file"
    assert copies.both() == (original, original)
    copies.manifests[1].write_text("{}")
    assert copies.manager.repair_backup(copies.checkpoint_id).method == "file"
    assert copies.manager.validate_backup(copies.checkpoint_id)


def test_a_backup_that_was_never_made_is_not_there(copies: Copies) -> None:
    """Repairing makes nothing new."""
    shutil.rmtree(copies.backup.parent)
    with pytest.raises(CheckpointNotFoundError):
        copies.manager.repair_backup(copies.checkpoint_id)


@pytest.mark.parametrize("harm", ["missing", "manifest", "table", "emptied"])
def test_where_chunks_do_not_help_the_file_is_copied(copies: Copies, original: bytes, harm: str) -> None:
    """A payload that is gone, a damaged manifest, bytes that the chunk table takes for right and SHA-256 does not."""
    if harm == "missing":
        copies.payload.unlink()
    elif harm == "manifest":
        flip_bit(copies.manifests[0], 30)
    elif harm == "table":
        flip_bit(copies.payload, 600)
        wrong = rechunked(copies.payload).chunk_xxh3_128
        entry = rechunked(copies.backup).model_copy(update={"chunk_xxh3_128": wrong})
        for path in copies.manifests:
            copies.edit_manifest(path, files=(entry,))
    else:
        copies.payload.write_bytes(b"")
    report = copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert report.method == "file"
    assert report.bytes_rewritten == len(original)
    (payload,) = copies.payload.parent.glob("*.pt")
    assert payload.name == manifest_in(copies.manifests[0]).payload.name
    assert (payload.read_bytes(), copies.backup.read_bytes()) == (original, original)


def test_the_manifest_of_the_other_copy_need_not_be_readable(copies: Copies, original: bytes) -> None:
    """Its chunks are what counts, and they prove themselves."""
    copies.manifests[1].write_text("{}")
    flip_bit(copies.payload, 600)
    assert copies.manager.repair_checkpoint(copies.checkpoint_id).chunks_rewritten == 1
    assert copies.payload.read_bytes() == original


def test_tags_given_since_the_backup_stay(copies: Copies) -> None:
    """A repair is about bytes."""
    copies.manager.edit_checkpoint(copies.checkpoint_id, add_tags=["kept"])
    flip_bit(copies.payload, 600)
    copies.manager.repair_checkpoint("kept")
    assert copies.manager.get_checkpoint("latest").tags == ("kept",)


def test_a_full_disk_is_said_to_be_full(copies: Copies, original: bytes) -> None:
    """No second attempt that needs even more space; and with space, the next call does it."""
    truncate(copies.payload, 600)
    with injected(Fault(1, code=errno.ENOSPC, persistent=True)), pytest.raises(StorageFullError):
        copies.manager.repair_checkpoint(copies.checkpoint_id)
    copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert copies.both() == (original, original)


# --- what is refused ---


def test_another_checkpoint_of_that_id_is_no_source(copies: Copies) -> None:
    """By its uid: nothing of it gets into this one."""
    copies.edit_manifest(copies.manifests[1], uid="0" * 32)
    flip_bit(copies.payload, 600)
    before = copies.both()
    with pytest.raises(CheckpointExistsError, match="different checkpoint"):
        copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert copies.both() == before


@pytest.mark.parametrize("has_backup", [True, False])
def test_what_is_deleted_meanwhile_is_neither_damaged_nor_brought_back(
    copies: Copies, monkeypatch: pytest.MonkeyPatch, has_backup: bool
) -> None:
    """Between reading the manifest and reading the payload."""
    if not has_backup:
        shutil.rmtree(copies.backup.parent)

    def late(experiment: Experiment, manifest: Manifest, *arguments: Any, **options: Any) -> ValidationReport:
        monkeypatch.undo()
        delete_all(experiment, [manifest.checkpoint_id])
        purge(experiment, grace_seconds=0, asked=True)
        return compare(experiment, manifest, *arguments, **options)

    monkeypatch.setattr("ckpt_lib.maintenance.repair.compare", late)
    with pytest.raises(CheckpointNotFoundError):
        copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert copies.manager.checkpoint_ids() == []


def test_damage_without_a_second_copy_is_damage(copies: Copies) -> None:
    """The error says where it is, and that there is no other copy."""
    shutil.rmtree(copies.backup.parent)
    flip_bit(copies.payload, 600)
    with pytest.raises(CorruptCheckpointError, match="there is none") as caught:
        copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert [(damage.start, damage.stop) for damage in caught.value.damages] == [(512, 768)]


def test_what_is_damaged_in_both_is_named(copies: Copies) -> None:
    """Of three chunks damaged here and two there, the one in both; and nothing was written."""
    for position in (600, 900, 1500):
        flip_bit(copies.payload, position)
    for position in (900, 2000):
        flip_bit(copies.backup, position)
    before = copies.both()
    with pytest.raises(CorruptCheckpointError, match="in both copies") as caught:
        copies.manager.repair_checkpoint(copies.checkpoint_id)
    assert [(damage.start, damage.stop) for damage in caught.value.damages] == [(768, 1024)]
    assert copies.both() == before


def test_a_deleted_checkpoint_is_not_brought_back(copies: Copies) -> None:
    """That is what restoring is for."""
    copies.manager.delete_checkpoint(copies.checkpoint_id)
    with pytest.raises(CheckpointNotFoundError):
        copies.manager.repair_checkpoint(copies.checkpoint_id)


# --- any damage ---


@dataclass
class Harm:
    """What befalls one copy: bits in some chunks, and a new length."""

    flipped: set[int] = field(default_factory=set)
    size_change: int = 0

    def inflict(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        for number in self.flipped:
            data[min(number * CHUNK_BYTES + 11, len(data) - 1)] ^= 4
        if self.size_change < 0:
            del data[max(0, len(data) + self.size_change) :]
        path.write_bytes(bytes(data) + b"\0" * max(0, self.size_change))

    def damaged_chunks(self, size_bytes: int) -> set[int]:
        left = max(0, size_bytes + min(0, self.size_change))
        chunks = range(-(-size_bytes // CHUNK_BYTES))
        flipped = {min(number * CHUNK_BYTES + 11, size_bytes - 1) // CHUNK_BYTES for number in self.flipped}
        return {number for number in chunks if number in flipped or min((number + 1) * CHUNK_BYTES, size_bytes) > left}


CHUNKS = st.sets(st.integers(min_value=0, max_value=12), max_size=4)
HARMS = st.builds(Harm, flipped=CHUNKS, size_change=st.integers(min_value=-2500, max_value=700) | st.just(0))


@given(here=HARMS, there=HARMS)
def test_two_copies_are_one_whole_or_nothing_changes(template: Copies, here: Harm, there: Harm) -> None:
    """Whatever happened to both: bit-equal if no chunk is damaged twice, and then the other way; else untouched."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its lease is at work
        copies = fresh(template, Path(folder) / "store")
        original = template.payload.read_bytes()
        here.inflict(copies.payload)
        there.inflict(copies.backup)
        before = copies.both()
        lost = here.damaged_chunks(len(original)) & there.damaged_chunks(len(original))
        if lost:
            with pytest.raises(CorruptCheckpointError):
                copies.manager.repair_checkpoint(copies.checkpoint_id)
            assert copies.both() == before
            return
        report = copies.manager.repair_checkpoint(copies.checkpoint_id)
        assert copies.both() == (original, before[1])
        assert report.chunks_rewritten == len(here.damaged_chunks(len(original)))
        assert bool(report.damages) == (before[0] != original)
        copies.manager.repair_backup(copies.checkpoint_id)
        assert copies.both() == (original, original)


# --- crashes and company ---


SIZE_CHANGES = [0, -700, 300]


def repair_in(copies: Copies) -> object:
    return copies.manager.repair_checkpoint(copies.checkpoint_id)


@pytest.mark.parametrize("torn", [False, True], ids=["before", "in the middle"])
@pytest.mark.parametrize("size_change", SIZE_CHANGES)
def test_a_kill_at_any_system_call_leaves_sound_bytes_alone(
    template: Copies, tmp_path: Path, original: bytes, torn: bool, size_change: int
) -> None:
    """SIGKILL at the k-th call: the file is as it was or whole, the backup as it was, and the next repair ends it.

    Each length of the file has a third of the calls.
    """
    harm = Harm({1, 4, 5}, size_change)

    def harmed() -> Copies:
        copies = fresh(template, tmp_path / "store")
        harm.inflict(copies.payload)
        return copies

    calls = functions_of(partial(repair_in, harmed()))
    strikes = [at for at, call in enumerate(calls, start=1) if call == "write" or not torn]
    assert len(strikes) >= 3
    for at in strikes[SIZE_CHANGES.index(size_change) :: len(SIZE_CHANGES)]:
        copies = harmed()
        damaged = copies.payload.read_bytes()
        end = struck(partial(repair_in, copies), Fault(at, kill=True, torn=torn))
        assert end.is_killed or at > len(calls) - 4
        here, there = copies.both()
        assert there == original
        assert here in (damaged, original)
        repair_in(copies)
        assert copies.both() == (original, original)


def test_repairs_at_once_agree(copies: Copies, original: bytes) -> None:
    """Each of several finds the damage, or finds it repaired; none fails."""
    for position in (600, 1500):
        flip_bit(copies.payload, position)
    barrier, reports, errors = threading.Barrier(4), [], []

    def work() -> None:
        barrier.wait()
        try:
            reports.append(copies.manager.repair_checkpoint(copies.checkpoint_id))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {report.method for report in reports} <= {"chunks", "file", "none"}
    assert "chunks" in {report.method for report in reports}
    assert copies.both() == (original, original)


def test_what_went_bad_meanwhile_is_not_written(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of the other copy, sound when it was looked at: the damaged one stays as it is."""
    flip_bit(copies.payload, 600)
    before = copies.payload.read_bytes()

    def late(*arguments: Any) -> bool:
        flip_in_place(copies.backup, 601)
        return replace_file(*arguments)

    monkeypatch.setattr("ckpt_lib.maintenance.repair.replace_file", late)
    with pytest.raises(CorruptCheckpointError):
        copies.manager.repair_checkpoint()
    assert copies.payload.read_bytes() == before


def flip_in_place(path: Path, position: int) -> None:
    """Alter one bit of the file that lies there, as rot does."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
