"""The legacy format of ``torch.save``: what it wrote before version 1.6, and what it writes on request.

It is a row of pickles: a magic number, a version, facts about the machine, what was saved, and the keys of its
storages. The bytes of each storage follow, in the order of the keys, after their count in eight bytes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.wording import shown, size_text
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.opcodes import Draft
from ckpt_lib.foreign.pickles import Described, describe, no_reference, no_tensor
from ckpt_lib.foreign.storages import Storages
from ckpt_lib.formats.torch.limits import max_structure_bytes, unsafe
from ckpt_lib.formats.torch.tensor_specs import Storage, storage_of
from ckpt_lib.stream import VerifiedFile

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAGIC_PICKLE = re.compile(
    rb"(?:\x80[\x02-\x05])?(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19|L%dL?\n" % _MAGIC, re.DOTALL
)
_HEAD_BYTES = 2**16
_COUNT_BYTES = 8
_KEYS_BYTES_EACH = 64


def is_legacy(start: bytes) -> bool:
    """Tell whether a file begins as one of the legacy format, in any protocol of pickles."""
    return _MAGIC_PICKLE.match(start) is not None


class LegacyFile:
    """One file of the legacy format. The constructor reads and checks everything but the bytes of tensors.

    Raises :class:`CorruptCheckpointError` for a file that is cut off or contradicts itself, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one that takes time or memory out of proportion.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self._file = file
        self._position = 0
        self._storages: dict[str, tuple[Storage, int]] = {}  # as first met, with the number of elements
        self._ranges: dict[str, tuple[int, int]] = {}
        self._memory = Storages(file, self._ranges.__getitem__)
        self._check_head()
        described = self._next(max_structure_bytes(0), self._find, self._memory.stored)
        self.value = described.value
        self._place_storages()
        self.findings = (*described.findings, *self._behind())

    @property
    def obstacle(self) -> str | None:
        """Say why tensors cannot be read on this machine; ``None`` if they can."""
        if sys.byteorder == "little":  # as the format always is
            return None
        return "its tensors have the byte order of another kind of machine"

    def _check_head(self) -> None:
        magic, version = self._plain(), self._plain()
        if magic != _MAGIC or version != _VERSION:
            raise CorruptCheckpointError("it does not begin as a file of torch.save", got=shown((magic, version)))
        if not isinstance(self._plain(), Mapping):
            raise CorruptCheckpointError("it says nothing about the machine that wrote it")

    def _plain(self, most_bytes: int = _HEAD_BYTES) -> Any:
        return self._next(most_bytes, no_reference, no_tensor).value

    def _next(self, most_bytes: int, find_reference: Any, stored: Any) -> Described:
        """Describe the next pickle of the row."""
        stop = min(self._position + most_bytes, self._file.size_bytes)
        with self._file.view(self._position, stop) as view:
            described = describe(bytes(view), find_reference=find_reference, stored=stored)
        self._position += described.end
        return described

    def _find(self, key: Any) -> Any:
        """Return the storage that a persistent id refers to, or the class of a module, which has its source with it."""
        match key:
            case ("module", Draft() as module, _, _):
                return module
            case ("storage", _, str(name), _, int(count), None):
                storage = storage_of(key[:5])
                known, _ = self._storages.setdefault(name, (storage, count))
                if known.size_bytes != storage.size_bytes:
                    raise CorruptCheckpointError(f"the storage {shown(name)} is described in two ways")
                return storage
            case ("storage", _, str(), _, int(), tuple()):
                return Draft("torch.storage.view").made(key[2:])
        raise unsafe("it refers to an object that is no storage")

    def _place_storages(self) -> None:
        """Find where the bytes of each storage lie. Each count must be that of the pickle, and within the file."""
        keys = self._plain(_HEAD_BYTES + _KEYS_BYTES_EACH * len(self._storages))
        if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys):
            raise CorruptCheckpointError("its list of storages is damaged")
        if missing := self._storages.keys() - set(map(str, keys)):
            raise CorruptCheckpointError(f"it has no bytes of the storage {shown(min(missing))}")
        for key in map(str, keys):
            if key not in self._storages:
                raise CorruptCheckpointError(f"it has the bytes of a storage that nothing refers to: {shown(key)}")
            storage, count = self._storages[key]
            start = self._position + _COUNT_BYTES
            stop = start + storage.size_bytes
            if stop > self._file.size_bytes:
                raise CorruptCheckpointError(
                    f"it is cut off in the storage {shown(key)}",
                    expected=f"{stop} bytes or more",
                    got=f"{self._file.size_bytes} bytes",
                )
            with self._file.view(self._position, start) as view:
                found = int.from_bytes(view, "little", signed=True)
            if found != count:
                raise CorruptCheckpointError(
                    f"the storage {shown(key)} has another size than its tensors", expected=count, got=found
                )
            self._ranges[storage.record] = start, stop
            self._position = stop

    def _behind(self) -> tuple[str, ...]:
        rest = self._file.size_bytes - self._position
        return (f"{size_text(rest)} follow its last tensor, which nothing refers to.",) if rest else ()
