"""Files of ``torch.save``, of every version and with whatever in them, such as whole modules; and bare pickles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ckpt_lib.core.payload_keys import (
    DATA_KEY,
    EXTRA_STATE_KEY,
    MODEL_KEY,
    OPTIMIZER_KEY,
    OTHERS_KEY,
    PAYLOAD_KEYS,
    RNG_KEY,
)
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.foreign.base import ForeignCheckpoint
from ckpt_lib.foreign.legacy_files import LegacyFile, is_legacy
from ckpt_lib.foreign.mapping import own_payload, to_payload
from ckpt_lib.foreign.pickles import describe, no_reference, no_tensor
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.storages import Storages
from ckpt_lib.formats.registry import check_compression, codec_name_of
from ckpt_lib.formats.torch.archive import TorchArchive
from ckpt_lib.formats.torch.limits import max_structure_bytes, unsafe
from ckpt_lib.formats.torch.tensor_specs import Storage, storage_of
from ckpt_lib.formats.torch.zip_reading import find_directory
from ckpt_lib.stream import VerifiedFile

_START_BYTES = 64
_ZIP_START = b"PK\3\4"
_IS_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_NO_FORMAT = "it is a bare pickle, not a file of torch.save; load it with the program that wrote it, and save it again"
_PICKLE = "data.pkl"
_SCRIPT_RECORD = re.compile(rb"/constants\.pkl|/model\.json")
WHOLE = ""
"""Under this name ``contents`` has what a file holds that is no dict, such as a whole module."""
OWN_KIND = "payload"
"""The kind of a checkpoint of this library that lies there without its manifest."""
_FACTS = {"epoch", "step", "metrics", "config"}
_WHOLE = {MODEL_KEY, OPTIMIZER_KEY, EXTRA_STATE_KEY, *_FACTS}
"""What each payload of this library has, and a file that was converted from one may lack."""
_OURS = {*PAYLOAD_KEYS.values(), EXTRA_STATE_KEY, *_FACTS}
_OURS_ALONE = {RNG_KEY, DATA_KEY, OTHERS_KEY, EXTRA_STATE_KEY}
_BYTE_ORDER = (
    "its tensors have the byte order of another kind of machine; load it there, and save it again as safetensors"
)


class TorchContents(NamedTuple):
    """What a file of ``torch.save`` holds, before a tensor is read."""

    value: Any
    """Nested dicts, lists and tuples of plain values, :class:`StoredTensor` and :class:`StoredObject`."""
    title: str = "a file of torch.save"
    obstacle: str | None = None
    """Why its tensors cannot be read; ``None`` if they can."""
    findings: tuple[str, ...] = ()
    writer: str | None = "torch"
    kind: str = "torch"


class TorchFile:
    """One file of ``torch.save``."""

    name = "torch"

    def recognises(self, files: FoundFiles) -> bool:
        return files.is_one_file and _is_torch(_start(plain_file(files)))

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        found = contents_of(plain_file(files))
        contents = found.value if isinstance(found.value, dict) else {WHOLE: found.value}
        kind, title = _kind_of(contents, found)
        mapped = own_payload(contents) if kind == OWN_KIND else to_payload(contents)
        return ForeignCheckpoint(
            kind=kind,
            title=title,
            files=files,
            contents=contents,
            payload=None if found.obstacle else mapped.payload,
            facts=replace(mapped.facts, writer=mapped.facts.writer or found.writer),
            obstacle=found.obstacle or mapped.obstacle,
            can_be_mapped=found.obstacle is None,
            left_out=mapped.left_out,
            findings=found.findings,
        )


def plain_file(files: FoundFiles, name: str = "") -> VerifiedFile:
    """Return a file, decompressed if it is one of this library's compressed files."""
    codec_name = codec_name_of(files.start(name))
    if codec_name is None:
        return files.open(name)
    check_compression()
    from ckpt_lib.formats.compressed import CODECS, PlainSource

    return PlainSource(files, CODECS[codec_name]).open(name)


