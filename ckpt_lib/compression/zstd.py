"""Zstandard, one buffer at a time: the library is imported when it is first needed, and each thread has its own state.

A compressor may not be shared by threads, and takes longer to make than to use.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ckpt_lib.compression.table import FRAME_SIZE_BYTES
from ckpt_lib.stream.digests import Buffer

if TYPE_CHECKING:
    import numpy as np
    import zstandard
    from numpy.typing import NDArray

LEVEL = 1
"""Higher levels search longer for repetitions, which weights do not have."""
_PLANE_SEARCH = {"hash_log": 6, "min_match": 7}
"""Of a plane of exponents, short repetitions are chance, and pointing to them costs more than the bytes themselves."""

_states = threading.local()


class UndecodableError(ValueError):
    """A frame does not hold what it must."""


def compress(data: Buffer) -> bytes:
    """Return a frame of ``data`` that holds its size and a checksum of it, as the program ``zstd`` writes."""
    return _compressor("frame").compress(data)


def compress_plane(data: Buffer) -> bytes:
    """Return a frame of ``data`` that holds its size: bytes that differ in how frequent they are, and repeat little."""
    return _compressor("plane").compress(data)


def decompress(data: Buffer, size_bytes: int) -> bytes:
    """Return the ``size_bytes`` that the only frame in ``data`` holds, and that its checksum agrees with.

    Raises :class:`UndecodableError` for anything else, before memory is taken for more.
    """
    import zstandard

    try:
        if not _check(data, size_bytes).has_checksum:
            raise UndecodableError("a zstd frame has no checksum")
        return _decompressor().decompress(data, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise UndecodableError(str(error)) from error


def decompress_into(target: memoryview | NDArray[np.uint8], data: Buffer) -> None:
    """Fill ``target`` with what the frame at the start of ``data`` holds, whose checksum is not compared.

    Raises :class:`UndecodableError` for a frame of another size and one that ends too early.
    """
    import zstandard

    try:
        _check(data, len(target))
        with _decompressor().stream_reader(data) as reader:
            if reader.readinto(target) != len(target):
                raise UndecodableError("a zstd frame ends too early")
    except zstandard.ZstdError as error:
        raise UndecodableError(str(error)) from error


def _check(data: Buffer, size_bytes: int) -> zstandard.FrameParameters:
    import zstandard

    found = zstandard.get_frame_parameters(data)
    if found.content_size != size_bytes or found.dict_id:
        raise UndecodableError(f"a zstd frame is not of {size_bytes} bytes")
    return found


def _compressor(name: str) -> zstandard.ZstdCompressor:
    compressors: dict[str, Any] = _states.__dict__.setdefault("compressors", {})
    if name not in compressors:
        import zstandard

        options = {"write_checksum": 1} if name == "frame" else _PLANE_SEARCH
        parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, source_size=FRAME_SIZE_BYTES, **options)
        compressors[name] = zstandard.ZstdCompressor(compression_params=parameters)
    return compressors[name]  # type: ignore[no-any-return]


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_states, "decompressor", None)
    if found is None:
        import zstandard

        found = _states.decompressor = zstandard.ZstdDecompressor()
    return found
