"""Files of a local store that are read."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

from ckpt_lib.store.local.os_errors import typed_errors
from ckpt_lib.store.local.system import System


class LocalReader:
    """An open file. It outlives its key: a replaced or deleted file is there until the last reader closes it."""

    def __init__(self, path: Path, system: System) -> None:
        self._path = path
        self._system = system
        self._file = system.open(path)
        self._size_bytes = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, start: int, stop: int) -> bytes:
        pieces: list[bytes] = []
        with typed_errors(self._path):
            while start < stop and (piece := self._read(start, stop - start)):
                pieces.append(piece)
                start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, start: int, size_bytes: int) -> bytes:
        if not self._system.is_windows:
            return self._system.read_at(self._file, start, size_bytes)
        with self._lock:  # threads share the position
            return self._system.read_at(self._file, start, size_bytes)

    def fileno(self) -> int | None:
        return None if self._system.is_windows else self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
