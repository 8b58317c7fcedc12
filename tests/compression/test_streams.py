"""The writer and the file as the store and a format see them: errors, threads, memory, and what is read."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterable

import pytest
import xxhash

from ckpt_lib.compression import CODECS, CompressingWriter, PlainFile, planes
from ckpt_lib.compression.table import MAX_FRAME_SIZE_BYTES
from ckpt_lib.errors import CorruptCheckpointError, StorageFullError, UnsupportedFormatError
from ckpt_lib.stream import HashingWriter, VerifiedFile
from tests.compression.files import Taken, opened, stored
from tests.compression.hostile import HOSTILE, entry_of_table, planes_file, seekable

EACH_CODEC = pytest.mark.parametrize("codec", sorted(CODECS))
MIB = 2**20


class Full:
    """A sink that takes ``limit`` bytes, and counts what is tried after that."""

    def __init__(self, limit: int) -> None:
        self.limit, self.tried = limit, 0
        self.error = StorageFullError("the store is full")

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        self.limit -= len(data)
        if self.limit < 0:
            self.tried += 1
            raise self.error
        return len(data)


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ckpt-")]


@EACH_CODEC
def test_a_full_store_is_one_error(codec: str) -> None:
    """Raised by a later write or at the end, the same each time; nothing is tried after it, and no thread is left."""
    sink = Full(1_000)
    piece, told = random.Random(0).randbytes(500), []

    def write() -> None:
        with HashingWriter(sink, chunk_size_bytes=128) as target:
            with CompressingWriter(target, CODECS[codec], frame_size_bytes=64, workers=2) as stream:
                try:
                    while True:
                        stream.write(piece)
                except StorageFullError as error:
                    with pytest.raises(StorageFullError) as again:
                        stream.write(piece)
                    told.extend([error, again.value])
                    raise RuntimeError("as a serializer in C would say") from None
            target.finish()

    with pytest.raises(StorageFullError) as raised:
        write()
    assert {id(error) for error in (*told, raised.value)} == {id(sink.error)}
    assert sink.tried == 1
    assert threads_of_ours() == []


def test_a_frame_that_cannot_be_compressed_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thread: raised where the serializer writes."""

    def fail(*_: object) -> None:
        raise MemoryError("no memory for a frame")

    monkeypatch.setattr(type(CODECS["zstd"]), "encode", fail)
    with pytest.raises(MemoryError, match="for a frame"):
        stored([bytes(64)] * 100, "zstd")
    assert threads_of_ours() == []


def test_it_cannot_seek_and_knows_its_place() -> None:
    """As any stream of a save: ``tell`` is of the plain bytes."""
    with HashingWriter(Taken()) as target, CompressingWriter(target, CODECS["planes"]) as stream:
        stream.write(b"abc")
        stream.flush()
        assert (stream.tell(), stream.readable(), stream.writable(), stream.seekable()) == (3, False, True, False)
        with pytest.raises(UnsupportedFormatError):
            stream.seek(0)
        with pytest.raises(UnsupportedFormatError):
            stream.end()


@EACH_CODEC
def test_the_caller_may_change_what_it_has_written(codec: str) -> None:
    """Each piece is copied before ``write`` returns."""
    piece, sink = bytearray(64), Taken()
    with HashingWriter(sink) as target:
        with CompressingWriter(target, CODECS[codec], frame_size_bytes=64, workers=2) as stream:
            for number in range(200):
                piece[:] = bytes([number]) * 64
                stream.write(piece)
            stream.end()
        target.finish()
    with opened(bytes(sink), codec) as file:
        assert file.read() == b"".join(bytes([number]) * 64 for number in range(200))


def test_memory_is_that_of_a_few_frames() -> None:
    """However long the file is, also where the sink is slower than everything else."""

    class Slow:
        def write(self, data: bytes | bytearray | memoryview, /) -> int:
            time.sleep(0.002)
            return len(data)

    piece = random.Random(0).randbytes(MIB)
    tracemalloc.start()
    try:
        with HashingWriter(Slow(), chunk_size_bytes=MIB) as target:
            with CompressingWriter(target, CODECS["planes"], frame_size_bytes=MIB, workers=2) as stream:
                for _ in range(40):
                    stream.write(piece)
                stream.end()
            target.finish()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 12 * MIB


@EACH_CODEC
def test_a_part_reads_only_the_frames_it_lies_in(codec: str) -> None:
    """And verifies only the chunks that hold these."""
    data = random.Random(0).randbytes(64 * 100)
    kept, entry = stored([data], codec, chunk_size_bytes=64)
    verified: list[tuple[int, int]] = []

    class Watched(VerifiedFile):
        def require(self, ranges: Iterable[tuple[int, int]]) -> None:
            wanted = list(ranges)
            verified.extend(wanted)
            super().require(wanted)

    with Watched(io.BytesIO(kept), entry) as whole:
        part = PlainFile(whole, CODECS[codec])
        first, last = part.table.stored_range(40, 42)
        verified.clear()
        assert part.view(40 * 64 + 5, 43 * 64) == data[40 * 64 + 5 : 43 * 64]
        assert verified
        assert all(first <= start <= stop <= last for start, stop in verified)


