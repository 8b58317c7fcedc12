"""Reads a torch file without copying it: its tensors are views of the verified, mapped bytes.

The pickle in the file is executed twice. The first time, :class:`PickleChecker` runs it step by step, in bounded time
and memory, and describes every tensor. So it is known what the payload holds, and that each tensor fits into its
record, before a byte of a tensor is read. The second time, the requested tensors are built. A payload with names that
are not on our list is left to ``torch.load``, once the rest of it has been checked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.formats.base import Payload
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.selection import select
from ckpt_lib.formats.torch.archive import TorchArchive
from ckpt_lib.formats.torch.limits import max_structure_bytes, unsafe
from ckpt_lib.formats.torch.pickle_checking import PickleChecker, UnusualPayloadError
from ckpt_lib.formats.torch.tensor_specs import (
    BuildPass,
    Immutable,
    SpecPass,
    Storage,
    TensorSpec,
    TensorUnpickler,
    name_finder,
    storage_of,
)
from ckpt_lib.stream import VerifiedFile

_PICKLE = "data.pkl"
_ALIGNMENT_BYTES = 16  # the size of the widest element, a complex128


class _Builder:
    """Builds the chosen tensors in the pickle's order. Tensors that shared a storage share it again."""

    def __init__(self, archive: TorchArchive, chosen: Iterable[TensorSpec | None], device: torch.device) -> None:
        self._archive = archive
        self._chosen = iter(chosen)
        self._device = device
        self._storages: dict[str, torch.UntypedStorage] = {}

    def __call__(self) -> torch.Tensor | None:
        spec = next(self._chosen)
        if spec is None:
            return None
        tensor = torch.empty(0, dtype=spec.dtype, device=self._device)
        tensor.set_(self._storage(spec.storage), spec.offset, spec.size, spec.stride)
        if spec.is_conjugate:
            tensor = tensor.conj()
        return tensor.requires_grad_() if spec.requires_grad else tensor

    def _storage(self, storage: Storage) -> torch.UntypedStorage:
        found = self._storages.get(storage.record)
        if found is None:
            found = self._storages[storage.record] = self._open(storage.record)
        return found

    def _open(self, record: str) -> torch.UntypedStorage:
        view = self._archive.view(record)
        if not view:
            return torch.empty(0, dtype=torch.uint8, device=self._device).untyped_storage()
        elements = torch.frombuffer(view, dtype=torch.uint8)
        if self._device.type != "cpu":
            elements = elements.to(self._device)
        elif elements.data_ptr() % _ALIGNMENT_BYTES:  # torch aligns its records; other programs may not
            elements = elements.clone()
        return elements.untyped_storage()


