"""The writer: every byte goes once through the digests and into the sink, from a few buffers, and no error is lost."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import StorageFullError, UnsupportedFormatError
from ckpt_lib.stream import FileDigests, HashingWriter
from ckpt_lib.stream.writer import BUFFER_COUNT
from tests.stream.samples import expected_digests, pieces

FULL = StorageFullError("the store is full")


class Sink:
    """Keeps what is written, and fails at call ``fail_at``."""

    def __init__(self, fail_at: int | None = None, failure: BaseException = FULL) -> None:
        self.data = bytearray()
        self.sizes: list[int] = []
        self.calls = 0
        self._fail_at = fail_at
        self._failure = failure

    def write(self, data: Any, /) -> int:
        self.calls += 1
        if self.calls - 1 == self._fail_at:
            raise self._failure
        self.data += data
        self.sizes.append(len(data))
        return len(data)


def write_all(stream: HashingWriter, pieces: Iterable[bytes]) -> FileDigests:
    """What a serializer and a save do with a writer."""
    with stream:
        for piece in pieces:
            stream.write(piece)
        return stream.finish()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("ckpt-hash", "ckpt-write")]


@given(pieces(), st.integers(1, 40))
def test_what_is_hashed_is_what_is_written(parts: list[bytes], chunk: int) -> None:
    """For any bytes in any pieces the sink has each in order, and the digests are of exactly those."""
    sink = Sink()
    with HashingWriter(sink, chunk_size_bytes=chunk) as stream:
        for part in parts:
            assert stream.write(memoryview(part)) == len(part)
        data = b"".join(parts)
        assert stream.tell() == len(data)
        assert stream.finish() == expected_digests(data, chunk)
    assert bytes(sink.data) == data
    assert all(size == chunk for size in sink.sizes[:-1])
    assert threads() == []


def test_a_buffer_may_change_once_it_is_written() -> None:
    """The bytes of the moment of the call count, although other threads come to them later."""
    sink, source = Sink(), bytearray(10)
    with HashingWriter(sink, chunk_size_bytes=7) as stream:
        for number in range(100):
            source[:] = bytes([number]) * 10
            stream.write(source)
        digests = stream.finish()
    expected = b"".join(bytes([number]) * 10 for number in range(100))
    assert bytes(sink.data) == expected
    assert digests == expected_digests(expected, 7)


def test_a_buffer_of_numbers_is_written_as_its_bytes() -> None:
    """Serializers pass buffers of other item sizes."""
    sink: Sink = Sink()
    numbers: Any = memoryview(bytearray(range(48))).cast("d")
    with HashingWriter(sink, chunk_size_bytes=7) as stream:
        assert stream.write(numbers) == 48
        stream.finish()
    assert bytes(sink.data) == bytes(range(48))


def test_the_sink_gets_whole_pages_of_memory() -> None:
    """Direct I/O takes only buffers that begin at a block; all but the last are of a chunk."""
    addresses: list[int] = []

    class Noting(Sink):
        def write(self, data: Any, /) -> int:
            addresses.append(ctypes.addressof(ctypes.c_char.from_buffer(data)))
            return super().write(data)

    chunk = 4 * mmap.PAGESIZE
    sink = Noting()
    with HashingWriter(sink, chunk_size_bytes=chunk) as stream:
        stream.write(b"x")  # so that the large piece is aligned with nothing
        stream.write(bytes(chunk * (BUFFER_COUNT + 3)))
        stream.finish()
    assert [address % mmap.PAGESIZE for address in addresses] == [0] * (BUFFER_COUNT + 4)
    assert sink.sizes == [chunk] * (BUFFER_COUNT + 3) + [1]
    assert len(set(addresses)) == BUFFER_COUNT


def test_a_slow_sink_holds_the_serializer_up() -> None:
    """There is never more in memory than the buffers hold."""
    gate, chunk, taken = threading.Event(), 8, []

    class Slow(Sink):
        def write(self, data: Any, /) -> int:
            gate.wait()
            return super().write(data)

    sink = Slow()

    def serialize() -> None:
        with HashingWriter(sink, chunk_size_bytes=chunk) as stream:
            for _ in range(BUFFER_COUNT * 3):
                stream.write(bytes(chunk))
                taken.append(chunk)
            stream.finish()

    serializer = threading.Thread(target=serialize)
    serializer.start()
    serializer.join(timeout=0.3)
    assert serializer.is_alive()
    assert len(taken) <= BUFFER_COUNT
    gate.set()
    serializer.join(timeout=30)
    assert len(sink.data) == BUFFER_COUNT * 3 * chunk


@pytest.mark.parametrize("fail_at", [0, 1, 5, 9, 29, 30])
def test_a_failure_stops_the_save(fail_at: int) -> None:
    """Whichever buffer it is at, the last one included: raised as it was, and the sink is left alone from then on."""
    sink = Sink(fail_at)
    with pytest.raises(StorageFullError) as raised:
        write_all(HashingWriter(sink, chunk_size_bytes=4), [b"ab"] * 60 + [b"c"])
    assert raised.value is FULL
    assert sink.calls == fail_at + 1
    assert threads() == []


def test_a_failure_while_hashing_stops_the_save() -> None:
    """The other thread's failures count as well."""

    class Forgetful(HashingWriter):
        def _hash(self, buffer: memoryview) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        write_all(Forgetful(Sink(), chunk_size_bytes=4), [bytes(400)])
    assert threads() == []


