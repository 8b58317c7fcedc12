"""Selects parts of a payload by name: ``model_state_dict``, or ``model_state_dict.encoder`` for all entries below."""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.core.wording import did_you_mean, shown
from ckpt_lib.errors import ConfigError

_MAX_CANDIDATES = 20_000  # for the hint of an error, which should not take seconds


def check_keys(keys: Collection[str] | None) -> frozenset[str] | None:
    """Return ``keys`` as a set. Raises :class:`ConfigError` unless they are a collection of names."""
    if keys is None:
        return None
    if isinstance(keys, str) or not isinstance(keys, Collection) or not all(isinstance(key, str) for key in keys):
        raise ConfigError("keys must be a collection of names", expected=f'["{MODEL_KEY}"]', got=shown(keys))
    if not keys:
        raise ConfigError("keys is empty", expected="at least one name", hint="Leave it out to load everything.")
    return frozenset(keys)


def select(payload: Mapping[str, Any], keys: Collection[str] | None) -> dict[str, Any]:
    """Return the entries of ``payload`` that ``keys`` name, inside the dicts around them; all of it for ``None``.

    A name joins the keys that lead to an entry by dots. Raises :class:`ConfigError` for a name without an entry, with
    a similar name as a hint.
    """
    if keys is None:
        return dict(payload)
    wanted = {key for key in keys if not any(start in keys for start in _starts(key))}
    ancestors = {start for key in wanted for start in _starts(key)}
    found: set[str] = set()
    kept: dict[str, Any] = _keep(payload, "", wanted, ancestors, found)
    if unknown := sorted(wanted - found):
        raise _unknown(unknown[0], payload)
    return kept


def _keep(mapping: Mapping[Any, Any], prefix: str, wanted: set[str], ancestors: set[str], found: set[str]) -> Any:
    kept: dict[Any, Any] = {}
    if isinstance(mapping, OrderedDict):  # state_dict() keeps the versions of modules in its attributes
        kept = OrderedDict()
        kept.__dict__.update(mapping.__dict__)
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        covering = next((start for start in (name, *_starts(name)) if start in wanted), None)
        if covering is not None:
            found.add(covering)
            kept[key] = value
        elif name in ancestors and isinstance(value, dict):
            below = _keep(value, f"{name}.", wanted, ancestors, found)
            if below:
                kept[key] = below
    return kept


def _starts(name: str) -> Iterator[str]:
    """Yield ``a`` and ``a.b`` for ``a.b.c``."""
    return (name[: dot.start()] for dot in re.finditer(r"\.", name))


def _unknown(key: str, payload: Mapping[str, Any]) -> ConfigError:
    names = list(islice(_names(payload), _MAX_CANDIDATES))
    place = next((found for name in names if (found := _up_to(name, key))), None)
    return ConfigError(
        f"the checkpoint holds no {key!r}",
        expected=f"one of {', '.join(map(str, payload))}, or what is in them",
        hint=f"Did you mean {place!r}?" if place else did_you_mean(key, names) or None,
    )


def _up_to(name: str, key: str) -> str | None:
    """Return ``a.b`` for the key ``b`` in the name ``a.b.c``; ``None`` where the name has no such inner part."""
    before, found, _ = f"{name}.".partition(f".{key}.")
    return f"{before}.{key}" if found else None


def _names(payload: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the names of all entries, outer ones first."""
    waiting: deque[tuple[str, Mapping[Any, Any]]] = deque([("", payload)])
    while waiting:
        prefix, mapping = waiting.popleft()
        for key, value in mapping.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                waiting.append((f"{prefix}{key}.", value))
