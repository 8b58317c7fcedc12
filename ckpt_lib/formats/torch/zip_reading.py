"""Reads the directory of a zip archive of uncompressed records, and refuses archives that could be read in two ways.

Programs differ in which part of an archive they trust: the first directory or the last, a record's own header or its
directory entry. So this reader requires one directory, at the very end of the file, without comment, gap or overlap,
and every record before it. The layout is that of APPNOTE 6.3.10, as in :mod:`ckpt_lib.formats.torch.zip_writing`.
"""

from __future__ import annotations

import pickle
import struct
from typing import NamedTuple, NoReturn

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.torch.limits import needs_trust
from ckpt_lib.stream import VerifiedFile

MAX_RECORDS = 4_000_000
"""Enough for a million parameters with three tensors of optimizer state each. A record takes 70 bytes or more."""

_END = struct.Struct("<4s4H2LH")
_END_ZIP64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
_LOCAL_MAGIC = b"PK\3\4"
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_EXTRA_HEADER = struct.Struct("<2H")
_ZIP64_EXTRA = 0x0001
_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_ENCRYPTED = 0x2041  # flags: the file, the directory, or strong encryption
_KINDS = {0, 0o100000}  # a regular file, or unspecified; no link, no device


class Record(NamedTuple):
    """A stored record: its length, and the bytes of the file that it takes with its header and descriptor."""

    name: str
    size_bytes: int
    start: int
    stop: int


class Directory(NamedTuple):
    """Where the directory of an archive lies in its file, and how many records it names."""

    start: int
    stop: int
    records: int


class _Entry(NamedTuple):
    name: str
    size_bytes: int
    start: int
    least_stop: int
    """The first byte at which the record could end."""


def read_directory(file: VerifiedFile) -> dict[str, Record]:
    """Map names to records, in the directory's order. Only the directory is read and verified.

    Raises :class:`CorruptCheckpointError` for any other file, in time and memory proportional to its directory.
    """
    place = find_directory(file)
    with file.view(place.start, place.stop) as view:
        try:
            entries = _entries(bytes(view), place.records)
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise corrupt("its directory is cut off or garbled") from error
    return _placed(entries, place.start)


def start_of(file: VerifiedFile, record: Record) -> int:
    """Return where the bytes of a record begin. Raises :class:`CorruptCheckpointError` if its own header disagrees."""
    name = record.name.encode()
    with file.view(record.start, min(record.start + _LOCAL_HEADER.size + len(name), record.stop)) as header:
        if len(header) < _LOCAL_HEADER.size + len(name):
            raise corrupt(f"the record {record.name!r} is cut off")
        magic, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(header)
        is_same = header[_LOCAL_HEADER.size :] == name and name_bytes == len(name)
    start: int = record.start + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if magic != b"PK\3\4" or not is_same or method or flags & _ENCRYPTED or start + record.size_bytes > record.stop:
        raise corrupt(f"the record {record.name!r} is not what the directory says")
    return start


def corrupt(reason: str) -> CorruptCheckpointError:
    """Return the error for a file that is no torch file."""
    return CorruptCheckpointError(f"the payload is not a torch file: {reason}")


def find_directory(file: VerifiedFile) -> Directory:
    """Find the directory by the end of the file. Raises :class:`CorruptCheckpointError` if it has none."""
    end_start = file.size_bytes - _END.size
    if end_start < 0:
        _refuse("it is too short for a zip archive")
    with file.view(0, 1) as first:
        if bytes(first) == pickle.PROTO:
            raise needs_trust("the payload is a bare pickle, or of a version of torch that wrote one")
    with file.view(end_start, file.size_bytes) as view:
        magic, disk, first_disk, here, count, size_bytes, start, comment_bytes = _END.unpack(view)
    if magic != b"PK\5\6" or comment_bytes:
        _refuse("it is cut off, or something lies behind its end" if _is_zip(file) else "it is no zip archive")
    found: tuple[int, ...] = (disk, first_disk, here, count, size_bytes, start)
    stop, large = _find_zip64(file, end_start)
    if large:
        limits = (_LIMIT_16,) * 4 + (_LIMIT_32,) * 2
        if any(small not in (limit, wide) for small, limit, wide in zip(found, limits, large, strict=True)):
            _refuse("its two ends contradict each other")
        found = large
    disk, first_disk, here, count, size_bytes, start = found
    if disk or first_disk or here != count or start + size_bytes != stop or not count:
        _refuse("its directory is not where it says")
    if count > MAX_RECORDS:
        _refuse(f"it has {count} records, more than {MAX_RECORDS}")
    if count * _CENTRAL_HEADER.size > size_bytes:
        _refuse("its directory is too short")
    return Directory(start, stop, count)


