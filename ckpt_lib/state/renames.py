"""Renames the tensors of a stored state as ``key_map`` says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import islice

from ckpt_lib.core.wording import did_you_mean, shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.state.wrappers import starts_of

KeyMap = Mapping[str, str] | Callable[[str], str]
"""Maps stored names, or prefixes of them up to a dot, to the model's; or a function from the one to the other."""

_MAX_CANDIDATES = 20_000  # for the hint of an error, which should not take seconds


def check_key_map(key_map: KeyMap | None) -> None:
    """Raise :class:`ConfigError` unless ``key_map`` is a function, or maps names to names."""
    if key_map is None or (callable(key_map) and not isinstance(key_map, Mapping)):
        return
    if not isinstance(key_map, Mapping):
        raise ConfigError(
            "key_map must be a mapping of names or a function", expected='{"old": "new"}', got=shown(key_map)
        )
    if not key_map:
        raise ConfigError("key_map is empty", expected="at least one name", hint="Leave it out to rename nothing.")
    for names in key_map.items():
        if not all(isinstance(name, str) and (not name or all(name.split("."))) for name in names):
            raise ConfigError(
                "key_map maps names or prefixes, without a dot at their ends",
                expected='{"old.part": "new"}',
                got=shown(dict([names])),
            )


def renamed(key_map: KeyMap, names: Collection[str]) -> tuple[dict[str, str], set[str]]:
    """Map names as ``key_map`` says, the others to themselves; return also the entries that stand for no name.

    The longest entry that a name begins with wins; the empty one stands for every name. Raises :class:`ConfigError`
    for a name that would be empty, and for a function that fails.
    """
    if not isinstance(key_map, Mapping):
        return {name: _called(key_map, name) for name in names}, set()
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        entry = next((start for start in _entries_for(name) if start in key_map), None)
        found[name] = name
        if entry is not None:
            used.add(entry)
            rest = name[len(entry) :].removeprefix(".")
            found[name] = ".".join(part for part in (key_map[entry], rest) if part)
        if not found[name]:
            raise ConfigError(f"key_map leaves nothing of the name {name!r}", expected="a name")
    return found, set(key_map) - used


def _entries_for(name: str) -> list[str]:
    return [name, *(start.removesuffix(".") for start in starts_of(name))]


def _called(function: Callable[[str], str], name: str) -> str:
    try:
        found = function(name)
    except Exception as error:
        raise ConfigError(
            f"key_map failed for {name!r}: {error!r}", expected="a function of any stored name"
        ) from error
    if not isinstance(found, str) or not found:
        raise ConfigError(f"key_map returned no name for {name!r}", expected="a name", got=shown(found))
    return found


def unmatched(entry: str, names: Collection[str]) -> ConfigError:
    """Return the error for an entry of ``key_map`` that stands for none of the stored names."""
    known = dict.fromkeys(start for name in islice(names, _MAX_CANDIDATES) for start in _entries_for(name) if start)
    return ConfigError(
        f"key_map names {entry!r}, which stands for nothing in the checkpoint",
        expected="stored names, or what they begin with up to a dot",
        hint=did_you_mean(entry, islice(known, _MAX_CANDIDATES)) or None,
    )
