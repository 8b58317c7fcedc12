"""The archive that ``torch.save`` writes: which records it holds, and at which bytes of the file."""

from __future__ import annotations

import struct
import sys
import zipfile
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile

_LOCAL_HEADER = struct.Struct("<4s22sHH")
_LOCAL_MAGIC = b"PK\3\4"


class UnusualPayloadError(Exception):
    """Nothing wrong, but something that only ``torch.load`` reads. Never leaves this package."""


class Record(NamedTuple):
    """A stored record: its length, and its place in the file with all that belongs to it."""

    name: str
    size_bytes: int
    start: int
    stop: int


class TorchArchive:
    """The records of a verified file. Only its directory has been read, and verified, when this is built.

    Raises :class:`UnusualPayloadError` for anything but an archive of stored records in this machine's byte order.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self.file = file
        self._records = _records(file)
        self.root = next(iter(self._records)).partition("/")[0]
        if f"{self.root}/constants.pkl" in self._records:
            raise UnusualPayloadError("a TorchScript archive")
        if f"{self.root}/byteorder" in self._records and self.bytes_of("byteorder") != sys.byteorder.encode():
            raise UnusualPayloadError("another byte order")

    def record(self, name: str) -> Record:
        """One record by its name below the root."""
        try:
            return self._records[f"{self.root}/{name}"]
        except KeyError:
            raise CorruptCheckpointError(f"the payload has no record {name!r}") from None

    def require(self, names: Iterable[str]) -> None:
        """Verify these records, whole, and what precedes their bytes in the file."""
        self.file.require((record.start, record.stop) for record in map(self.record, names))

    def start_of(self, name: str) -> int:
        """Where the bytes of a record begin in the file."""
        record = self.record(name)
        with self.file.view(record.start, min(record.start + _LOCAL_HEADER.size, record.stop)) as header:
            if len(header) < _LOCAL_HEADER.size:
                raise CorruptCheckpointError(f"the record {name!r} is cut off")
            magic, _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        start: int = record.start + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if magic != _LOCAL_MAGIC or start + record.size_bytes > record.stop:
            raise CorruptCheckpointError(f"the record {name!r} reaches beyond its place")
        return start

    def view(self, name: str) -> memoryview:
        """The verified bytes of a record, as memory that may be written to."""
        start = self.start_of(name)
        return self.file.view(start, start + self.record(name).size_bytes)

    def bytes_of(self, name: str) -> bytes:
        """A copy of the bytes of a small record."""
        with self.view(name) as view:
            return bytes(view)


def _records(file: VerifiedFile) -> dict[str, Record]:
    try:
        with zipfile.ZipFile(file) as archive:
            infos, directory = archive.infolist(), archive.start_dir
    except CheckpointError:
        raise
    except Exception as error:  # of many kinds, when the file is something else
        raise UnusualPayloadError("not a zip archive") from error
    starts = sorted({info.header_offset for info in infos})
    if not infos or starts[0] < 0 or starts[-1] >= directory:
        raise UnusualPayloadError("an archive without records, or with records outside it")
    records = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.filename in records:
            raise UnusualPayloadError("a compressed, encrypted or repeated record")
        following = bisect_right(starts, info.header_offset)
        stop = starts[following] if following < len(starts) else directory
        records[info.filename] = Record(info.filename, info.file_size, info.header_offset, stop)
    return records
