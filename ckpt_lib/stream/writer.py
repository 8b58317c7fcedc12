"""The writing half of the stream: bytes go once through the digests and into the store.

A serializer's bytes are gathered in buffers of one chunk. Two threads take each full buffer at once: one feeds it to
SHA-256, which is the slowest part, the other computes its chunk digest and passes it on to the store. The serializer
meanwhile fills the next buffer. There are a few buffers, used in turn, so memory does not grow with the file.
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

from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.stream.digests import CHUNK_SIZE_BYTES, Buffer, FileDigests
from ckpt_lib.stream.threads import Helper

BUFFER_COUNT = 6
"""Enough for the disk to pause for some 20 ms without the hashing having to wait; 48 MiB in all."""


class Sink(Protocol):
    """Where bytes go: anything with a ``write`` that takes all of them or raises."""

    def write(self, data: Buffer, /) -> int: ...


class HashingWriter:
    """A write-only, append-only file for serializers, which hashes what it passes on. It is used as a context.

    Every buffer that reaches the sink but the last has the size of a chunk and begins at a page of memory, so that the
    store may hand it to the disk as it is. After a failure nothing more reaches the sink; the next calls raise it, and
    so does the end of the context in the place of any other exception: serializers written in C replace errors that
    are raised under them by their own. A serializer that seeks would make digests of a stream that never existed, so
    seeking is such a failure. No thread outlives the context.
    """

    def __init__(self, sink: Sink, *, chunk_size_bytes: int = CHUNK_SIZE_BYTES) -> None:
        self._sink = sink
        self._chunk_size_bytes = chunk_size_bytes
        self._sha256 = hashlib.sha256()
        self._chunk_digests: list[str] = []
        self._size_bytes = 0
        self._filled_bytes = 0
        self._buffers: list[memoryview] = []
        self._buffer = memoryview(b"")
        self._lanes: tuple[_Lane, ...] = ()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()
        _give_back(self._buffers)
        self._buffers = []
        if self._failure is not None and error is not None and error is not self._failure:
            raise self._failure from error

    def write(self, data: Buffer) -> int:
        """Take in all of ``data``, which may change as soon as this returns."""
        stop = self._filled_bytes + len(data)
        if type(data) is bytes and self._filled_bytes > 0 and stop < self._chunk_size_bytes and self._failure is None:
            self._buffer[self._filled_bytes : stop] = data  # as most are in a state of many small tensors
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
        """How many bytes have been written."""
        return self._size_bytes

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
        self._failure = self._failure or UnsupportedFormatError(
            "the format tried to seek in a stream", hint="A format must write its payload from start to end."
        )
        raise self._failure

    def finish(self) -> FileDigests:
        """Pass on what is left, wait until everything is hashed and written, and return the digests."""
        rest = self._buffer[: self._filled_bytes]
        try:
            self._raise_failure()
            if rest and not self._lanes:  # all there is: not worth two threads
                self._hash(rest)
                self._pass_on(rest)
            elif rest:
                self._hand_over(rest)
            self._join()
            self._raise_failure()
        except BaseException as error:
            self._failure = self._failure or error
            raise
        return FileDigests(
            self._size_bytes, self._sha256.hexdigest(), self._chunk_size_bytes, tuple(self._chunk_digests)
        )

    def _next_buffer(self) -> memoryview:
        """A buffer that both threads are done with."""
        for lane in self._lanes:
            lane.free_buffers.acquire()
        self._raise_failure()
        number = self._size_bytes // self._chunk_size_bytes
        if number < BUFFER_COUNT:
            self._buffers.append(_take_buffer(self._chunk_size_bytes))
        return self._buffers[number % BUFFER_COUNT]

    def _hand_over(self, buffer: memoryview) -> None:
        if not self._lanes:
            self._lanes = (_Lane(self._hash, "ckpt-hash"), _Lane(self._pass_on, "ckpt-write"))
            for lane in self._lanes:
                lane.start()
        for lane in self._lanes:
            lane.put(buffer)

    def _hash(self, buffer: memoryview) -> None:
        self._sha256.update(buffer)

    def _pass_on(self, buffer: memoryview) -> None:
        self._chunk_digests.append(xxhash.xxh3_128_hexdigest(buffer))
        self._sink.write(buffer)

    def _join(self) -> None:
        for lane in self._lanes:
            lane.end()

    def _raise_failure(self) -> None:
        failures = (self._failure, *(lane.failure for lane in self._lanes))
        if failure := next(filter(None, failures), None):
            raise failure


_idle_buffers: list[memoryview] = []
"""Kept for the next save, since the system takes longer to find and clear fresh memory than we to fill it."""

if hasattr(os, "register_at_fork"):
    # They are shared with a forked child: direct I/O from private memory is not safe beside a fork (open(2)).
    os.register_at_fork(after_in_child=_idle_buffers.clear)


def _take_buffer(size_bytes: int) -> memoryview:
    """One that begins at a page, as direct I/O wants it, and costs memory only as far as it is used."""
    try:
        if size_bytes == CHUNK_SIZE_BYTES:
            return _idle_buffers.pop()
    except IndexError:  # others may take the last one at any moment
        pass
    return memoryview(mmap.mmap(-1, size_bytes))


def _give_back(buffers: list[memoryview]) -> None:
    for buffer in buffers:
        if len(buffer) == CHUNK_SIZE_BYTES and len(_idle_buffers) < BUFFER_COUNT:
            _idle_buffers.append(buffer)


class _Lane:
    """Does one thing to each buffer, in order; after a failure it only gives the buffers back."""

    def __init__(self, work: Callable[[memoryview], None], name: str) -> None:
        self._work = work
        self._thread = Helper(self._run, name)
        self._filled: SimpleQueue[memoryview | None] = SimpleQueue()
        # The first buffer of each lane is filled before there is one.
        self.free_buffers = threading.Semaphore(BUFFER_COUNT - 1)
        self.failure: BaseException | None = None

    def put(self, buffer: memoryview) -> None:
        self._filled.put(buffer)

    def end(self) -> None:
        """Wait until everything put so far is done. May be called twice, and before the start."""
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
