"""Describes what a pickle holds, without code: tensors as they are stored, and of unknown objects what is said of them.

The pickle is executed step by step in bounded time and memory (:mod:`ckpt_lib.foreign.opcodes`). Then its drafts become
:class:`StoredTensor` and :class:`StoredObject`. What that returns never contains itself: where an object refers to one
that it is part of, as a module may to its parent, only the name of its class is left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.foreign.base import StoredObject, StoredTensor
from ckpt_lib.foreign.dangerous_names import finding_of, runs_commands
from ckpt_lib.foreign.library_objects import simplified
from ckpt_lib.foreign.opcodes import Draft, DraftingUnpickler
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.torch.limits import max_structure_bytes, unsafe
from ckpt_lib.formats.torch.pickle_checking import Unknown
from ckpt_lib.formats.torch.tensor_specs import Immutable, SpecPass, Storage, TensorSpec, name_finder

_MAX_LEVELS = 120  # a module takes three: its object, its attributes, and its parts by name
_MAX_SHARED_FACTOR, _MAX_UNSHARED = 2, 200_000
"""How much longer a structure may become when every shared part, and what it holds, is written out in full."""
_MAX_NAME_CHARACTERS = 2**27
"""How long all names of its parts may be together: each begins with those of all that it is within."""
_PARTS_ALLOWED, _PARTS_A_RECORD = 50_000, 60
"""How many containers and objects there may be: whoever looks at a checkpoint walks through them several times."""
_LEAVES = {str, int, float, bool, type(None), complex, bytes, bytearray, torch.dtype, torch.device}
UNTYPED_STORAGE = "torch.storage.UntypedStorage"


class Described(NamedTuple):
    """What a pickle holds, and where in its bytes it ends."""

    value: Any
    end: int
    findings: tuple[str, ...]
    """What is suspicious about the names in it."""


def describe(
    data: bytes,
    *,
    find_reference: Callable[[Any], Any],
    stored: Callable[[TensorSpec], StoredTensor],
    records: int = 0,
) -> Described:
    """Return what a pickle holds. ``find_reference`` finds storages by persistent id; ``stored`` says how to read them.

    Raises :class:`CorruptCheckpointError` for bytes that are no pickle, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one that takes time or memory out of proportion.
    """
    if len(data) > max_structure_bytes(records):
        raise unsafe(f"its structure is longer than {max_structure_bytes(records)} bytes")
    names = _Names()
    unpickler = DraftingUnpickler(data, find_name=names.find, find_reference=find_reference, records=records)
    try:
        with CollectionPause():
            value = _Settling(stored, _PARTS_ALLOWED + _PARTS_A_RECORD * records).settled(unpickler.execute(), 0)
            return Described(value, unpickler.end, names.findings())
    except (CheckpointError, MemoryError, torch.OutOfMemoryError):
        raise
    except RecursionError as error:
        raise unsafe("its structure is nested too deeply") from error
    except Exception as error:  # bytes that are no pickle raise errors of many types
        raise CorruptCheckpointError(f"its pickle is damaged: {shown(error)}") from error


def no_reference(key: Any) -> Any:
    """Refuse the persistent ids of a pickle that has no storages. Raises :class:`CorruptCheckpointError`."""
    raise CorruptCheckpointError(f"a pickle refers to a storage where there is none: {shown(key)}")


def no_tensor(_: TensorSpec) -> StoredTensor:
    """Refuse the tensors of a pickle that has no storages. Raises :class:`CorruptCheckpointError`."""
    raise CorruptCheckpointError("a tensor is where a number or a name should be")


class _Names:
    """Finds what names stand for, and remembers those that no checkpoint needs."""

    def __init__(self) -> None:
        self._known = name_finder(SpecPass())
        self._dangerous: dict[str, None] = {}

    def find(self, module: str, name: str) -> Any:
        found, whole = self._known(module, name), f"{module}.{name}"
        if runs_commands(whole):
            self._dangerous[whole] = None
        if isinstance(found, Unknown):
            return Draft(whole)
        return Draft(whole, found) if callable(found) else found

    def findings(self) -> tuple[str, ...]:
        return (finding_of(self._dangerous),) if self._dangerous else ()


class _Settling:
    """Turns drafts into what is stored. What is shared stays shared."""

    def __init__(self, stored: Callable[[TensorSpec], StoredTensor], max_parts: int) -> None:
        self._stored = stored
        self._max_parts = max_parts
        self._done: dict[int, tuple[Any, Any, int]] = {}  # by id: what it was, what it became, its unshared size
        self._open: set[int] = set()
        self._entries = 0
        self._prefix = 0  # how long the name of what is being settled is
        self._name_characters = 0

    def settled(self, item: Any, level: int) -> Any:
        """Return the item as it is stored. Raises :class:`~ckpt_lib.errors.UnsafePayloadError` for an endless one."""
        if type(item) in _LEAVES:
            return item
        found, size = self._settle(item, level)
        if not level and size > _MAX_UNSHARED + _MAX_SHARED_FACTOR * self._entries:
            raise unsafe("its structure repeats itself without end")
        return found

    def _settle(self, item: Any, level: int) -> tuple[Any, int]:
        identity = id(item)
        if identity in self._done:
            _, found, size = self._done[identity]
            return found, size
        if identity in self._open:
            if isinstance(item, Draft):
                return StoredObject(item.name), 1
            raise unsafe("a container in it contains itself")
        if level > _MAX_LEVELS:
            raise unsafe(f"its structure is nested more than {_MAX_LEVELS} levels deep")
        self._open.add(identity)
        if len(self._done) >= self._max_parts:
            raise unsafe(f"its structure has more than {self._max_parts} parts")
        found, size = self._converted(item, level + 1)
        self._open.discard(identity)
        self._done[identity] = (item, found, size)
        return found, size

    def _converted(self, item: Any, level: int) -> tuple[Any, int]:
        if isinstance(item, TensorSpec):
            return self._stored(item), 1
        if isinstance(item, Storage):
            return StoredObject(UNTYPED_STORAGE, (f"{item.size_bytes} bytes",)), 1
        if isinstance(item, Draft):
            return self._object(item, level)
        if isinstance(item, dict):
            return self._dict(item, level)
        if isinstance(item, torch.Size) or not isinstance(item, list | tuple | set):
            return (StoredObject(type(item).__name__) if isinstance(item, Immutable) else item), 1
        parts, size = self._parts(list(item), level)
        return type(item)(parts), size

    def _parts(self, items: list[Any], level: int) -> tuple[list[Any], int]:
        self._entries += len(items) + 1
        self._name_characters += self._prefix * len(items)
        if self._name_characters > _MAX_NAME_CHARACTERS:
            raise unsafe("the names of its parts are too long")
        size = len(items) + 1
        if _LEAVES.issuperset(map(type, items)):
            return items, size
        parts = []
        for item in items:
            found, part_size = (item, 0) if type(item) in _LEAVES else self._settle(item, level)
            parts.append(found)
            size += part_size
        return parts, size

    def _dict(self, item: dict[Any, Any], level: int) -> tuple[dict[Any, Any], int]:
        keys, keys_size = self._parts(list(item), level)
        longest = max(
            (len(key) for key, value in item.items() if type(key) is str and type(value) not in _LEAVES), default=0
        )
        self._prefix += longest
        values, values_size = self._parts(list(item.values()), level)
        self._prefix -= longest
        settled = type(item)(zip(keys, values, strict=True))
        size = keys_size + values_size
        if isinstance(item, OrderedDict) and vars(item):
            attributes, attributes_size = self._dict(vars(item), level + 1)
            vars(settled).update(attributes)
            size += attributes_size
        return settled, size

    def _object(self, item: Draft, level: int) -> tuple[Any, int]:
        (arguments, state, entries), size = self._parts([item.arguments, item.state, item.entries], level)
        stored = StoredObject(item.name, arguments, state, entries)
        return (simplified(stored) if item.is_made else stored), size
