"""The codecs: ``zstd``, which every other program reads, and ``planes``, which is made for numbers."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence

import numpy as np
import xxhash

from ckpt_lib.compression import planes, zstd
from ckpt_lib.compression.table import Codec, Described, Frame, FrameTable, check_layout, malformed
from ckpt_lib.compression.zstd import UndecodableError
from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.digests import Buffer

_MAX_SKIPPABLE_BYTES = 2**32 - 1
_WORTH_IT = 0.99
"""What does not become smaller than this is stored as it is, and costs its reader nothing."""
_WORTH_TRYING = 0.97
"""A plane of which a sample promises less is not even compressed: so small a gain is seldom there."""


class ZstdCodec:
    """The seekable format of zstd: independent frames, and a skippable one that says where each begins.

    The checksum of a frame's plain bytes is zstd's own, at its end. ``zstd -d`` gives the plain file.
    """

    name = "zstd"
    suffix = ".zst"
    head = b""

    _SKIPPABLE, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1
    _FRAME_HEAD, _FOOTER = struct.Struct("<II"), struct.Struct("<IBI")
    _ENTRY = np.dtype([("stored", "<u4"), ("plain", "<u4")])

    def encode(self, plain: memoryview) -> Frame:
        return Frame(zstd.compress(plain))

    def decode(self, stored: memoryview, target: memoryview, _method: int, _digest: int) -> None:
        target[:] = zstd.decompress(stored, len(target))

    def table_of(self, frames: Sequence[Described], size_bytes: int, frame_size_bytes: int) -> bytes:
        entries = np.empty(len(frames), self._ENTRY)
        entries["stored"] = [frame.stored_bytes for frame in frames]
        entries["plain"] = frame_size_bytes
        if rest := size_bytes % frame_size_bytes:
            entries["plain"][-1] = rest
        content = entries.tobytes() + self._FOOTER.pack(len(frames), 0, self._SEEKABLE)
        return self._FRAME_HEAD.pack(self._SKIPPABLE, len(content)) + content

    def read_table(self, stored: VerifiedFile) -> FrameTable:
        size_bytes, head, footer = stored.size_bytes, self._FRAME_HEAD.size, self._FOOTER.size
        if size_bytes < head + footer:
            malformed("it is too short")
        count, flags, magic = self._FOOTER.unpack(stored.view(size_bytes - footer, size_bytes))
        if magic != self._SEEKABLE:
            malformed("it has no seek table at its end")
        content_size = count * self._ENTRY.itemsize + footer
        table_start = size_bytes - content_size - head
        if flags or table_start < 0 or content_size > _MAX_SKIPPABLE_BYTES:
            malformed("its seek table is not one of this format")
        if stored.view(table_start, table_start + head) != self._FRAME_HEAD.pack(self._SKIPPABLE, content_size):
            malformed("its seek table does not begin where it should")
        entries = np.frombuffer(stored.view(table_start + head, size_bytes - footer), self._ENTRY)
        sizes, plain = entries["stored"].astype(np.int64), entries["plain"].astype(np.int64)
        frame_size_bytes = int(plain[0]) if count else 0
        if count and (np.any(plain[:-1] != frame_size_bytes) or not 0 < plain[-1] <= frame_size_bytes):
            malformed("its frames are not of one size")
        methods, digests = np.zeros(count, np.uint8), np.zeros(count, np.uint64)  # zstd's frames say it themselves
        table = FrameTable(int(plain.sum()), frame_size_bytes, _starts(0, sizes), methods, digests)
        check_layout(table, sizes, table_start)
        return table


class PlanesCodec:
    """Each frame by the method that suits it: as it is, zstd, or the byte planes of its words with zstd on each."""

    name = "planes"
    suffix = ".planes"
    head = b"\x93CKPLANE"

    _VERSION = 2
    _FOOTER = struct.Struct("<QQIIQ8s")  # plain bytes, frames, frame size, version, digest, magic
    _TAIL = b"CKPLEND\n"
    _ENTRY = np.dtype([("stored", "<u4"), ("method", "u1"), ("zero", "u1", 3), ("digest", "<u8")])
    _RAW, _ZSTD, _FIRST_SPLIT = 0, 1, 2

    def encode(self, plain: memoryview) -> Frame:
        data, method = self._best(plain)
        if len(data) >= len(plain) * _WORTH_IT:
            data, method = plain, self._RAW
        return Frame(data, method, xxhash.xxh3_64_intdigest(plain))

    def _best(self, plain: memoryview) -> tuple[memoryview | bytes, int]:
        sample = planes.sample_of(plain)
        if not sample:
            return plain, self._RAW
        outlook = planes.best_split(sample)
        by_zstd = len(zstd.compress(sample))
        if min(outlook.size_bytes, by_zstd) >= len(sample) * _WORTH_IT:
            return plain, self._RAW
        if by_zstd <= outlook.size_bytes + (1 - _WORTH_IT) * len(sample):
            return zstd.compress(plain), self._ZSTD
        return self._encode_planes(plain, outlook), self._FIRST_SPLIT + planes.SPLITS.index(outlook.how)

    @staticmethod
    def _encode_planes(plain: memoryview, outlook: planes.Outlook) -> bytes:
        width, stored = outlook.how.width, []
        for plane, expected in zip(planes.split(plain, outlook.how), outlook.planes, strict=True):
            packed = zstd.compress_plane(plane.data) if expected < _WORTH_TRYING else plane.data
            stored.append(packed if len(packed) < len(plane) * _WORTH_IT else plane.data)
        sizes = struct.pack(f"<{len(stored)}I", *map(len, stored))
        return b"".join((sizes, *stored, plain[len(plain) // width * width :]))

    def decode(self, stored: memoryview, target: memoryview, method: int, digest: int) -> None:
        if method == self._RAW:
            if len(stored) != len(target):
                raise UndecodableError("a frame has another size than its bytes")
            target[:] = stored
        elif method == self._ZSTD:
            zstd.decompress_into(target, stored)
        else:
            self._decode_planes(stored, target, planes.SPLITS[method - self._FIRST_SPLIT])
        if xxhash.xxh3_64_intdigest(target) != digest:
            raise UndecodableError("a frame does not hold the bytes that were compressed")

    @staticmethod
    def _decode_planes(stored: memoryview, target: memoryview, how: planes.Split) -> None:
        count, rest = divmod(len(target), how.width)
        plain_sizes = [count * width for width in how.widths]
        head = 4 * len(plain_sizes)
        sizes = struct.unpack(f"<{len(plain_sizes)}I", stored[:head]) if len(stored) >= head else ()
        if not sizes or head + sum(sizes) + rest != len(stored) or any(map(operator.gt, sizes, plain_sizes)):
            raise UndecodableError("its planes do not fill a frame")
        room, start = planes.Room(), head
        found: list[Buffer] = []
        for stored_size, size in zip(sizes, plain_sizes, strict=True):
            plane = stored[start : start + stored_size]
            start += stored_size
            if stored_size == size:
                found.append(plane)
            else:
                decompressed = room.take(size)
                zstd.decompress_into(decompressed, plane)
                found.append(decompressed.data)
        whole = len(target) - rest
        planes.join(found, how, target[:whole], room)
        target[whole:] = stored[start:]

    def table_of(self, frames: Sequence[Described], size_bytes: int, frame_size_bytes: int) -> bytes:
        entries = np.zeros(len(frames), self._ENTRY)
        entries["stored"] = [frame.stored_bytes for frame in frames]
        entries["method"] = [frame.method for frame in frames]
        entries["digest"] = [frame.digest for frame in frames]
        content = entries.tobytes()
        digest = self._digest(content, size_bytes, len(frames), frame_size_bytes, self._VERSION)
        return content + self._FOOTER.pack(size_bytes, len(frames), frame_size_bytes, self._VERSION, digest, self._TAIL)

    @staticmethod
    def _digest(table: bytes | memoryview, *numbers: int) -> int:
        digest = xxhash.xxh3_64(table)
        digest.update(struct.pack("<QQII", *numbers))
        return digest.intdigest()

    def read_table(self, stored: VerifiedFile) -> FrameTable:
        stored_bytes, head, footer = stored.size_bytes, len(self.head), self._FOOTER.size
        if stored_bytes < head + footer or stored.view(0, head) != self.head:
            malformed("it does not begin as it should, or is too short")
        *numbers, digest, tail = self._FOOTER.unpack(stored.view(stored_bytes - footer, stored_bytes))
        size_bytes, count, frame_size_bytes, version = numbers
        if tail != self._TAIL:
            malformed("it does not end as it should")
        if version > self._VERSION:
            raise UnsupportedFormatError(
                "the payload was compressed by a newer version of this library",
                expected=f"version {self._VERSION}",
                got=version,
                hint="Upgrade prefect-checkpoints to read it.",
            )
        table_start = stored_bytes - footer - count * self._ENTRY.itemsize
        if table_start < head:
            malformed(f"it has no room for {count} frames")
        with stored.view(table_start, stored_bytes - footer) as content:
            if self._digest(content, *numbers) != digest:
                malformed("its table was altered")
            entries = np.frombuffer(bytes(content), self._ENTRY)
        sizes = entries["stored"].astype(np.int64)
        table = FrameTable(
            size_bytes, frame_size_bytes, _starts(head, sizes), entries["method"], entries["digest"].astype(np.uint64)
        )
        check_layout(table, sizes, table_start)
        if (table.methods >= self._FIRST_SPLIT + len(planes.SPLITS)).any() or entries["zero"].any():
            malformed("a frame is compressed by an unknown method")
        return table


def _starts(
    first: int, sizes: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return first + np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))


CODECS: dict[str, Codec] = {codec.name: codec for codec in (ZstdCodec(), PlanesCodec())}
