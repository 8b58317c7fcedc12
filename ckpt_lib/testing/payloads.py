"""Payloads in memory: what a format writes, and what it is given to read."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from typing import Any

import torch

from ckpt_lib.errors import StorageFullError
from ckpt_lib.formats import Format, Payload, in_memory
from ckpt_lib.formats.in_memory import Files
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.digests import Buffer

__all__ = ["Files", "MemorySink", "MemorySource", "assert_same", "encode", "round_trip"]


class MemorySink(in_memory.MemorySink):
    """Keeps the files that a format writes, and fails from byte ``limit`` on."""

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self.size_bytes = 0
        self.error = StorageFullError("the store is full")
        self._limit = limit

    def write(self, data: Buffer, /) -> int:
        size_bytes = memoryview(data).nbytes
        if self.size_bytes + size_bytes > self._limit:
            raise self.error
        self.size_bytes += size_bytes
        return super().write(data)


class MemorySource(in_memory.MemorySource):
    """A payload for a format to read, without digests. ``viewed_bytes`` counts what was asked for."""

    @property
    def viewed_bytes(self) -> int:
        return sum(file.viewed_bytes for file in self._opened.values() if isinstance(file, _CountingFile))

    def _file(self, data: bytes) -> VerifiedFile:
        return _CountingFile(data)


class _CountingFile(VerifiedFile):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), None)
        self.viewed_bytes = 0

    def view(self, start: int, stop: int) -> memoryview:
        self.viewed_bytes += stop - start
        return super().view(start, stop)


def encode(payload_format: Format, payload: Mapping[str, Any]) -> Files:
    """Return the files of a payload, written as a save writes them."""
    return in_memory.encoded(payload_format, payload_format.prepare(payload))


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
