"""Crashes, failing disks and power loss, at every system call of every operation.

``CKPT_TORTURE=1`` takes every call of the long operations; without it a seeded sample of them is taken.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager, commit, transfer
from ckpt_lib.errors import CheckpointError, CorruptManifestError, StorageFullError, StoreError, StorePermissionError
from ckpt_lib.metadata import Manifest
from ckpt_lib.names import is_checkpoint_id
from ckpt_lib.stream import find_damages
from tests.test_commit import contents, folder_at, is_whole, keep, save

TORTURE = bool(os.environ.get("CKPT_TORTURE"))
SAMPLE = 18
CALLS = ("open", "write", "fsync", "link", "unlink", "rename", "replace", "mkdir")


# --- faults: system calls of this process, counted, and made to kill or fail ---


@dataclass
class Fault:
    """What happens from the ``at``-th call on: SIGKILL, a torn write and then SIGKILL, or an error once or for ever."""

    at: int = 0
    kill: bool = False
    torn: bool = False
    code: int = 0
    persistent: bool = False
    calls: list[str] = field(default_factory=list)
    hit: str = ""

    def strikes(self, name: str) -> bool:
        self.calls.append(name)
        return len(self.calls) == self.at or (self.persistent and len(self.calls) > self.at > 0)


@contextlib.contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Put ``fault`` into the functions by which the store changes the file system."""
    real = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not fault.strikes(name):
                return real[name](*arguments, **options)
            fault.hit = fault.hit or name
            if fault.code:
                raise OSError(fault.code, os.strerror(fault.code))
            if name == "write" and fault.torn:
                real[name](arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("nobody survives that")

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def in_child(operation: Callable[[World], object], world: World, fault: Fault) -> list[str]:
    """Run ``operation`` in a fork of this warm process; the calls it made, if it was acknowledged, or else none."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs one thread, and no more than this
        child = os.fork()
    if not child:
        status = 1
        try:
            with injected(fault):
                operation(world)
            os.write(writing, " ".join(fault.calls).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == (0 if answer else signal.SIGKILL), f"the child failed by itself: {status}"
    return answer.split()


# --- operations ---


@dataclass(frozen=True)
class World:
    """A store with an experiment ``run`` of three checkpoints, the last two with a backup, and an exported copy."""

    root: Path
    ids: list[str] = field(default_factory=list)

    def manager(self, **options: Any) -> CheckpointManager:
        defaults: dict[str, Any] = {
            "checkpoint_dir": str(self.root / "store"),
            "backup_checkpoints": False,
            "max_checkpoints": 9,
        }
        return CheckpointManager(CheckpointConfig(**(defaults | options)), "run")

    @property
    def folder(self) -> Path:
        return self.root / "store" / "run"


MODEL = torch.nn.Linear(2, 1)


def build(root: Path) -> World:
    world = World(root)
    manager = world.manager()
    for epoch in (1, 2, 3):
        saved = manager.save_checkpoint(model=MODEL, epoch=epoch, metrics={"val_loss": 1 / epoch}, tags=[f"t{epoch}"])
        assert saved is not None
        world.ids.append(saved)
    manager.backup_checkpoint(world.ids[1])
    manager.backup_checkpoint(world.ids[2])
    (world.folder / "notes.txt").write_text("a person's")
    manager.export_checkpoint(world.ids[0], root / "exported")
    (world.folder / f"{world.ids[1]}.pt").unlink()  # for restoring
    return world


def _save(world: World) -> object:
    return world.manager().save_checkpoint(model=MODEL, epoch=4, metrics={"val_loss": 0.1})


def _save_with_everything(world: World) -> object:
    options: Any = {"backup_checkpoints": True, "max_checkpoints": 1, "max_backups": 1}
    return world.manager(**options).save_checkpoint(model=MODEL, epoch=4, metrics={"val_loss": 0.1})


def _delete(world: World) -> object:
    return world.manager().delete_checkpoint(world.ids[0])


def _backup(world: World) -> object:
    return world.manager().backup_checkpoint(world.ids[0])


def _edit(world: World) -> object:
    return world.manager().edit_checkpoint(world.ids[0], add_tags=["new"])


def _restore(world: World) -> object:
    return world.manager().restore_checkpoint(world.ids[1])


def _export(world: World) -> object:
    return world.manager().export_checkpoint(world.ids[2], world.root / "exported")


def _import(world: World) -> object:
    return world.manager().import_checkpoint(world.root / "exported")


def _cleanup(world: World) -> object:
    return world.manager(max_checkpoints=1).cleanup_checkpoints()


OPERATIONS: dict[str, Callable[[World], object]] = {
    "save": _save,
    "save, back up, retire": _save_with_everything,
    "delete": _delete,
    "backup": _backup,
    "edit": _edit,
    "restore": _restore,
    "export": _export,
    "import": _import,
    "cleanup": _cleanup,
}
GIVEN_UP: dict[str, set[int]] = {"delete": {0}, "cleanup": {0}, "save, back up, retire": {0, 2}}
"""Which of the three an operation may take away."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, where there is one: a kill does not depend on a disk, and syncing to one takes its time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"))


