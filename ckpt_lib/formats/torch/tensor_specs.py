"""Defines the names that a torch pickle may use: a short list of harmless functions and types.

A pickle is executed twice. The first time, a :class:`SpecPass` returns a :class:`TensorSpec` for each tensor and checks
that the tensor fits into its record. The second time, a :class:`BuildPass` builds the tensors, in the same order. Any
name that is not on the list becomes an :class:`Unknown`, which is left to ``torch.load``.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.limits import MAX_EXPANDED_BYTES, expanded_bytes, extent
from ckpt_lib.formats.torch.limits import unsafe
from ckpt_lib.formats.torch.pickle_checking import Unknown, UnusualPayloadError

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}
_ELEMENTS_PER_BYTE = {torch.quint4x2: 2, torch.quint2x4: 4}
QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, *_ELEMENTS_PER_BYTE}
_LIMIT_64 = 2**63


class Immutable:
    """A value that a pickle can pass on, but can neither change nor use as a key."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # Python's way to make instances unhashable

    def __setstate__(self, state: object) -> None:
        raise UnusualPayloadError("a pickle that changes what it builds")


@dataclass(frozen=True, eq=False, slots=True)
class _StorageType(Immutable):
    dtype: torch.dtype | None
    """``None`` for an untyped storage."""


@dataclass(frozen=True, eq=False, slots=True)
class Storage(Immutable):
    """The record that holds the elements of one or more tensors."""

    record: str
    dtype: torch.dtype | None
    size_bytes: int
    device: str


@dataclass(frozen=True, eq=False, slots=True)
class TensorSpec(Immutable):
    """All facts about a tensor except its elements. ``offset``, ``size`` and ``stride`` count elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    is_conjugate: bool

    @property
    def range_bytes(self) -> tuple[int, int]:
        """The bytes that the tensor uses of its storage: first inclusive, last exclusive."""
        length = extent(self.size, self.stride)
        start = self.offset if length else 0
        return start * self.dtype.itemsize, (start + length) * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class _Call(Immutable):
    """A function that a pickle may call. It offers nothing else."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class SpecPass:
    """The functions that torch pickles call, returning specs. ``specs`` lists all of them in the pickle's order."""

    def __init__(self) -> None:
        self.specs: list[TensorSpec] = []
        self.expanded_bytes = 0

    def tensor(self, storage: Any, *description: Any) -> TensorSpec:
        return self.typed_tensor(storage, *description[:5], getattr(storage, "dtype", None), *description[5:])

    def typed_tensor(self, *description: Any) -> TensorSpec:
        match description:
            case (Storage() as storage, *shape, grad, hooks, torch.dtype() as dtype) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, None))
            case (Storage() as storage, *shape, grad, hooks, torch.dtype() as dtype, metadata) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, metadata))
        raise UnusualPayloadError("a tensor of something else")

    def quantized_tensor(self, *description: Any) -> TensorSpec:
        """Check the size of a quantized tensor, and leave building it to torch."""
        match description:
            case (Storage(dtype=torch.dtype() as dtype) as storage, *shape, _, _, _) if len(shape) == 3:
                self._checked(storage, dtype, shape)
        raise UnusualPayloadError("a quantized tensor")

    def tensor_of_type(self, function: Any, _type: Any, arguments: Any, _state: Any) -> TensorSpec:
        """Check the tensor inside a tensor subclass, and leave building the subclass to torch."""
        if not isinstance(function, _Call | Unknown) or type(arguments) is not tuple:
            raise unsafe("a tensor is made by another function")
        function(*arguments)
        raise UnusualPayloadError("a tensor of another type")

    def parameter(self, data: Any, grad: Any, hooks: Any) -> Any:
        if type(grad) is not bool or hooks or not isinstance(data, TensorSpec):
            raise UnusualPayloadError("a parameter of something else")
        return data

    def _describe(
        self, storage: Storage, dtype: torch.dtype, shape: list[Any], rest: tuple[Any, Any, Any]
    ) -> TensorSpec:
        grad, hooks, metadata = rest
        spec = self._checked(storage, dtype, shape, grad is True, bool(metadata))
        if type(grad) is not bool or hooks or (metadata and metadata != {"conj": True}) or dtype in QUANTIZED:
            raise UnusualPayloadError("a tensor with something attached")
        self.specs.append(spec)
        return spec

    def _checked(
        self, storage: Storage, dtype: torch.dtype, shape: list[Any], grad: bool = False, is_conjugate: bool = False
    ) -> TensorSpec:
        """Return the spec of a tensor that fits into its storage and keeps all tensors within the expansion limit."""
        offset, size, stride = shape
        if len(size) != len(stride):
            raise CorruptCheckpointError("a tensor has an impossible shape")
        for number in (offset, *size, *stride):
            if type(number) is not int or not 0 <= number < _LIMIT_64:
                raise CorruptCheckpointError("a tensor has an impossible shape")
        spec = TensorSpec(storage, dtype, offset, tuple(size), tuple(stride), grad, is_conjugate)
        if spec.range_bytes[1] > storage.size_bytes * _ELEMENTS_PER_BYTE.get(dtype, 1):
            raise CorruptCheckpointError(f"a tensor reaches beyond its record {shown(storage.record)}")
        self.expanded_bytes += expanded_bytes(spec.size, spec.stride, dtype.itemsize)
        if self.expanded_bytes > MAX_EXPANDED_BYTES:
            raise unsafe(f"its tensors are more than {MAX_EXPANDED_BYTES} bytes larger than their stored memory")
        return spec


