"""The writing half of the stream: bytes go once through the digests and into the store."""

from __future__ import annotations

from typing import NoReturn, Protocol

from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, Buffer, FileDigests, StreamDigest


class Sink(Protocol):
    """Where bytes go: anything with a ``write`` that takes all of them or raises."""

    def write(self, data: Buffer, /) -> int: ...


class HashingWriter:
    """A write-only, append-only file for serializers, which hashes what it passes on.

    A serializer that seeks would make digests of a stream that never existed, so seeking is refused. ``error`` keeps
    the first failure: serializers written in C may replace an exception raised under them by one of their own.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._digest = StreamDigest()
        self.error: BaseException | None = None

    def write(self, data: Buffer) -> int:
        """Hash and pass on all of ``data``."""
        view = memoryview(data).cast("B")
        try:
            # Block by block, so that memory is read once for both.
            for start in range(0, len(view), BLOCK_SIZE_BYTES):
                block = view[start : start + BLOCK_SIZE_BYTES]
                self._digest.update(block)
                self._sink.write(block)
        except BaseException as error:
            self.error = self.error or error
            raise
        return len(view)

    def tell(self) -> int:
        """How many bytes have been written."""
        return self._digest.size_bytes

    def flush(self) -> None:
        """Nothing to do: durability is the commit's business."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def seek(self, *_position: int) -> NoReturn:
        """Refuse: see the class."""
        self.error = self.error or UnsupportedFormatError(
            "the format tried to seek in a stream", hint="A format must write its payload from start to end."
        )
        raise self.error

    def finish(self) -> FileDigests:
        """The digests of everything written."""
        return self._digest.finish()
