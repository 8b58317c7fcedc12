"""Barriers: whatever a kill or power loss leaves of an operation on a local disk, no promise is broken by it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib.experiment import claims
from ckpt_lib.store.local import folders
from tests.experiment.crashes import OPERATIONS, Place, broken_promises, prepare
from tests.folders import memory_folder
from tests.store.helpers import in_fork
from tests.store.systems import Disk, Watched

NAMINGS = ("link", "replace", "unlink")
"""The system calls that change what others see. A kill loses nothing: all moments between two of them are alike."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: nobody waits for a disk."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as found:
        yield Path(found)


# --- kills ---


class _Killing(Watched):
    """Kills the process before its ``at``-th change of a name."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._left -= name in NAMINGS
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_step_nothing_is_broken(folder: Path, name: str) -> None:
    """Nothing partial is seen, what was acknowledged is there, and what comes next needs no repair."""
    prepared = Place(folder / "prepared")
    prepare(prepared)
    code, at = -signal.SIGKILL, 0
    while code:
        at += 1
        place = replace(prepared, root=folder / str(at))
        shutil.copytree(prepared.root, place.root)

        def work(place: Place = place, at: int = at) -> None:
            system = _Killing(at)
            system.armed = True
            OPERATIONS[name].act(replace(place, system=system))

        code = in_fork(work)
        assert broken_promises(place, name, is_acknowledged=not code) == [], at
        shutil.rmtree(place.root)
    assert at > 2


# --- power loss ---


class _LosingPower(Disk):
    """Collects what power loss would leave at each step: every mix of the names that are not surely on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[Path, bytes]] = []
        self.collects = False

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.collects and name in (*NAMINGS, "fsync_folder"):
            self.collect()

    def collect(self) -> None:
        unsure = [path for path, values in self._names.items() if len(values) > 1]
        assert len(unsure) < 8, f"they are not made durable: {unsure}"
        for contents in product(*(dict.fromkeys(values) for values in self._names.values())):
            state = {path: found for path, found in zip(self._names, contents, strict=True) if found is not None}
            if state not in self.states:
                self.states.append(state)


def _come_up(state: dict[Path, bytes], old: Path, new: Path) -> None:
    """Write what is left of a disk to another place."""
    for path in sorted(state, key=lambda path: len(path.parts)):
        copied = new / path.relative_to(old)
        if state[path] == b"folder":
            copied.mkdir(exist_ok=True)
        elif copied.parent.is_dir():
            copied.write_bytes(state[path])


@pytest.mark.parametrize("name", OPERATIONS)
def test_power_loss_at_any_step_breaks_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever was not synced may be lost or not, each by itself; once it is acknowledged, nothing can be lost."""
    monkeypatch.setattr(folders, "_durable", set())
    disk = _LosingPower()
    disk.armed = True
    place = Place(folder / "lost", disk)
    prepare(place)
    disk.collects = True
    OPERATIONS[name].act(place)
    crashed = disk.states
    disk.states = []
    disk.collect()
    (acknowledged,) = disk.states
    monkeypatch.setattr(claims, "is_proven_dead", lambda _: True)
    for number, state in enumerate([*crashed, acknowledged]):
        up = Place(folder / str(number), started=place.started)
        up.root.mkdir()
        _come_up(state, place.root, up.root)
        assert broken_promises(up, name, is_acknowledged=state is acknowledged) == [], number
        shutil.rmtree(up.root)
    assert len(crashed) > 1


# --- the kernel ---

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
    assert sum(name.endswith(".json") and name.startswith("checkpoint_epoch") for name in names) >= 8


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
        return found or re.findall(r'"([^"]*)"', rest)

    def _moved(self, source: str, target: str, *, is_link: bool) -> None:
        if source in self.unsynced:
            self.unsynced.add(target)
            if self._must_last(target):
                self.violations.append(f"{target} got its name before its bytes were durable")
        if self._must_last(target):
            self.published.append(target)
            if unsure := [name for name in self.unsure.get(os.path.dirname(target), []) if self._must_last(name)]:
                self.violations.append(f"{target} got its name before {unsure} was durable")
        self._changed(target)
        if not is_link:
            self._changed(source)

    def _changed(self, path: str) -> None:
        self.unsure.setdefault(os.path.dirname(path), []).append(path)

    def _must_last(self, path: str) -> bool:
        """Whether it is a checkpoint's, or a folder: not the store's own, nor derived."""
        name = os.path.basename(path)
        return path.startswith(self.root + "/") and ".ckpt-" not in path and name != "checkpoint_metadata.json"
