"""Scrubbing: all is read once, at the wished pace, goes on after a kill, and leaves no trace in the page cache."""

from __future__ import annotations

import json
import logging
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import ConfigError, StorePermissionError, StoreUnavailableError
from ckpt_lib.maintenance import scrub as scrub_module
from ckpt_lib.maintenance.scrub import RECORD_NAME
from ckpt_lib.reports import ScrubReport
from ckpt_lib.store import Entry
from ckpt_lib.store.local import LocalStore
from ckpt_lib.stream.page_cache import NeutralReader, absent_ranges
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    start_python,
)

WEIGHT_BYTES = 4 * 2**15
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what its page cache holds")


def fill(manager: CheckpointManager, count: int = 4) -> list[str]:
    """Checkpoints of some size, each with a backup."""
    for epoch in range(1, count + 1):
        manager.save_checkpoint(model=torch.nn.Linear(2**15, 1), epoch=epoch)
    return ids(manager)


def record_of(manager: CheckpointManager) -> Path:
    return experiment_folder(manager) / RECORD_NAME


def total_bytes(manager: CheckpointManager) -> int:
    return sum(item.file_size for item in (*manager.list_checkpoints(), *manager.list_backups()))


def interrupted(manager: CheckpointManager, after_bytes: int, **options: Any) -> None:
    """A scrub that ends with Ctrl-C once it has read so much."""
    done = 0

    def stop(count: int) -> None:
        nonlocal done
        done += count
        if done >= after_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manager.scrub(progress=stop, **options)


def test_everything_is_read_once(manager: CheckpointManager) -> None:
    """Every byte of every checkpoint and backup, reported oldest first and to the progress of the caller's thread."""
    saved = fill(manager)
    counts: list[int] = []
    threads: set[int] = set()

    def progress(count: int) -> None:
        counts.append(count)
        threads.add(threading.get_ident())

    report = manager.scrub(progress=progress)
    assert report
    assert [item.checkpoint_id for item in report.checkpoints] == saved
    assert [item.checkpoint_id for item in report.backups] == backup_ids(manager)
    assert report.bytes_read == sum(counts) == total_bytes(manager) > 8 * WEIGHT_BYTES
    assert threads == {threading.get_ident()}
    assert report.files_resumed == 0
    assert report.started_at <= report.completed_at


