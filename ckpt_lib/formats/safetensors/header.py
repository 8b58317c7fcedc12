"""The header of a safetensors file: which tensors there are, and where.

A file is the length of its header (8 bytes, little-endian), the header (JSON, padded with blanks to a multiple of 8)
and the bytes of the tensors, one after the other and without a gap
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.structure.dtypes import DTYPES, NAMES
from ckpt_lib.formats.structure.entries import Entry, are_counts, is_shape, without_repeats
from ckpt_lib.stream import VerifiedFile

MAX_HEADER_BYTES = 16 * 2**20
"""Enough for the names of 100,000 tensors; a writer begins another file before. The library stops at 100 MB."""
METADATA_KEY = "__metadata__"
FORMAT_KEY = "format"
"""What the metadata says of the file itself; other entries are further names of tensors."""

_LENGTH = struct.Struct("<Q")
_ALIGNMENT_BYTES = 8
_KEYS = {"dtype", "shape", "data_offsets"}
_MAX_DESCRIPTION_LENGTH = 8192  # of a tensor of 64 dimensions, however it is spaced
_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=without_repeats)


def header_bytes(
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """Return the beginning of a file with these tensors: name, type, shape and size in bytes of each, in order."""
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)}
    start = 0
    for name, dtype, shape, size_bytes in tensors:
        offsets = [start, start + size_bytes]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        start += size_bytes
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % _ALIGNMENT_BYTES)
    return _LENGTH.pack(len(data)) + data


class Header(NamedTuple):
    """What the beginning of a file says."""

    entries: dict[str, Entry]
    """The tensors by name."""
    metadata: dict[str, str]
    """The text that the writer has noted."""


def read_header(file: VerifiedFile) -> Header:
    """Return the header of a file. Nothing else is read and verified.

    Raises :class:`CorruptCheckpointError` for anything but one whole safetensors file, at the first tensor that is not
    described as one is: in time and memory proportional to what is before that.
    """
    with CollectionPause():  # of many small objects, none of which is garbage
        text, start = _text(file)
        found = _parsed(text, start)
        position = start
        for name, entry in sorted(found.entries.items(), key=lambda item: item[1][2:]):
            if entry.start != position:
                raise corrupt(f"{shown(name)} overlaps what lies before it, or leaves a gap")
            position = entry.stop
    if position != file.size_bytes:
        raise corrupt(f"its tensors end at byte {position:,}, and the file at byte {file.size_bytes:,}")
    return found


def _text(file: VerifiedFile) -> tuple[bytes, int]:
    """Return the JSON of a header, and where the bytes of the tensors begin."""
    if file.size_bytes < _LENGTH.size:
        raise corrupt("it is too short")
    with file.view(0, _LENGTH.size) as view:
        (size_bytes,) = _LENGTH.unpack(view)
    start = _LENGTH.size + size_bytes
    if size_bytes > min(MAX_HEADER_BYTES, file.size_bytes - _LENGTH.size):
        raise corrupt("its header is longer than the file, or than any header may be")
    with file.view(_LENGTH.size, start) as view:
        return bytes(view), start


def corrupt(reason: str) -> CorruptCheckpointError:
    """Return the error for a file that is no safetensors file."""
    return CorruptCheckpointError(f"the payload holds a malformed safetensors file: {reason}")


def _parsed(data: bytes, start: int) -> Header:
    if not data.startswith(b"{"):
        raise corrupt("its header does not begin with {")
    header = Header({}, {})
    has_metadata = False
    try:
        for name, value in _fields(data.decode()):
            if (name == METADATA_KEY and has_metadata) or name in header.entries:
                raise ValueError("an object has a key twice")
            if name == METADATA_KEY:
                header.metadata.update(_checked_metadata(value))
                has_metadata = True
            else:
                header.entries[name] = _entry(name, value, start)
    except (ValueError, IndexError, StopIteration, RecursionError) as error:
        raise corrupt("its header is not JSON, or says something twice") from error
    return header


def _fields(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each field of an object of JSON, which is read no further than it is asked for.

    Raises ``ValueError`` or ``IndexError`` for other text, and for a value that is longer than that of a tensor.
    """
    position = _after_blanks(text, 1)
    while text[position] != "}":
        if text[position] != '"':
            raise ValueError("a field without a name")
        name, position = _DECODER.raw_decode(text, position)
        position = _after_blanks(text, position)
        if text[position] != ":":
            raise ValueError("a field without a value")
        position = _after_blanks(text, position + 1)
        value, position = _value(text, position, is_tensor=name != METADATA_KEY)
        yield name, value
        position = _after_blanks(text, position)
        if text[position] == ",":
            position = _after_blanks(text, position + 1)
            if text[position] == "}":
                raise ValueError("a comma before the end")
        elif text[position] != "}":
            raise ValueError("no comma between fields")
    if _after_blanks(text, position + 1) != len(text):
        raise ValueError("something after the end")


def _value(text: str, position: int, *, is_tensor: bool) -> tuple[Any, int]:
    """Return the value at a position, and where it ends: that of a tensor soon, at the first brace that closes one."""
    if not is_tensor:
        return _DECODER.raw_decode(text, position)
    stop = text.find("}", position, position + _MAX_DESCRIPTION_LENGTH) + 1
    return _DECODER.decode(text[position:stop]), stop


def _after_blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return position if found is None else found.end()


def _checked_metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise corrupt("its metadata is no mapping of text")
    return found


def _entry(name: str, description: Any, start: int) -> Entry:
    try:
        kind, shape, (first, last) = description["dtype"], description["shape"], description["data_offsets"]
        dtype = DTYPES.get(kind)
    except (TypeError, LookupError, ValueError):
        dtype = kind = shape = None
    if type(shape) is not list or len(description) != len(_KEYS):
        raise corrupt(f"{shown(name)} is not described as a tensor is")
    if dtype is None:
        raise corrupt(f"{shown(name)} has the unknown type {shown(kind)}")
    if not is_shape(shape) or not are_counts([first, last]):
        raise corrupt(f"{shown(name)} has an impossible shape or place")
    if last - first != math.prod(shape) * dtype.itemsize:
        raise corrupt(f"{shown(name)} has another size than its shape says")
    return Entry(dtype, tuple(shape), start + first, start + last)
