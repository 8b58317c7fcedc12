"""Reads the JSON of :mod:`ckpt_lib.formats.structure.values` back, in bounded time and memory."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.limits import MAX_LEVELS
from ckpt_lib.formats.placing import first_line
from ckpt_lib.formats.preparing import METHODS
from ckpt_lib.formats.structure.dtypes import ALL_DTYPES
from ckpt_lib.formats.structure.entries import are_counts, is_shape, without_repeats
from ckpt_lib.formats.structure.sharing import View
from ckpt_lib.formats.structure.values import TENSOR, TENSOR_METHODS

_BYTES_ALLOWED, _BYTES_A_TENSOR = 64 * 2**20, 400
_PARTS_ALLOWED, _PARTS_A_TENSOR = 4_000_000, 10
_MAX_TENSORS = 4_000_000
_LEVELS_A_CONTAINER = 3  # {"$dict": [[key, value]]}
_MAX_JSON_LEVELS = _LEVELS_A_CONTAINER * (MAX_LEVELS + 2)
_MAX_EQUAL_HASHES = 100  # among the keys of one dict: each further key is compared with all of these
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(eq=False, slots=True)
class TensorRef:
    """All facts about a tensor in the structure of a payload: where it is stored, and what it is besides.

    ``{"$tensor": "<file>/<name>"}`` is the stored tensor. ``"view"``, if it is there, has ``dtype``, ``shape``,
    ``stride`` and ``offset``: the tensor is this view of the memory of the stored one. ``"stride"`` is that of a tensor
    whose dimensions lie in another order in memory. ``"parameter"`` and ``"requires_grad"`` are there where they are
    true, and ``"attributes"`` where there are any. ``dtype`` and ``shape`` are known in the outline of a reader.
    """

    group: str
    name: str
    view: View | None = None
    stride: tuple[int, ...] | None = None
    is_parameter: bool = False
    requires_grad: bool = False
    attributes: dict[str, Any] | None = None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None


def excess(data: bytes) -> str | None:
    """Name the limit that a structure exceeds. Writers and readers ask the same; each part costs up to 80 bytes."""
    tensors = min(data.count(f'"{TENSOR}":'.encode()), _MAX_TENSORS)
    if len(data) > _BYTES_ALLOWED + _BYTES_A_TENSOR * tensors:
        return f"it takes {len(data)} bytes, more than {_BYTES_ALLOWED + _BYTES_A_TENSOR * tensors}"
    parts = sum(map(data.count, (b"[", b"{", b",")))
    if parts > _PARTS_ALLOWED + _PARTS_A_TENSOR * tensors:
        return f"it has about {parts} parts, more than {_PARTS_ALLOWED + _PARTS_A_TENSOR * tensors}"
    return None


def decode(data: bytes) -> Any:
    """Return the values in JSON, with a :class:`TensorRef` for each tensor. Raises :class:`CorruptCheckpointError`."""
    return _loaded(data, _object)


def decode_plain(data: bytes) -> Any:
    """Return what is in ordinary JSON. Raises :class:`CorruptCheckpointError`."""
    return _loaded(data, without_repeats)


def _loaded(data: bytes, make: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    if reason := excess(data):
        raise malformed(reason)
    try:
        return json.loads(data.decode(), object_pairs_hook=make, parse_constant=_no_constant)
    except CorruptCheckpointError:
        raise
    except RecursionError as error:
        if not _is_deeper(data, _MAX_JSON_LEVELS):
            raise  # the caller's own stack is nearly full
        raise malformed("it is nested too deeply") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, struct.error) as error:
        raise malformed(shown(first_line(error))) from error


def malformed(reason: str) -> CorruptCheckpointError:
    """Return the error for a structure that is none."""
    return CorruptCheckpointError(f"the payload's structure is malformed: {reason}")


def refs_in(value: Any) -> Iterator[tuple[str, TensorRef]]:
    """Yield every tensor of a structure with its dotted name."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, TensorRef):
            yield name, item
            if item.attributes is None:
                continue
            entries: Iterable[tuple[Any, Any]] = item.attributes.items()
        elif isinstance(item, OrderedDict):
            entries = [*item.items(), *vars(item).items()]
        else:
            entries = item.items() if isinstance(item, dict) else enumerate(item)
        before = f"{name}." if name else ""
        found = [(f"{before}{key}", entry) for key, entry in entries if isinstance(entry, _TRAVERSED)]
        waiting += reversed(found)


_TRAVERSED = (TensorRef, dict, list, tuple)


