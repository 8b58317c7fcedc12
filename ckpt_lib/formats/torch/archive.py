"""The archive that ``torch.save`` writes: which records it holds, and at which bytes of the file."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.torch.zip_reading import Record, read_directory, start_of
from ckpt_lib.stream import VerifiedFile


class TorchArchive:
    """The records of a verified file. Only its directory has been read, and verified, when this is built.

    Raises :class:`CorruptCheckpointError` for anything but an archive of stored records.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self.file = file
        self._records = read_directory(file)
        self.root = next(iter(self._records)).partition("/")[0]

    @property
    def record_count(self) -> int:
        """How many records there are."""
        return len(self._records)

    @property
    def has_native_byte_order(self) -> bool:
        """Whether numbers in it are spelled as this machine spells them."""
        named = f"{self.root}/byteorder" in self._records
        return not named or self.bytes_of("byteorder") == sys.byteorder.encode()

    def record(self, name: str) -> Record:
        """One record by its name below the root."""
        try:
            return self._records[f"{self.root}/{name}"]
        except KeyError:
            raise CorruptCheckpointError(f"the payload has no record {ascii(name)[:120]}") from None

    def require(self, names: Iterable[str]) -> None:
        """Verify these records, whole, and what precedes their bytes in the file."""
        self.file.require((record.start, record.stop) for record in map(self.record, names))

    def check_all(self) -> None:
        """Verify the whole file, and that each record is what the directory says, for readers that trust neither."""
        self.file.require_all()
        self.check_heads()

    def check_heads(self) -> None:
        """Compare what stands before each record with the directory."""
        for record in self._records.values():
            start_of(self.file, record)

    def start_of(self, name: str) -> int:
        """Where the bytes of a record begin in the file."""
        return start_of(self.file, self.record(name))

    def view(self, name: str) -> memoryview:
        """The verified bytes of a record, as memory that may be written to."""
        start = self.start_of(name)
        return self.file.view(start, start + self.record(name).size_bytes)

    def bytes_of(self, name: str) -> bytes:
        """A copy of the bytes of a small record."""
        with self.view(name) as view:
            return bytes(view)
