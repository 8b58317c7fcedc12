"""Reading a torch file without copying it: its tensors are views of the verified, mapped bytes.

The pickle in it is read twice, both times with a short list of harmless names. First it is carried out step by step,
in bounded time and memory, and every tensor becomes a description of itself: so it is known what is there, and that it
fits into its record, before a byte of it is read. Then those that are wanted are built. What is not on the list is left
to ``torch.load``, once all the rest has been checked.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.formats.base import Payload
from ckpt_lib.formats.selection import select
from ckpt_lib.formats.torch.archive import TorchArchive
from ckpt_lib.formats.torch.collection import CollectionPause
from ckpt_lib.formats.torch.limits import MAX_EXPANDED_BYTES, expanded_bytes, extent
from ckpt_lib.formats.torch.pickle_checking import (
    PickleChecker,
    Unknown,
    UnusualPayloadError,
    max_structure_bytes,
    refused,
)
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
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}
_ELEMENTS_PER_BYTE = {torch.quint4x2: 2, torch.quint2x4: 4}
_QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, *_ELEMENTS_PER_BYTE}
_LIMIT_64 = 2**63
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
        length = extent(self.size, self.stride)
        start = self.offset if length else 0
        return start * self.dtype.itemsize, (start + length) * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class _Call(_Immutable):
    """A function that a pickle may call, and nothing else."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Describing:
    """What torch's pickles call, to describe tensors: ``recipes`` are all of them, in the order of the pickle."""

    def __init__(self) -> None:
        self.recipes: list[TensorRecipe] = []
        self.expanded_bytes = 0

    def tensor(self, *description: Any) -> TensorRecipe:
        match description:
            case (_Storage(dtype=torch.dtype() as dtype) as storage, *shape, grad, hooks) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, None))
            case (_Storage(dtype=torch.dtype() as dtype) as storage, *shape, grad, hooks, metadata) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, metadata))
        raise UnusualPayloadError("a tensor of something else")

    def typed_tensor(self, *description: Any) -> TensorRecipe:
        match description:
            case (_Storage() as storage, *shape, grad, hooks, torch.dtype() as dtype) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, None))
            case (_Storage() as storage, *shape, grad, hooks, torch.dtype() as dtype, metadata) if len(shape) == 3:
                return self._describe(storage, dtype, shape, (grad, hooks, metadata))
        raise UnusualPayloadError("a tensor of something else")

    def quantized_tensor(self, *description: Any) -> TensorRecipe:
        """Built by torch, in memory of a size that is checked here."""
        match description:
            case (_Storage(dtype=torch.dtype() as dtype) as storage, *shape, _, _, _) if len(shape) == 3:
                self._checked(storage, dtype, shape)
        raise UnusualPayloadError("a quantized tensor")

    def tensor_of_type(self, function: Any, _type: Any, arguments: Any, _state: Any) -> TensorRecipe:
        """A subclass's tensor, whose own is described as any other."""
        if not isinstance(function, _Call | Unknown) or type(arguments) is not tuple:
            raise refused("a tensor is made by something else")
        function(*arguments)
        raise UnusualPayloadError("a tensor of another type")

    def parameter(self, data: Any, grad: Any, hooks: Any) -> Any:
        if type(grad) is not bool or hooks or not isinstance(data, TensorRecipe):
            raise UnusualPayloadError("a parameter of something else")
        return data

    def _describe(
        self, storage: _Storage, dtype: torch.dtype, shape: list[Any], rest: tuple[Any, Any, Any]
    ) -> TensorRecipe:
        grad, hooks, metadata = rest
        recipe = self._checked(storage, dtype, shape, grad is True, bool(metadata))
        if type(grad) is not bool or hooks or (metadata and metadata != {"conj": True}) or dtype in _QUANTIZED:
            raise UnusualPayloadError("a tensor with something attached")
        self.recipes.append(recipe)
        return recipe

    def _checked(
        self, storage: _Storage, dtype: torch.dtype, shape: list[Any], grad: bool = False, is_conjugate: bool = False
    ) -> TensorRecipe:
        """A tensor that its storage can hold, and that is not, with all others, far larger than what is stored."""
        offset, size, stride = shape
        if len(size) != len(stride):
            raise CorruptCheckpointError("a tensor has an impossible shape")
        for number in (offset, *size, *stride):
            if type(number) is not int or not 0 <= number < _LIMIT_64:
                raise CorruptCheckpointError("a tensor has an impossible shape")
        recipe = TensorRecipe(storage, dtype, offset, tuple(size), tuple(stride), grad, is_conjugate)
        if recipe.range_bytes[1] > storage.size_bytes * _ELEMENTS_PER_BYTE.get(dtype, 1):
            raise CorruptCheckpointError(f"a tensor reaches beyond its record {ascii(storage.record)[:120]}")
        self.expanded_bytes += expanded_bytes(recipe.size, recipe.stride, dtype.itemsize)
        if self.expanded_bytes > MAX_EXPANDED_BYTES:
            raise refused(f"its tensors are more than {MAX_EXPANDED_BYTES} bytes larger than what is stored of them")
        return recipe