class BuildPass:
    """The functions that torch pickles call, building the tensors of a :class:`SpecPass` in the same order."""

    def __init__(self, build: Callable[[], torch.Tensor | None]) -> None:
        self._build = build

    def tensor(self, *_: Any) -> torch.Tensor | None:
        return self._build()

    typed_tensor = tensor

    def parameter(self, data: torch.Tensor | None, grad: bool, _: Any) -> torch.Tensor | None:
        return None if data is None else torch.nn.Parameter(data, grad)


def name_finder(rebuilding: SpecPass | BuildPass) -> Callable[[str, str], Any]:
    """Return the function that finds what a name in a pickle stands for. It looks up nothing outside of our list."""

    def find_name(module: str, name: str) -> Any:
        if (module, name) in _REBUILDING:
            return _Call(getattr(rebuilding, _REBUILDING[module, name]))
        return _NAMES.get((module.replace("__builtin__", "builtins"), name)) or Unknown(f"{module}.{name}")

    return find_name


def storage_of(key: Any) -> Storage:
    """Return the storage that a persistent id in a pickle refers to."""
    match key:
        case ("storage", _StorageType(dtype), str(record), str(device), int(count)) if count >= 0:
            return Storage(f"data/{record}", dtype, count * (dtype.itemsize if dtype else 1), device)
    raise unsafe("it refers to an object that is no storage")


class TensorUnpickler(pickle.Unpickler):
    """Reads a ``data.pkl`` that was checked. Nothing that it builds refers to it, so the file's memory can be freed."""

    def __init__(self, data: bytes, building: BuildPass) -> None:
        super().__init__(io.BytesIO(data))
        self.find_class = name_finder(building)  # type: ignore[method-assign]

    def persistent_load(self, _: Any) -> None:
        """Return nothing: a :class:`BuildPass` takes the storages from the specs."""


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes, which pickles of torch's protocol spell as text."""
    if encoding != "latin1":
        raise UnusualPayloadError("text in another encoding")
    return text.encode("latin1")


def _bytearray(*arguments: Any) -> bytearray:
    match arguments:
        case () | (bytes(),) | (str(), "latin-1" | "latin1"):
            return bytearray(*arguments)
    raise unsafe("it allocates bytes of a length named in the pickle")


def _counter(*arguments: Any) -> Counter[Any]:
    match arguments:
        case () | (dict(),):
            raise UnusualPayloadError("a Counter")
    raise unsafe("it counts values that were not checked")


_REBUILDING = {
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_tensor_v3"): "typed_tensor",
    ("torch._utils", "_rebuild_qtensor"): "quantized_tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("torch._tensor", "_rebuild_from_type_v2"): "tensor_of_type",
}
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): _Call(_counter),
    ("builtins", "set"): set,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): _Call(_bytearray),
    ("_codecs", "encode"): _Call(_encode),
    ("torch", "Size"): _Call(torch.Size),
    ("torch", "device"): _Call(torch.device),
    ("torch.storage", "UntypedStorage"): _StorageType(None),
    **{("torch", name): dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
    **{
        (module, name): _StorageType(dtype)
        for name, dtype in STORAGE_DTYPES.items()
        for module in ("torch", "torch.cuda")
    },
}
