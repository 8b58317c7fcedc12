"""Digests of a stream: right however its bytes come."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.stream import FileDigests, StreamDigest
from ckpt_lib.stream.digests import CHUNK_SIZE_BYTES
from tests.stream.samples import expected_digests, pieces


@given(pieces(), st.integers(1, 40))
def test_digests_do_not_depend_on_how_the_bytes_come(parts: list[bytes], chunk: int) -> None:
    """SHA-256 and every chunk digest equal those of the standard libraries, for any split of any bytes."""
    digest = StreamDigest(chunk)
    for kind, part in zip((bytes, bytearray, memoryview) * len(parts), parts, strict=False):
        digest.update(kind(part))
    assert digest.finish() == expected_digests(b"".join(parts), chunk)


@given(pieces(), st.integers(1, 40))
def test_the_next_chunk_boundary_is_known(parts: list[bytes], chunk: int) -> None:
    """Writers that align themselves to chunks are told a distance of 1 to one chunk."""
    digest = StreamDigest(chunk)
    for part in parts:
        digest.update(part)
        assert 1 <= digest.bytes_to_chunk_end <= chunk
        assert (digest.size_bytes + digest.bytes_to_chunk_end) % chunk == 0


def test_a_buffer_of_numbers_is_hashed_as_its_bytes() -> None:
    """Serializers pass buffers of other item sizes; what is hashed is what lies in memory."""
    numbers = memoryview(bytearray(range(48))).cast("d")
    digest = StreamDigest(7)
    digest.update(numbers)  # type: ignore[arg-type]  # what serializers pass is not always bytes
    assert digest.finish() == expected_digests(bytes(range(48)), 7)


def test_an_empty_stream_has_no_chunks() -> None:
    """And the SHA-256 of nothing."""
    assert StreamDigest().finish() == FileDigests(0, hashlib.sha256(b"").hexdigest(), CHUNK_SIZE_BYTES, ())
