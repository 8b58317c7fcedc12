"""Payloads in memory: what a format writes, and what it is given to read."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ckpt_lib.errors import CorruptCheckpointError, StorageFullError, UnsupportedFormatError
from ckpt_lib.formats import Format, Payload
from ckpt_lib.stream import HashingWriter, VerifiedFile

Files = dict[str, bytes]
"""The bytes of each file of a payload by its name, which is empty for a single file."""


class MemorySink:
    """Keeps the files that a format writes, and fails from byte ``limit`` on."""

    def __init__(self, limit: float = math.inf) -> None:
        self.files: Files = {}
        self.size_bytes = 0
        self.error = StorageFullError("the store is full")
        self._limit = limit
        self._current = bytearray()

    @contextmanager
    def open(self, name: str = "") -> Iterator[HashingWriter]:
        """Begin a file. A name is taken once."""
        if name in self.files:
            raise UnsupportedFormatError(f"the format wrote the file {name!r} twice")
        self._current = bytearray()
        with HashingWriter(self) as stream:
            yield stream
            stream.finish()
        self.files[name] = bytes(self._current)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if self.size_bytes + len(data) > self._limit:
            raise self.error
        self._current += data
        self.size_bytes += len(data)
        return len(data)


class MemorySource:
    """A payload for a format to read, without digests. ``viewed_bytes`` counts what was asked for."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._opened: dict[str, _CountingFile] = {}

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._files)

    @property
    def viewed_bytes(self) -> int:
        return sum(file.viewed_bytes for file in self._opened.values())

    def open(self, name: str = "") -> VerifiedFile:
        if name not in self._files:
            raise CorruptCheckpointError(f"the payload has no file {name!r}")
        if name not in self._opened:
            self._opened[name] = _CountingFile(self._files[name])
        file = self._opened[name]
        file.seek(0)
        return file


class _CountingFile(VerifiedFile):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), None)
        self.viewed_bytes = 0

    def view(self, start: int, stop: int) -> memoryview:
        self.viewed_bytes += stop - start
        return super().view(start, stop)


def encode(payload_format: Format, payload: Mapping[str, Any]) -> Files:
    """Return the files of a payload, written as a save writes them."""
    sink = MemorySink()
    payload_format.lay_out(payload_format.prepare(payload)).write(sink)
    return sink.files


def round_trip(payload_format: Format, payload: Mapping[str, Any]) -> Payload:
    """Return what a format reads back of a payload."""
    return payload_format.read(MemorySource(encode(payload_format, payload)))


def assert_same(found: Any, wanted: Any, place: str = "payload") -> None:
    """The same types, structure and bits; NaN equals NaN of the same bits, and 0.0 differs from -0.0."""
    assert type(found) is type(wanted), place
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape, found.requires_grad) == (wanted.dtype, wanted.shape, wanted.requires_grad)
        assert _bytes(found) == _bytes(wanted), place
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted), place
        for key, value in wanted.items():
            assert_same(found[key], value, f"{place}[{key!r}]")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), place
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    elif isinstance(wanted, float):
        assert struct.pack("<d", found) == struct.pack("<d", wanted), place
    else:
        assert found == wanted, place


def _bytes(tensor: torch.Tensor) -> bytes:
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    # A single element may keep an odd stride, which is contiguous all the same and no bytes to torch.
    flat = whole.as_strided((whole.numel(),), (1,))
    return flat.view(torch.uint8).numpy().tobytes() if whole.numel() else b""
