"""Stores that refuse: full, closed, read-only or unreadable ones are one typed error each, and nothing is lost."""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_lib.errors import StoreError
from ckpt_lib.store.local.reader import LocalReader
from tests.helpers import MakeManager, contents, experiment_folder, ids, payload_path, run_python, save

_CHILD = """
import json, os, subprocess, sys
from pathlib import Path
import torch
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError
sys.path.insert(0, os.getcwd())
from tests.helpers import contents

root = Path(sys.argv[1])
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(root), backup_checkpoints=False), "run")
small, large = torch.nn.Linear(4, 4), torch.nn.Linear(1500, 1500)

def first_save():
    saved = manager.save_checkpoint(model=small, epoch=1, metrics={"val_loss": 0.5})
    manager.edit_checkpoint(saved, add_tags=["before"])
    assert manager.backup_checkpoint(saved)
    return saved

def refused(call):
    before = contents(root)
    try:
        call()
    except CheckpointError as error:
        kind = type(error).__name__
    else:
        kind = "nothing was raised"
    assert contents(root) == before, "something was written or lost"
    assert manager.validate_checkpoint("latest")
    assert manager.resume(torch.nn.Linear(4, 4))["epoch"] == 1
    return kind

def save_large():
    manager.save_checkpoint(model=large, epoch=2, metrics={"val_loss": 0.1})
"""

_FULL_DISK = (
    _CHILD
    + """
first_save()
print(refused(save_large))
print(manager.save_checkpoint(model=small, epoch=3) is not None)
"""
)

_SIZE_LIMIT = (
    _CHILD
    + """
import resource
first_save()
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
print(refused(save_large))
print(manager.save_checkpoint(model=small, epoch=3) is not None)
"""
)

_CLOSED = (
    _CHILD
    + """
first_save()
root.parent.chmod(0)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
other = CheckpointManager(manager.config, "other")
names = (
    "list_checkpoints", "get_latest_checkpoint", "get_best_checkpoint", "checkpoint_ids", "list_backups", "scrub",
    "doctor", "cleanup_checkpoints", "list_quarantined",
)
calls = [getattr(one, name) for one in (manager, other) for name in names]
calls += [save_large, lambda: other.save_checkpoint(model=small, epoch=1), lambda: manager.resume(model=small)]
for call in calls:
    try:
        call()
    except CheckpointError as error:
        print(type(error).__name__)
    else:
        print("nothing was raised")
"""
)

_READ_ONLY = (
    _CHILD
    + """
first_save()
mounted = sys.argv[2:] == ["mounted"]
if mounted:
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
else:
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root.chmod(0o555)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
print(refused(save_large))
print(refused(lambda: manager.edit_checkpoint("latest", add_tags=["x"])))
print(refused(lambda: manager.delete_checkpoint("latest")))
print(refused(lambda: manager.pin_checkpoint("latest")))
print(refused(lambda: manager.export_checkpoint("latest", root / "exports")))
print(refused(lambda: CheckpointManager(manager.config, "other").save_checkpoint(model=small, epoch=1)))
"""
)


def _mount_prefix(folder: Path, size: str) -> list[str] | None:
    """A command prefix under which ``folder`` is a small file system of its own, or ``None`` where none can be made."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return None
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    for flags in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        prefix = ["unshare", *flags, "sh", "-c", script, str(folder)]
        try:
            run_python("", prefix=prefix)
        except AssertionError:
            continue
        return prefix
    return None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach, as those of pytest are not."""
    import tempfile

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "store").mkdir()
        yield path / "store"
        for found in (path, *path.rglob("*")):
            if found.is_dir():
                found.chmod(stat.S_IRWXU)


