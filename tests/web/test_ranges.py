"""Which part of a file a request asks for, against a plain reading of RFC 9110."""

from __future__ import annotations

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.web.ranges import requested_range

ETAG = '"abc"'
NUMBERS = st.one_of(st.just(""), st.integers(0, 30).map(str))


@given(first=NUMBERS, last=NUMBERS, size_bytes=st.integers(0, 20))
def test_a_range_gives_the_bytes_that_it_names(first: str, last: str, size_bytes: int) -> None:
    """By position or from the end; what begins behind the end is refused, and what is no range gives everything."""
    data = bytes(range(size_bytes))
    headers = {"range": f"bytes={first}-{last}"}
    is_range = bool(first or last) and not (first and last and int(last) < int(first))
    expected = data[int(first) : int(last) + 1 if last else None] if first else data[-int(last or 0) :]
    if not first and last == "0":
        expected = b""
    if is_range and not expected:
        with pytest.raises(HTTPException) as caught:
            requested_range(headers, ETAG, size_bytes)
        assert (caught.value.status_code, caught.value.headers) == (416, {"Content-Range": f"bytes */{size_bytes}"})
        return
    found = requested_range(headers, ETAG, size_bytes)
    assert found is None if not is_range else found is not None and data[slice(*found)] == expected


@given(text=st.text(max_size=20))
def test_whatever_is_no_range_gives_everything(text: str) -> None:
    """No header is an error but one that begins behind the end."""
    assert requested_range({"range": text}, ETAG, 10) in {None, *[(a, b) for a in range(10) for b in range(a + 1, 11)]}


@pytest.mark.parametrize("text", ["bytes=0-1,3-4", "lines=0-1", "bytes=0", "bytes=--1", "bytes=" + "9" * 5_000 + "-"])
def test_what_is_not_supported_gives_everything(text: str) -> None:
    """Several ranges, other units, and numbers without end."""
    assert requested_range({"range": text}, ETAG, 10) is None


@pytest.mark.parametrize("known", ['"other"', f"W/{ETAG}", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_range_of_another_version_gives_everything(known: str) -> None:
    """Bytes of two versions are never put together: only the same strong ETag goes on."""
    assert requested_range({"range": "bytes=5-", "if-range": known}, ETAG, 10) is None
    assert requested_range({"range": "bytes=5-", "if-range": ETAG}, ETAG, 10) == (5, 10)
