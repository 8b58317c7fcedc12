"""Writes the file that ``torch.save`` writes, as one stream.

``torch.save`` takes each tensor's checksum before it hands out the first byte of it, so that nothing else can go on
meanwhile, and stores the whole memory around a view. Here a tensor goes out block by block, and only the bytes that
some tensor uses. The file is of the same kind: a zip archive of uncompressed records, of which ``data.pkl`` says what
there is and ``data/0``, ``data/1``, … hold the bytes of one storage each, aligned for mapping (PyTorch's
"Serialization semantics" and ``torch/serialization.py``). Storages are marked as the processor's, whichever device
they were on, so that the file loads on any machine.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ckpt_lib.errors import UnsafePayloadError, UnsupportedStateError
from ckpt_lib.formats.base import Payload
from ckpt_lib.formats.torch.collection import CollectionPause
from ckpt_lib.formats.torch.pickle_checking import max_steps, max_structure_bytes
from ckpt_lib.formats.torch.reading import check_structure
from ckpt_lib.formats.torch.zip_writing import ZipWriter, archive_size_bytes
from ckpt_lib.state.spans import Span, Spans, address_of, byte_view, check_memory, is_plain
from ckpt_lib.stream import BLOCK_SIZE_BYTES, HashingWriter

_PICKLE_PROTOCOL = 2  # the one that torch.load(weights_only=True) reads

_SMALL_BYTES = 2**16

_STORAGE_TYPES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
    torch.complex64: torch.ComplexFloatStorage,
    torch.complex128: torch.ComplexDoubleStorage,
}


class Archive:
    """A payload laid out as the records of an archive, before any of it is written."""

    def __init__(self, payload: Payload) -> None:
        structure = io.BytesIO()
        with CollectionPause():
            pickler = _Pickler(structure, Spans(payload))
            pickler.dump(payload)
        _check_length(structure, len(pickler.records))
        self._head: dict[str, bytes | memoryview] = {
            "archive/data.pkl": structure.getbuffer(),
            "archive/byteorder": sys.byteorder.encode(),
        }
        self._spans = {f"archive/data/{number}": span for number, span in enumerate(pickler.records)}
        self._tail: dict[str, bytes | memoryview] = {"archive/version": b"3\n"}

    @property
    def size_bytes(self) -> int:
        """How large the file will be, to the byte."""
        head, tail = ([(name, len(data)) for name, data in part.items()] for part in (self._head, self._tail))
        return archive_size_bytes([*head, *((name, span.size_bytes) for name, span in self._spans.items()), *tail])

    def write(self, stream: HashingWriter) -> None:
        """Write it to ``stream`` from start to end; no tensor is copied as a whole, but for gappy views."""
        archive = ZipWriter(stream)
        for name, data in self._head.items():
            archive.write(name, len(data), [data])
        for name, span in self._spans.items():
            if _is_small(span):
                archive.write_small(
                    name, ctypes.string_at(address_of(span.storage, span.start, span.stop), span.size_bytes)
                )
            else:
                archive.write(name, span.size_bytes, _blocks(span.dense()))
        for name, data in self._tail.items():
            archive.write(name, len(data), [data])
        archive.finish()


def _check_length(structure: io.BytesIO, records: int) -> None:
    """Refuse what no reader would take: a structure shorter than the number of steps allowed cannot be too long."""
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
    """Stands for a record where a pickle of PyTorch's has a storage."""

    key: str
    dtype: torch.dtype | None
    size_bytes: int

    def persistent_id(self) -> tuple[Any, ...]:
        if self.dtype is None:
            return ("storage", torch.UntypedStorage, self.key, "cpu", self.size_bytes)
        return ("storage", _STORAGE_TYPES[self.dtype], self.key, "cpu", self.size_bytes // self.dtype.itemsize)


_STORAGES = (_StorageReference, torch.storage.TypedStorage, torch.UntypedStorage)


class _Pickler(pickle.Pickler):
    """Pickles the structure, with a reference to a record in the place of each storage."""

    def __init__(self, file: io.BytesIO, spans: Spans) -> None:
        super().__init__(file, _PICKLE_PROTOCOL)
        self._spans = spans
        self._keys: dict[Any, str] = {}
        self.records: list[Span] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not is_plain(value):
            return NotImplemented
        if type(value) is torch.nn.Parameter:
            return torch._utils._rebuild_parameter, (value.data, value.requires_grad, None)
        span = self._spans.of(value)
        offset, stride = span.place_of(value)
        dtype = span.dtype
        if dtype not in _STORAGE_TYPES:
            dtype = None
        reference = _StorageReference(self._key(id(span), span), dtype, span.size_bytes)
        # None stands for the hooks, which are never saved: an OrderedDict, as of torch.save, takes a tenth of the file.
        arguments: tuple[Any, ...] = (reference, offset, tuple(value.shape), stride, value.requires_grad, None)
        if dtype is None:  # of no one type, or of one that has no storage class
            if value.requires_grad:
                raise UnsupportedStateError(
                    f"a {value.dtype} tensor that requires grad cannot be read back by torch.load",
                    expected="one of a classic type whose memory is seen as no other type",
                    hint="Store its detach().",
                )
            return torch._utils._rebuild_tensor_v3, (*arguments, value.dtype)
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, _STORAGES):  # asked of every number and text, too
            return None
        if isinstance(value, _StorageReference):
            return value.persistent_id()
        if isinstance(value, torch.storage.TypedStorage):
            return self._whole(value._untyped_storage, value.dtype)
        return self._whole(value, None)

    def _whole(self, storage: torch.UntypedStorage, dtype: torch.dtype | None) -> tuple[Any, ...]:
        """The storage of a tensor that PyTorch itself takes apart: a quantized one, say."""
        key = self._key((storage.data_ptr(), storage.nbytes(), dtype), _whole_span(storage))
        if dtype in _STORAGE_TYPES or dtype is None:
            return _StorageReference(key, dtype, storage.nbytes()).persistent_id()
        # torch has no public name for these: the storages of quantized tensors.
        typed: Any = torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
        return ("storage", getattr(torch, typed._pickle_storage_type()), key, "cpu", storage.nbytes() // dtype.itemsize)

    def _key(self, identity: Any, span: Span) -> str:
        if identity not in self._keys:
            self._keys[identity] = str(len(self.records))
            self.records.append(span)
        return self._keys[identity]


def _whole_span(storage: torch.UntypedStorage) -> Span:
    return Span(storage, 0, storage.nbytes(), [byte_view(storage, 0, storage.nbytes())])


def _is_small(span: Span) -> bool:
    """Whether reading its memory directly costs less than asking PyTorch for a view of it."""
    return (
        span.size_bytes <= _SMALL_BYTES
        and not span.is_gappy
        and span.storage.device.type == "cpu"
        and span.stop <= span.storage.nbytes()
    )


def _blocks(data: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a one-dimensional tensor, a block at a time: a device has no second copy of it in our memory."""
    for start in range(0, len(data), BLOCK_SIZE_BYTES):
        check_memory(data)  # another thread may have freed it since
        # Not Tensor.numpy(), after which the memory, training's own, could never be resized again.
        yield np.from_dlpack(data[start : start + BLOCK_SIZE_BYTES].cpu()).data
