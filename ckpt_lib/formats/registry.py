"""Finds formats by name and loads them on first use. Other packages add theirs by the entry point group."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.formats.base import Format

if TYPE_CHECKING:
    from ckpt_lib.formats.torch.format import TorchZipFormat

ENTRY_POINT_GROUP = "ckpt_lib.formats"

PAYLOAD_SUFFIXES = (".pt",)
"""The suffixes of the built-in formats, to recognise a payload by name without loading its format."""
FILE_SUFFIXES = (*PAYLOAD_SUFFIXES, ".pth", ".ckpt")
"""What people let the names of payload files end with."""

_BUILT_IN = {
    "torch": "ckpt_lib.formats.torch.format:TorchZipFormat",
    "safetensors": "ckpt_lib.formats.safetensors.format:SafetensorsFormat",
}


def check_format_name(name: str) -> None:
    """Raise :class:`UnsupportedFormatError` with all names unless a format has this one. No format is loaded."""
    if name not in _BUILT_IN and name not in _installed():
        raise UnsupportedFormatError(
            f"no format called {name!r} is installed",
            expected=", ".join(sorted({*_BUILT_IN, *_installed()})),
            hint=f"Install the package that provides it, by the entry point group {ENTRY_POINT_GROUP}.",
        )


@cache
def format_named(name: str) -> Format:
    """Return the format with this name, which is loaded for that.

    Raises :class:`UnsupportedFormatError` with all names if none has this one, and for one that cannot be loaded.
    """
    check_format_name(name)
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: Any = getattr(import_module(module), attribute)
        return cast(Format, found())
    point = _installed()[name]
    try:
        return cast(Format, point.load()())
    except Exception as error:
        raise UnsupportedFormatError(
            f"the format {name!r} cannot be loaded: {error}",
            got=f"{point.value}, of the entry points {ENTRY_POINT_GROUP}",
            hint="Install what it needs.",
        ) from error


def format_of_bare_files() -> TorchZipFormat:
    """Return the format whose files can be told from others without a manifest, because they hold checksums."""
    from ckpt_lib.formats.torch.format import TorchZipFormat

    return TorchZipFormat()


def _installed() -> dict[str, EntryPoint]:
    """Return the formats of other packages, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
