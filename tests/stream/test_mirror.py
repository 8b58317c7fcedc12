"""The mirror of a stream: it gets the same bytes, and neither fails the stream nor holds it up for long."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import StorageFullError
from ckpt_lib.stream import HashingWriter, mirror
from ckpt_lib.stream.mirror import DroppedError, Mirror
from ckpt_lib.stream.writer import BUFFER_COUNT
from tests.stream.samples import expected_digests, pieces
from tests.stream.test_writer import Sink, write_all

FULL = StorageFullError("the mirror is full")


def copying_into(sink: Sink) -> Mirror:
    def work(mirror: Mirror) -> None:
        for buffer in mirror.buffers():
            sink.write(buffer)
        sink.calls = -1  # the end has come

    copier = Mirror(work, "test-mirror")
    copier.start()
    return copier


@given(pieces(), st.integers(1, 40))
def test_a_mirror_gets_the_bytes_of_the_stream(parts: list[bytes], chunk: int) -> None:
    """All of them, in order, whatever the size of the pieces, and then the end."""
    sink, copy = Sink(), Sink()
    copier = copying_into(copy)
    digests = write_all(HashingWriter(sink, chunk_size_bytes=chunk, mirror=copier), parts)
    copier.join()
    data = b"".join(parts)
    assert digests == expected_digests(data, chunk)
    assert bytes(sink.data) == data
    assert bytes(copy.data) == data
    assert copy.calls == -1
    assert copier.failure is None


@given(st.integers(0, 3 * BUFFER_COUNT))
def test_a_mirror_that_fails_leaves_the_stream_alone(fail_at: int) -> None:
    """At whichever buffer, be it the last: the digests and the bytes of the stream are as without a mirror."""
    sink, copy = Sink(), Sink(fail_at, FULL)
    copier = copying_into(copy)
    data = [bytes([number]) * 8 for number in range(3 * BUFFER_COUNT)]
    digests = write_all(HashingWriter(sink, chunk_size_bytes=8, mirror=copier), data)
    copier.join()
    assert digests == expected_digests(b"".join(data), 8)
    assert bytes(sink.data) == b"".join(data)
    assert copier.failure is (FULL if fail_at < len(data) else None)


def test_a_slow_mirror_holds_the_stream_up() -> None:
    """A buffer is not filled again before it was read."""

    class Slow(Sink):
        def write(self, data: Any, /) -> int:
            time.sleep(0.001)
            return super().write(data)

    copy = Slow()
    copier = copying_into(copy)
    data = [bytes([number]) * 8 for number in range(5 * BUFFER_COUNT)]
    write_all(HashingWriter(Sink(), chunk_size_bytes=8, mirror=copier), data)
    copier.join()
    assert bytes(copy.data) == b"".join(data)


def test_a_mirror_that_hangs_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends meanwhile; what the mirror was reading has changed by then, so it never sees an end."""
    monkeypatch.setattr(mirror, "PATIENCE_SECONDS", 0.05)
    gate, ends = threading.Event(), []

    def work(copier: Mirror) -> None:
        try:
            for _ in copier.buffers():
                assert gate.wait(60)
            ends.append("an end")
        except DroppedError:
            ends.append("dropped")

    copier = Mirror(work, "test-mirror")
    copier.start()
    sink = Sink()
    data = [bytes([number]) * 8 for number in range(3 * BUFFER_COUNT)]
    digests = write_all(HashingWriter(sink, chunk_size_bytes=8, mirror=copier), data)
    assert digests == expected_digests(b"".join(data), 8)
    assert bytes(sink.data) == b"".join(data)
    assert copier.is_dropped
    gate.set()
    copier.join()
    assert ends == ["dropped"]


@pytest.mark.parametrize("after", [0, 1, 3 * BUFFER_COUNT])
def test_a_stream_that_fails_drops_its_mirror(after: int) -> None:
    """Nothing may come of half the bytes."""
    copy = Sink()
    copier = copying_into(copy)
    sink: Any = Sink(after, FULL)
    stream = HashingWriter(sink, chunk_size_bytes=8, mirror=copier)
    with pytest.raises(StorageFullError):
        write_all(stream, [bytes(8)] * 4 * BUFFER_COUNT)
    copier.join()
    assert isinstance(copier.failure, DroppedError)
    assert copy.calls != -1
