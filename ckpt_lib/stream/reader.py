"""The reading half of the stream: nothing is handed out before it has been verified."""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.metadata import FileEntry
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, Damage, FileDigests, StreamDigest, altered_ranges

Progress = Callable[[int], object]
"""Called with the number of bytes done since the last call."""


def find_damages(source: BinaryIO, entry: FileEntry, progress: Progress | None = None) -> list[Damage]:
    """Read ``source`` to its end and report every way in which it is not the file that ``entry`` describes.

    An empty list means: size, SHA-256 and every chunk digest agree. Memory use does not depend on the file's size.
    """
    digest = StreamDigest(entry.chunk_size_bytes)
    buffer = bytearray(BLOCK_SIZE_BYTES)
    while read := source.readinto(buffer):  # type: ignore[attr-defined]  # every binary file has it
        digest.update(memoryview(buffer)[:read])
        if progress:
            progress(read)
    return _compare(digest.finish(), entry)


def _compare(found: FileDigests, entry: FileEntry) -> list[Damage]:
    damages = []
    name = entry.name
    if found.size_bytes < entry.size_bytes:
        message = f"{name} ends after {found.size_bytes} of {entry.size_bytes} bytes"
        damages.append(
            Damage(file=name, kind="truncated", start=found.size_bytes, stop=entry.size_bytes, message=message)
        )
    if found.size_bytes > entry.size_bytes:
        message = f"{name} has {found.size_bytes - entry.size_bytes} bytes more than the {entry.size_bytes} saved"
        damages.append(
            Damage(file=name, kind="extended", start=entry.size_bytes, stop=found.size_bytes, message=message)
        )
    # The chunk in which a file ends early or late differs for that reason alone.
    whole = min(found.size_bytes, entry.size_bytes)
    if found.size_bytes != entry.size_bytes:
        whole -= whole % entry.chunk_size_bytes
    for start, stop in altered_ranges(entry.chunk_xxh3_128, found.chunk_xxh3_128, entry.chunk_size_bytes, whole):
        message = f"{name} was altered between bytes {start} and {stop}"
        damages.append(Damage(file=name, kind="altered", start=start, stop=stop, message=message))
    if not damages and found.sha256 != entry.sha256:
        message = f"{name} has SHA-256 {found.sha256}, not {entry.sha256}"
        damages.append(Damage(file=name, kind="altered", start=0, stop=found.size_bytes, message=message))
    return damages


class VerifiedFile:
    """A payload, opened once and mapped once: what is read from it is what was verified.

    ``source`` must stay as it is until the object is closed; it is closed with it. Raises
    :class:`CorruptCheckpointError` with every damage found.
    """

    def __init__(self, source: BinaryIO, entry: FileEntry, *, verify: bool = True) -> None:
        self._source = source
        self._map: mmap.mmap | bytes = b""
        self.stream: BinaryIO = _MappedReader(b"")
        try:
            self._map = _map(source)
            self.stream = _MappedReader(self._map)
            if verify:
                self._verify(entry)
        except BaseException:
            self.close()
            raise

    def _verify(self, entry: FileEntry) -> None:
        mapped = _MappedReader(self._map)
        is_mapping = isinstance(self._map, mmap.mmap)
        damages = find_damages(_ReadFirst(self._source, mapped) if is_mapping else mapped, entry)
        if damages:
            raise CorruptCheckpointError(
                damages[0].message,
                damages=damages,
                expected=f"SHA-256 {entry.sha256}",
                hint="Nothing was loaded. `ckpt validate` shows all of it, `ckpt restore` brings back a backup.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close; tensors read from it are copies and stay valid."""
        self.stream.close()
        if isinstance(self._map, mmap.mmap):
            self._map.close()
        self._source.close()


def _map(source: BinaryIO) -> mmap.mmap | bytes:
    try:
        return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, io.UnsupportedOperation):
        # Not a file of this machine, an empty one, or one that cannot be mapped: hold it in memory instead.
        return source.read()


class _MappedReader(io.RawIOBase, BinaryIO):
    """A seekable file over a mapping, reading straight into the caller's buffer."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with memoryview(buffer).cast("B") as target, memoryview(self._data) as data:
            piece = data[self._position : self._position + len(target)]
            count = len(piece)
            target[:count] = piece
            piece.release()
        self._position += count
        return count


class _ReadFirst(io.RawIOBase, BinaryIO):
    """A mapping whose every block is first read from its file, and then given out as the mapping holds it.

    A mapping has no errors: where the disk cannot give a page back, or the file ends early, touching it kills the
    process. Reading raises, or says how much there is, and leaves the page for the mapping.
    """

    def __init__(self, source: BinaryIO, mapped: _MappedReader) -> None:
        self._source = source
        self._mapped = mapped

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._source.readinto(buffer)  # type: ignore[attr-defined]  # every binary file has it
        return self._mapped.readinto(memoryview(buffer)[:count])
