"""Writes the structure and the plain values of a payload as JSON, and reads them back as they were.

JSON has text, finite numbers, lists and objects. Any other value is an object of which the first key begins with ``$``
and says what it is; an object of the payload with such a key is spelled ``$dict``.

====================================  ==================================================================
value                                 JSON
====================================  ==================================================================
``None``, booleans, text, lists       as JSON has them
int of up to 53 bits, finite float    a number; a float always has a point or an exponent
longer int                            ``{"$int": "<decimal>"}``
NaN, infinities                       ``{"$float": "<IEEE 754, 16 hex digits>"}``
tuple, set, ``torch.Size``            ``{"$tuple": [...]}``, ``{"$set": [...]}``, ``{"$size": [...]}``
dict with keys of text                an object
other dict                            ``{"$dict": [[<key>, <value>], ...]}``
``OrderedDict``                       ``{"$ordered": <as a dict>, "attributes": {...}}``
bytes, bytearray                      ``{"$bytes": "<Base64>"}``, ``{"$bytearray": "<Base64>"}``
complex                               ``{"$complex": [<real>, <imaginary>]}``
dtype, device                         ``{"$dtype": "float16"}``, ``{"$device": "cpu"}``
tensor                                ``{"$tensor": "<file>/<name>", ...}``, see :class:`TensorRef`
====================================  ==================================================================
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.limits import MAX_INT_BITS
from ckpt_lib.formats.preparing import METHODS

MAX_NUMBER_BITS = 53
"""The longest int that every reader of JSON gives back."""
TENSOR = "$tensor"

_AS_JSON = {type(None), bool, str}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
TENSOR_METHODS = frozenset({*dir(torch.nn.Parameter), *METHODS})
"""No names for attributes of a tensor: they would hide what it has."""

Refer = Callable[[torch.Tensor, str], dict[str, Any]]
"""Takes a tensor and its dotted name, and returns the object that will stand for it."""


def json_bytes(value: Any) -> bytes:
    """Return JSON that was made of a payload as a file, the same for the same payload."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class Encoder:
    """Makes JSON of prepared values. Raises :class:`UnsupportedStateError` with the place of what has no spelling."""

    def __init__(self, refer: Refer) -> None:
        self._refer = refer

    def encode(self, value: Any, name: str) -> Any:
        """Return what JSON can hold of ``value``, whose dotted name in the payload is ``name``."""
        kind = type(value)
        if kind in _AS_JSON:
            return value
        if kind is int and value.bit_length() <= MAX_NUMBER_BITS:
            return value
        if kind is float and math.isfinite(value):
            return value
        if spell := _SPELLINGS.get(kind):
            return spell(self, value, name)
        raise refused(value, name)

    def _long_int(self, value: int, name: str) -> Any:
        if value.bit_length() > MAX_INT_BITS:
            raise refused(value, name)
        return {"$int": str(value)}

    def _odd_float(self, value: float, _: str) -> Any:
        return {"$float": struct.pack(">d", value).hex()}

    def _list(self, value: list[Any] | tuple[Any, ...], name: str) -> list[Any]:
        return [
            item if type(item) in _AS_JSON else self.encode(item, f"{name}.{number}")
            for number, item in enumerate(value)
        ]

    def _tuple(self, value: tuple[Any, ...], name: str) -> Any:
        return {"$tuple": self._list(value, name)}

    def _size(self, value: torch.Size, name: str) -> Any:
        return {"$size": self._list(list(value), name)}

    def _set(self, value: set[Any], name: str) -> Any:
        for item in value:
            _check_key(item, name)
        return {"$set": sorted((self.encode(item, name) for item in value), key=json_bytes)}

    def _dict(self, value: dict[Any, Any], name: str) -> Any:
        spelled = self._mapping(value, name)
        return spelled if isinstance(spelled, dict) else {"$dict": spelled}

    def _ordered(self, value: OrderedDict[Any, Any], name: str) -> Any:
        spelled: dict[str, Any] = {"$ordered": self._mapping(value, name)}
        if vars(value):
            spelled["attributes"] = self._attributes(value, name, METHODS)
        return spelled

    def _mapping(self, value: Mapping[Any, Any], name: str) -> dict[str, Any] | list[list[Any]]:
        before = f"{name}." if name else ""
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {
                key: item if type(item) in _AS_JSON else self.encode(item, f"{before}{key}")
                for key, item in value.items()
            }
        pairs = []
        for key, item in value.items():
            _check_key(key, name)
            pairs.append([self.encode(key, name), self.encode(item, f"{before}{key}")])
        return pairs

    def _attributes(self, value: Any, name: str, methods: frozenset[str]) -> Any:
        if hidden := methods & vars(value).keys():
            raise UnsupportedStateError(
                f"an attribute of {name} would hide a method when it is read back", got=min(hidden)
            )
        return self._dict(vars(value), name)

    def _tensor(self, value: torch.Tensor, name: str) -> Any:
        if value.is_meta:
            raise UnsupportedStateError(
                f"{name} has no data: it is on the meta device",
                expected="tensors with their data",
                hint="Bring offloaded weights back into memory before saving.",
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise refused(value, name, "It has no elements in a row: store it as dense tensors.")
        reference = self._refer(value, name)
        if type(value) is torch.nn.Parameter:
            reference["parameter"] = True
        if value.requires_grad:
            reference["requires_grad"] = True
        if vars(value):
            reference["attributes"] = self._attributes(value, name, TENSOR_METHODS)
        return reference

    def _bytes(self, value: bytes | bytearray, _: str) -> Any:
        return {f"${type(value).__name__}": base64.b64encode(value).decode()}

    def _complex(self, value: complex, name: str) -> Any:
        return {"$complex": [self.encode(value.real, name), self.encode(value.imag, name)]}

    def _dtype(self, value: torch.dtype, _: str) -> Any:
        return {"$dtype": str(value).removeprefix("torch.")}

    def _device(self, value: torch.device, _: str) -> Any:
        return {"$device": str(value)}


_SPELLINGS: dict[type, Callable[[Encoder, Any, str], Any]] = {
    int: Encoder._long_int,
    float: Encoder._odd_float,
    list: Encoder._list,
    tuple: Encoder._tuple,
    torch.Size: Encoder._size,
    set: Encoder._set,
    dict: Encoder._dict,
    OrderedDict: Encoder._ordered,
    bytes: Encoder._bytes,
    bytearray: Encoder._bytes,
    complex: Encoder._complex,
    torch.dtype: Encoder._dtype,
    torch.device: Encoder._device,
    torch.Tensor: Encoder._tensor,
    torch.nn.Parameter: Encoder._tensor,
}


def check_spelling(value: Any, place: str) -> None:
    """Raise :class:`UnsupportedStateError` unless ``value`` can be written and read back. Tensors are not copied."""
    Encoder(lambda *_: {}).encode(value, place)


def refused(value: Any, name: str, hint: str = "Turn it into plain values, or leave it out.") -> UnsupportedStateError:
    """Return the error for a value that this format has no spelling for."""
    return UnsupportedStateError(
        f"{name} cannot be stored in this format",
        expected="tensors, numbers, text, None, and dicts, lists, tuples and sets of them",
        got=f"{type(value).__module__}.{type(value).__qualname__}",
        hint=hint,
    )


def _check_key(key: Any, name: str) -> None:
    """Refuse a key that could not be one when it is read back, or not an equal one, as a tensor."""
    waiting = [key]
    while waiting:
        part = waiting.pop()
        if type(part) is tuple:
            waiting += part
        elif type(part) in _TENSORS or not isinstance(part, _KEYS):
            raise refused(part, f"a key of {name}")


_KEYS = (str, int, float, complex, bytes, type(None), torch.dtype, torch.device, torch.Size)
