"""Reads a folder of safetensors files without copying them: tensors are views of the verified, mapped bytes.

The structure of the payload comes first, and then the headers of the files that hold the wanted tensors. So it is known
that each tensor is there, and fits into what is stored for it, before a byte of a tensor is read.
"""

from __future__ import annotations

from typing import Any

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import UnsupportedFormatError
from ckpt_lib.formats.base import PayloadSource
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.safetensors.header import read_header
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, STATE_FILE, SUFFIX
from ckpt_lib.formats.safetensors.writing import VERSION
from ckpt_lib.formats.structure.decoding import TensorRef, decode, decode_plain, malformed
from ckpt_lib.formats.structure.entries import Entry, Home
from ckpt_lib.formats.structure.reading import StructureReader, check_payload
from ckpt_lib.stream import VerifiedFile


class SafetensorsReader(StructureReader):
    """One payload, whose structure is known before any tensor's bytes are read.

    The constructor raises :class:`CorruptCheckpointError` for a structure that contradicts itself or takes memory or
    time out of proportion, and :class:`UnsupportedFormatError` for that of a later version.
    """

    def __init__(self, source: PayloadSource) -> None:
        with CollectionPause():
            found = _structure(source.open(STATE_FILE))
        super().__init__(source, found["payload"], self._entry_of)
        self._groups: dict[str, str] = found["files"]
        self._headers: dict[str, dict[str, Entry]] = {}
        self._indexes: dict[str, dict[str, str]] = {}

    def _entry_of(self, ref: TensorRef) -> Home:
        file = self._file_of(ref)
        if file not in self._headers:
            self._headers[file] = read_header(self._source.open(file)).entries
        entry = self._headers[file].get(ref.name)
        if entry is None:
            raise malformed(f"{file} holds no {shown(ref.name)}")
        return Home(file, entry)

    def _file_of(self, ref: TensorRef) -> str:
        name = self._groups.get(ref.group)
        if name is None:
            raise malformed(f"it names no file for {shown(ref.group)}")
        if name.endswith(INDEX_SUFFIX):
            if name not in self._indexes:
                self._indexes[name] = _weight_map(self._source.open(name))
            name = self._indexes[name].get(ref.name, "")
        if not name.endswith(SUFFIX):
            raise malformed(f"it names no safetensors file for {shown(ref.name)}")
        return name


def _structure(file: VerifiedFile) -> dict[str, Any]:
    found = decode(_text(file))
    match found:
        case {"format": "safetensors", "version": int(version)} if version > VERSION:
            raise UnsupportedFormatError(
                f"the payload was written by a later version of the format safetensors, {version}",
                expected=f"at most {VERSION}",
                hint="Install a newer version of this library.",
            )
        case {"format": "safetensors", "version": 1, "files": dict(files), "payload": dict(payload)}:
            pass
        case _:
            raise malformed("it is not that of a payload")
    if not all(isinstance(name, str) for name in files.values()):
        raise malformed("it names its files in another way")
    check_payload(payload)
    return {"files": files, "payload": payload}


def _weight_map(file: VerifiedFile) -> dict[str, str]:
    found = decode_plain(_text(file))
    match found:
        case {"weight_map": dict(names)} if all(isinstance(name, str) for name in names.values()):
            return names
    raise malformed("an index names no files")


def _text(file: VerifiedFile) -> bytes:
    with file.view(0, file.size_bytes) as view:
        return bytes(view)
