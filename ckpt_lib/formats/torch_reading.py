"""Reading a torch file without copying it: its tensors are views of the verified, mapped bytes.

The pickle in it is read twice, both times by an unpickler that knows a short list of harmless names and refuses the
rest. First every tensor becomes a description of itself, so that it is known what is there, and checked, before a byte
of it is read. Then those that are wanted are built. What is not on the list is left to ``torch.load``.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.formats.base import Payload
from ckpt_lib.formats.selection import select
from ckpt_lib.formats.torch_archive import TorchArchive, UnusualPayloadError
from ckpt_lib.stream import VerifiedFile

_PICKLE = "data.pkl"
_STORAGE_DTYPES = {
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
}
_ALIGNMENT_BYTES = 16  # of the widest element, a complex128


class _Immutable:
    """A value that a pickle can pass on, but neither change nor use as a key."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # that is how a class says so

    def __setstate__(self, state: object) -> None:
        raise UnusualPayloadError("a pickle that changes what it builds")


@dataclass(frozen=True, eq=False, slots=True)
class _StorageType(_Immutable):
    dtype: torch.dtype | None
    """``None`` for bytes without a type."""


@dataclass(frozen=True, eq=False, slots=True)
class _Storage(_Immutable):
    """A record that holds the elements of one or more tensors."""

    record: str
    dtype: torch.dtype | None
    size_bytes: int
    device: str


@dataclass(frozen=True, eq=False, slots=True)
class TensorRecipe(_Immutable):
    """All there is to know about a tensor but its elements. ``offset``, ``size`` and ``stride`` count elements."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    is_conjugate: bool

    @property
    def range_bytes(self) -> tuple[int, int]:
        """From its first to behind its last byte within the storage."""
        if 0 in self.size:
            return 0, 0
        last = self.offset + sum((length - 1) * step for length, step in zip(self.size, self.stride, strict=True))
        return self.offset * self.dtype.itemsize, (last + 1) * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class _Call(_Immutable):
    """A function that a pickle may call, and nothing else."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Rebuilding:
    """What torch's pickles call; ``build`` makes of each description what is to stand for the tensor."""

    def __init__(self, build: Callable[[TensorRecipe], TensorRecipe | torch.Tensor | None]) -> None:
        self._build = build

    def tensor(self, *description: Any) -> Any:
        match description:
            case (_Storage(dtype=torch.dtype() as dtype) as storage, *shape, grad, hooks) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, None))
            case (_Storage(dtype=torch.dtype() as dtype) as storage, *shape, grad, hooks, metadata) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, metadata))
        raise UnusualPayloadError("a tensor of something else")

    def typed_tensor(self, *description: Any) -> Any:
        match description:
            case (_Storage() as storage, *shape, grad, hooks, torch.dtype() as dtype) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, None))
            case (_Storage() as storage, *shape, grad, hooks, torch.dtype() as dtype, metadata) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, metadata))
        raise UnusualPayloadError("a tensor of something else")

    def _describe(
        self, storage: _Storage, dtype: torch.dtype, shape: list[Any], rest: tuple[Any, Any, Any]
    ) -> TensorRecipe | torch.Tensor | None:
        offset, size, stride = shape
        grad, hooks, metadata = rest
        if type(grad) is not bool or hooks or (metadata and metadata != {"conj": True}):
            raise UnusualPayloadError("a tensor with something attached")
        numbers = (offset, *size, *stride)
        if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride):
            raise UnusualPayloadError("a tensor of another shape")
        recipe = TensorRecipe(storage, dtype, offset, tuple(size), tuple(stride), grad, bool(metadata))
        if recipe.range_bytes[1] > storage.size_bytes:
            raise CorruptCheckpointError(f"a tensor reaches beyond its record {storage.record!r}")
        return self._build(recipe)

    def parameter(self, data: Any, grad: Any, hooks: Any) -> Any:
        if type(grad) is not bool or hooks:
            raise UnusualPayloadError("a parameter of something else")
        if isinstance(data, torch.Tensor):
            return torch.nn.Parameter(data, grad)
        if data is not None and not isinstance(data, TensorRecipe):
            raise UnusualPayloadError("a parameter of something else")
        return data


