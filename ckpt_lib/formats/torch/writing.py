"""Writes the file that ``torch.save`` writes, as one stream.

``torch.save`` computes the checksum of a whole tensor before it writes the tensor's first byte, and stores all the
memory around a view. This writer emits a tensor block by block, and only the bytes that some tensor uses. The file is
of the same kind: a zip archive of uncompressed records. ``data.pkl`` describes the payload. ``data/0``, ``data/1``, …
hold the bytes of one storage each, aligned for mapping (PyTorch's "Serialization semantics" and
``torch/serialization.py``). All storages are marked as CPU storages, so that the file loads on any machine.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import sys
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lib.errors import UnsafePayloadError, UnsupportedStateError
from ckpt_lib.formats.base import Payload, PayloadSink
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.tensor_bytes import SMALL_BYTES, TensorStream, blocks_of
from ckpt_lib.formats.torch.limits import max_steps, max_structure_bytes
from ckpt_lib.formats.torch.reading import check_structure
from ckpt_lib.formats.torch.tensor_specs import QUANTIZED, STORAGE_DTYPES
from ckpt_lib.formats.torch.zip_writing import ZipWriter, archive_size_bytes
from ckpt_lib.state.memory import address_of, byte_view
from ckpt_lib.state.ranges import StorageRange, StorageRanges, is_plain
from ckpt_lib.stream import HashingWriter

_PICKLE_PROTOCOL = 2  # torch.load(weights_only=True) reads no other
_STORAGE_TYPES = {dtype: getattr(torch, name) for name, dtype in STORAGE_DTYPES.items() if dtype not in QUANTIZED}


class ArchiveLayout:
    """A payload laid out as the records of an archive, before any of it is written.

    A :class:`~ckpt_lib.formats.tensor_bytes.TensorStream` becomes a tensor, whose bytes are asked for in :meth:`write`.
    The constructor raises :class:`UnsupportedStateError` for a state with too many parts to be read back.
    """

    def __init__(self, payload: Payload) -> None:
        structure = io.BytesIO()
        with CollectionPause():
            pickler = _Pickler(structure, StorageRanges(payload))
            pickler.dump(payload)
        _check_length(structure, len(pickler.records))
        self._head: dict[str, bytes | memoryview] = {
            "archive/data.pkl": structure.getbuffer(),
            "archive/byteorder": sys.byteorder.encode(),
        }
        self._ranges = {f"archive/data/{number}": stored for number, stored in enumerate(pickler.records)}
        self._tail: dict[str, bytes | memoryview] = {"archive/version": b"3\n"}

    @property
    def size_bytes(self) -> int:
        """The exact size of the file."""
        head, tail = ([(name, len(data)) for name, data in part.items()] for part in (self._head, self._tail))
        return archive_size_bytes([*head, *((name, stored.size_bytes) for name, stored in self._ranges.items()), *tail])

    def write(self, sink: PayloadSink) -> None:
        """Write the one file of the payload."""
        with sink.open() as stream:
            self.write_to(stream)

    def write_to(self, stream: HashingWriter) -> None:
        """Write the file to ``stream`` from start to end. Only non-contiguous views are copied as a whole."""
        archive = ZipWriter(stream)
        for name, data in self._head.items():
            archive.write(name, len(data), [data])
        for name, stored in self._ranges.items():
            if isinstance(stored, TensorStream):
                archive.write(name, stored.size_bytes, stored.blocks())
            elif _is_small(stored):
                archive.write_small(
                    name, ctypes.string_at(address_of(stored.storage, stored.start, stored.stop), stored.size_bytes)
                )
            else:
                archive.write(name, stored.size_bytes, blocks_of(stored.dense()))
        for name, data in self._tail.items():
            archive.write(name, len(data), [data])
        archive.finish()


def _check_length(structure: io.BytesIO, records: int) -> None:
    """Refuse a structure that no reader would accept. One with fewer bytes than steps allowed needs no check."""
    size_bytes = len(structure.getbuffer())
    if size_bytes <= max_steps(records):
        return
    try:
        check_structure(structure.getvalue(), records)
    except UnsafePayloadError as error:
        raise UnsupportedStateError(
            f"the state has too many parts to be read back: {size_bytes} bytes describe them, beside {records} tensors",
            expected=f"at most {max_structure_bytes(records)} bytes and {max_steps(records)} steps",
            hint="Long texts, bytes and lists belong in tensors: torch.frombuffer(data, dtype=torch.uint8).",
        ) from error


@dataclass(frozen=True)
class _StorageReference:
    """The reference to a record that stands in the pickle instead of a storage."""

    key: str
    dtype: torch.dtype | None
    size_bytes: int

    def persistent_id(self) -> tuple[Any, ...]:
        if self.dtype is None:
            return ("storage", torch.UntypedStorage, self.key, "cpu", self.size_bytes)
        return ("storage", _STORAGE_TYPES[self.dtype], self.key, "cpu", self.size_bytes // self.dtype.itemsize)


_STORAGES = (_StorageReference, torch.storage.TypedStorage, torch.UntypedStorage)


class _Pickler(pickle.Pickler):
    """Pickles the structure of a payload, with a reference to a record instead of each storage."""

    def __init__(self, file: io.BytesIO, ranges: StorageRanges) -> None:
        super().__init__(file, _PICKLE_PROTOCOL)
        self._ranges = ranges
        self._keys: dict[Any, str] = {}
        self.records: list[StorageRange | TensorStream] = []

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, TensorStream):
            reference = self._reference(value, value.dtype)
            stride = torch.empty(value.shape, dtype=value.dtype, device="meta").stride()
            return _rebuilt(reference, 0, value.shape, stride, value.dtype, requires_grad=False)
        if not isinstance(value, torch.Tensor) or not is_plain(value):
            return NotImplemented
        if type(value) is torch.nn.Parameter:
            return torch._utils._rebuild_parameter, (value.data, value.requires_grad, None)
        stored = self._ranges.of(value)
        offset, stride = stored.view_of(value)
        reference = self._reference(stored, stored.dtype)
        return _rebuilt(reference, offset, tuple(value.shape), stride, value.dtype, requires_grad=value.requires_grad)

    def _reference(self, stored: StorageRange | TensorStream, dtype: torch.dtype | None) -> _StorageReference:
        known = dtype if dtype in _STORAGE_TYPES else None
        return _StorageReference(self._key(id(stored), stored), known, stored.size_bytes)

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, _STORAGES):  # first, since the pickler asks for every number and text
            return None
        if isinstance(value, _StorageReference):
            return value.persistent_id()
        if isinstance(value, torch.storage.TypedStorage):
            return self._whole(value._untyped_storage, value.dtype)
        return self._whole(value, None)

    def _whole(self, storage: torch.UntypedStorage, dtype: torch.dtype | None) -> tuple[Any, ...]:
        """Return the reference to a whole storage, of a tensor that PyTorch itself reduces, such as a quantized one."""
        key = self._key((storage.data_ptr(), storage.nbytes(), dtype), _whole_range(storage))
        if dtype in _STORAGE_TYPES or dtype is None:
            return _StorageReference(key, dtype, storage.nbytes()).persistent_id()
        # torch has no public name for the storages of quantized tensors.
        typed: Any = torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
        return ("storage", getattr(torch, typed._pickle_storage_type()), key, "cpu", storage.nbytes() // dtype.itemsize)

    def _key(self, identity: Any, stored: StorageRange | TensorStream) -> str:
        if identity not in self._keys:
            self._keys[identity] = str(len(self.records))
            self.records.append(stored)
        return self._keys[identity]


def _rebuilt(
    reference: _StorageReference,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    *,
    requires_grad: bool,
) -> tuple[Any, ...]:
    """Return how the pickle builds a tensor in the storage of ``reference``."""
    # Hooks are never saved. torch.save writes an empty OrderedDict for them, a tenth of a file of small tensors.
    arguments: tuple[Any, ...] = (reference, offset, shape, stride, requires_grad, None)
    if reference.dtype is not None:
        return torch._utils._rebuild_tensor_v2, arguments
    # Tensors of several types share the storage, or the type has no storage class.
    if requires_grad:
        raise UnsupportedStateError(
            f"a {dtype} tensor that requires grad cannot be read back by torch.load",
            expected="one of a classic type that shares no memory with tensors of another type",
            hint="Store its detach().",
        )
    return torch._utils._rebuild_tensor_v3, (*arguments, dtype)


def _whole_range(storage: torch.UntypedStorage) -> StorageRange:
    return StorageRange(storage, 0, storage.nbytes(), [byte_view(storage, 0, storage.nbytes())])


def _is_small(stored: StorageRange) -> bool:
    """Tell whether reading the memory directly is faster than asking PyTorch for a view of it."""
    return stored.size_bytes <= SMALL_BYTES and stored.is_cpu_block and stored.stop <= stored.storage.nbytes()
