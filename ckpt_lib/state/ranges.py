"""Finds the bytes of storages that a payload needs: each byte once, however many tensors share it.

PyTorch stores all the memory that a tensor is a view of, so a small view of a large tensor makes a large file. Here a
storage counts from the first to the last byte that some tensor of the payload uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ckpt_lib.state.memory import ALIGNMENT_BYTES, byte_view, check_memory, extent_bytes, lost_memory
from ckpt_lib.state.tree import tensors_in

_TENSORS = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is an ordinary strided view of its storage, described completely by shape and strides."""
    return (
        type(tensor) in _TENSORS
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not (tensor.is_quantized or tensor.is_meta or tensor.is_conj() or tensor.is_neg() or tensor.__dict__)
    )


class StorageRange:
    """The bytes ``start`` to ``stop`` of one storage, and the tensors in them."""

    __slots__ = ("_size_bytes", "start", "stop", "storage", "tensors")

    def __init__(self, storage: torch.UntypedStorage, start: int, stop: int, tensors: list[torch.Tensor]) -> None:
        self.storage = storage
        self.start = start
        self.stop = stop
        self.tensors = tensors
        self._size_bytes: int | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of all tensors in the range, or ``None`` when they differ."""
        first = self.tensors[0].dtype
        if len(self.tensors) == 1 or all(tensor.dtype is first for tensor in self.tensors):
            return first
        return None

    @property
    def is_non_contiguous(self) -> bool:
        """True when its only tensor skips bytes between the first and the last, as a column of a matrix does."""
        return self.size_bytes < self.stop - self.start

    @property
    def is_cpu_block(self) -> bool:
        """True when the bytes to store are one block of CPU memory, which can be copied without PyTorch."""
        return not self.is_non_contiguous and self.storage.device.type == "cpu"

    @property
    def size_bytes(self) -> int:
        """The number of bytes to store."""
        if self._size_bytes is None:
            self._size_bytes = self.stop - self.start
            used = self.tensors[0].nbytes if len(self.tensors) == 1 else 0
            if 0 < used <= self._size_bytes - ALIGNMENT_BYTES:
                self._size_bytes = used
        return self._size_bytes

    def dense(self) -> torch.Tensor:
        """Return the bytes to store as a one-dimensional tensor. Only a non-contiguous tensor is copied."""
        if self.is_non_contiguous:
            check_memory(self.tensors[0])
            return byte_view(self.tensors[0].detach().contiguous().untyped_storage(), 0, self.size_bytes)
        return byte_view(self.storage, self.start, self.stop)

    def view_of(self, tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
        """Return the offset of ``tensor`` in the dense bytes, counted in its elements, and its strides there."""
        if self.is_non_contiguous:
            return 0, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta").stride()
        if tensor.numel() == 0:  # its offset is arbitrary, even past the end
            return 0, tensor.stride()
        return int(tensor.storage_offset()) - self.start // tensor.itemsize, tensor.stride()


class StorageRanges:
    """The storage ranges of one payload. Storages are distinguished by address, tensors by identity.

    The constructor raises as :func:`~ckpt_lib.state.memory.check_memory` does.
    """

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._ranges: dict[tuple[Any, ...], StorageRange] = {}
        self._of_tensor: dict[int, StorageRange] = {}  # the ranges hold the tensors, so no id is reused
        for tensor in tensors_in(payload):
            if id(tensor) not in self._of_tensor and is_plain(tensor):
                self._of_tensor[id(tensor)] = self._add(tensor)

    def __iter__(self) -> Iterator[StorageRange]:
        return iter(self._ranges.values())

    def _add(self, tensor: torch.Tensor) -> StorageRange:
        storage, start, stop = _used(tensor)
        key = _storage_key(storage, tensor.dtype)
        found = self._ranges.get(key)
        if found is None:
            found = self._ranges[key] = StorageRange(storage, start, stop, [tensor])
            return found
        found.tensors.append(tensor)
        if start < stop:
            is_empty = found.start == found.stop
            found.start = start if is_empty else min(found.start, start)
            found.stop = stop if is_empty else max(found.stop, stop)
            if storage.nbytes() > found.storage.nbytes():
                found.storage = storage
        return found

    def of(self, tensor: torch.Tensor) -> StorageRange:
        """Return the range of a plain tensor. A tensor inside an object, which no range covers, gets a new range."""
        if found := self._of_tensor.get(id(tensor)):
            return found
        storage, start, stop = _used(tensor)
        found = self._ranges.get(_storage_key(storage, tensor.dtype))
        if found is not None and start == stop:  # an empty tensor fits anywhere
            return found
        if found is None or start < found.start or stop > found.stop:
            return StorageRange(storage, start, stop, [tensor])
        return found


def _used(tensor: torch.Tensor) -> tuple[torch.UntypedStorage, int, int]:
    """Return the storage of a plain tensor and the bytes that the tensor uses of it."""
    storage = tensor.untyped_storage()
    start, stop = extent_bytes(tensor)
    if stop > storage.nbytes():
        raise lost_memory("a tensor", stop, storage)
    return storage, start, stop


def _storage_key(storage: torch.UntypedStorage, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return what identifies a storage. Two objects for the same memory have one key."""
    return (storage.device, storage.data_ptr()) if storage.nbytes() else (storage.device, 0, dtype)
