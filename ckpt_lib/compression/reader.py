"""The plain bytes of a compressed file, in the way of :class:`~ckpt_lib.stream.VerifiedFile`."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ckpt_lib.compression.table import Codec, check_size
from ckpt_lib.compression.threads import OrderedPool, for_each, worker_count
from ckpt_lib.compression.zstd import UndecodableError
from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.chunks import runs
from ckpt_lib.stream.digests import Buffer
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

    def _open_memory(self, _: FileEntry | None) -> Memory:
        return EmptyMemory(self.table.size_bytes)

    def _unit_bytes(self) -> int:
        return max(1, self.table.frame_size_bytes)

    def _fetch(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        undecodable: list[int] = []

        def decode(number: int) -> None:
            start, stop = self.table.plain_range(number)
            self._held.fetch(start, stop)
            with self._held.view[start:stop] as target:
                if not self._decode(number, target):
                    undecodable.append(number)

        for_each(decode, self._verified(numbers), "ckpt-decompress", count=len(numbers))
        if undecodable:
            raise self._corrupt(sorted(undecodable))

    def _verified(self, numbers: Sequence[int]) -> Iterator[int]:
        """Yield these frames in order, each when the chunks that it lies in were verified: the disk never waits."""
        waiting = deque(numbers)
        for stop in self._stored.verify(self.table.stored_range(first, last) for first, last in runs(numbers)):
            while waiting and self.table.starts[waiting[0] + 1] <= stop:
                yield waiting.popleft()
        yield from waiting

    def forget(self, start: int, stop: int) -> None:
        """Let go of plain bytes, and of the stored bytes that they were made from."""
        super().forget(start, stop)
        if start < stop:
            size = self._chunk_size_bytes
            self._stored.forget(*self.table.stored_range(start // size, (stop - 1) // size))

    def blocks(self) -> Iterator[Buffer]:
        """Yield all bytes from start to end, and keep none of them. Raises as :meth:`require` does."""
        pool = OrderedPool(self._decoded, worker_count(), "ckpt-decompress")
        try:
            for number in range(len(self.table.methods)):
                if len(pool) > worker_count():
                    yield pool.take()
                self._stored.require([self.table.stored_range(number, number)])
                pool.put(number)
            while len(pool):
                yield pool.take()
        finally:
            pool.end()

    def _decoded(self, number: int) -> bytearray:
        start, stop = self.table.plain_range(number)
        plain = bytearray(stop - start)
        with memoryview(plain) as target:
            if not self._decode(number, target):
                raise self._corrupt([number])
        return plain

    def _decode(self, number: int, target: memoryview) -> bool:
        """Write what a frame holds to ``target``; ``False`` when it is damaged."""
        start, stop = self.table.stored_range(number, number)
        with self._stored.view(start, stop) as stored:
            try:
                self._codec.decode(stored, target, int(self.table.methods[number]), int(self.table.digests[number]))
            except UndecodableError:
                return False
        return True

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
