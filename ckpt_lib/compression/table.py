"""Where the frames of a file lie, and what a codec is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.digests import Buffer

FRAME_SIZE_BYTES = 2**20
"""So much of the plain bytes is compressed at once: little for one tensor to read, and it fits into a cache."""
MAX_FRAME_SIZE_BYTES = 16 * 2**20
MAX_GROWTH = 1_000
"""Of a file without a manifest, the plain bytes may be so many times the stored ones, and :data:`ANY_SIZE_BYTES`."""
ANY_SIZE_BYTES = 2**30


class Frame(NamedTuple):
    """One frame as it is stored. ``method`` and ``digest`` mean what the codec says."""

    data: Buffer
    method: int = 0
    digest: int = 0


class Described(NamedTuple):
    """What a table says of one frame."""

    stored_bytes: int
    method: int
    digest: int


@dataclass(frozen=True)
class FrameTable:
    """The frames of a file, in order and without gaps. All hold the same number of plain bytes, the last perhaps less.

    ``starts`` are the stored frames' first bytes, and one more: the end of the last.
    """

    size_bytes: int
    frame_size_bytes: int
    starts: NDArray[np.int64]
    methods: NDArray[np.uint8]
    digests: NDArray[np.uint64]

    def plain_range(self, number: int) -> tuple[int, int]:
        """Return first and last byte of what a frame holds, the last exclusive."""
        start = number * self.frame_size_bytes
        return start, min(start + self.frame_size_bytes, self.size_bytes)

    def stored_range(self, first: int, last: int) -> tuple[int, int]:
        """Return where the frames from ``first`` to ``last`` are stored."""
        return int(self.starts[first]), int(self.starts[last + 1])

    def stored_ranges(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return where the frames are stored that hold these plain bytes."""
        size = self.frame_size_bytes
        return [self.stored_range(start // size, (stop - 1) // size) for start, stop in ranges if start < stop]


class Codec(Protocol):
    """One kind of compressed file. Its methods are called from several threads, but for ``read_table``."""

    @property
    def name(self) -> str:
        """Its name in manifests."""
        ...

    @property
    def suffix(self) -> str:
        """What it adds to the name of a file."""
        ...

    @property
    def head(self) -> bytes:
        """What each file begins with, before the first frame."""
        ...

    def encode(self, plain: memoryview) -> Frame:
        """Return the frame of these bytes. It may share their memory."""
        ...

    def decode(self, stored: memoryview, target: memoryview, method: int, digest: int) -> None:
        """Write what a frame holds to ``target``, and compare its checksum; the table gives the last two arguments.

        Raises :class:`~ckpt_lib.compression.zstd.UndecodableError` for a frame that does not hold these bytes.
        """
        ...

    def table_of(self, frames: Sequence[Described], size_bytes: int, frame_size_bytes: int) -> bytes:
        """Return what follows the last frame of a file that holds ``size_bytes``."""
        ...

    def read_table(self, stored: VerifiedFile) -> FrameTable:
        """Read what follows the last frame, and check each number in it.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, and
        :class:`~ckpt_lib.errors.UnsupportedFormatError` for a later version.
        """
        ...


def malformed(reason: str) -> NoReturn:
    """Raise the error for a file whose structure is not as specified."""
    raise CorruptCheckpointError(f"the compressed file is malformed: {reason}")


def check_layout(table: FrameTable, sizes: NDArray[np.int64], table_start: int) -> None:
    """Refuse frames of impossible sizes, and those that do not end where the table begins."""
    count = -(-table.size_bytes // table.frame_size_bytes) if table.frame_size_bytes else 0
    if not 0 < table.frame_size_bytes <= MAX_FRAME_SIZE_BYTES and table.size_bytes:
        malformed(f"its frames are of {table.frame_size_bytes} bytes")
    if len(sizes) != count:
        malformed(f"it has {len(sizes)} frames for {table.size_bytes} bytes")
    if len(sizes) and (int(sizes.min()) <= 0 or int(table.starts[-1]) != table_start):
        malformed("its frames do not fill it")


def check_size(table: FrameTable, stored_size_bytes: int, expected_size_bytes: int | None) -> None:
    """Refuse a file that holds more than its manifest says, or, without one, than anyone would compress so far."""
    most = expected_size_bytes
    if most is None:
        most = max(stored_size_bytes * MAX_GROWTH, ANY_SIZE_BYTES)
    elif table.size_bytes < most:
        malformed(f"it holds {table.size_bytes} bytes, and not {most}")
    if table.size_bytes > most:
        malformed(f"it claims to hold {table.size_bytes} bytes, more than {most}")