@EACH_CODEC
def test_damage_is_located_in_the_stored_file(codec: str) -> None:
    """As the chunk that was altered; other frames are read all the same."""
    data = random.Random(0).randbytes(64 * 40)
    kept, entry = stored([data], codec, chunk_size_bytes=128)
    damaged = bytearray(kept)
    damaged[700] ^= 1
    with opened(bytes(damaged), codec, entry) as file:
        with pytest.raises(CorruptCheckpointError) as raised:
            file.require_all()
        assert [(damage.start, damage.stop) for damage in raised.value.damages] == [(640, 768)]
        assert file.view(64 * 30, 64 * 40) == data[64 * 30 :]


@EACH_CODEC
def test_without_digests_a_damaged_frame_is_found_by_its_own(codec: str) -> None:
    """Where the file is read as it is: the frame's place is named."""
    kept, _ = stored([random.Random(0).randbytes(64 * 40)], codec)
    damaged = bytearray(kept)
    damaged[700] ^= 1
    with opened(bytes(damaged), codec) as file:
        with pytest.raises(CorruptCheckpointError) as raised:
            file.require_all()
        (damage,) = raised.value.damages
        assert damage.start <= 700 < damage.stop
        assert damage.stop - damage.start < 100


def test_writing_to_the_memory_changes_no_file() -> None:
    """It is private, and outlives the file."""
    data = bytes(range(256))
    kept, entry = stored([data], "planes")
    with opened(kept, "planes", entry) as file:
        view = file.view(10, 20)
        view[:] = bytes(10)
    assert view == bytes(10)
    with opened(kept, "planes", entry) as file:
        assert file.read() == data


@EACH_CODEC
def test_a_forked_process_writes_and_reads(codec: str) -> None:
    """Threads and states of the library stay behind; the child makes its own."""
    data = random.Random(0).randbytes(10_000)
    kept, entry = stored([data], codec)
    child = os.fork()
    if child == 0:
        again, _ = stored([data], codec)
        with opened(kept, codec, entry) as file:
            os._exit(0 if again == kept and file.read() == data else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- hostile files ---


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once(name: str) -> None:
    """Before memory is taken for what it claims."""
    codec, data = HOSTILE[name]()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError), opened(data, codec) as file:
            file.require_all()
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_a_frame_that_holds_more_than_its_table_says_is_refused() -> None:
    """A frame of a gigabyte of zeros takes kilobytes, and is not decompressed."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    tracemalloc.start()
    try:
        with (
            pytest.raises(CorruptCheckpointError),
            opened(seekable([(len(bomb), 64)], frames=bomb), "zstd") as file,
        ):
            file.require_all()
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_a_table_that_was_altered_is_refused_before_its_frames() -> None:
    """Two entries exchanged: each is possible by itself."""
    kept, _ = stored([bytes(64), random.Random(0).randbytes(64)], "planes")
    first = len(kept) - 40 - 32
    entries = kept[first : first + 16], kept[first + 16 : first + 32]
    with pytest.raises(CorruptCheckpointError, match="altered"):
        opened(kept[:first] + entries[1] + entries[0] + kept[first + 32 :], "planes")


@EACH_CODEC
def test_a_file_holds_what_its_manifest_says(codec: str) -> None:
    """Another sound file in its place is refused by its size, before anything is decompressed."""
    kept, entry = stored([bytes(1000)], codec)
    assert entry.compression is not None
    for wrong in (999, 1001):
        other = entry.model_copy(
            update={"compression": entry.compression.model_copy(update={"plain_size_bytes": wrong})}
        )
        with pytest.raises(CorruptCheckpointError):
            opened(kept, codec, other)


def test_without_a_manifest_no_file_grows_without_bound() -> None:
    """More than a thousandfold, and more than a gigabyte, is nothing that a training has saved."""
    count = 70
    table = entry_of_table(1, 1) * count
    data = planes_file(
        table, size=count * MAX_FRAME_SIZE_BYTES, count=count, frame=MAX_FRAME_SIZE_BYTES, frames=b"x" * count
    )
    with pytest.raises(CorruptCheckpointError, match="more than"):
        opened(data, "planes")


@pytest.mark.parametrize(("method", "width"), [(3, 2), (5, 4)])
def test_rotated_words_are_still_read(method: int, width: int) -> None:
    """Files of version 1 hold them, and no save writes them any more."""
    plain = random.Random(0).randbytes(256)
    parts = [bytes(plane) for plane in planes.split(plain, planes.Split(width, "rotated"))]
    frame = struct.pack(f"<{width}I", *map(len, parts)) + b"".join(parts)
    table = entry_of_table(len(frame), method, xxhash.xxh3_64_intdigest(plain))
    with opened(planes_file(table, size=256, count=1, frame=256, frames=frame), "planes") as file:
        assert file.read() == plain


def test_a_newer_version_is_no_damage() -> None:
    """It says to upgrade."""
    with pytest.raises(UnsupportedFormatError, match="newer version"):
        opened(planes_file(b"", size=0, count=0, frame=64, version=3), "planes")
