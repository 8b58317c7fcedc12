"""Checks of arguments that every store makes before it does anything."""

from __future__ import annotations

import re

from ckpt_lib.core.wording import briefly
from ckpt_lib.errors import ConfigError, InvalidNameError, VersionConflictError
from ckpt_lib.store.base import ABSENT, Capabilities, Condition

_FORBIDDEN = re.compile(r"[\\\x00-\x1f]")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
"""The shape of nearly all names: one match is faster than five checks, and a listing has thousands."""
OWN_FOLDER = ".ckpt-tmp"
"""Folders of this name are the store's own: no key may lie in one, and no listing shows one."""
MAX_PART_BYTES = 255
"""The longest name that local file systems take."""


def version_conflict(path: str, expected: Condition, got: object) -> VersionConflictError:
    """Return the error for a key that somebody else wrote first."""
    return VersionConflictError(
        "somebody else wrote the key first",
        path=path,
        expected="no such key" if expected is ABSENT else expected or "a free name",
        got="no such key" if got is ABSENT else got,
        hint="Read it again and decide anew.",
    )


def check_key(key: str) -> tuple[str, ...]:
    """Return the parts of a key; raise :class:`~ckpt_lib.errors.InvalidNameError` when it is none."""
    parts = tuple(key.split("/"))
    for part in parts:
        if problem := _problem(part):
            raise InvalidNameError(
                f"the key {briefly(key)} {problem}", expected="parts joined by /, such as run/model.pt"
            )
    return parts


def check_prefix(prefix: str) -> tuple[str, ...]:
    """Return the parts of a folder, none for the root; it may end with ``/``, as listings show folders."""
    return check_key(prefix.removesuffix("/")) if prefix else ()


def is_part(name: str) -> bool:
    """Tell whether a name without a slash may be part of a key."""
    return _problem(name) is None


def _problem(part: str) -> str | None:
    if _PLAIN.fullmatch(part):
        return None
    if part in {"", ".", ".."}:
        return "has an empty part, or one that is . or .."
    if part == OWN_FOLDER:
        return f"lies in {OWN_FOLDER}, where the store keeps its own files"
    if _FORBIDDEN.search(part):
        return "has a backslash or a control character"
    try:
        is_too_long = len(part.encode()) > MAX_PART_BYTES
    except UnicodeEncodeError:
        return "is not Unicode text"
    return f"has a part of more than {MAX_PART_BYTES} bytes" if is_too_long else None


def check_put(capabilities: Capabilities, if_version: Condition, url: str) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` when a store cannot write under this condition."""
    if if_version is ABSENT:
        _require(capabilities.create_if_absent, "create_if_absent", url)
    elif if_version is not None:
        _require(capabilities.replace_if_version, "replace_if_version", url)


def check_delete(capabilities: Capabilities, if_version: str | None, url: str) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` when a store cannot delete under this condition."""
    if if_version is not None:
        _require(capabilities.delete_if_version, "delete_if_version", url)


def _require(has_it: bool, capability: str, url: str) -> None:
    if not has_it:
        raise ConfigError(
            f"the store has no {capability}",
            path=url,
            hint="Write to it from one process at a time, without conditions.",
        )
