"""How errors show a value, and which name was probably meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MAX_NAME_LENGTH = 200

# A value may be any amount of text, or hold itself.
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxstring = _BRIEFLY.maxother = _BRIEFLY.maxlong = 100
_BRIEFLY.maxlevel = 2


def briefly(value: object) -> str:
    """Show any value in a line that is short enough for a message."""
    try:
        return _BRIEFLY.repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` is a misspelling of, if there is one."""
    found = difflib.get_close_matches(name[:MAX_NAME_LENGTH], list(known), n=1)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return the question for a hint, or ``otherwise`` where no name comes close."""
    close = closest(name, known)
    return otherwise if close is None else f"Did you mean {close!r}?"
