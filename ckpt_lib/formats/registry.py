"""Finds formats by name and loads them on first use. Other packages add theirs by the entry point group."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.formats.base import Format, PayloadSource

if TYPE_CHECKING:
    from ckpt_lib.formats.compressed import PlainSource
    from ckpt_lib.formats.torch.format import TorchZipFormat

SEPARATOR = "+"
"""Between the name of a format and that of the codec that compresses it. A format's own name is an identifier."""
CODEC_SUFFIXES = (".zst", ".planes")
"""What the codecs add to the names of files; known here so that listings need not load them."""
_CODEC_MAGICS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x93CKPLANE": "planes"}

ENTRY_POINT_GROUP = "ckpt_lib.formats"

_PLAIN_SUFFIXES = (".pt",)
PAYLOAD_SUFFIXES = (*_PLAIN_SUFFIXES, *(suffix + added for suffix in _PLAIN_SUFFIXES for added in CODEC_SUFFIXES))
"""The suffixes of the built-in formats, to recognise a payload by name without loading its format."""
FILE_SUFFIXES = (*_PLAIN_SUFFIXES, ".pth", ".ckpt")
"""What people let the names of payload files end with."""

_BUILT_IN = {
    "torch": "ckpt_lib.formats.torch.format:TorchZipFormat",
    "safetensors": "ckpt_lib.formats.safetensors.format:SafetensorsFormat",
}
_READ_ONLY = {"foreign": "ckpt_lib.foreign.format:ForeignFormat"}
"""What manifests may name and configurations may not."""


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
    plain_name, separator, codec_name = name.partition(SEPARATOR)
    if separator:
        return _compressed(format_named(plain_name), codec_name, name)
    if name not in _READ_ONLY:
        check_format_name(name)
    if place := (_BUILT_IN | _READ_ONLY).get(name):
        module, _, attribute = place.partition(":")
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


def check_compression() -> None:
    """Raise :class:`UnsupportedFormatError`, with the extra to install, where payloads cannot be compressed."""
    if find_spec("zstandard") is None:
        raise UnsupportedFormatError(
            "compressed payloads need the package zstandard, which is not installed",
            hint="Install it: pip install 'prefect-checkpoints[compression]'.",
        )


def compressed_format(plain: Format, compression: bool | Literal["zstd"]) -> Format:
    """Return the format that compresses what ``plain`` writes as the option ``compression`` says."""
    if not compression:
        return plain
    return format_named(plain.name + SEPARATOR + ("zstd" if compression == "zstd" else "planes"))


def codec_name_of(start: bytes) -> str | None:
    """Return the name of the codec that wrote a file, by its first bytes; ``None`` for a file that none wrote."""
    return next((name for magic, name in _CODEC_MAGICS.items() if start.startswith(magic)), None)


def is_compressed(name: str) -> bool:
    """Tell whether the format of this name compresses what another one writes."""
    return SEPARATOR in name


def plain_source(stored: Format, source: PayloadSource) -> tuple[PlainSource, Format]:
    """Return what a compressed payload holds, for the format that is returned with it."""
    from ckpt_lib.formats.compressed import CompressedFormat, PlainSource

    assert isinstance(stored, CompressedFormat), stored.name
    return PlainSource(source, stored.codec), stored.plain


def _compressed(plain: Format, codec_name: str, name: str) -> Format:
    from ckpt_lib.formats.compressed import CODECS, CompressedFormat

    check_compression()
    if codec_name not in CODECS:
        raise UnsupportedFormatError(
            f"no format called {name!r} is known: nothing here decompresses {codec_name!r}",
            expected=", ".join(sorted(CODECS)),
            hint="Upgrade prefect-checkpoints to read it.",
        )
    return cast(Format, CompressedFormat(plain, CODECS[codec_name]))


def format_of_bare_files() -> TorchZipFormat:
    """Return the format whose files can be told from others without a manifest, because they hold checksums."""
    from ckpt_lib.formats.torch.format import TorchZipFormat

    return TorchZipFormat()


def _installed() -> dict[str, EntryPoint]:
    """Return the formats of other packages, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
