"""Barriers: the protocol needs each one, and the local store makes each one a real ``fsync`` in the right place."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.experiment import commit
from ckpt_lib.store import open_store
from ckpt_lib.testing import BitFlip, FaultPlan, faults_injected
from tests.helpers import MakeManager, ids, save
from tests.torture.machine import ACTIONS, quiet, start_state
from tests.torture.model_store import Disk, source_line
from tests.torture.power_loss import SCENARIOS, Watch, barriers, find_violation


def test_the_protocol_has_these_barriers_and_needs_each() -> None:
    """Every place in the code that makes something durable is known to the model, and harm follows without it."""
    with quiet():
        found = barriers("test")
        assert {barrier.function.partition(".")[0] for barrier in found} == {"commit", "the store"}
        assert {barrier.kind for barrier in found} == {"file", "file put", "file patched", "names", "folder made"}
        code = Path(commit.__file__).read_text(encoding="utf-8").splitlines()
        written = {
            number
            for number, line in enumerate(code, start=1)
            if re.search(r"\.sync\(\)|held\.put\(|held\.patch\(", line) and "durable=False" not in line
        }
        assert {barrier.line for barrier in found if barrier.kind != "folder made"} == written
        for barrier in found:
            assert find_violation(barrier, found[barrier], "test"), source_line(barrier)


def test_every_action_is_looked_at() -> None:
    """In some scenario, step by step."""
    assert {name for names in SCENARIOS for name in names} == set(ACTIONS)


@pytest.mark.parametrize("name", ACTIONS)
def test_power_loss_at_any_step(name: str) -> None:
    """A few of the states in which the disk may come up; each action changes it, so that none is judged by nothing."""
    with quiet():
        watch = Watch(Disk(start_state()), f"seed {name}", limit=5)
        assert any(watch.run(name) and watch.states for _ in range(5))
        assert watch.violations == []


# --- the local store ---

_SCRIPT = """
import os, sys, torch
from ckpt_lib import CheckpointConfig, CheckpointManager
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], backup_checkpoints=False), "run")
model = torch.nn.Linear(2, 1)
def mark(name):
    try:
        os.stat("/acknowledged/" + name)
    except FileNotFoundError:
        pass
