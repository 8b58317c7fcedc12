"""Checkpoints as folders of ``.npy`` files, which NumPy alone opens, beside one JSON file.

Types that NumPy does not know, such as bfloat16, are stored as whole numbers of the same bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats import Payload, PayloadSink, PayloadSource
from ckpt_lib.formats.placing import Place
from ckpt_lib.formats.structure import (
    Entry,
    Home,
    StructureReader,
    TensorRef,
    parse,
    prepared,
    take_apart,
    write_tensor,
)

STRUCTURE = "structure.json"
_SUFFIX = ".npy"
_MAX_HEADER_BYTES = 4096
_WORDS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


class NpzFormat:
    """Reads and writes folders of ``.npy`` files."""

    name = "npz"
    suffix = "/"

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        return prepared(payload)

    def lay_out(self, payload: Payload) -> _Layout:
        return _Layout(payload)

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keys: Collection[str] | None = None,
    ) -> Payload:
        place = Place(map_location)
        if keys is None:
            for name in source.names:
                source.open(name).require_all()
        return _reader(source).read(keys, place)

    def inspect(self, source: PayloadSource) -> Payload:
        return _reader(source).outline()

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        return _reader(source).tensor_ranges(name) if name.endswith(_SUFFIX) else {}


class _Layout:
    def __init__(self, payload: Payload) -> None:
        structured = take_apart(payload)
        self._tensors = structured.tensors
        types = [str(tensor.dtype).removeprefix("torch.") for tensor in self._tensors.values()]
        self._text = structured.text({"types": types})

    @property
    def size_bytes(self) -> int:
        arrays = sum(len(_header(tensor)) + tensor.nbytes for tensor in self._tensors.values())
        return arrays + len(self._text)

    def write(self, sink: PayloadSink) -> None:
        for name, tensor in self._tensors.items():
            with sink.open(name + _SUFFIX) as stream:
                stream.write(_header(tensor))
                write_tensor(stream, tensor)
        with sink.open(STRUCTURE) as stream:
            stream.write(self._text)


def _header(tensor: torch.Tensor) -> bytes:
    dtype = _array_type(tensor.dtype)
    stream = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(tensor.shape)}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def _array_type(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the type of an array that holds the bits of a tensor."""
    try:
        return np.dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    except TypeError:
        return _WORDS[dtype.itemsize]


def _reader(source: PayloadSource) -> StructureReader:
    file = source.open(STRUCTURE)
    with file.view(0, file.size_bytes) as view:
        facts, payload = parse(bytes(view))
    types = facts.get("types")
    if not isinstance(types, list):
        raise CorruptCheckpointError("the structure does not name the types of its tensors")
    return StructureReader(source, payload, lambda ref: _home(source, ref, types))


def _home(source: PayloadSource, ref: TensorRef, types: list[Any]) -> Home:
    """Return where a tensor lies, once the file is known to be an array of its type, and of the right size."""
    name = ref.name + _SUFFIX
    if not (ref.name.isascii() and ref.name.isdecimal() and len(ref.name) < 10 and int(ref.name) < len(types)):
        raise CorruptCheckpointError(f"the structure names a tensor that it does not have: {ref.name[:40]!r}")
    dtype = getattr(torch, str(types[int(ref.name)]), None)
    file = source.open(name)
    with file.view(0, min(file.size_bytes, _MAX_HEADER_BYTES)) as view:
        stream = io.BytesIO(view)
    try:
        version = np.lib.format.read_magic(stream)
        shape, is_fortran, found = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, EOFError) as error:
        raise CorruptCheckpointError(f"{name} is not an array of NumPy") from error
    if not isinstance(dtype, torch.dtype) or version != (1, 0) or is_fortran or found != _array_type(dtype):
        raise CorruptCheckpointError(f"{name} is an array of another kind than the structure says")
    start, size_bytes = stream.tell(), math.prod(shape) * dtype.itemsize
    if start + size_bytes != file.size_bytes or not all(0 <= length < 2**63 for length in shape):
        raise CorruptCheckpointError(f"{name} does not hold as many elements as its header says")
    return Home(name, Entry(dtype, tuple(shape), start, start + size_bytes))
