"""Digests of a stream: right however its bytes come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.stream import StreamDigest
from tests.stream.samples import expected_digests, pieces


@given(pieces(), st.integers(1, 40))
def test_digests_do_not_depend_on_how_the_bytes_come(parts: list[bytes], chunk: int) -> None:
    """SHA-256 and every chunk digest equal those of the standard libraries, for any split of any bytes."""
    digest = StreamDigest(chunk)
    for kind, part in zip((bytes, bytearray, memoryview) * len(parts), parts, strict=False):
        digest.update(kind(part))
    assert digest.finish() == expected_digests(b"".join(parts), chunk)


def test_a_buffer_of_numbers_is_hashed_as_its_bytes() -> None:
    """Serializers pass buffers of other item sizes; what is hashed is what lies in memory."""
    numbers = memoryview(bytearray(range(48))).cast("d")
    digest = StreamDigest(7)
    digest.update(numbers)  # type: ignore[arg-type]  # what serializers pass is not always bytes
    assert digest.finish() == expected_digests(bytes(range(48)), 7)