def _is_deeper(data: bytes, levels: int) -> bool:
    """Tell whether JSON nests more than ``levels`` deep, without recursion."""
    depth = 0
    for found in re.finditer(rb"[\[{]|[\]}]", _TEXT.sub(b"", data)):
        depth += 1 if found[0] in b"[{" else -1
        if depth > levels:
            return True
    return False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """Return what an object stands for; its parts have been read before."""
    found = without_repeats(pairs)
    if not pairs or not pairs[0][0].startswith("$"):
        return found
    read = _READERS[pairs[0][0]]
    return read(*found.values()) if len(pairs) == 1 else _READERS_OF_MORE[pairs[0][0]](found)


def _mapping(kind: type[Any], spelled: Any) -> Any:
    """Return a dict of pairs, or of an object."""
    if isinstance(spelled, dict):
        return kind(spelled)
    keys = [key for key, _ in spelled]
    _check_hashes(keys)
    made = kind(spelled)
    if len(made) != len(keys):
        raise ValueError("a dict has a key twice")
    return made


def _check_hashes(keys: Iterable[Any]) -> None:
    """Refuse keys of which too many have one hash; those of text are chosen by this process."""
    counts = Counter(hash(key) for key in keys if type(key) is not str)
    if counts and max(counts.values()) > _MAX_EQUAL_HASHES:
        raise ValueError("too many keys of a dict have one hash")


def _ordered(found: Mapping[str, Any]) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = _mapping(OrderedDict, found["$ordered"])
    vars(made).update(_attributes(found["attributes"], METHODS))
    return made


def _attributes(found: Any, methods: frozenset[str]) -> dict[str, Any]:
    if type(found) is not dict or not all(type(name) is str for name in found) or methods & found.keys():
        raise ValueError("attributes that an object does not have")
    return found


def _set(items: list[Any]) -> set[Any]:
    _check_hashes(items)
    return set(items)


def _size(numbers: list[Any]) -> torch.Size:
    if not are_counts(numbers):
        raise ValueError("an impossible size")
    return torch.Size(numbers)


def _complex(real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


def _tensor(found: Mapping[str, Any]) -> TensorRef:
    group, name = _place(found[TENSOR])
    flags = {key: found.get(key, False) for key in ("parameter", "requires_grad")}
    if not all(type(flag) is bool for flag in flags.values()):
        raise ValueError("a tensor with an impossible property")
    stride = found.get("stride")
    if stride is not None and ("view" in found or not are_counts(stride)):
        raise ValueError("a tensor with an impossible stride")
    return TensorRef(
        group,
        name,
        _view(**found["view"]) if "view" in found else None,
        None if stride is None else tuple(stride),
        flags["parameter"],
        flags["requires_grad"],
        _attributes(found["attributes"], TENSOR_METHODS) if "attributes" in found else None,
    )


def _place(place: str) -> tuple[str, str]:
    """Return the group of files that holds a tensor, and its name there."""
    group, _, name = place.partition("/")
    return group, name


def _view(dtype: str, shape: list[int], stride: list[int], offset: int) -> View:
    if len(shape) != len(stride) or not is_shape(shape) or not are_counts([*stride, offset]):
        raise ValueError("a view of an impossible shape")
    return View(ALL_DTYPES[dtype], tuple(shape), tuple(stride), offset)


def _typed(kind: type[Any], read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a reader that takes values of one type of JSON alone."""

    def checked(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"a value of the wrong type, {type(value).__name__}")
        return read(value)

    return checked


_READERS: dict[str, Callable[[Any], Any]] = {
    TENSOR: _typed(str, lambda place: TensorRef(*_place(place))),
    "$dict": _typed(list, lambda pairs: _mapping(dict, pairs)),
    "$ordered": lambda spelled: _mapping(OrderedDict, spelled),
    "$tuple": _typed(list, tuple),
    "$set": _typed(list, _set),
    "$size": _typed(list, _size),
    "$int": _typed(str, int),
    "$float": _typed(str, lambda digits: struct.unpack(">d", bytes.fromhex(digits))[0]),
    "$complex": _typed(list, lambda parts: _complex(*parts)),
    "$bytes": _typed(str, lambda text: base64.b64decode(text, validate=True)),
    "$bytearray": _typed(str, lambda text: bytearray(base64.b64decode(text, validate=True))),
    "$dtype": _typed(str, ALL_DTYPES.__getitem__),
    "$device": _typed(str, torch.device),
}
_READERS_OF_MORE: dict[str, Callable[[Mapping[str, Any]], Any]] = {TENSOR: _tensor, "$ordered": _ordered}
"""Objects with further keys."""
