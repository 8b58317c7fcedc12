"""Text for people: values, counts, sizes, durations, and guesses at misspelt names."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Sequence

MAX_NAME_LENGTH = 200
_SHOWN_LENGTH = 120
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_YEARS_SHOWN = 100

# A value may be arbitrarily long, or contain itself.
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxstring = _BRIEFLY.maxother = _BRIEFLY.maxlong = 100
_BRIEFLY.maxlevel = 2

_PARTLY = reprlib.Repr()
_PARTLY.maxlevel = 5
_PARTLY.maxdict = _PARTLY.maxlist = _PARTLY.maxtuple = _PARTLY.maxset = _PARTLY.maxfrozenset = 20
_PARTLY.maxstring = _PARTLY.maxother = _SHOWN_LENGTH


def briefly(value: object) -> str:
    """Return any value as text that is short enough for a message."""
    try:
        return _BRIEFLY.repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"


def shown(value: object) -> str:
    """Return any value as printable ASCII that is short enough for a message."""
    text = _bounded(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."


def _bounded(value: object) -> str:
    """Return the representation of a value whose parts may be large, and shared so often that it would never end."""
    if isinstance(value, str):
        return repr(value[: _SHOWN_LENGTH + 1])
    if isinstance(value, dict | list | tuple | set | frozenset):
        return _PARTLY.repr(value)
    if isinstance(value, Exception):
        return f"{type(value).__name__}({', '.join(map(_bounded, value.args[:10]))})"
    return repr(value)


def visible(text: str) -> str:
    """Return ``text`` on one line, with an escape for every character that is not printable."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that alone begins with ``name``, or else the one that it probably misspells."""
    names = list(known)
    begun = [item for item in names if name and item.startswith(name)]
    found = begun if len(begun) == 1 else difflib.get_close_matches(name[:MAX_NAME_LENGTH], names, n=1)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return the question for a hint, or ``otherwise`` if no known name is similar."""
    close = closest(name, known)
    return otherwise if close is None else f"Did you mean {close!r}?"


def count_of(number: int, noun: str) -> str:
    """Return ``1 checkpoint`` or ``2 checkpoints``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join the first names, and count the others: ``a, b, c and 2 more``."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size_text(size_bytes: int) -> str:
    """Return a size in the largest unit that it fills: ``512 B``, ``1.5 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min(int(math.log2(size_bytes) // 10), 5)
    return f"{size_bytes / 1024**power:.1f} {'KMGTP'[power - 1]}iB"


def duration(seconds: float) -> str:
    """Format a length of time: ``42 s``, ``35 min``, ``23 h 55 min``, ``6 d 3 h``."""
    if not seconds < _YEARS_SHOWN * 365 * _DAY:
        return f"more than {_YEARS_SHOWN} years"
    whole = max(0, round(seconds))
    if whole >= _DAY:
        return _of_two(whole // _DAY, "d", whole % _DAY // _HOUR, "h")
    if whole >= _HOUR:
        return _of_two(whole // _HOUR, "h", whole % _HOUR // _MINUTE, "min")
    return f"{whole // _MINUTE} min" if whole >= 2 * _MINUTE else f"{whole} s"


def _of_two(large: int, unit: str, small: int, smaller_unit: str) -> str:
    return f"{large} {unit} {small} {smaller_unit}" if small else f"{large} {unit}"
