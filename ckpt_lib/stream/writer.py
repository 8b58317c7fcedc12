"""The writing half of the stream: hashes bytes in the same pass that writes them to the store.

A serializer's bytes are collected in buffers of one chunk. Two threads process each full buffer at the same time: one
computes its SHA-256, which is the slowest part, the other its chunk digest, and writes it to the store. Meanwhile the
serializer fills the next buffer. The buffers are used in turn, so memory does not grow with the file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import NoReturn, Protocol, Self

import xxhash

from ckpt_lib.core.manifest import Compression
from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.stream.digests import CHUNK_SIZE_BYTES, Buffer, FileDigests
from ckpt_lib.stream.mirror import Mirror
from ckpt_lib.stream.threads import Helper

BUFFER_COUNT = 6
"""Enough for the disk to pause for about 20 ms without delaying the hashing. All buffers together take 48 MiB."""


class Sink(Protocol):
    """The target of the bytes: an object with a ``write`` that takes all of them or raises."""

    def write(self, data: Buffer, /) -> int: ...


class HashingWriter:
    """A write-only, append-only file for serializers that hashes all bytes on their way to a sink. Used as a context.

    Every buffer that reaches the sink has the size of a chunk, except the last, and begins at a page of memory, so that
    the store can write it with direct I/O. After a failure, nothing more reaches the sink. The first error is raised
    again by every later call and by ``__exit__``, because C serializers replace exceptions raised in ``write``. Seeking
    is such a failure: the digests would belong to a stream that never existed. No thread outlives the context, but for
    that of a ``mirror``, which gets each buffer that the sink gets.
    """

    def __init__(self, sink: Sink, *, chunk_size_bytes: int = CHUNK_SIZE_BYTES, mirror: Mirror | None = None) -> None:
        self._sink = sink
        self._mirror = mirror
        self._chunk_size_bytes = chunk_size_bytes
        self._sha256 = hashlib.sha256()
        self._chunk_digests: list[str] = []
        self._size_bytes = 0
        self._filled_bytes = 0
        self._buffers: list[memoryview] = []
        self._buffer = memoryview(b"")
        self._threads: tuple[PipelineThread, ...] = ()
        self._failure: BaseException | None = None
        self.compression: Compression | None = None
        """What the manifest is to say of the plain bytes, where others have compressed them on their way here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()
        if self._mirror and (error or self._failure):
            self._mirror.drop()
        _give_back(self._buffers)
        self._buffers = []
        if self._failure is not None and error is not None and error is not self._failure:
            raise self._failure from error

    def write(self, data: Buffer) -> int:
        """Take all of ``data``, which the caller may change after the call."""
        stop = self._filled_bytes + len(data)
        if type(data) is bytes and self._filled_bytes > 0 and stop < self._chunk_size_bytes and self._failure is None:
            self._buffer[self._filled_bytes : stop] = data  # the fast path for many small tensors
            self._filled_bytes = stop
            self._size_bytes += len(data)
            return len(data)
        view = memoryview(data).cast("B")
        size_bytes = len(view)
        if self._failure is not None:
            raise self._failure
        try:
            while view:
                if self._filled_bytes == 0:
                    self._buffer = self._next_buffer()
                start = self._filled_bytes
                piece = view[: self._chunk_size_bytes - start]
                self._buffer[start : start + len(piece)] = piece
                self._filled_bytes += len(piece)
                self._size_bytes += len(piece)
                if self._filled_bytes == self._chunk_size_bytes:
                    self._filled_bytes = 0
                    self._hand_over(self._buffer)
                view = view[len(piece) :]
        except BaseException as error:
            self._failure = self._failure or error
            raise
        return size_bytes

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._size_bytes

    def flush(self) -> None:
        """Do nothing: the commit makes the file durable."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def seek(self, *_position: int) -> NoReturn:
        """Raise :class:`UnsupportedFormatError`, as described for the class."""
        self._failure = self._failure or UnsupportedFormatError(
            "the format tried to seek in a stream", hint="A format must write its payload from start to end."
        )
        raise self._failure

    def finish(self) -> FileDigests:
        """Write the rest, wait until everything is hashed and written, and return the digests."""
        rest = self._buffer[: self._filled_bytes]
        try:
            self._raise_failure()
            if rest and not self._threads:  # a file of less than one chunk is not worth two threads
                if self._mirror:
                    self._mirror.put(rest)
                self._hash(rest)
                self._pass_on(rest)
            elif rest:
                self._hand_over(rest)
            self._join()
            self._raise_failure()
            if self._mirror:
                self._mirror.wait()
                self._mirror.end()
        except BaseException as error:
            self._failure = self._failure or error
            raise
        return FileDigests(
            self._size_bytes, self._sha256.hexdigest(), self._chunk_size_bytes, tuple(self._chunk_digests)
        )

    def _next_buffer(self) -> memoryview:
        """Return a buffer that all threads have finished."""
        for thread in self._threads:
            thread.free_buffers.acquire()
        if self._mirror:
            self._mirror.wait(unfinished=BUFFER_COUNT - 1)
        self._raise_failure()
        number = self._size_bytes // self._chunk_size_bytes
        if number < BUFFER_COUNT:
            self._buffers.append(_take_buffer(self._chunk_size_bytes))
        return self._buffers[number % BUFFER_COUNT]

    def _hand_over(self, buffer: memoryview) -> None:
        if not self._threads:
            self._threads = (PipelineThread(self._hash, "ckpt-hash"), PipelineThread(self._pass_on, "ckpt-write"))
            for thread in self._threads:
                thread.start()
        if self._mirror:
            self._mirror.put(buffer)
        for thread in self._threads:
            thread.put(buffer)

    def _hash(self, buffer: memoryview) -> None:
        self._sha256.update(buffer)

    def _pass_on(self, buffer: memoryview) -> None:
        self._chunk_digests.append(xxhash.xxh3_128_hexdigest(buffer))
        self._sink.write(buffer)

    def _join(self) -> None:
        for thread in self._threads:
            thread.end()

    def _raise_failure(self) -> None:
        failures = (self._failure, *(thread.failure for thread in self._threads))
        if failure := next(filter(None, failures), None):
            raise failure


_idle_buffers: list[memoryview] = []
"""Buffers for the next save. Fresh memory takes the system longer to find and clear than it takes to fill."""

if hasattr(os, "register_at_fork"):
    # A forked child shares them, and direct I/O from memory shared with a fork is not safe (open(2)).
    os.register_at_fork(after_in_child=_idle_buffers.clear)


def _take_buffer(size_bytes: int) -> memoryview:
    """Return a buffer that begins at a page, as direct I/O requires. Its pages take memory once they are written to."""
    try:
        if size_bytes == CHUNK_SIZE_BYTES:
            return _idle_buffers.pop()
    except IndexError:  # another thread may take the last one at any moment
        pass
    return memoryview(mmap.mmap(-1, size_bytes))


def _give_back(buffers: list[memoryview]) -> None:
    for buffer in buffers:
        if len(buffer) == CHUNK_SIZE_BYTES and len(_idle_buffers) < BUFFER_COUNT:
            _idle_buffers.append(buffer)


class PipelineThread:
    """Processes each buffer in order, on a thread of its own. After a failure it only releases the buffers."""

    def __init__(self, work: Callable[[memoryview], None], name: str) -> None:
        self._work = work
        self._thread = Helper(self._run, name)
        self._filled: SimpleQueue[memoryview | None] = SimpleQueue()
        # The first buffer is filled before the thread exists.
        self.free_buffers = threading.Semaphore(BUFFER_COUNT - 1)
        self.failure: BaseException | None = None

    def put(self, buffer: memoryview) -> None:
        self._filled.put(buffer)

    def end(self) -> None:
        """Wait until all buffers put so far are processed. May be called twice, and before the start."""
        self._filled.put(None)
        self._thread.wait()

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while (buffer := self._filled.get()) is not None:
            try:
                if self.failure is None:
                    self._work(buffer)
            except BaseException as error:
                self.failure = error
            self.free_buffers.release()