class _Building:
    """What torch's pickles call, to build the tensors that were described: one after the other, in the same order."""

    def __init__(self, build: Callable[[], torch.Tensor | None]) -> None:
        self._build = build

    def tensor(self, *_: Any) -> torch.Tensor | None:
        return self._build()

    typed_tensor = tensor

    def parameter(self, data: torch.Tensor | None, grad: bool, _: Any) -> torch.Tensor | None:
        return None if data is None else torch.nn.Parameter(data, grad)


class _Names:
    """What a pickle's names and references stand for."""

    def __init__(self, rebuilding: _Describing | _Building) -> None:
        self._rebuilding = rebuilding

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for: one of a few, and never anything that is looked up."""
        if (module, name) in _REBUILDING:
            return _Call(getattr(self._rebuilding, _REBUILDING[module, name]))
        return _NAMES.get((module.replace("__builtin__", "builtins"), name)) or Unknown(f"{module}.{name}")


def _storage_of(key: Any) -> _Storage:
    """The storage that a tensor's description refers to."""
    match key:
        case ("storage", _StorageType(dtype), str(record), str(device), int(count)) if count >= 0:
            return _Storage(f"data/{record}", dtype, count * (dtype.itemsize if dtype else 1), device)
    raise refused("it refers to something that is no storage")


