"""The plain bytes of a file, compressed frame by frame on their way to the writer that hashes what is stored."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NoReturn

from ckpt_lib.compression.table import FRAME_SIZE_BYTES, Codec, Described, Frame
from ckpt_lib.compression.threads import OrderedPool, worker_count
from ckpt_lib.core.manifest import Compression
from ckpt_lib.stream import HashingWriter

_WAITING_FRAMES = 2
"""Frames beyond those that threads work on, so that none of them waits for the serializer."""


class CompressingWriter(HashingWriter):
    """What a serializer writes to, with the promises of :class:`~ckpt_lib.stream.HashingWriter`. Used as a context.

    Several threads compress, and the caller's passes their frames on to ``target`` in order. Memory is that of a few
    frames. Call :meth:`end` after the last byte. The digests are those of ``target``, whose error is raised by every
    later call. No thread outlives the context.
    """

    def __init__(
        self, target: HashingWriter, codec: Codec, *, frame_size_bytes: int = FRAME_SIZE_BYTES, workers: int = 0
    ) -> None:
        super().__init__(target, chunk_size_bytes=frame_size_bytes)
        self._target = target
        self._codec = codec
        self._pool = OrderedPool(codec.encode, workers or worker_count(), "ckpt-compress")
        self._most_frames = (workers or worker_count()) + _WAITING_FRAMES
        self._frames: list[Described] = []
        self._begun = time.monotonic()
        if codec.head:
            target.write(codec.head)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.end()
        self._buffers = []  # they are none for others to use
        super().__exit__(kind, error, trace)

    def end(self) -> None:
        """Pass on the rest and the table, and tell the target what the manifest will say."""
        try:
            self._raise_failure()
            rest = self._buffer[: self._filled_bytes]
            self._filled_bytes = 0
            if rest and not self._pool.has_begun:  # a file of one frame is not worth a thread
                self._store(self._codec.encode(rest))
            elif rest:
                self._pool.put(rest)
            while len(self._pool):
                self._store(self._pool.take())
            table = self._codec.table_of(self._frames, self._size_bytes, self._chunk_size_bytes)
            self._target.write(table)
        except BaseException as error:
            self._failure = self._failure or error
            raise
        seconds = round(time.monotonic() - self._begun, 6)
        self._target.compression = Compression(
            codec=self._codec.name, plain_size_bytes=self._size_bytes, seconds=seconds
        )

    def finish(self) -> NoReturn:
        raise NotImplementedError("the digests are those of the target; call end()")

    def _next_buffer(self) -> memoryview:
        """Return a buffer whose frame has been passed on."""
        if len(self._pool) == self._most_frames:
            self._store(self._pool.take())
        number = self._size_bytes // self._chunk_size_bytes
        if number < self._most_frames:
            self._buffers.append(memoryview(bytearray(self._chunk_size_bytes)))
        return self._buffers[number % self._most_frames]

    def _hand_over(self, buffer: memoryview) -> None:
        self._pool.put(buffer)

    def _store(self, frame: Frame) -> None:
        self._target.write(frame.data)
        self._frames.append(Described(len(frame.data), frame.method, frame.digest))