def contents_of(file: VerifiedFile) -> TorchContents:
    """Describe what a file of ``torch.save`` holds. No tensor is read, and no code runs.

    Raises :class:`CorruptCheckpointError` for a file that is cut off or contradicts itself, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one that takes time or memory out of proportion.
    """
    start = _start(file)
    try:
        if start.startswith(_ZIP_START):
            return _zip_contents(file)
        return _legacy_contents(file) if is_legacy(start) else _pickle_contents(file)
    except UnsafePayloadError as error:
        error.hint = "Nothing was loaded, and no code was run."
        raise


def _start(file: VerifiedFile) -> bytes:
    with file.view(0, min(_START_BYTES, file.size_bytes)) as view:
        return bytes(view)


def _is_torch(start: bytes) -> bool:
    return start.startswith(_ZIP_START) or is_legacy(start) or _IS_PICKLE.match(start) is not None


def _legacy_contents(file: VerifiedFile) -> TorchContents:
    legacy = LegacyFile(file)
    return TorchContents(
        legacy.value, "a legacy file of torch.save", legacy.obstacle, legacy.findings, kind="torch-legacy"
    )


def _pickle_contents(file: VerifiedFile) -> TorchContents:
    if file.size_bytes > max_structure_bytes(0):
        raise unsafe(f"it is a pickle of more than {max_structure_bytes(0)} bytes")
    described = describe(file.readall(), find_reference=no_reference, stored=no_tensor)
    return TorchContents(described.value, "a pickle", _NO_FORMAT, described.findings, writer=None, kind="pickle")


def _zip_contents(file: VerifiedFile) -> TorchContents:
    place = find_directory(file)
    with file.view(place.start, place.stop) as directory:
        if _SCRIPT_RECORD.search(directory):
            return TorchContents(
                {},
                "a TorchScript archive",
                "it holds a program with its weights; load it with torch.jit.load, and save its state_dict()",
                kind="torchscript",
            )
    return _Archive(file).contents()


class _Archive:
    """A zip archive of torch, whose pickle refers to its records."""

    def __init__(self, file: VerifiedFile) -> None:
        self._archive = TorchArchive(file)
        self._storages = Storages(file, self._range_of)
        self._sizes_bytes: dict[str, int] = {}

    def contents(self) -> TorchContents:
        records, size_bytes = self._archive.record_count, self._archive.record(_PICKLE).size_bytes
        if size_bytes > max_structure_bytes(records):
            raise unsafe(f"its structure is longer than {max_structure_bytes(records)} bytes")
        data = self._archive.bytes_of(_PICKLE)
        described = describe(data, find_reference=self._find, stored=self._storages.stored, records=records)
        obstacle = None if self._archive.has_native_byte_order else _BYTE_ORDER
        return TorchContents(described.value, obstacle=obstacle, findings=described.findings)

    def _range_of(self, record: str) -> tuple[int, int]:
        start = self._archive.start_of(record)
        return start, start + self._archive.record(record).size_bytes

    def _find(self, key: Any) -> Storage:
        """Return the storage that a persistent id refers to, which is as large in the file as the pickle says."""
        storage = storage_of(key)
        if storage.size_bytes > self._archive.record(storage.record).size_bytes:
            raise CorruptCheckpointError(f"the record {shown(storage.record)} is too short for its tensors")
        if storage.size_bytes > self._sizes_bytes.setdefault(storage.record, storage.size_bytes):
            raise CorruptCheckpointError(f"the record {shown(storage.record)} is described in two ways")
        return storage


def _kind_of(contents: Mapping[str, Any], found: TorchContents) -> tuple[str, str]:
    if "pytorch-lightning_version" in contents:
        return "lightning", "a Lightning checkpoint"
    if contents.keys() >= _WHOLE or _is_converted(contents):
        return OWN_KIND, "a checkpoint of this library without its manifest"
    return found.kind, found.title


def _is_converted(contents: Mapping[str, Any]) -> bool:
    """Tell whether a file has our keys alone, and one that training scripts do not use, or use for something else."""
    alone = _OURS_ALONE & contents.keys()
    is_named_so = MODEL_KEY in contents and contents.keys() <= _OURS and bool(alone)
    return is_named_so and all(isinstance(contents[key], Mapping | list) for key in alone)