class _Unpickler(pickle.Unpickler):
    """Reads a ``data.pkl`` that was checked. What it reads does not refer to it, or the file's memory would stay."""

    def __init__(self, data: bytes, building: _Building) -> None:
        super().__init__(io.BytesIO(data))
        self.find_class = _Names(building).find_class  # type: ignore[method-assign]

    def persistent_load(self, _: Any) -> None:
        """Nobody asks for the storages again."""


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of the protocol that torch uses spell bytes."""
    if encoding != "latin1":
        raise UnusualPayloadError("text in another encoding")
    return text.encode("latin1")


def _bytearray(*arguments: Any) -> bytearray:
    match arguments:
        case () | (bytes(),) | (str(), "latin-1" | "latin1"):
            return bytearray(*arguments)
    raise refused("it makes bytes of a length that it only names")


def _counter(*arguments: Any) -> Counter[Any]:
    match arguments:
        case () | (dict(),):
            raise UnusualPayloadError("a Counter")
    raise refused("it counts what was not looked at")


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
        for name, dtype in _STORAGE_DTYPES.items()
        for module in ("torch", "torch.cuda")
    },
}


class TorchReader:
    """One payload, of which what is there is known, and checked, before any tensor's bytes are read.

    ``unusual`` says why only ``torch.load`` can read it, and is ``None`` otherwise. Raises
    :class:`CorruptCheckpointError` for what is no torch file, or contradicts itself, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` for what would take memory or time out of proportion, or run code.
    """

    def __init__(self, file: VerifiedFile) -> None:
        self._archive = TorchArchive(file)
        records = self._archive.record_count
        if self._archive.record(_PICKLE).size_bytes > max_structure_bytes(records):
            raise refused(f"its structure is longer than {max_structure_bytes(records)} bytes")
        self._pickle = self._archive.bytes_of(_PICKLE)
        self._named: list[tuple[str, TensorRecipe]] = []
        self._size_bytes: dict[str, int] = {}
        describing = _Describing()
        names = _Names(describing)
        checker = PickleChecker(
            self._pickle, records=records, find_name=names.find_class, find_reference=self._find_storage
        )
        self._outline = checker.load()
        self._recipes = describing.recipes
        self.unusual = checker.unusual or self._unusual_part()

    def _find_storage(self, key: Any) -> _Storage:
        storage = _storage_of(key)
        if storage.size_bytes > self._archive.record(storage.record).size_bytes:
            raise CorruptCheckpointError(f"the record {ascii(storage.record)[:120]} is too short for its tensors")
        if storage.size_bytes > self._size_bytes.setdefault(storage.record, storage.size_bytes):
            raise CorruptCheckpointError(f"the record {ascii(storage.record)[:120]} is described in two ways")
        return storage

    def _unusual_part(self) -> str | None:
        if not self._archive.has_native_byte_order:
            return "another byte order"
        if type(self._outline) is not dict:
            return "not a dict"
        try:
            self._named += _named_recipes(self._outline)
        except UnusualPayloadError as error:
            return str(error)
        return None

    def _require_usual(self) -> None:
        if self.unusual is not None:
            raise UnusualPayloadError(self.unusual)

    def check_all(self) -> None:
        """Verify the whole file and the heads of all records, as must be before ``torch.load`` reads it."""
        self._archive.check_all()

    def check_heads(self) -> None:
        """Compare the heads of all records with the directory."""
        self._archive.check_heads()

    def outline(self) -> Payload:
        """What the payload holds, with a recipe in the place of each tensor. The heads of all records are read."""
        self._require_usual()
        self._archive.check_heads()
        return dict(self._outline)

    def _load(self, build: Callable[[], torch.Tensor | None]) -> dict[str, Any]:
        try:
            with CollectionPause():
                loaded: dict[str, Any] = _Unpickler(self._pickle, _Building(build)).load()
        except (CheckpointError, UnusualPayloadError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a pickle that is none runs into: torch says what is wrong with it
            raise UnusualPayloadError("not a pickle of torch") from error
        return loaded

    def read(self, keys: Collection[str] | None, device: torch.device | None) -> Payload:
        """Verify and build what is named. Tensors on the processor are views of the file's memory."""
        self._require_usual()
        if keys is None:
            self._archive.check_heads()  # as validation does: what counts as damaged is not loaded
        named = self._named if keys is None else _named_recipes(select(self._outline, keys))
        wanted = {id(recipe): recipe for _, recipe in named}
        self._archive.require({recipe.storage.record for recipe in wanted.values()})
        if device is None and any(recipe.storage.device != "cpu" for recipe in wanted.values()):
            raise UnusualPayloadError("tensors that go back to where they were")
        chosen = [recipe if id(recipe) in wanted else None for recipe in self._recipes]
        return select(self._load(_Builder(self._archive, chosen, device or torch.device("cpu"))), keys)

    def tensor_ranges(self) -> dict[str, list[tuple[int, int]]]:
        """Name of each tensor to its bytes in the file; where a record's head is damaged, the record's."""
        self._require_usual()
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

    def __init__(self, archive: TorchArchive, chosen: Iterable[TensorRecipe | None], device: torch.device) -> None:
        self._archive = archive
        self._chosen = iter(chosen)
        self._device = device
        self._storages: dict[str, torch.UntypedStorage] = {}

    def __call__(self) -> torch.Tensor | None:
        recipe = next(self._chosen)
        if recipe is None:
            return None
        tensor = torch.empty(0, dtype=recipe.dtype, device=self._device)
        tensor.set_(self._storage(recipe.storage), recipe.offset, recipe.size, recipe.stride)
        if recipe.is_conjugate:
            tensor = tensor.conj()
        return tensor.requires_grad_() if recipe.requires_grad else tensor

    def _storage(self, storage: _Storage) -> torch.UntypedStorage:
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


def check_structure(data: bytes, records: int = 0) -> None:
    """Carry a ``data.pkl`` out as a reader would, before there is a file. Raises what :class:`TorchReader` does."""
    PickleChecker(data, records=records, find_name=_Names(_Describing()).find_class, find_reference=_storage_of).load()


_LOOKED_INTO = (dict, list, tuple, _Immutable)


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
            entries = [(key, entry) for key, entry in _entries(item) if isinstance(entry, _LOOKED_INTO)]
            waiting += [(f"{before}{key}", entry) for key, entry in reversed(entries)]


def _entries(item: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    if isinstance(item, OrderedDict):
        return [*item.items(), *vars(item).items()]  # of which none hides a method: the check saw to that
    return item.items() if isinstance(item, dict) else enumerate(item)