first = manager.save_checkpoint(model=model, epoch=1)
mark("save")
manager.edit_checkpoint(first, add_tags=["x"])
mark("edit")
manager.delete_checkpoint(first)
mark("delete")
manager.undelete_checkpoint(first)
mark("undelete")
manager.backup_checkpoint(first)
mark("backup")
"""


def _has_strace() -> bool:
    if not shutil.which("strace"):
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_strace(), reason="strace is not there or not allowed")
def test_each_barrier_is_an_fsync_of_the_kernel(tmp_path: Path) -> None:
    """A file is synced between its last write and its name, a folder between its last new name and what follows.

    Watched from outside: no function of that process is replaced.
    """
    store, trace = tmp_path / "store", tmp_path / "trace"
    calls = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat"
    calls += ",stat,newfstatat"
    command = ["strace", "-f", "-qq", "-y", "-s", "300", "-o", str(trace), "-e", f"trace={calls}"]
    subprocess.run(
        [*command, sys.executable, "-c", _SCRIPT, str(store)],
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    log = _Log(str(store.resolve()))
    for line in trace.read_text().splitlines():
        log.read(line)
    assert log.acknowledged == ["save", "edit", "delete", "undelete", "backup"]
    assert log.violations == []
    names = [Path(name).name for name in log.published]
    assert sum(name.endswith(".pt") for name in names) == 2
    assert sum(name.endswith(".json") and name.startswith("checkpoint_epoch") for name in names) == 4


class _Log:
    """Follows what a process does below ``root``, by the lines of ``strace -y``."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unsynced: set[str] = set()
        """Paths of files with bytes that are not durable."""
        self.unsure: dict[str, list[str]] = {}
        """Folder to names in it that were given, taken or made since it was last synced."""
        self.published: list[str] = []
        self.acknowledged: list[str] = []
        self.violations: list[str] = []

    def read(self, line: str) -> None:
        call = line.split(None, 1)[1]
        if found := re.search(r'"/acknowledged/(\w+)"', call):
            self.acknowledged.append(found[1])
            lasting = {name for names in self.unsure.values() for name in names if self._must_last(name)}
            self.violations += [f"{found[1]} was acknowledged, and {name} is not durable" for name in lasting]
            return
        if self.root not in call or " = -1 " in call:
            return
        name, _, rest = call.partition("(")
        paths = self._paths(rest.partition(", ")[0] if name in {"write", "pwrite64"} else rest)
        if name in {"write", "pwrite64"}:
            self.unsynced.add(paths[0])
        elif name in {"fsync", "fdatasync"}:
            self.unsynced.discard(paths[0])
            self.unsure.pop(paths[0], None)
        elif name.startswith(("rename", "link")):
            self._moved(*paths[:2], is_link=name.startswith("link"))
        elif name.startswith(("unlink", "mkdir")):
            self._changed(paths[0])

    def _paths(self, rest: str) -> list[str]:
        """Every path of a call: of a descriptor, or of a name in a folder that a descriptor stands for."""
        found = []
        for descriptor, name in re.findall(r'(?:\d+|AT_FDCWD)<([^>]*)>(?:, "([^"]*)")?', rest):
            found.append(os.path.normpath(os.path.join(descriptor, name)) if name else descriptor)
        if not found:
            found = re.findall(r'"([^"]*)"', rest)
        return found

    def _moved(self, source: str, target: str, *, is_link: bool) -> None:
        if source in self.unsynced:
            self.unsynced.add(target)
            if self._must_last(target):
                self.violations.append(f"{target} got its name before its bytes were durable")
        if self._must_last(target):
            self.published.append(target)
            if target.endswith(".json"):
                payload = target.removesuffix(".json") + ".pt"
                if payload in self.unsure.get(os.path.dirname(target), []):
                    self.violations.append(f"{target} got its name before {payload} was durable")
        self._changed(target)
        if not is_link:
            self._changed(source)

    def _changed(self, path: str) -> None:
        self.unsure.setdefault(os.path.dirname(path), []).append(path)

    def _must_last(self, path: str) -> bool:
        """Whether it is a checkpoint's, or a folder: not the store's own, nor derived."""
        name = os.path.basename(path)
        inside = path.startswith(self.root + "/") and ".ckpt-" not in path
        return inside and name != "checkpoint_metadata.json" and not name.endswith((".saving", ".deleted"))


def test_a_folder_that_a_killed_process_made_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have died between making it and making that durable: each process sees to it once."""
    (tmp_path / "store" / "run").mkdir(parents=True)
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = open_store(tmp_path / "store")
    store.open_write("run").discard()
    assert synced == [str(tmp_path), str(tmp_path / "store")]
    store.open_write("run").discard()
    assert len(synced) == 2


def test_a_folder_under_another_name_is_made_durable_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, or another one that has the number of one that is gone: what was durable was the other name."""
    store = open_store(tmp_path / "store")
    store.open_write("run").discard()
    (tmp_path / "store").rename(tmp_path / "moved")
    (tmp_path / "moved" / "run").rename(tmp_path / "moved" / "on")
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    open_store(tmp_path / "moved").open_write("on").discard()
    assert synced == [str(tmp_path), str(tmp_path / "moved")]