class _Unpickler(pickle.Unpickler):
    """Reads ``data.pkl``. It is not referred to by what it reads: that would keep the file's memory for too long."""

    def __init__(self, data: bytes, rebuilding: _Rebuilding) -> None:
        super().__init__(io.BytesIO(data))
        self._rebuilding = rebuilding

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for: one of a few, and never anything that is looked up."""
        if module == "torch._utils" and name in _REBUILDING:
            return _Call(getattr(self._rebuilding, _REBUILDING[name]))
        if found := _NAMES.get((module.replace("__builtin__", "builtins"), name)):
            return found
        raise UnusualPayloadError(f"{module}.{name}")

    def persistent_load(self, key: Any) -> _Storage:
        """The storage that a tensor's description refers to."""
        match key:
            case ("storage", _StorageType(dtype), str(record), str(device), int(count)) if count >= 0:
                return _Storage(f"data/{record}", dtype, count * (dtype.itemsize if dtype else 1), device)
        raise UnusualPayloadError("another kind of reference")


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of the protocol that torch uses spell bytes."""
    if encoding != "latin1":
        raise UnusualPayloadError("text in another encoding")
    return text.encode("latin1")


_REBUILDING = {
    "_rebuild_tensor_v2": "tensor",
    "_rebuild_tensor_v3": "typed_tensor",
    "_rebuild_parameter": "parameter",
}
_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
    ("_codecs", "encode"): _Call(_encode),
    ("torch", "Size"): _Call(torch.Size),
    ("torch", "device"): _Call(torch.device),
    ("torch.storage", "UntypedStorage"): _StorageType(None),
    **{("torch", name): dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
}


class TorchReader:
    """One payload, of which what is there is known before any tensor's bytes are read.

    Raises :class:`UnusualPayloadError` for what is left to ``torch.load``, and :class:`CorruptCheckpointError`.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self._archive = TorchArchive(file)
        self._pickle = self._archive.bytes_of(_PICKLE)
        self._recipes: list[TensorRecipe] = []
        self._outline = self._load(self._note)
        self._named = list(_named_recipes(self._outline))
        for recipe in self._recipes:
            if recipe.storage.size_bytes > self._archive.record(recipe.storage.record).size_bytes:
                raise CorruptCheckpointError(f"the record {recipe.storage.record!r} is too short for its tensors")

    def _note(self, recipe: TensorRecipe) -> TensorRecipe:
        self._recipes.append(recipe)
        return recipe

    def _load(self, build: Callable[[TensorRecipe], Any]) -> dict[str, Any]:
        try:
            loaded = _Unpickler(self._pickle, _Rebuilding(build)).load()
        except (CheckpointError, UnusualPayloadError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a pickle that is none runs into: torch says what is wrong with it
            raise UnusualPayloadError("not a pickle of torch") from error
        if type(loaded) is not dict:
            raise UnusualPayloadError("not a dict")
        return loaded

    def read(self, keys: Collection[str] | None, device: torch.device | None) -> Payload:
        """Verify and build what is named. Tensors on the processor are views of the file's memory."""
        named = self._named if keys is None else _named_recipes(select(self._outline, keys))
        wanted = {id(recipe): recipe for _, recipe in named}
        self._archive.require({recipe.storage.record for recipe in wanted.values()})
        if device is None and any(recipe.storage.device != "cpu" for recipe in wanted.values()):
            raise UnusualPayloadError("tensors that go back to where they were")
        chosen = [id(recipe) in wanted for recipe in self._recipes]
        return select(self._load(_Builder(self._archive, chosen, device or torch.device("cpu"))), keys)

    def tensor_ranges(self) -> dict[str, list[tuple[int, int]]]:
        """Name of each tensor to its bytes in the file; where a record's head is damaged, the record's."""
        starts = {recipe.storage.record: self._start_of(recipe.storage.record) for recipe in self._recipes}
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name, recipe in self._named:
            record, start = self._archive.record(recipe.storage.record), starts[recipe.storage.record]
            first, last = recipe.range_bytes
            found = (record.start, record.stop) if start is None else (start + first, start + last)
            ranges.setdefault(name, []).append(found)
        return ranges

    def _start_of(self, record: str) -> int | None:
        try:
            return self._archive.start_of(record)
        except CorruptCheckpointError:
            return None


class _Builder:
    """Builds the tensors that are chosen, in the order of the pickle; those that shared a storage share it again."""

    def __init__(self, archive: TorchArchive, chosen: Iterable[bool], device: torch.device) -> None:
        self._archive = archive
        self._chosen = iter(chosen)
        self._device = device
        self._storages: dict[str, torch.UntypedStorage] = {}

    def __call__(self, recipe: TensorRecipe) -> torch.Tensor | None:
        if not next(self._chosen):
            return None
        tensor = torch.empty(0, dtype=recipe.dtype, device=self._device)
        tensor.set_(self._storage(recipe.storage), recipe.offset, recipe.size, recipe.stride)
        if recipe.is_conjugate:
            tensor = tensor.conj()
        return tensor.requires_grad_() if recipe.requires_grad else tensor

    def _storage(self, storage: _Storage) -> torch.UntypedStorage:
        found = self._storages.get(storage.record)
        if found is None:
            found = self._storages[storage.record] = self._open(storage)
        if found.nbytes() < storage.size_bytes:
            raise CorruptCheckpointError(f"the record {storage.record!r} is described in two ways")
        return found

    def _open(self, storage: _Storage) -> torch.UntypedStorage:
        if not storage.size_bytes:
            return torch.empty(0, device=self._device).untyped_storage()
        view = self._archive.view(storage.record)[: storage.size_bytes]
        elements = torch.frombuffer(view, dtype=torch.uint8)
        if self._device.type != "cpu":
            elements = elements.to(self._device)
        elif elements.data_ptr() % _ALIGNMENT_BYTES:  # torch aligns its records; others may not
            elements = elements.clone()
        return elements.untyped_storage()


def read_views(file: VerifiedFile, keys: Collection[str] | None, device: torch.device | None) -> Payload:
    """Read a payload, or what ``keys`` name of it, without copying it; no device: each tensor where it was saved.

    Raises :class:`UnusualPayloadError` where only ``torch.load`` can, :class:`~ckpt_lib.errors.ConfigError` for a key
    that stands for nothing, and :class:`CorruptCheckpointError` with all damage of what was asked for.
    """
    if keys is None:
        file.require_all()
    return TorchReader(file).read(keys, device)


def tensor_ranges(file: VerifiedFile) -> dict[str, list[tuple[int, int]]]:
    """Which bytes of a torch file hold which tensor; ``model_state_dict.layer.weight`` is how a name looks.

    Only directory and structure are read. Raises :class:`CorruptCheckpointError` when these are damaged; of a payload
    that only ``torch.load`` can read, nothing is known.
    """
    try:
        return TorchReader(file).tensor_ranges()
    except UnusualPayloadError:
        return {}


def _named_recipes(value: Any) -> Iterator[tuple[str, TensorRecipe]]:
    """Every tensor in nested containers by its dotted name, one that is met twice by both.

    Raises :class:`UnusualPayloadError` for what is a tensor's part and stands by itself.
    """
    waiting: list[tuple[str, Any]] = [("", value)]
    met: set[int] = set()
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, TensorRecipe):
            yield name, item
        elif isinstance(item, _Immutable):
            raise UnusualPayloadError("a storage, or a name of torch's, as a value")
        elif isinstance(item, dict | list | tuple) and id(item) not in met:
            met.add(id(item))
            before = f"{name}." if name else ""
            waiting += [(f"{before}{key}", entry) for key, entry in reversed(_entries(item))]


def _entries(item: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> list[tuple[Any, Any]]:
    if isinstance(item, OrderedDict):
        return [*item.items(), *vars(item).items()]
    return list(item.items() if isinstance(item, dict) else enumerate(item))
