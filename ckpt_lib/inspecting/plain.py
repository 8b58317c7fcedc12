"""Facts of another program as JSON can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.metadata import LIMIT_64_BITS
from ckpt_lib.core.wording import briefly

_MAX_LEVELS = 10
_MAX_ENTRIES = 1_000
_MAX_LENGTH = 10_000


def plain(value: Any, levels: int = _MAX_LEVELS) -> Any:
    """Return a value with texts for what JSON has no spelling for, and for what is too large or too deep to show."""
    if isinstance(value, str):
        text = value if len(value) <= _MAX_LENGTH else f"{value[:_MAX_LENGTH]}…"
        return text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping) and levels:
        return {str(key): plain(item, levels - 1) for key, item in list(value.items())[:_MAX_ENTRIES]}
    if isinstance(value, list | tuple) and levels:
        return [plain(item, levels - 1) for item in value[:_MAX_ENTRIES]]
    is_number = isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < LIMIT_64_BITS)
    return value if value is None or is_number else briefly(value)