def test_each_folder_above_a_new_one_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first that was there down to the experiment's, before anything is put in."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    open_store(tmp_path / "a" / "b").open_write("run").discard()
    places = [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert [place for number, place in enumerate(synced) if place not in synced[:number]] == places


def test_a_sweep_makes_durable_what_it_goes_on_from(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deleted the manifest may have been killed before that was durable: the payload goes after it."""
    manager = make_manager(trash_seconds=0, backup_checkpoints=False)
    save(manager, 1)
    folder = Path(manager.config.checkpoint_dir) / "run"
    (checkpoint_id,) = ids(manager)
    (folder / f"{checkpoint_id}.json").rename(folder / f".{checkpoint_id}.deleted")
    order: list[str] = []
    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, _noting(name, getattr(os, name), order))
    manager.empty_trash()
    payload = order.index(f"rename {checkpoint_id}.pt")
    assert "fsync run" in order[:payload]
    assert "fsync run" in order[payload:]


def _noting(name: str, real: Callable[..., Any], order: list[str]) -> Callable[..., Any]:
    def call(first: Any, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        order.append(f"{name} {os.path.basename(path)}")
        return real(first, *arguments, **options)

    return call


# --- reading back ---


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_save_that_went_wrong_on_the_way_is_refused(make_manager: MakeManager, size: int) -> None:
    """Small and in several chunks: the error has the place, nothing is left, and the next save works."""
    manager = make_manager(verify_after_write=True, backup_checkpoints=False)
    save(manager, 1)
    model = torch.nn.Linear(size, 1)
    flip = BitFlip(900 if size == 10 else 7_000_000, bit=5, path="run/")
    with faults_injected(FaultPlan(write_flips=[flip])):
        failing = make_manager(verify_after_write=True, backup_checkpoints=False)
        with pytest.raises(CorruptCheckpointError, match="does not give back") as raised:
            failing.save_checkpoint(model=model, epoch=2)
        (damage,) = raised.value.damages
        assert damage.start <= flip.offset_bytes < damage.stop
    assert len(ids(manager)) == 1
    assert manager.save_checkpoint(model=model, epoch=2)
    assert not list(Path(manager.config.checkpoint_dir).rglob("*.saving"))


def test_a_disk_that_gives_other_bytes_back_is_a_store_that_fails(make_manager: MakeManager, tmp_path: Path) -> None:
    """Another folder takes over; when there is none, training may go on without."""
    with faults_injected(FaultPlan(write_flips=[BitFlip(900, path="run/")])):
        home = open_store(make_manager().config.checkpoint_dir)
        failing = make_manager(verify_after_write=True, on_save_failure="warn")
        assert failing.save_checkpoint(model=torch.nn.Linear(10, 1), epoch=1) is None
    manager = make_manager(verify_after_write=True, fallback_dir=str(tmp_path / "fallback"))
    target = manager._saver._writer.primary
    target.folder = replace(target.folder, store=home)
    saved = manager.save_checkpoint(model=torch.nn.Linear(10, 1), epoch=1)
    assert [item.checkpoint_id for item in manager.list_stranded()] == [saved]
    assert manager.validate_checkpoint(str(saved))
    assert ids(manager) == []


def test_a_fallback_folder_is_read_back_as_well(make_manager: MakeManager, tmp_path: Path) -> None:
    """Where its disk gives other bytes back too, nothing is acknowledged."""
    with faults_injected(FaultPlan(write_flips=[BitFlip(900, path="run/"), BitFlip(901, path="run/")])):
        manager = make_manager(verify_after_write=True, fallback_dir=str(tmp_path / "fallback"))
        with pytest.raises(CorruptCheckpointError, match="does not give back"):
            manager.save_checkpoint(model=torch.nn.Linear(10, 1), epoch=1)
    assert (ids(manager), manager.list_stranded()) == ([], [])


def test_without_reading_back_it_is_found_by_validation(make_manager: MakeManager) -> None:
    """The digests are of what was handed over, not of what was written."""
    with faults_injected(FaultPlan(write_flips=[BitFlip(900, path="run/")])):
        manager = CheckpointManager(
            CheckpointConfig(checkpoint_dir=make_manager().config.checkpoint_dir, backup_checkpoints=False), "run"
        )
        save(manager, 1)
    assert not manager.validate_checkpoint("latest")
