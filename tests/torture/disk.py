"""``Disk``: the system calls of a local store, and what power loss may leave of its files after each.

The calls are really made. What they promise is what POSIX promises, and no more:

- Bytes written to a file and not synced may be lost, in part or as a whole.
- Names given and taken since their folder was last synced may each be on the disk or not, whatever the others are. A
  later change of the same name implies the earlier ones, and one change is atomic.
- A name may be durable while the bytes of its file are not.
- A folder made in another one is such a name.

Files without a key are not looked at: nobody but the store itself sees them.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ckpt_lib.store.checks import OWN_FOLDER
from tests.store.systems import Watched

State = Mapping[str, bytes]
"""What a disk comes up with: every file by its key, with its bytes."""
Barrier = str
"""A place in the local store that makes something durable: the function, and the one that it was called by."""
_STORE = "ckpt_lib.store.local."


@dataclass(eq=False)
class _File:
    """The bytes of one file: as readers see them, and as they surely are on the disk."""

    written: bytes = b""
    synced: bytes = b""

    def remains(self) -> list[bytes]:
        """What may be left of it: lost, cut off, zeros in the place of its bytes, half of each, and whole."""
        if self.written == self.synced:
            return [self.written]
        size, half = len(self.written), len(self.written) // 2
        return [self.synced, self.written[:half], bytes(size), self.written[:half] + bytes(size - half), self.written]


class Disk(Watched):
    """A folder of this machine. ``ignored`` are barriers that are passed over, as if not written."""

    def __init__(self, root: Path, state: State | None = None, *, ignored: Collection[Barrier] = ()) -> None:
        super().__init__()
        self.root = root
        self.armed = True
        self.on_change: Callable[[], None] = lambda: None
        self.barriers: set[Barrier] = set()
        self.durable_folders: set[tuple[str, int, int]] = set()
        """What a process that works on this disk remembers of it."""
        self._ignored = frozenset(ignored)
        self._unnamed: dict[str, _File] = {}
        self._names: dict[str, list[_File | None]] = {key: [_File(data, data)] for key, data in (state or {}).items()}
        """What each key stands for on the disk, and what it was changed to since."""
        self._unsure_folders: set[str] = set()
        write_state(state or {}, root)

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0].name) if isinstance(arguments[0], io.FileIO) else str(arguments[0])
        if name == "create":
            self._unnamed[path] = _File()
        elif name == "write" and path in self._unnamed:
            self._unnamed[path].written += bytes(arguments[1])
        elif name == "fsync" and path in self._unnamed:
            if self._is_counted():
                self._unnamed[path].synced = self._unnamed[path].written
        elif name in ("link", "replace"):
            self._change(arguments[1], self._unnamed[path])
        elif name == "unlink":
            self._change(path, None)
        elif name == "mkdir":
            self._make_folder(path)
        elif name == "fsync_folder" and self._is_counted():
            self._sync_folder(path)

    def _key(self, path: str | Path) -> str | None:
        """Return the key of a path, ``""`` for the root; ``None`` for what is not in the store, or its own."""
        found = Path(os.path.relpath(path, self.root))
        return None if {os.pardir, OWN_FOLDER}.intersection(found.parts) else "/".join(found.parts)

    def _change(self, path: str | Path, file: _File | None) -> None:
        key = self._key(path)
        if key is not None:
            self._names.setdefault(key, [None]).append(file)
            self.on_change()

    def _make_folder(self, path: str) -> None:
        key = self._key(path)
        if key is not None:
            self._unsure_folders.add(key)
            self.on_change()

    def _sync_folder(self, path: str) -> None:
        for key, versions in self._names.items():
            if os.path.dirname(self.root / key) == path:
                del versions[:-1]
        self._unsure_folders = {key for key in self._unsure_folders if self._parent(key) != path}
        self.on_change()

    def _parent(self, folder: str) -> str:
        return os.path.dirname(self.root / folder) if folder else str(self.root.parent)

    def _is_counted(self) -> bool:
        """Note that the store makes something durable here; whether it is to be done."""
        barrier = _caller()
        self.barriers.add(barrier)
        return barrier not in self._ignored

    def after_kill(self) -> Callable[[Path], Disk]:
        """Return what makes the same disk in another folder, as the next process finds it when this one is killed now.

        What is not on the disk for sure then may still be lost.
        """
        names = {key: tuple(versions) for key, versions in self._names.items()}
        state, unsure_folders = self.state(), frozenset(self._unsure_folders)

        def go_on(root: Path) -> Disk:
            other = Disk(root, state, ignored=self._ignored)
            other._names = {key: list(versions) for key, versions in names.items()}
            other._unsure_folders = set(unsure_folders)
            return other

        return go_on

    def moment(self) -> Moment:
        """Return what is there now, for sure and perhaps."""
        choices = {key: _contents(versions) for key, versions in self._names.items()}
        return Moment(choices, tuple(f"{key}/" if key else "" for key in sorted(self._unsure_folders)))

    def state(self) -> dict[str, bytes]:
        """Return what readers see."""
        return {key: versions[-1].written for key, versions in self._names.items() if versions[-1] is not None}

    def remove(self) -> None:
        """Take the files away; what was noted of them stays."""
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True)
class Moment:
    """Of each key, the bytes that it may have after power loss; ``None`` for none.

    ``unsure_folders`` are prefixes of keys that may be missing with all that is below them.
    """

    choices: Mapping[str, tuple[bytes | None, ...]]
    unsure_folders: tuple[str, ...]

    def states(self, limit: int, random_source: random.Random) -> Iterator[dict[str, bytes]]:
        """Every state the disk may come up in, or ``limit`` of them: nothing and all survived first, then at random."""
        count = math.prod(map(len, self.choices.values())) * 2 ** len(self.unsure_folders)
        everything = [True] * len(self.unsure_folders)
        if count <= limit:
            for survived in itertools.product((True, False), repeat=len(self.unsure_folders)):
                for picked in itertools.product(*self.choices.values()):
                    yield self._state(picked, survived)
            return
        yield self._state([found[0] for found in self.choices.values()], everything)
        yield self._state([found[-1] for found in self.choices.values()], everything)
        for _ in range(limit - 2):
            chosen = [random_source.choice(found) for found in self.choices.values()]
            yield self._state(chosen, [random_source.random() < 0.8 for _ in self.unsure_folders])

    def _state(self, picked: Iterable[bytes | None], survived: Iterable[bool]) -> dict[str, bytes]:
        gone = tuple(prefix for prefix, kept in zip(self.unsure_folders, survived, strict=True) if not kept)
        chosen = zip(self.choices, picked, strict=True)
        return {key: data for key, data in chosen if data is not None and not key.startswith(gone)}


def _contents(versions: Iterable[_File | None]) -> tuple[bytes | None, ...]:
    """What a key may hold: each version it may stand for, in each way that its bytes may have come to the disk."""
    found: dict[bytes | None, None] = {}
    for version in versions:
        found.update(dict.fromkeys([None] if version is None else version.remains()))
    return tuple(found)


def _caller() -> Barrier:
    """The functions of the local store that asked for the barrier."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(found) < 2:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_STORE) and not module.endswith(".system"):
            found.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return " of ".join(found)


def write_state(state: State, root: Path) -> None:
    """Put the files of a state into a folder."""
    for key, data in state.items():
        target = root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
