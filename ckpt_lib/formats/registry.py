"""Finds formats by name and loads them on first use. Other packages add theirs by the entry point group."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.formats.base import Format

DEFAULT_FORMAT = "torch"
ENTRY_POINT_GROUP = "ckpt_lib.formats"

PAYLOAD_SUFFIXES = (".pt",)
"""The suffixes of the built-in formats, to recognise a payload by name without loading its format."""

_BUILT_IN = {"torch": "ckpt_lib.formats.torch.format:TorchZipFormat"}


@cache
def format_named(name: str) -> Format:
    """Return the format with this name in manifests. Raises :class:`UnsupportedFormatError` with all names."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: Any = getattr(import_module(module), attribute)
        return cast(Format, found())
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in plugins:
        raise UnsupportedFormatError(
            f"no format called {name!r} is installed",
            expected=", ".join(sorted({*_BUILT_IN, *plugins})),
            hint=f"A package provides one by the entry point group {ENTRY_POINT_GROUP}.",
        )
    return cast(Format, plugins[name].load()())
