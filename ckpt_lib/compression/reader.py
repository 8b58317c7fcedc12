"""The plain bytes of a compressed file, in the way of :class:`~ckpt_lib.stream.VerifiedFile`."""

from __future__ import annotations

import io
from collections.abc import Iterable

from ckpt_lib.compression.table import Codec, check_size
from ckpt_lib.compression.threads import for_each
from ckpt_lib.compression.zstd import UndecodableError
from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.chunks import runs
from ckpt_lib.stream.mapping import EmptyMemory, Memory


class PlainFile(VerifiedFile):
    """What a compressed file holds. Bytes are decompressed when they are first asked for, and each frame once.

    The stored file verifies the chunks that these frames lie in, and each frame the checksum of its plain bytes, also
    where the stored file verifies nothing. :meth:`require` works on many frames at once, on several processors. It does
    not take over ``stored``, which has to stay open as long as bytes may be asked for.

    Raises :class:`CorruptCheckpointError` for a file whose structure is damaged, and one that claims to hold another
    number of bytes than its manifest says.
    """

    def __init__(self, stored: VerifiedFile, codec: Codec) -> None:
        self._stored = stored
        self._codec = codec
        self.table = codec.read_table(stored)
        known = stored.compression
        check_size(self.table, stored.size_bytes, known.plain_size_bytes if known else None)
        super().__init__(io.BytesIO(), None)

    def _open_memory(self, entry: FileEntry | None) -> Memory:
        return EmptyMemory(self.table.size_bytes)

    def _unit_bytes(self) -> int:
        return max(1, self.table.frame_size_bytes)

    def _fetch(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        self._stored.require(self.table.stored_range(first, last) for first, last in runs(numbers))
        undecodable: list[int] = []

        def decode(number: int) -> None:
            start, stop = self.table.stored_range(number, number)
            plain_start, plain_stop = self.table.plain_range(number)
            with self._stored.view(start, stop) as stored, self._held.view[plain_start:plain_stop] as target:
                try:
                    self._codec.decode(stored, target, self.table, number)
                except UndecodableError:
                    undecodable.append(number)

        for_each(decode, numbers, "ckpt-decompress")
        if undecodable:
            raise self._corrupt(sorted(undecodable))

    def _corrupt(self, numbers: list[int]) -> CorruptCheckpointError:
        """Return the error for frames whose stored bytes are as they were written, as far as anything is known."""
        name = self._stored.entry_name
        damages = []
        for first, last in runs(numbers):
            start, stop = self.table.stored_range(first, last)
            message = f"{name or 'the payload'} cannot be decompressed between bytes {start} and {stop}"
            damages.append(Damage(file=name, kind="altered", start=start, stop=stop, message=message))
        return CorruptCheckpointError(
            damages[0].message, damages=damages, hint="Nothing was loaded. Restore a backup, and have memory tested."
        )
