"""The memory of tensors in a file of torch, read when a tensor is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch

from ckpt_lib.foreign.base import Region, StoredTensor
from ckpt_lib.formats.structure.sharing import has_gaps
from ckpt_lib.formats.torch.tensor_specs import TensorSpec
from ckpt_lib.stream import VerifiedFile

_ALIGNMENT_BYTES = 16  # the size of the widest element, a complex128


class Storages:
    """The storages of one file. Tensors that shared one share it again, for as long as one of them lives."""

    def __init__(self, file: VerifiedFile, range_of: Callable[[str], tuple[int, int]]) -> None:
        self._file = file
        self._range_of = range_of
        self._opened: WeakValueDictionary[str, torch.UntypedStorage] = WeakValueDictionary()

    def stored(self, spec: TensorSpec) -> StoredTensor:
        """Return the tensor that a pickle describes, unread."""
        return StoredTensor(
            dtype=spec.dtype,
            shape=tuple(spec.size),
            memory=(self, spec.storage.record),
            read=lambda: self._read(spec),
            offset_bytes=spec.range_bytes[0],
            regions=lambda: self._regions(spec),
            memory_bytes=spec.storage.size_bytes,
        )

    def _regions(self, spec: TensorSpec) -> list[Region]:
        """Return the bytes of a tensor, unless other elements lie between its own, or some are several at once."""
        first, last = spec.range_bytes
        if has_gaps(spec.size, spec.stride) or last - first != math.prod(spec.size) * spec.dtype.itemsize:
            return []
        start, _ = self._range_of(spec.storage.record)
        return [Region(self._file, start + first, start + last)]

    def _read(self, spec: TensorSpec) -> torch.Tensor:
        tensor = torch.empty(0, dtype=spec.dtype, device="cpu")
        tensor.set_(self._storage(spec.storage.record), spec.offset, spec.size, spec.stride)
        if spec.is_conjugate:
            tensor = tensor.conj()
        return tensor.requires_grad_() if spec.requires_grad else tensor

    def _storage(self, record: str) -> torch.UntypedStorage:
        found = self._opened.get(record)
        if found is None:
            found = self._opened[record] = self._open(record)
        return found

    def _open(self, record: str) -> torch.UntypedStorage:
        view = self._file.view(*self._range_of(record))
        if not view:
            return torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage()
        elements = torch.frombuffer(view, dtype=torch.uint8)
        if elements.data_ptr() % _ALIGNMENT_BYTES:  # older versions of torch did not align what they wrote
            elements = elements.clone()
        return elements.untyped_storage()
