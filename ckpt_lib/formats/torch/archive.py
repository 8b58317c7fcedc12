"""Finds the records of an archive that ``torch.save`` wrote, and the bytes of the file that hold them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.torch.zip_reading import Record, read_directory, start_of
from ckpt_lib.stream import VerifiedFile


class TorchArchive:
    """The records of a verified file. The constructor reads and verifies only the directory.

    Raises :class:`CorruptCheckpointError` for a file that is no archive of uncompressed records.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self.file = file
        self._records = read_directory(file)
        self.root = next(iter(self._records)).partition("/")[0]

    @property
    def record_count(self) -> int:
        """The number of records in the archive."""
        return len(self._records)

    @property
    def has_native_byte_order(self) -> bool:
        """True when the file has the byte order of this machine."""
        named = f"{self.root}/byteorder" in self._records
        return not named or self.bytes_of("byteorder") == sys.byteorder.encode()

    def record(self, name: str) -> Record:
        """Return the record with this name below the root. Raises :class:`CorruptCheckpointError` if there is none."""
        try:
            return self._records[f"{self.root}/{name}"]
        except KeyError:
            raise CorruptCheckpointError(f"the payload has no record {shown(name)}") from None

    def require(self, names: Iterable[str]) -> None:
        """Verify these records completely, headers included."""
        self.file.require((record.start, record.stop) for record in map(self.record, names))

    def check_heads(self) -> None:
        """Compare the header of each record with the directory."""
        for record in self._records.values():
            start_of(self.file, record)

    def start_of(self, name: str) -> int:
        """Return the offset in the file at which the bytes of a record begin."""
        return start_of(self.file, self.record(name))

    def view(self, name: str) -> memoryview:
        """Return the verified bytes of a record as private memory, which may be written to."""
        start = self.start_of(name)
        return self.file.view(start, start + self.record(name).size_bytes)

    def bytes_of(self, name: str) -> bytes:
        """Return a copy of the bytes of a small record."""
        with self.view(name) as view:
            return bytes(view)