def test_a_full_disk(open_folder: Path) -> None:
    """A save that does not fit is one typed error; what was there stays, no leftover takes space, small saves go on."""
    prefix = _mount_prefix(open_folder, "2m")
    if prefix is None:  # the other real way to run out of space
        assert run_python(_SIZE_LIMIT, open_folder).split() == ["StoreError", "True"]
    else:
        assert run_python(_FULL_DISK, open_folder, prefix=prefix).split() == ["StorageFullError", "True"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_file_size_limit(open_folder: Path) -> None:
    """It is no full store: freeing space would not help, so no room is made."""
    assert run_python(_SIZE_LIMIT, open_folder).split() == ["StoreError", "True"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows folders are not closed by their mode")
def test_a_store_in_a_folder_that_one_may_not_enter(open_folder: Path) -> None:
    """It is refused by every call, and is no empty store."""
    assert set(run_python(_CLOSED, open_folder).split()) == {"StorePermissionError"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows folders are not made read-only by their mode")
def test_a_read_only_folder(open_folder: Path) -> None:
    """Without the right to write, every change is one typed error, and reading goes on."""
    assert set(run_python(_READ_ONLY, open_folder).split()) == {"StorePermissionError"}


def test_a_read_only_file_system(open_folder: Path) -> None:
    """A file system that went read-only, as after an error of its disk, ends the same way."""
    prefix = _mount_prefix(open_folder, "4m")
    if prefix is None:  # without the right to mount, the rights of the folder are what is left to take away
        output = run_python(_READ_ONLY, open_folder)
    else:
        output = run_python(_READ_ONLY, open_folder, "mounted", prefix=prefix)
    assert set(output.split()) == {"StorePermissionError"}


_UNREADABLE = """
import os, subprocess, sys
from tests.torture.namespaces import enter_namespace
enter_namespace()
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StoreError

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], backup_checkpoints=False), "run")
saved = manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1)
payload = f"{sys.argv[1]}/run/{saved}.pt"
subprocess.run(["mount", "--bind", f"/proc/{os.getpid()}/mem", payload], check=True)  # its first page cannot be read
try:
    manager.load_checkpoint(saved)
except StoreError as error:
    print(type(error).__name__)
print([damage.kind for damage in manager.validate_checkpoint(saved).damages])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_unreadable_bytes_are_a_typed_error(store_path: Path) -> None:
    """A payload that the disk cannot give back: validation reports it, loading fails as the store's failure."""
    assert run_python(_UNREADABLE, store_path) == "StoreError\n['unreadable']\n"


def test_one_payload_that_cannot_be_read_stops_neither_cleanup_nor_resume(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector under one payload is damage of that checkpoint: others are loaded, and retired, as ever."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=100)
    saved = [save(manager, epoch) for epoch in (1, 2, 3, 4)]
    bad = str(payload_path(manager, saved[3]))

    read_at = LocalReader.read_at

    def fail(reader: LocalReader, start: int, stop: int) -> bytes:
        if str(reader._path) == bad:
            raise StoreError("the store failed: Input/output error", path=bad)
        return read_at(reader, start, stop)

    monkeypatch.setattr(LocalReader, "read_at", fail)
    monkeypatch.setattr(LocalReader, "fileno", lambda _: None)  # else it is read past that
    again = make_manager(backup_checkpoints=False, max_checkpoints=2)
    resumed = again.resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved[2]
    assert [item["checkpoint_id"] for item in resumed["passed_over"]] == [saved[3]]
    report = again.cleanup_checkpoints()
    assert report.deleted_ids == (saved[1],)
    assert ids(again) == [saved[0], *saved[2:]]


def test_failures_after_the_save_do_not_fail_it(make_manager: MakeManager, tmp_path: Path) -> None:
    """When backing up or the snapshot cannot work, the save stands, is acknowledged and the failure is logged."""
    (tmp_path / "backups").write_text("a file where the backups should go")
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    folder = experiment_folder(manager)
    (folder / "checkpoint_metadata.json").mkdir(parents=True)
    saved = save(manager, 1)
    assert manager.validate_checkpoint(saved)
    assert ids(manager) == [saved]
    assert contents(folder).keys() == {"checkpoint_metadata.json", f"{saved}.json", f"{saved}.pt"}
