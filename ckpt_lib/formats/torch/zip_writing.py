"""Writes a zip archive of uncompressed records from start to end, each in blocks and aligned for mapping.

Python's ``zipfile`` takes several times as long for each record, which matters for a state of thousands of tensors. The
layout is that of APPNOTE 6.3.10 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT). Checksums follow the
bytes in data descriptors, since they are not known before. zlib-ng computes them several times faster than zlib.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from zlib_ng import zlib_ng

from ckpt_lib.stream import HashingWriter

ALIGNMENT_BYTES = 64

_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_VERSION = 20
_VERSION_ZIP64 = 45
_HAS_DESCRIPTOR = 0x08
_DATE = 0x21  # zip's first day: a constant, so that equal states make equal files
_ZIP64_EXTRA = 0x0001
_PADDING_EXTRA = 0x4246  # "FB", as torch.save marks padding

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_EXTRA_HEADER = struct.Struct("<2H")
_ZIP64_SIZES = struct.Struct("<2H2Q")
_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR_ZIP64 = struct.Struct("<4sL2Q")
_CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_ZIP64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


class ZipWriter:
    """Appends records to a stream. :meth:`finish` completes the archive."""

    def __init__(self, stream: HashingWriter) -> None:
        self._stream = stream
        self._start = stream.tell()
        self._directory: list[bytes] = []

    def write(self, name: str, size_bytes: int, blocks: Iterable[bytes | memoryview]) -> None:
        """Append one record, with its bytes aligned. ``blocks`` together must have ``size_bytes``."""
        raw = name.encode("ascii")
        start = self._stream.tell() - self._start
        self._stream.write(_local_header(raw, start, size_bytes))
        crc = 0
        for block in blocks:
            crc = zlib_ng.crc32(block, crc)
            self._stream.write(block)
        self._end(raw, start, size_bytes, crc)

    def write_small(self, name: str, data: bytes) -> None:
        """Append one record in a single write."""
        raw = name.encode("ascii")
        start, size_bytes, crc = self._stream.tell() - self._start, len(data), zlib_ng.crc32(data)
        self._stream.write(_local_header(raw, start, size_bytes) + data + _descriptor(crc, size_bytes))
        self._directory.append(_central_header(raw, start, size_bytes, crc))

    def _end(self, name: bytes, start: int, size_bytes: int, crc: int) -> None:
        self._stream.write(_descriptor(crc, size_bytes))
        self._directory.append(_central_header(name, start, size_bytes, crc))

    def finish(self) -> None:
        """Write the directory, which completes the archive."""
        start = self._stream.tell() - self._start
        directory = b"".join(self._directory)
        end = start + len(directory)
        count = len(self._directory)
        if count >= _LIMIT_16 or end >= _LIMIT_32:
            sizes = (count, count, len(directory), start)
            directory += _END_ZIP64.pack(b"PK\x06\x06", _END_ZIP64.size - 12, *[_VERSION_ZIP64] * 2, 0, 0, *sizes)
            directory += _LOCATOR.pack(b"PK\x06\x07", 0, end, 1)
        counts, places = [min(count, _LIMIT_16)] * 2, [min(end - start, _LIMIT_32), min(start, _LIMIT_32)]
        self._stream.write(directory + _END.pack(b"PK\x05\x06", 0, 0, *counts, *places, 0))


def archive_size_bytes(records: Iterable[tuple[str, int]]) -> int:
    """Return the exact size of the archive that :class:`ZipWriter` writes for records of these names and sizes."""
    end = directory_size_bytes = count = 0
    for name, size_bytes in records:
        is_large, length = size_bytes >= _LIMIT_32, len(name)
        directory_size_bytes += _CENTRAL_HEADER.size + length + _large_numbers_size_bytes(end, is_large=is_large)
        end += _LOCAL_HEADER.size + length + _EXTRA_HEADER.size + (_ZIP64_SIZES.size if is_large else 0)
        end += -end % ALIGNMENT_BYTES + size_bytes + (_DESCRIPTOR_ZIP64 if is_large else _DESCRIPTOR).size
        count += 1
    end += directory_size_bytes
    is_zip64 = count >= _LIMIT_16 or end >= _LIMIT_32
    return end + (_END_ZIP64.size + _LOCATOR.size) * is_zip64 + _END.size


def _large_numbers_size_bytes(start: int, *, is_large: bool) -> int:
    """Return the size of the directory field for numbers above 32 bits: two sizes, the start, or all three."""
    count = 2 * is_large + (start >= _LIMIT_32)
    return _EXTRA_HEADER.size + 8 * count if count else 0


def _descriptor(crc: int, size_bytes: int) -> bytes:
    """Return the data descriptor, which follows the bytes of a record."""
    layout = _DESCRIPTOR_ZIP64 if size_bytes >= _LIMIT_32 else _DESCRIPTOR
    return layout.pack(b"PK\x07\x08", crc, size_bytes, size_bytes)


def _central_header(name: bytes, start: int, size_bytes: int, crc: int) -> bytes:
    """Return the directory's entry for a record."""
    large = [size_bytes] * 2 * (size_bytes >= _LIMIT_32) + [start] * (start >= _LIMIT_32)
    extra = struct.pack(f"<2H{len(large)}Q", _ZIP64_EXTRA, 8 * len(large), *large) if large else b""
    version = _VERSION_ZIP64 if large else _VERSION
    size_bytes, start = min(size_bytes, _LIMIT_32), min(start, _LIMIT_32)
    fixed = (version, version, _HAS_DESCRIPTOR, 0, 0, _DATE, crc, size_bytes, size_bytes)
    return _CENTRAL_HEADER.pack(b"PK\x01\x02", *fixed, len(name), len(extra), 0, 0, 0, 0, start) + name + extra


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
