"""Which class serves which URL. Built-in classes are named by strings, so that they load when they are used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.store.base import Store

StoreFactory = Callable[[str], Store]

ENTRY_POINT_GROUP = "ckpt_lib.stores"
"""Where other packages announce their stores: the scheme is the name, the class or function takes the URL."""

_BUILT_IN = {"file": "ckpt_lib.store.local:LocalStore", "memory": "ckpt_lib.store.memory:MemoryStore"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")  # with those of chained URLs, which no store serves

_registered: dict[str, StoreFactory] = {}


def url_text(url: str | os.PathLike[str]) -> str:
    """Return a path or URL as text, or raise :class:`~ckpt_lib.errors.ConfigError` when it is none."""
    text = os.fspath(url) if isinstance(url, str | os.PathLike) else None
    if not isinstance(text, str) or not text or not _can_be_a_path(text):
        raise ConfigError("a store is named by a path or a URL", expected='such as "checkpoints"', got=shown(url))
    return text


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        return False


def scheme_of(url: str) -> str:
    """Return the scheme of a URL; a plain path has ``file``."""
    found = _SCHEME.match(url)
    return found[1].lower() if found else "file"


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open the store at ``url``, a path or a URL. Nothing is created until something is written.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a scheme that no store serves.
    """
    text = url_text(url)
    return factory_of(scheme_of(text))(text)


def factory_of(scheme: str) -> StoreFactory:
    """Return what opens the stores of a scheme; raise :class:`~ckpt_lib.errors.ConfigError` when nothing does."""
    if scheme in _registered:
        return _registered[scheme]
    if scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[scheme].partition(":")
        store_class: Any = getattr(import_module(module), name)
        return cast(StoreFactory, store_class)
    if scheme in _installed():
        return _load(_installed()[scheme])
    raise _unknown(scheme)


@cache
def _installed() -> dict[str, EntryPoint]:
    """Return the stores of other packages, by scheme."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(point: EntryPoint) -> StoreFactory:
    try:
        return cast(StoreFactory, point.load())
    except Exception as error:
        raise ConfigError(
            f"the store for {point.name}:// URLs cannot be loaded: {error}",
            got=f"{point.value}, of the entry points {ENTRY_POINT_GROUP}",
            hint="Install what it needs, or remove the package that announces it.",
        ) from error


def _unknown(scheme: str) -> ConfigError:
    known = sorted({*_BUILT_IN, *_registered, *_installed()})
    return ConfigError(
        f"no store serves {scheme}:// URLs",
        expected="a path, or a URL that starts with " + ", ".join(f"{name}://" for name in known),
    )


def location(store: Store, key: str = "") -> str:
    """Return where a key is, for a person: a path of this machine, or a URL."""
    if scheme_of(store.url) == "file":
        return str(Path(store.url).joinpath(*key.split("/")))
    return f"{store.url.rstrip('/')}/{key}" if key else store.url


@contextmanager
def registered(scheme: str, factory: StoreFactory) -> Iterator[None]:
    """While the context lasts, let ``factory`` open every store whose URL has this scheme; ``file`` is a plain path."""
    before = _registered.get(scheme)
    _registered[scheme] = factory
    try:
        yield
    finally:
        del _registered[scheme]
        if before is not None:
            _registered[scheme] = before