def fresh(original: World, root: Path) -> World:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(original.root, root)
    return World(root, original.ids)


def points(every: list[int], seed: str) -> list[int]:
    """The calls to strike at: all of them, or a sample that always holds the first and the last ones."""
    if TORTURE or len(every) <= SAMPLE:
        return every
    ends = {*every[:2], *every[-SAMPLE // 2 :]}
    return sorted(ends | set(random.Random(seed).sample(every, SAMPLE - len(ends))))


def check_invariant(world: World, before: dict[str, bytes], name: str, acknowledged: bool) -> None:
    """INV: what was acknowledged is there and whole, nothing is listed and broken, all else is unchanged."""
    manager = world.manager()
    if acknowledged:
        _check_done(world, name)
    listed = {report.checkpoint_id: bool(report) for report in manager.validate_all()}
    allowed_broken = {world.ids[1]} if not (name == "restore" and acknowledged) else set()
    assert {found for found, whole in listed.items() if not whole} <= allowed_broken
    assert set(world.ids) - set(listed) <= {world.ids[number] for number in GIVEN_UP.get(name, ())}
    assert all(manager.validate_backup(found.checkpoint_id) for found in manager.list_backups())
    exported = folder_at(world.root, "exported")
    assert all(is_whole(exported, exported.read_manifest(found)) for found in exported.manifest_entries())
    now = contents(world.root)
    touched = {
        "edit": world.ids[0],
        "restore": world.ids[1],
        "delete": world.ids[0],
    }.get(name, "nothing")
    for path, data in before.items():
        gone = any(world.ids[number] in path for number in GIVEN_UP.get(name, ()))
        derived = path.endswith("checkpoint_metadata.json")
        rotated = "/backups/" in path and name == "save, back up, retire"
        if not (gone or derived or rotated or touched in path):
            assert now.get(path) == data, path


def _check_done(world: World, name: str) -> None:
    manager = world.manager()
    ids = [checkpoint.checkpoint_id for checkpoint in manager.list_checkpoints()]
    done: dict[str, Callable[[], object]] = {
        "save": lambda: ids[:3] == world.ids and len(ids) == 4,
        "save, back up, retire": lambda: len(ids) == 2 and len(manager.list_backups()) >= 1,
        "delete": lambda: ids == world.ids[1:],
        "backup": lambda: manager.validate_backup(world.ids[0]),
        "edit": lambda: "new" in manager.get_checkpoint(world.ids[0]).tags,
        "restore": lambda: manager.validate_checkpoint(world.ids[1]),
        "export": (world.root / "exported" / f"{world.ids[2]}.json").exists,
        "import": lambda: len(ids) == 3,  # it is the same checkpoint, which the experiment has
        "cleanup": lambda: ids == world.ids[1:],
    }
    assert done[name](), (name, ids)


def check_next_operations_work(world: World, name: str) -> None:
    """No manual repair: the same operation again converges, a save works, and a sweep leaves no leftover."""
    with contextlib.suppress(CheckpointError) if name == "delete" else contextlib.nullcontext():
        OPERATIONS[name](world)
    manager = world.manager()
    saved = manager.save_checkpoint(model=MODEL, epoch=9, metrics={"val_loss": 0.05})
    assert saved is not None
    assert manager.validate_checkpoint(saved)
    manager.cleanup_checkpoints()
    leftovers = [path for path in contents(world.root / "store") if re.search(r"\.ckpt-tmp$|\.deleting$", path)]
    assert leftovers == []
    names = contents(world.root / "store")
    assert [path for path in names if path.endswith(".pt") and f"{path[:-3]}.json" not in names] == []


@pytest.mark.parametrize("torn", [False, True], ids=["before", "in the middle"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_system_call_harms_nothing(original: World, tmp_path: Path, name: str, torn: bool) -> None:
    """SIGKILL before the k-th call, and halfway through a write, of every operation; then everything goes on."""
    operation = OPERATIONS[name]
    world = fresh(original, tmp_path / "w")
    before = contents(original.root)
    calls = in_child(operation, world, Fault())
    check_invariant(world, before, name, True)
    every = [at for at, call in enumerate(calls, start=1) if call == "write" or not torn]
    assert len(every) >= (1 if torn or name == "import" else 5)
    for number, at in enumerate(points(every, f"{name} {torn}")):
        world = fresh(original, tmp_path / "w")
        assert not in_child(operation, world, Fault(at, kill=True, torn=torn))
        check_invariant(world, before, name, False)
        if number % 3 == 0 or TORTURE:
            check_next_operations_work(world, name)


def test_a_kill_during_the_recovery_is_recovered_from(original: World, tmp_path: Path) -> None:
    """Deletions and saves killed halfway, then the cleanup after them killed at every call: the next one succeeds."""
    wounded = fresh(original, tmp_path / "wounded")
    for operation, at in ((_save, 3), (_save, 14), (_delete, 12)):
        assert not in_child(operation, wounded, Fault(at, kill=True))
    assert any(path.endswith((".ckpt-tmp", ".deleting")) for path in contents(wounded.root))
    before = contents(wounded.root)
    world = World(tmp_path / "w", original.ids)
    shutil.copytree(wounded.root, world.root)
    calls = in_child(_cleanup, world, Fault())
    for at in points(list(range(1, len(calls) + 1)), "recovery"):
        shutil.rmtree(world.root)
        shutil.copytree(wounded.root, world.root)
        assert not in_child(_cleanup, world, Fault(at, kill=True))
        orphans = {path for path in before if path.endswith(".pt") and f"{path[:-3]}.json" not in before}
        left = {path for path in before if path.endswith((".ckpt-tmp", ".deleting"))} | orphans
        kept = {path: data for path, data in before.items() if path not in left}
        check_invariant(world, kept, "cleanup", False)
        check_next_operations_work(world, "cleanup")


# --- errors ---

REASONS = {errno.ENOSPC: StorageFullError, errno.EIO: StoreError, errno.EACCES: StorePermissionError}


def _commit_save(root: Path) -> object:
    return save(folder_at(root), 2)


def _commit_delete(root: Path) -> object:
    (found,) = folder_at(root).manifest_entries()
    return commit.delete(folder_at(root), found, unless=keep)


def _commit_edit(root: Path) -> object:
    (found,) = folder_at(root).manifest_entries()
    return commit.edit(folder_at(root), found, lambda manifest: manifest.changed(pinned=True))


def _commit_copy(root: Path) -> object:
    (found,) = folder_at(root).manifest_entries()
    return transfer.export(folder_at(root), folder_at(root).read_manifest(found), root / "copy")


COMMITS: dict[str, Callable[[Path], object]] = {
    "save": _commit_save,
    "delete": _commit_delete,
    "edit": _commit_edit,
    "copy": _commit_copy,
}


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", COMMITS)
def test_an_error_at_any_system_call_changes_nothing(tmp_path: Path, name: str, persistent: bool) -> None:
    """ENOSPC, EIO and EACCES at the k-th call: the error of ours for it, all as before, and the next attempt works."""
    start = tmp_path / "start"
    save(folder_at(start), 1)
    counted = Fault()
    shutil.copytree(start, tmp_path / "w")
    with injected(counted):
        COMMITS[name](tmp_path / "w")
    done = _visible(tmp_path / "w")
    for (code, expected), at in itertools.product(REASONS.items(), range(1, len(counted.calls) + 1)):
        root = tmp_path / "w"
        shutil.rmtree(root)
        shutil.copytree(start, root)
        before = contents(root)
        fault = Fault(at, code=code, persistent=persistent)
        error = _outcome(COMMITS[name], root, fault)
        failed = error is not None
        assert error is None or type(error) is expected
        where = (name, fault.hit, at, len(counted.calls))
        found = _visible(root)
        assert found in (_visible(start), done), where
        if not failed:
            assert found == done, where
        if failed and not persistent and found != done and name != "delete":
            commit.sweep(folder_at(root))
            assert {path: data for path, data in contents(root).items() if path.startswith("e/")} == {
                path: data for path, data in before.items() if path.startswith("e/")
            }, where
        if found != done:
            COMMITS[name](root)
            assert _visible(root) == done, where
        for folder in (folder_at(root), folder_at(root, "copy")):
            commit.sweep(folder)
            assert all(is_whole(folder, folder.read_manifest(found)) for found in folder.manifest_entries())
        assert not [path for path in contents(root) if path.endswith((".ckpt-tmp", ".deleting"))], where


def _outcome(operation: Callable[[Any], object], argument: object, fault: Fault) -> CheckpointError | None:
    """The error of ours that an operation ended in; any other comes out."""
    with injected(fault):
        try:
            operation(argument)
        except CheckpointError as error:
            return error
    return None


def _visible(root: Path) -> list[tuple[str, int, bool, bool]]:
    """What readers see: folder, epoch, pin and wholeness of each checkpoint, in order."""
    return [
        (name, manifest.epoch, manifest.pinned, is_whole(folder, manifest))
        for name in ("e", "copy")
        for folder in [folder_at(root, name)]
        for manifest in sorted(map(folder.read_manifest, folder.manifest_entries()), key=lambda found: found.epoch)
    ]


def test_an_fsync_that_failed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fsync of the same bytes may succeed without having written them."""
    save(folder_at(tmp_path), 1)
    real, failed = os.fsync, []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        assert status.st_ino not in failed
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            failed.append(status.st_ino)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError):
        save(folder_at(tmp_path), 2)
    assert len(failed) == 1


@pytest.mark.parametrize("name", ["save", "save, back up, retire", "backup", "edit", "delete"])
def test_a_manager_survives_an_error_at_any_system_call(original: World, tmp_path: Path, name: str) -> None:
    """Through the whole façade: nothing but errors of ours comes out, and what came before is as it was."""
    world = fresh(original, tmp_path / "w")
    counted = Fault()
    with injected(counted):
        OPERATIONS[name](world)
    before = contents(original.root)
    for number, at in enumerate(points(list(range(1, len(counted.calls) + 1)), f"errors {name}")):
        world = fresh(original, tmp_path / "w")
        fault = Fault(at, code=list(REASONS)[number % 3], persistent=number % 2 == 0)
        acknowledged = _outcome(OPERATIONS[name], world, fault) is None
        if name == "save, back up, retire":
            acknowledged = False  # saved, but what follows a save may have failed, and was logged
        check_invariant(world, before, name, acknowledged)
        check_next_operations_work(world, name)


# --- power loss ---


@dataclass
class File:
    """An inode: what was written to it, and whether all of that was synced."""

    data: bytes = b""
    synced: bool = True

    def after_power_loss(self) -> list[bytes]:
        """What may be left of it: unsynced bytes are there, partly there, or not."""
        return [self.data] if self.synced else [self.data, self.data[: len(self.data) // 2], b""]


Names = dict[str, File]


class PowerLoss:
    """Follows what an operation does to the folder ``e``, and asks after each step what power loss then may leave.

    Any subset of the names that changed since the folder was last synced may have changed on the disk, in any order.
    """

    def __init__(self, root: Path, skipped_fsync: int = 0) -> None:
        self._folder = root / "e"
        self._skipped_fsync = skipped_fsync
        self._files: dict[int, File | None] = {}
        self._names = {path.name: File(path.read_bytes()) for path in self._folder.iterdir() if path.is_file()}
        self._durable = dict(self._names)
        self._pending: list[Callable[[Names], object]] = []
        self.fsyncs = 0
        self.states = 0
        self.violations: list[str] = []

    @contextlib.contextmanager
    def watching(self, acknowledged: set[str]) -> Iterator[None]:
        """``acknowledged``: the tags of the checkpoints that must be there, and alone, once the operation is over."""
        with pytest.MonkeyPatch.context() as patched:
            for name in CALLS:
                patched.setattr(os, name, self._watched(name, getattr(os, name)))
            yield
        self._ask("acknowledged", acknowledged)

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "fsync":
                self.fsyncs += 1
                if self.fsyncs == self._skipped_fsync:
                    return None
            result = real(*arguments, **options)
            getattr(self, f"_on_{name}")(result, *arguments)
            self._ask(name)
            return result

        return call

    def _on_open(self, descriptor: int, path: Any, flags: int, *_: Any) -> None:
        name = os.path.basename(os.fspath(path))
        self._files.pop(descriptor, None)
        if os.fspath(path) == str(self._folder) or Path(path) == self._folder:
            self._files[descriptor] = None
        elif flags & os.O_CREAT and name != ".ckpt.lock":
            self._files[descriptor] = file = File()
            self._change(lambda names: names.update({name: file}))

    def _on_write(self, written: int, descriptor: int, data: Any) -> None:
        if file := self._files.get(descriptor):
            file.data += bytes(data[:written])
            file.synced = False

    def _on_fsync(self, _: None, descriptor: int) -> None:
        if file := self._files.get(descriptor):
            file.synced = True
        elif descriptor in self._files:
            self._durable = dict(self._names)
            self._pending.clear()

    def _on_link(self, _: None, source: Any, target: Any) -> None:
        file, name = self._names[Path(source).name], Path(target).name
        self._change(lambda names: names.update({name: file}))

    def _on_replace(self, _: None, source: Any, target: Any) -> None:
        file, old, new = self._names[Path(source).name], Path(source).name, Path(target).name
        self._change(lambda names: (names.pop(old, None), names.update({new: file})))

    _on_rename = _on_replace

    def _on_unlink(self, _: None, path: Any) -> None:
        self._change(lambda names: names.pop(Path(path).name, None))

    def _on_mkdir(self, *_: Any) -> None:
        raise AssertionError("the folder was there")

    def _change(self, change: Callable[[Names], object]) -> None:
        change(self._names)
        self._pending.append(change)

    def _ask(self, moment: str, acknowledged: set[str] | None = None) -> None:
        """Look at every state that power loss may leave now."""
        for length in range(len(self._pending) + 1):
            for survived in itertools.combinations(self._pending, length):
                names = dict(self._durable)
                for change in survived:
                    change(names)
                for contents_ in itertools.product(*(file.after_power_loss() for file in names.values())):
                    self.states += 1
                    self._judge(moment, dict(zip(names, contents_, strict=True)), acknowledged)

    def _judge(self, moment: str, disk: dict[str, bytes], acknowledged: set[str] | None) -> None:
        found = set()
        for name, data in disk.items():
            if not is_checkpoint_id(name.removesuffix(".json")) or not name.endswith(".json"):
                continue
            try:
                manifest = Manifest.from_bytes(data, path=name)
            except CorruptManifestError:
                self.violations.append(f"{moment}: a torn manifest")
                continue
            payload = disk.get(manifest.payload.name)
            if payload is None or find_damages(io.BytesIO(payload), manifest.payload):
                self.violations.append(f"{moment}: listed and broken")
            found |= set(manifest.tags)
        if acknowledged is not None and found != acknowledged:
            self.violations.append(f"{moment}: {found} instead of {acknowledged}")


def _tagged_edit(root: Path, checkpoint_id: str) -> None:
    commit.edit(folder_at(root), checkpoint_id, lambda manifest: manifest.changed(tags=("edited",)))


PROTOCOLS: dict[str, tuple[Callable[[Path, str], object], set[str]]] = {
    "save": (lambda root, _: save(folder_at(root), 2, tags=("new",)), {"old", "new"}),
    "edit": (_tagged_edit, {"edited"}),
    "delete": (lambda root, found: commit.delete(folder_at(root), found, unless=keep), set()),
}


def _lose_power(tmp_path: Path, name: str, skipped_fsync: int = 0) -> PowerLoss:
    root = tmp_path / f"w{skipped_fsync}"
    checkpoint_id = save(folder_at(root), 1, tags=("old",)).checkpoint_id
    operation, acknowledged = PROTOCOLS[name]
    watched = PowerLoss(root, skipped_fsync)
    with watched.watching(acknowledged):
        operation(root, checkpoint_id)
    return watched


@pytest.mark.parametrize("name", PROTOCOLS)
def test_power_loss_at_any_moment_harms_nothing(tmp_path: Path, name: str) -> None:
    """Whatever of the unsynced reaches the disk: nothing is listed and broken, and nothing acknowledged is lost."""
    watched = _lose_power(tmp_path, name)
    assert watched.violations == []
    assert watched.states > 15


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        # payload, folder, manifest, folder
        ("save", [1, 2, 3, 4]),
        # manifest, folder
        ("edit", [1, 2]),
        # of tombstone, folder, folder, folder: that the manifest goes before the payload does. The others save space.
        ("delete", [3]),
    ],
)
def test_each_barrier_is_needed(tmp_path: Path, name: str, needed: list[int]) -> None:
    """With any one of them left out, power loss does harm, and the test above would see it."""
    assert _lose_power(tmp_path, name).fsyncs == {"save": 4, "edit": 2, "delete": 4}[name]
    for number in needed:
        assert _lose_power(tmp_path, name, skipped_fsync=number).violations, number


# --- the same from outside: no function of this process is touched ---

_VICTIM = """
import os, sys, torch
from pathlib import Path
from tests.test_commit import folder_at, save
from ckpt_lib.formats import format_named
format_named("torch").prepare({"a": torch.ones(1)})
root = Path(sys.argv[1])
save(folder_at(root / "warm"), 1)
os.open("/dev/null", os.O_RDONLY)
save(folder_at(root), 2)
print("acknowledged", flush=True)
"""


def _has_strace() -> bool:
    if not shutil.which("strace"):
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_strace(), reason="strace is not there or not allowed")
def test_a_kill_by_the_kernel_at_a_system_call_harms_nothing(tmp_path: Path) -> None:
    """``strace`` kills a process of its own at its last system calls that change the file system."""
    root = Path(__file__).parent.parent
    calls = "openat,write,fsync,link,linkat,unlink,unlinkat,rename,renameat,renameat2"

    def run(place: Path, *inject: str) -> tuple[bool, str]:
        trace = tmp_path / "trace"
        command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={calls}", *inject]
        done = subprocess.run(
            [
                *command,
                sys.executable,
                "-c",
                _VICTIM,
                str(place),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
        )
        return "acknowledged" in done.stdout, trace.read_text()

    save(folder_at(tmp_path / "start"), 1)
    shutil.copytree(tmp_path / "start", tmp_path / "w")
    acknowledged, trace = run(tmp_path / "w")
    assert acknowledged
    lines = trace.splitlines()
    (thread,) = (line.split()[0] for line in lines if '"/dev/null"' in line)  # strace counts by thread
    lines = [line for line in lines if line.split()[0] == thread]
    (marker,) = (number for number, line in enumerate(lines) if '"/dev/null"' in line)
    before = {call: _count(lines[:marker], call) for call in calls.split(",")}
    every = [
        (call, before[call] + number)
        for call in calls.split(",")[1:]
        for number in range(1, _count(lines[marker:], call) - (call == "write") + 1)  # the last one acknowledges
    ]
    assert {"write", "fsync"} <= {call for call, _ in every}
    for call, at in every if TORTURE else random.Random(1).sample(every, 2):
        shutil.rmtree(tmp_path / "w")
        shutil.copytree(tmp_path / "start", tmp_path / "w")
        acknowledged, _ = run(tmp_path / "w", "-e", f"inject={call}:signal=KILL:when={at}")
        found = _visible(tmp_path / "w")
        assert found[0] == ("e", 1, False, True)
        assert found[1:] in ([], [("e", 2, False, True)])
        assert not acknowledged
        assert is_whole(folder_at(tmp_path / "w"), save(folder_at(tmp_path / "w"), 3))


def _count(lines: list[str], call: str) -> int:
    return sum(bool(re.match(rf"\d+ +{call}\(", line)) for line in lines)
