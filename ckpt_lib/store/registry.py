"""Which class serves which URL. The registry holds strings, so that a store's libraries load when it is used."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, cast

from fsspec.core import split_protocol

from ckpt_lib.errors import ConfigError
from ckpt_lib.store.base import Store

_STORES = {
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
    module, _, name = _STORES[scheme].partition(":")
    store_class: Any = getattr(import_module(module), name)
    return cast(Store, store_class(text))
