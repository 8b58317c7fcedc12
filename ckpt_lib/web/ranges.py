"""Requests for a part of a file, or for none of it: ``Range``, ``If-Range`` and ``If-None-Match`` of RFC 9110."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi import HTTPException, status

_ONE_RANGE = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*", re.IGNORECASE)


def requested_range(headers: Mapping[str, str], etag: str, size_bytes: int) -> tuple[int, int] | None:
    """Return the first byte that is asked for, and the one after the last; ``None`` for all of the file.

    A range in another unit, several at once, and one of another version than ``etag`` are answered with all of it, as
    the RFC allows. Raises HTTPException 416 for one that begins behind the end.
    """
    match = _ONE_RANGE.fullmatch(headers.get("range", ""))
    if match is None or headers.get("if-range", etag).strip() != etag:
        return None
    first, last = (int(text) if text else None for text in match.groups())
    if first is None:
        return None if last is None else _satisfiable(max(0, size_bytes - last), size_bytes, size_bytes)
    if last is not None and last < first:
        return None
    return _satisfiable(first, size_bytes if last is None else min(last + 1, size_bytes), size_bytes)


def has_same(headers: Mapping[str, str], etag: str) -> bool:
    """Tell whether the client says that it has what ``etag`` stands for, by ``If-None-Match``."""
    known = [item.strip().removeprefix("W/") for item in headers.get("if-none-match", "").split(",")]
    return "*" in known or etag in known


def _satisfiable(start: int, stop: int, size_bytes: int) -> tuple[int, int]:
    if start >= size_bytes:
        title = f"the range begins behind the end of the file, which has {size_bytes:,} bytes"
        headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise HTTPException(status.HTTP_416_RANGE_NOT_SATISFIABLE, title, headers)
    return start, stop