def _is_zip(file: VerifiedFile) -> bool:
    with file.view(0, len(_LOCAL_MAGIC)) as start:
        return bytes(start) == _LOCAL_MAGIC


def _find_zip64(file: VerifiedFile, end_start: int) -> tuple[int, tuple[int, ...]]:
    """Return where the directory ends, and the numbers of the zip64 end record, if there is one."""
    locator_start = end_start - _LOCATOR.size
    if locator_start < _END_ZIP64.size:
        return end_start, ()
    with file.view(locator_start, end_start) as view:
        magic, disk, stop, disks = _LOCATOR.unpack(view)
    if magic != b"PK\6\7":
        return end_start, ()
    if disk or disks != 1 or stop + _END_ZIP64.size != locator_start:
        _refuse("its end is not where it says")
    with file.view(stop, locator_start) as view:
        magic, size_bytes, _, _, *numbers = _END_ZIP64.unpack(view)
    if magic != b"PK\6\6" or size_bytes != _END_ZIP64.size - 12:
        _refuse("its end is garbled")
    return stop, tuple(numbers)


def _entries(directory: bytes, count: int) -> list[_Entry]:
    entries, position, names = [], 0, set()
    for _ in range(count):
        entry, position = _entry(directory, position)
        if entry.name in names or not _is_plain(entry.name):  # at the first one: a million would take seconds
            _refuse(f"the record {shown(entry.name)} is repeated, or leads elsewhere")
        names.add(entry.name)
        entries.append(entry)
    if position != len(directory):
        _refuse("its directory holds more than it says")
    return entries


def _entry(directory: bytes, position: int) -> tuple[_Entry, int]:
    fields = _CENTRAL_HEADER.unpack_from(directory, position)
    magic, _, _, flags, method, _, _, _, packed_bytes, size_bytes, *lengths, disk, _, attributes, start = fields
    name_bytes, extra_bytes, comment_bytes = lengths
    position += _CENTRAL_HEADER.size
    raw = directory[position : position + name_bytes]
    extra = directory[position + name_bytes : position + name_bytes + extra_bytes]
    if _LIMIT_32 in (size_bytes, packed_bytes, start):
        size_bytes, packed_bytes, start = _zip64_numbers(extra, size_bytes, packed_bytes, start)
    position += name_bytes + extra_bytes + comment_bytes
    if magic != b"PK\1\2" or disk or position > len(directory):
        _refuse("its directory is garbled")
    name = raw.decode()
    if method or flags & _ENCRYPTED or packed_bytes != size_bytes or attributes >> 16 & 0o170000 not in _KINDS:
        _refuse(f"the record {name!a} is compressed, encrypted or no file")
    return _Entry(name, size_bytes, start, start + _LOCAL_HEADER.size + name_bytes + size_bytes), position


def _zip64_numbers(extra: bytes, *numbers: int) -> list[int]:
    """Return the numbers, with those that do not fit into 32 bits taken from the zip64 field."""
    position = 0
    while position < len(extra):
        kind, size_bytes = _EXTRA_HEADER.unpack_from(extra, position)
        position += _EXTRA_HEADER.size
        if kind == _ZIP64_EXTRA:
            large = iter(struct.unpack_from(f"<{size_bytes // 8}Q", extra, position))
            found = [next(large, -1) if number == _LIMIT_32 else number for number in numbers]
            if -1 not in found:
                return found
        position += size_bytes
    raise corrupt("a number that does not fit is missing")


def _placed(entries: list[_Entry], directory_start: int) -> dict[str, Record]:
    by_start = sorted(entries, key=lambda entry: entry.start)
    if by_start[0].start:
        _refuse("something lies before its first record")
    stops = [entry.start for entry in by_start[1:]] + [directory_start]
    stop_of = {}
    for entry, stop in zip(by_start, stops, strict=True):
        if entry.least_stop > stop:
            _refuse(f"the record {entry.name!a} overlaps what follows it")
        stop_of[entry.start] = stop
    return {name: Record(name, size_bytes, start, stop_of[start]) for name, size_bytes, start, _ in entries}


def _is_plain(name: str) -> bool:
    """Tell whether a name stays below the archive's root wherever the archive is unpacked."""
    parts = name.split("/")
    return len(parts) > 1 and not {"", ".", ".."}.intersection(parts) and "\\" not in name and name.isprintable()


def _refuse(reason: str) -> NoReturn:
    raise corrupt(reason)
