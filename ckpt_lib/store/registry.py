"""Which class serves which URL. The registry holds strings, so that a store's libraries load when it is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

from fsspec.core import split_protocol

from ckpt_lib.errors import ConfigError
from ckpt_lib.store.base import Store

StoreFactory = Callable[[str], Store]

_STORES: dict[str, str | StoreFactory] = {
    "file": "ckpt_lib.store.local:LocalStore",
    "local": "ckpt_lib.store.local:LocalStore",
}


def url_text(url: str | os.PathLike[str]) -> str:
    """A path or URL as text, or :class:`~ckpt_lib.errors.ConfigError` when it is none that could exist."""
    text = os.fspath(url) if isinstance(url, str | os.PathLike) else None
    if not isinstance(text, str) or not text or not _can_be_a_path(text):
        raise ConfigError("that is neither a path nor a URL", got=ascii(url)[:120])
    return text


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        return False


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at ``url``: a path, or an fsspec URL. Nothing is created until something is written.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a scheme no store serves.
    """
    text = url_text(url)
    scheme = split_protocol(text)[0] or "file"
    if scheme not in _STORES:
        raise ConfigError(
            f"no store serves {scheme}:// URLs",
            path=text,
            expected="a path, or a URL that starts with " + ", ".join(f"{name}://" for name in sorted(_STORES)),
        )
    return factory_of(scheme)(text)


def factory_of(scheme: str) -> StoreFactory:
    """What opens the stores of a scheme; raises ``KeyError`` when nothing does."""
    found = _STORES[scheme]
    if not isinstance(found, str):
        return found
    module, _, name = found.partition(":")
    store_class: Any = getattr(import_module(module), name)
    return cast(StoreFactory, store_class)


@contextmanager
def registered(scheme: str, factory: StoreFactory) -> Iterator[None]:
    """While the context lasts, let ``factory`` open every store whose URL has this scheme; ``file`` is a plain path."""
    before = _STORES.get(scheme)
    _STORES[scheme] = factory
    try:
        yield
    finally:
        del _STORES[scheme]
        if before is not None:
            _STORES[scheme] = before