class TorchReader:
    """One payload, whose structure is known and checked before any tensor's bytes are read.

    ``unusual`` tells why only ``torch.load`` can read the payload. It is ``None`` for any other. The constructor raises
    :class:`CorruptCheckpointError` for a file that is no torch file or contradicts itself, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one that would run code, or take memory or time out of proportion.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self._archive = TorchArchive(file)
        records = self._archive.record_count
        if self._archive.record(_PICKLE).size_bytes > max_structure_bytes(records):
            raise unsafe(f"its structure is longer than {max_structure_bytes(records)} bytes")
        self._pickle = self._archive.bytes_of(_PICKLE)
        self._named: list[tuple[str, TensorSpec]] = []
        self._size_bytes: dict[str, int] = {}
        described = SpecPass()
        checker = PickleChecker(
            self._pickle, records=records, find_name=name_finder(described), find_reference=self._find_storage
        )
        self._outline = checker.load()
        self._specs = described.specs
        self.unusual = checker.unusual or self._unusual_part()

    def _find_storage(self, key: Any) -> Storage:
        storage = storage_of(key)
        if storage.size_bytes > self._archive.record(storage.record).size_bytes:
            raise CorruptCheckpointError(f"the record {shown(storage.record)} is too short for its tensors")
        if storage.size_bytes > self._size_bytes.setdefault(storage.record, storage.size_bytes):
            raise CorruptCheckpointError(f"the record {shown(storage.record)} is described in two ways")
        return storage

    def _unusual_part(self) -> str | None:
        if not self._archive.has_native_byte_order:
            return "another byte order"
        if type(self._outline) is not dict:
            return "not a dict"
        try:
            self._named += _named_specs(self._outline)
        except UnusualPayloadError as error:
            return str(error)
        return None

    def _require_usual(self) -> None:
        if self.unusual is not None:
            raise UnusualPayloadError(self.unusual)

    def check_heads(self) -> None:
        """Compare the headers of all records with the directory."""
        self._archive.check_heads()

    def outline(self) -> Payload:
        """Return the payload with a spec instead of each tensor. The headers of all records are checked."""
        self._require_usual()
        self._archive.check_heads()
        return dict(self._outline)

    def _load(self, build: Callable[[], torch.Tensor | None]) -> dict[str, Any]:
        try:
            with CollectionPause():
                loaded: dict[str, Any] = TensorUnpickler(self._pickle, BuildPass(build)).load()
        except (CheckpointError, UnusualPayloadError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # errors of many types, which torch explains better
            raise UnusualPayloadError("not a pickle of torch") from error
        return loaded

    def read(self, keys: Collection[str] | None, device: torch.device | None) -> Payload:
        """Verify and build the whole payload, or what ``keys`` name of it. CPU tensors are views of the file's memory.

        Without a device, each tensor goes where it was saved. Raises :class:`UnusualPayloadError` where only
        ``torch.load`` can read it, :class:`~ckpt_lib.errors.ConfigError` for a key that names nothing, and
        :class:`CorruptCheckpointError` with all damage of the requested tensors.
        """
        self._require_usual()
        if keys is None:
            self._archive.check_heads()  # as validation does: a payload that it calls damaged is not loaded
        named = self._named if keys is None else _named_specs(select(self._outline, keys))
        wanted = {id(spec): spec for _, spec in named}
        self._archive.require({spec.storage.record for spec in wanted.values()})
        if device is None and any(spec.storage.device != "cpu" for spec in wanted.values()):
            raise UnusualPayloadError("tensors that return to their devices")
        chosen = [spec if id(spec) in wanted else None for spec in self._specs]
        return select(self._load(_Builder(self._archive, chosen, device or torch.device("cpu"))), keys)

    def tensor_ranges(self) -> dict[str, list[tuple[int, int]]]:
        """Map each tensor's name to its bytes in the file; to the whole record where the header of that is damaged."""
        self._require_usual()
        starts = {spec.storage.record: self._start_of(spec.storage.record) for spec in self._specs}
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name, spec in self._named:
            record, start = self._archive.record(spec.storage.record), starts[spec.storage.record]
            first, last = spec.range_bytes
            found = (record.start, record.stop) if start is None else (start + first, start + last)
            ranges.setdefault(name, []).append(found)
        return ranges

    def _start_of(self, record: str) -> int | None:
        try:
            return self._archive.start_of(record)
        except CorruptCheckpointError:
            return None


def tensor_ranges(file: VerifiedFile) -> dict[str, list[tuple[int, int]]]:
    """Map the name of each tensor, such as ``model_state_dict.layer.weight``, to its bytes in a torch file.

    Only directory and structure are read. Returns ``{}`` for a payload that only ``torch.load`` can read. Raises
    :class:`CorruptCheckpointError` when directory or structure are damaged.
    """
    try:
        return TorchReader(file).tensor_ranges()
    except UnusualPayloadError:
        return {}


def check_structure(data: bytes, records: int = 0) -> None:
    """Check a ``data.pkl`` as a reader would, before there is a file. Raises what :class:`TorchReader` raises."""
    PickleChecker(data, records=records, find_name=name_finder(SpecPass()), find_reference=storage_of).load()


_TRAVERSED = (dict, list, tuple, Immutable)


def _named_specs(value: Any) -> Iterator[tuple[str, TensorSpec]]:
    """Yield every tensor in nested containers with its dotted name; a tensor that occurs twice has two names.

    Raises :class:`UnusualPayloadError` for a part of a tensor, such as a storage, that is a value of its own.
    """
    waiting: list[tuple[str, Any]] = [("", value)]
    met: set[int] = set()
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, TensorSpec):
            yield name, item
        elif isinstance(item, Immutable):
            raise UnusualPayloadError("a storage, or a name of torch's, as a value")
        elif isinstance(item, dict | list | tuple) and id(item) not in met:
            met.add(id(item))
            before = f"{name}." if name else ""
            entries = [(key, entry) for key, entry in _entries(item) if isinstance(entry, _TRAVERSED)]
            waiting += [(f"{before}{key}", entry) for key, entry in reversed(entries)]


def _entries(item: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    if isinstance(item, OrderedDict):
        return [*item.items(), *vars(item).items()]  # the checker refused attributes that hide a method
    return item.items() if isinstance(item, dict) else enumerate(item)
