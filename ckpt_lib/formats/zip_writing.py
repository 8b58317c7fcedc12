"""Writes a zip archive of uncompressed records from start to end, each in blocks and aligned for mapping.

Python's own ``zipfile`` does that as well and costs several times as much for each record, which a state of thousands
of tensors feels. The layout is that of APPNOTE 6.3.10 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT):
checksums follow the bytes in data descriptors, since nothing is known of them before. They are computed by zlib-ng,
which is several times faster than zlib.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from zlib_ng import zlib_ng

from ckpt_lib.stream import HashingWriter

ALIGNMENT_BYTES = 64

_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_VERSION = 20
_VERSION_ZIP64 = 45
_HAS_DESCRIPTOR = 0x08
_DATE = 0x21  # the first day that zip knows: the same state makes the same bytes at any time
_ZIP64_EXTRA = 0x0001
_PADDING_EXTRA = 0x4246  # "FB", as torch.save calls it

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_EXTRA_HEADER = struct.Struct("<2H")
_ZIP64_SIZES = struct.Struct("<2H2Q")
_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR_ZIP64 = struct.Struct("<4sL2Q")
_CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_ZIP64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


@dataclass(frozen=True)
class _Record:
    name: bytes
    start: int
    size_bytes: int
    crc: int

    @property
    def is_large(self) -> bool:
        return self.size_bytes >= _LIMIT_32

    @property
    def descriptor(self) -> struct.Struct:
        """The layout of what follows the bytes."""
        return _DESCRIPTOR_ZIP64 if self.is_large else _DESCRIPTOR

    def central_header(self) -> bytes:
        large = [self.size_bytes] * 2 * self.is_large + [self.start] * (self.start >= _LIMIT_32)
        extra = struct.pack(f"<2H{len(large)}Q", _ZIP64_EXTRA, 8 * len(large), *large) if large else b""
        version = _VERSION_ZIP64 if large else _VERSION
        size_bytes, start = min(self.size_bytes, _LIMIT_32), min(self.start, _LIMIT_32)
        fixed = (version, version, _HAS_DESCRIPTOR, 0, 0, _DATE, self.crc, size_bytes, size_bytes)
        return (
            _CENTRAL_HEADER.pack(b"PK\x01\x02", *fixed, len(self.name), len(extra), 0, 0, 0, 0, start)
            + self.name
            + extra
        )


class ZipWriter:
    """Appends records to a stream; :meth:`finish` makes an archive of them."""

    def __init__(self, stream: HashingWriter) -> None:
        self._stream = stream
        self._start = stream.tell()
        self._records: list[_Record] = []

    def write(self, name: str, size_bytes: int, blocks: Iterable[bytes | memoryview]) -> None:
        """Append one record, whose bytes begin at a multiple of the alignment. ``blocks`` are ``size_bytes`` in all."""
        start = self._stream.tell() - self._start
        self._stream.write(_local_header(name.encode("ascii"), start, size_bytes))
        crc = 0
        for block in blocks:
            crc = zlib_ng.crc32(block, crc)
            self._stream.write(block)
        record = _Record(name.encode("ascii"), start, size_bytes, crc)
        self._stream.write(record.descriptor.pack(b"PK\x07\x08", crc, size_bytes, size_bytes))
        self._records.append(record)

    def finish(self) -> None:
        """Write the directory."""
        start = self._stream.tell() - self._start
        directory = b"".join(record.central_header() for record in self._records)
        end = start + len(directory)
        count = len(self._records)
        if count >= _LIMIT_16 or end >= _LIMIT_32:
            sizes = (count, count, len(directory), start)
            directory += _END_ZIP64.pack(b"PK\x06\x06", _END_ZIP64.size - 12, *[_VERSION_ZIP64] * 2, 0, 0, *sizes)
            directory += _LOCATOR.pack(b"PK\x06\x07", 0, end, 1)
        counts, places = [min(count, _LIMIT_16)] * 2, [min(end - start, _LIMIT_32), min(start, _LIMIT_32)]
        self._stream.write(directory + _END.pack(b"PK\x05\x06", 0, 0, *counts, *places, 0))


def archive_size_bytes(records: Iterable[tuple[str, int]]) -> int:
    """How large an archive of records of these names and sizes is, which :class:`ZipWriter` would write."""
    end = directory_size_bytes = count = 0
    for name, size_bytes in records:
        record = _Record(name.encode("ascii"), end, size_bytes, crc=0)
        end += len(_local_header(record.name, end, size_bytes)) + size_bytes + record.descriptor.size
        directory_size_bytes += len(record.central_header())
        count += 1
    end += directory_size_bytes
    is_zip64 = count >= _LIMIT_16 or end >= _LIMIT_32
    return end + (_END_ZIP64.size + _LOCATOR.size) * is_zip64 + _END.size


def _local_header(name: bytes, start: int, size_bytes: int) -> bytes:
    is_large = size_bytes >= _LIMIT_32
    extra = _ZIP64_SIZES.pack(_ZIP64_EXTRA, 16, 0, 0) if is_large else b""
    unpadded = start + _LOCAL_HEADER.size + len(name) + len(extra) + _EXTRA_HEADER.size
    padding = -unpadded % ALIGNMENT_BYTES
    extra += _EXTRA_HEADER.pack(_PADDING_EXTRA, padding) + bytes(padding)
    unknown = _LIMIT_32 if is_large else 0
    version = _VERSION_ZIP64 if is_large else _VERSION
    fixed = (version, _HAS_DESCRIPTOR, 0, 0, _DATE, 0, unknown, unknown, len(name), len(extra))
    return _LOCAL_HEADER.pack(b"PK\x03\x04", *fixed) + name + extra