def test_damage_is_reported_with_its_place(manager: CheckpointManager) -> None:
    """Altered, missing and without a readable manifest, here and in the backups, told apart from what is intact."""
    first, second, third, fourth = fill(manager)
    flip_bit(payload_path(manager, first), WEIGHT_BYTES // 2)
    (experiment_folder(manager) / "backups" / f"{second}.pt").unlink()
    manifest_path(manager, third).write_text("{}")
    report = manager.scrub()
    assert not report
    here = {item.checkpoint_id: [damage.kind for damage in item.damages] for item in report.checkpoints}
    there = {item.checkpoint_id: [damage.kind for damage in item.damages] for item in report.backups}
    assert here == {first: ["altered"], second: [], third: ["manifest"], fourth: []}
    assert there == {first: [], second: ["missing"], third: [], fourth: []}
    (altered,) = report.checkpoints[0].damages
    assert altered.start <= WEIGHT_BYTES // 2 < altered.stop
    assert "model_state_dict.weight" in altered.tensors


def test_an_empty_experiment_is_intact_and_stays_empty(make_manager: MakeManager, store_path: Path) -> None:
    """A mistyped name creates nothing."""
    manager = make_manager("mistyped")
    assert manager.scrub()
    assert not store_path.exists()


def test_what_is_deleted_meanwhile_is_no_damage(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that goes on retires checkpoints that were listed a moment ago."""
    first, *others = fill(manager, 3)
    real = LocalStore.open_read

    def then_gone(self: LocalStore, path: str) -> Any:
        if path == f"run/{first}.pt":
            monkeypatch.setattr(LocalStore, "open_read", real)
            manager.delete_checkpoint(first)
            manager.empty_trash()
        return real(self, path)

    monkeypatch.setattr(LocalStore, "open_read", then_gone)
    report = manager.scrub()
    assert report
    assert [item.checkpoint_id for item in report.checkpoints] == others


# --- going on ---


def test_an_interrupted_scrub_goes_on(manager: CheckpointManager) -> None:
    """What was read is not read again, damage found is told of again, and the round after that reads all."""
    first, *_ = fill(manager)
    flip_bit(payload_path(manager, first), 5000)
    total = total_bytes(manager)
    interrupted(manager, total // 2, max_bytes_per_second=2 * total)
    report = manager.scrub()
    assert 0 < report.files_resumed < 8
    assert 0 < report.bytes_read < total
    assert len(report.checkpoints) == len(report.backups) == 4
    assert [bool(item) for item in report.checkpoints] == [False, True, True, True]
    again = manager.scrub()
    assert (again.bytes_read, again.files_resumed) == (total, 0)
    assert again.started_at > report.started_at


def test_a_restarted_scrub_reads_all(manager: CheckpointManager) -> None:
    """Whatever an earlier one has done."""
    fill(manager)
    total = total_bytes(manager)
    interrupted(manager, total // 2, max_bytes_per_second=2 * total)
    assert manager.scrub(restart=True).bytes_read == total


def test_what_changed_since_is_read_again(manager: CheckpointManager) -> None:
    """An outcome is that of a file as it lay there then: a repaired one is read, and found to be intact."""
    saved = fill(manager)
    for checkpoint_id in saved:
        flip_bit(payload_path(manager, checkpoint_id), 5000)
    total = total_bytes(manager)
    interrupted(manager, total // 2, max_bytes_per_second=2 * total)
    outcomes = json.loads(record_of(manager).read_text())["outcomes"]
    damaged = [key.partition("/")[2] for key in outcomes if key.startswith("checkpoints/")]
    assert damaged
    for checkpoint_id in saved:
        manager.restore_checkpoint(checkpoint_id)
    assert manager.scrub()


VICTIM = """
import sys
from ckpt_lib import CheckpointConfig, CheckpointManager
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run")
manager.scrub(max_bytes_per_second=float(sys.argv[2]))
"""


def test_a_killed_scrub_goes_on(manager: CheckpointManager, store_path: Path) -> None:
    """SIGKILL leaves the record as it was last written."""
    fill(manager, 6)
    total = total_bytes(manager)
    with start_python(VICTIM, store_path, total / 4) as child:
        deadline = time.monotonic() + 60
        while not record_of(manager).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child.kill()
        child.communicate()
    report = manager.scrub()
    assert report
    assert 0 < report.files_resumed < 12
    assert 0 < report.bytes_read < total


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 2}', "\x00" * 50, "foreign", "wrong outcome"])
def test_a_record_that_is_damaged_or_foreign_is_ignored(manager: CheckpointManager, content: str) -> None:
    """It only saves work: without it, all is read, and a record of ours takes its place."""
    fill(manager, 2)
    total = total_bytes(manager)
    interrupted(manager, total // 2, max_bytes_per_second=4 * total)
    if content == "foreign":
        content = record_of(manager).read_text().replace('"experiment_name":"run"', '"experiment_name":"other"')
    elif content == "wrong outcome":
        content = record_of(manager).read_text().replace('"checked_at"', '"checked"')
    record_of(manager).write_text(content)
    report = manager.scrub()
    assert (report.bytes_read, report.files_resumed) == (total, 0)
    assert json.loads(record_of(manager).read_text())["completed_at"] is not None


def test_the_record_is_no_checkpoint(manager: CheckpointManager) -> None:
    """It is listed nowhere, swept by nothing, and deleting it costs nothing but the round."""
    saved = fill(manager, 2)
    manager.scrub()
    assert record_of(manager).exists()
    assert ids(manager) == saved
    assert not list(manager.cleanup_checkpoints().swept)
    assert record_of(manager).exists()


def test_a_record_that_cannot_be_written_stops_nothing(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is read-only can be scrubbed all the same; the log says that nothing was recorded."""
    fill(manager, 2)
    real = LocalStore.put

    def refused(self: LocalStore, key: str, data: bytes, **options: Any) -> Entry:
        if key.endswith(RECORD_NAME):
            raise StorePermissionError("the store refuses access")
        return real(self, key, data, **options)

    monkeypatch.setattr(LocalStore, "put", refused)
    with caplog.at_level(logging.WARNING, "ckpt_lib"):
        assert manager.scrub()
    assert "was not recorded" in caplog.text


def test_a_store_that_does_not_answer_ends_the_scrub(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no damage; what was read until then is recorded, and the next call goes on."""
    saved = fill(manager)
    real = LocalStore.open_read

    def away(self: LocalStore, path: str) -> Any:
        if path.endswith(f"backups/{saved[-1]}.pt"):
            raise StoreUnavailableError("the store did not answer")
        return real(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "open_read", away)
        # With a thread for every file, the one that fails may well be the first.
        patched.setattr(scrub_module, "processor_count", lambda: 1)
        with pytest.raises(StoreUnavailableError):
            manager.scrub()
    report = manager.scrub()
    assert report
    assert report.files_resumed > 0


# --- pace ---


def test_all_threads_together_keep_the_pace(manager: CheckpointManager) -> None:
    """So many bytes take so long, however many threads there are."""
    fill(manager)
    total = total_bytes(manager)
    started = time.monotonic()
    manager.scrub(max_bytes_per_second=2 * total)
    assert time.monotonic() - started > 0.4


def test_a_slow_scrub_ends_at_once_when_it_is_interrupted(manager: CheckpointManager) -> None:
    """Nobody waits for a thread that waits for its turn."""
    fill(manager)
    started = time.monotonic()
    interrupted(manager, 1, max_bytes_per_second=100)
    assert time.monotonic() - started < 30  # a single file would take 20 minutes


@pytest.mark.parametrize("rate", [0, -1, float("nan"), -(10**5000)], ids=["zero", "negative", "nan", "huge"])
def test_a_pace_that_is_none_is_refused(manager: CheckpointManager, rate: float) -> None:
    """Before anything is read or written."""
    save(manager, 1)
    with pytest.raises(ConfigError, match="max_bytes_per_second"):
        manager.scrub(max_bytes_per_second=rate)
    assert not record_of(manager).exists()


# --- the page cache ---


def partly_cached(path: Path, size_bytes: int, cached: range) -> None:
    """A file of which the page cache holds just one range, where the file system lets it choose."""
    path.write_bytes(os.urandom(size_bytes))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), len(cached), cached.start)


def cached_pages(path: Path) -> list[bool]:
    """Which pages the page cache holds. Only asked, not read: even a read that does not wait makes the kernel fetch."""
    found = [True] * -(-path.stat().st_size // mmap.PAGESIZE)
    with path.open("rb", buffering=0) as file:
        for start, stop in absent_ranges(file):
            for page in range(start // mmap.PAGESIZE, -(-stop // mmap.PAGESIZE)):
                found[page] = False
    return found


@on_linux
@pytest.mark.parametrize("piece_bytes", [2**20, 10_000])
def test_the_page_cache_stays_as_it_was(disk_path: Path, piece_bytes: int) -> None:
    """What it held is still there, what it did not hold is not, to the last page."""
    size_bytes, cached = 5 * 2**20 + 123, range(2**20, 2**21)
    path = disk_path / "file"
    partly_cached(path, size_bytes, cached)
    before = cached_pages(path)
    counted = 0

    def count(piece: int) -> None:
        nonlocal counted
        counted += piece

    with path.open("rb", buffering=0) as file, NeutralReader(file, count) as reader:
        buffer = bytearray(piece_bytes)
        while reader.readinto(buffer):
            pass
    assert counted == size_bytes
    assert cached_pages(path) == before
    assert set(before) == {True, False}


@on_linux
def test_a_scrub_leaves_the_page_cache_alone(make_manager: MakeManager, disk_path: Path) -> None:
    """The same for payloads, of which one is in use and the others are not."""
    manager = make_manager(checkpoint_dir=str(disk_path / "store"))
    first, second = fill(manager, 2)
    cold, warm = payload_path(manager, first), payload_path(manager, second)
    for path in (cold, warm):
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    warm.read_bytes()
    before = cached_pages(cold)
    manager.scrub()
    assert not any(before)
    assert cached_pages(cold) == before
    assert all(cached_pages(warm))


def test_a_reader_gives_the_bytes_of_its_file(tmp_path: Path) -> None:
    """From start to end, and again from any place, whatever it does to the page cache."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    with path.open("rb", buffering=0) as file, NeutralReader(file, lambda _: None) as reader:
        assert reader.read(10) == bytes(range(10))
        assert reader.tell() == 10
        assert reader.readall() == path.read_bytes()[10:]
        reader.seek(250)
        assert reader.read(10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])


def test_the_report_is_a_value(manager: CheckpointManager) -> None:
    """It goes through JSON and back, as results of tasks do."""
    fill(manager, 1)
    report = manager.scrub()
    assert ScrubReport.model_validate_json(report.model_dump_json()) == report
