"""Any format, compressed: what lies between a format and the store, of which the format knows nothing.

The name of such a format in a manifest is that of the format and that of the codec, as in ``torch+zstd``. So a reader
that knows no compression says that the format is not installed, and takes nothing for damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ckpt_lib.compression import CODECS, Codec, CompressingWriter, PlainFile
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.base import Format, Layout, Payload, PayloadSink, PayloadSource
from ckpt_lib.formats.registry import SEPARATOR
from ckpt_lib.stream import HashingWriter

__all__ = ["CODECS", "CompressedFormat", "PlainSource"]

_FOLDER_SUFFIX = "/"
_GROWTH = 2**12
"""A file may grow by its table: less than one byte of so many, and as many bytes."""


class CompressedFormat:
    """Writes what ``plain`` writes, and compresses each file with ``codec``."""

    def __init__(self, plain: Format, codec: Codec) -> None:
        self.plain = plain
        self.codec = codec
        self.name = f"{plain.name}{SEPARATOR}{codec.name}"
        self.suffix = plain.suffix if plain.suffix == _FOLDER_SUFFIX else plain.suffix + codec.suffix

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        return self.plain.prepare(payload)

    def lay_out(self, payload: Payload) -> Layout:
        return _CompressedLayout(self.plain.lay_out(payload), self.codec)

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keys: Collection[str] | None = None,
    ) -> Payload:
        """Read a payload, or parts of it: only the frames that these lie in are decompressed."""
        plain = PlainSource(source, self.codec)
        return self.plain.read(plain, map_location=map_location, trust_pickle=trust_pickle, keys=keys)

    def inspect(self, source: PayloadSource) -> Payload:
        return self.plain.inspect(PlainSource(source, self.codec))

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        """Map tensor names to the stored bytes of the frames that they lie in."""
        plain, part = PlainSource(source, self.codec), plain_name(name, self.codec)
        found = self.plain.tensor_ranges(plain, part)
        table = plain.open(part).table
        return {tensor: table.stored_ranges(ranges) for tensor, ranges in found.items()}


class _CompressedLayout:
    def __init__(self, plain: Layout, codec: Codec) -> None:
        self._plain = plain
        self._codec = codec

    @property
    def size_bytes(self) -> int:
        """The size before compression, and what the tables may add to it."""
        plain_bytes = self._plain.size_bytes
        return plain_bytes + plain_bytes // _GROWTH + _GROWTH

    def write(self, sink: PayloadSink) -> None:
        self._plain.write(_CompressingSink(sink, self._codec))


class _CompressingSink:
    """The sink that the format itself writes to."""

    def __init__(self, sink: PayloadSink, codec: Codec) -> None:
        self._sink = sink
        self._codec = codec

    @contextmanager
    def open(self, name: str = "") -> Iterator[HashingWriter]:
        stored_name = name + self._codec.suffix if name else ""
        with self._sink.open(stored_name) as target, CompressingWriter(target, self._codec) as stream:
            yield stream
            stream.end()


class PlainSource:
    """The source that the format itself reads from: the files of ``source``, decompressed."""

    def __init__(self, source: PayloadSource, codec: Codec) -> None:
        self._source = source
        self._codec = codec
        self._opened: dict[str, PlainFile] = {}

    @property
    def names(self) -> Sequence[str]:
        return tuple(plain_name(name, self._codec) for name in self._source.names)

    def open(self, name: str = "") -> PlainFile:
        if name not in self._opened:
            stored_name = name + self._codec.suffix if name else ""
            self._opened[name] = PlainFile(self._source.open(stored_name), self._codec)
        file = self._opened[name]
        file.seek(0)
        return file


def plain_name(stored_name: str, codec: Codec) -> str:
    """Return the name that the format gave to a file of a folder; empty for a single file.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for a file that is not compressed by ``codec``.
    """
    if stored_name and not stored_name.endswith(codec.suffix):
        raise CorruptCheckpointError(f"the payload's file {stored_name!r} is not compressed as its format says")
    return stored_name.removesuffix(codec.suffix)
