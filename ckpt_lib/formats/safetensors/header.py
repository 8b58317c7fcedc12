"""The header of a safetensors file: which tensors there are, and where.

A file is the length of its header (8 bytes, little-endian), the header (JSON, padded with blanks to a multiple of 8)
and the bytes of the tensors, one after the other and without a gap
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.structure.dtypes import DTYPES, NAMES
from ckpt_lib.formats.structure.entries import Entry, are_counts, is_shape, without_repeats
from ckpt_lib.stream import VerifiedFile

MAX_HEADER_BYTES = 16 * 2**20
"""Enough for the names of 100,000 tensors; a writer begins another file before. The library stops at 100 MB."""
METADATA_KEY = "__metadata__"

_LENGTH = struct.Struct("<Q")
_ALIGNMENT_BYTES = 8
_KEYS = {"dtype", "shape", "data_offsets"}


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


def read_header(file: VerifiedFile) -> dict[str, Entry]:
    """Return the tensors of a file by name. Only the header is read and verified.

    Raises :class:`CorruptCheckpointError` for anything but one whole safetensors file, in time and memory proportional
    to its header.
    """
    header, start = _header(file)
    header.pop(METADATA_KEY, None)
    entries = {name: _entry(name, description, start) for name, description in header.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != position:
            raise corrupt(f"{shown(name)} overlaps what lies before it, or leaves a gap")
        position = entry.stop
    if position != file.size_bytes:
        raise corrupt(f"its tensors end at byte {position:,}, and the file at byte {file.size_bytes:,}")
    return entries


def read_metadata(file: VerifiedFile) -> dict[str, str]:
    """Return the text that its writer has noted in the header. Raises as :func:`read_header` does."""
    found = _header(file)[0].get(METADATA_KEY, {})
    return dict(found)


def _header(file: VerifiedFile) -> tuple[dict[str, Any], int]:
    """Return the header, and where the bytes of the tensors begin."""
    if file.size_bytes < _LENGTH.size:
        raise corrupt("it is too short")
    with file.view(0, _LENGTH.size) as view:
        (size_bytes,) = _LENGTH.unpack(view)
    start = _LENGTH.size + size_bytes
    if size_bytes > min(MAX_HEADER_BYTES, file.size_bytes - _LENGTH.size):
        raise corrupt("its header is longer than the file, or than any header may be")
    with file.view(_LENGTH.size, start) as view:
        data = bytes(view)
    header = _parsed(data)
    metadata = header.get(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt("its metadata is no mapping of text")
    return header, start


def corrupt(reason: str) -> CorruptCheckpointError:
    """Return the error for a file that is no safetensors file."""
    return CorruptCheckpointError(f"the payload holds a malformed safetensors file: {reason}")


def _parsed(data: bytes) -> dict[str, Any]:
    if not data.startswith(b"{"):
        raise corrupt("its header does not begin with {")
    try:
        found = json.loads(data.decode(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise corrupt("its header is not JSON, or says something twice") from error
    if not isinstance(found, dict):
        raise corrupt("its header is no object")
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
