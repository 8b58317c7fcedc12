"""JSON files of other programs, read in bounded time and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.wording import shown, size_text
from ckpt_lib.errors import CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.formats.limits import MAX_LEVELS, is_deeper
from ckpt_lib.formats.structure.entries import without_repeats

MAX_JSON_BYTES = 32 * 2**20
_MAX_PARTS = 2_000_000  # each costs up to 80 bytes


def read_json(files: FoundFiles, name: str) -> Mapping[str, Any]:
    """Return the object in a JSON file. NaN and infinities are allowed, which Python's own writer writes.

    Raises :class:`CorruptCheckpointError` for anything else than one object, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one of too many bytes, parts or levels.
    """
    file = files.open(name)
    if file.size_bytes > MAX_JSON_BYTES:
        raise _too_large(files, name, f"it takes {size_text(file.size_bytes)}, more than {size_text(MAX_JSON_BYTES)}")
    data = file.readall()
    if sum(map(data.count, (b"[", b"{", b","))) > _MAX_PARTS:
        raise _too_large(files, name, f"it has more than {_MAX_PARTS:,} parts")
    try:
        found = json.loads(data.decode(), object_pairs_hook=without_repeats)
    except RecursionError:
        raise _too_deep(files, name) from None
    except ValueError as error:
        raise CorruptCheckpointError(f"{shown(name)} is no JSON: {error}", path=files.path) from None
    if is_deeper(found, MAX_LEVELS):
        raise _too_deep(files, name)
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{shown(name)} holds something else than an object", path=files.path)
    return found


def text_of(files: FoundFiles, name: str, most_bytes: int = 1000) -> str:
    """Return the text in a small file without blanks around it, such as the name of the latest checkpoint.

    Raises :class:`CorruptCheckpointError` for more or other bytes.
    """
    try:
        if files.sizes_bytes[name] <= most_bytes:
            return files.start(name, most_bytes).decode().strip()
    except UnicodeDecodeError:
        pass
    raise CorruptCheckpointError(f"{shown(name)} holds something else than a short text", path=files.path)


def number(value: Any) -> float | None:
    """Return a number of JSON; ``None`` for anything else, including the truth values."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _too_deep(files: FoundFiles, name: str) -> UnsafePayloadError:
    return _too_large(files, name, f"it is nested more than {MAX_LEVELS} levels deep")


def _too_large(files: FoundFiles, name: str, reason: str) -> UnsafePayloadError:
    return UnsafePayloadError(f"{shown(name)} was not read: {reason}", path=files.path)
