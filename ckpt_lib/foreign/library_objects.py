"""Objects of the standard library and of NumPy that are plain values, found in what their pickles say of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ckpt_lib.foreign.base import StoredObject

_FORMATS = {
    **{
        f"{kind}{size}": code
        for kind, codes in (("i", "bhiq"), ("u", "BHIQ"))
        for size, code in zip((1, 2, 4, 8), codes, strict=True)
    },
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "b1": "?",
}
_NOTHING = object()


def simplified(item: StoredObject) -> Any:
    """Return the plain value that an object stands for: a number, a text, a dict or a list; or the object itself.

    NumPy scalars become numbers, paths texts, and the dicts and lists of ``collections`` plain ones.
    """
    convert = _PLAIN.get(item.class_name)
    if convert is None:
        return item
    try:
        found = convert(item)
    except (TypeError, ValueError, struct.error, OverflowError):  # it is something else, under a name that is known
        return item
    return item if found is _NOTHING else found


def _scalar(item: StoredObject) -> Any:
    """Return the number that NumPy pickles as a type and its bytes."""
    match item.arguments:
        case (StoredObject(class_name="numpy.dtype", arguments=(str(code), *_), state=state), bytes(data)):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
            if code in _FORMATS:
                return struct.unpack((">" if order == ">" else "<") + _FORMATS[code], data)[0]
    return _NOTHING


def _path(item: StoredObject) -> Any:
    if item.arguments and all(isinstance(part, str) for part in item.arguments):
        separator = "\\" if "Windows" in item.class_name else "/"
        first, *rest = item.arguments
        return first + ("" if first.endswith(separator) or not rest else separator) + separator.join(rest)
    return _NOTHING


def _default_dict(item: StoredObject) -> Any:
    return dict(item.entries or {}) if item.entries is None or isinstance(item.entries, Mapping) else _NOTHING


def _counter(item: StoredObject) -> Any:
    first = item.arguments[0] if item.arguments else {}
    return {**first, **(item.entries or {})} if isinstance(first, dict) else _NOTHING  # type: ignore[dict-item]


def _deque(item: StoredObject) -> Any:
    first = item.arguments[0] if item.arguments else []
    return [*first, *(item.entries or [])] if isinstance(first, list | tuple) else _NOTHING


def _datetime(item: StoredObject) -> Any:
    """Return the text of a date with its time, which is pickled as ten bytes."""
    match item.arguments:
        case (bytes(data), *_) if len(data) == 10:
            year, month, day, hour, minute, second = struct.unpack(">HBBBBB", data[:7])
            micro = timedelta(microseconds=int.from_bytes(data[7:], "big"))
            return (datetime(year, month & 0x7F, day, hour, minute, second) + micro).isoformat()  # noqa: DTZ001
    return _NOTHING


def _empty_bytes(item: StoredObject) -> Any:
    return _NOTHING if item.arguments else b""


_PLAIN: dict[str, Callable[[StoredObject], Any]] = {
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **{
        f"{module}.{pure}{system}Path": _path
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("", "Posix", "Windows")
    },
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), _empty_bytes),
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "collections.deque": _deque,
    "datetime.datetime": _datetime,
}