@pytest.mark.parametrize("fail_at", [0, 3])
def test_a_serializer_does_not_hide_a_failure(fail_at: int) -> None:
    """``torch.save`` complains about a position in a file instead: the store's own error is what comes out."""
    with pytest.raises(StorageFullError) as raised, HashingWriter(Sink(fail_at), chunk_size_bytes=512) as stream:
        torch.save({"weight": torch.zeros(10_000)}, stream)  # type: ignore[arg-type]
    assert raised.value is FULL


def test_a_serializer_that_swallows_a_failure_does_not_end_well() -> None:
    """What it does after that makes no difference."""
    sink = Sink(0)
    with HashingWriter(sink, chunk_size_bytes=4) as stream:
        for _ in range(100):
            with contextlib.suppress(StorageFullError):
                stream.write(b"abc")
        with pytest.raises(StorageFullError):
            stream.finish()
    assert sink.calls == 1


@pytest.mark.parametrize("arguments", [(0,), (0, 2), (5, 1), ()])
def test_a_writer_never_seeks(arguments: tuple[int, ...]) -> None:
    """Digests of a stream that was rewritten would be of bytes that never existed, even if the refusal is ignored."""
    sink = Sink()
    with HashingWriter(sink) as stream:
        stream.write(b"abc")
        assert (stream.seekable(), stream.readable(), stream.writable(), stream.tell()) == (False, False, True, 3)
        with pytest.raises(UnsupportedFormatError):
            stream.seek(*arguments)
        with pytest.raises(UnsupportedFormatError):
            stream.finish()
    assert sink.calls == 0


@pytest.mark.skipif(os.name != "posix", reason="a process cannot send itself Ctrl-C here")
def test_an_interrupted_wait_ends_no_sooner_than_the_writing() -> None:
    """Ctrl-C while a slow disk is waited for: when the writer is left, nobody writes to its file any more."""
    writing, written = threading.Event(), list[int]()

    class Slow(Sink):
        def write(self, data: Any) -> int:
            if data[0] == 2:
                writing.set()
                time.sleep(0.5)
                written.append(2)
            return len(data)

    def interrupt() -> None:
        writing.wait()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        write_all(HashingWriter(Slow(), chunk_size_bytes=1), [b"\1\2"])
    assert written == [2]


@pytest.mark.parametrize("size_bytes", [2, 4_000])
def test_an_interrupt_ends_the_threads(size_bytes: int) -> None:
    """Ctrl-C in the serializer comes out as it is, and nothing goes on in the background."""

    def interrupted() -> Iterator[bytes]:
        yield bytes(size_bytes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(HashingWriter(Sink(), chunk_size_bytes=4), interrupted())
    assert threads() == []
