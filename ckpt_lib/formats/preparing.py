"""Brings a payload into the types that formats store, and refuses the rest before anything is written."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.base import Payload
from ckpt_lib.formats.limits import MAX_EXPANDED_BYTES, MAX_INT_BITS, MAX_LEVELS, expanded_bytes, is_deeper
from ckpt_lib.state.memory import has_memory
from ckpt_lib.state.tree import tensors_in

Check = Callable[[Any, str], None]
"""Raises :class:`UnsupportedStateError` with the place of a value that a format does not store."""

METHODS = frozenset({*dir(OrderedDict), "__setstate__", "__copy__", "__deepcopy__"})
"""Names of methods of a dict, and of what pickle and copy would call if it had them: no names for attributes."""

_PLAIN = {type(None), bool, int, float, str}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
_QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}

_MAX_REFUSALS, _SHOWN_REFUSALS = 1_000, 50


def prepare(payload: Mapping[str, Any], check: Check) -> Payload:
    """Return the payload with its containers rebuilt. Tensors pass by reference.

    NumPy arrays become tensors and NumPy scalars Python numbers. In ``extra_state``, dataclasses become dicts, members
    of enums their values, and paths text. ``check`` judges what is no number, text, ordinary tensor, dict, list or
    tuple. Raises one :class:`UnsupportedStateError` with all places that are refused, and for a payload that is nested
    too deeply or contains itself, and for tensors that no reader would expand.
    """
    preparation = _Preparation(check)
    try:
        prepared = {key: preparation.part(key, value) for key, value in payload.items()}
    except RecursionError as error:
        raise too_deep() from error
    if preparation.refusals:
        raise _all_of(preparation.refusals)
    if is_deeper(prepared, MAX_LEVELS + 1):
        raise too_deep()
    _check_expansion(prepared)
    return prepared


def too_deep() -> UnsupportedStateError:
    """Return the error for a state that is nested too deeply to be read back."""
    return UnsupportedStateError(
        "the state contains itself, or is nested too deeply",
        expected=f"at most {MAX_LEVELS} levels",
        hint="Store a tree of plain values.",
    )


def _all_of(refusals: Sequence[UnsupportedStateError]) -> UnsupportedStateError:
    """Return one error that tells of all."""
    if len(refusals) == 1:
        return refusals[0]
    lines = [f"- {refusal}" for refusal in refusals[:_SHOWN_REFUSALS]]
    if hidden := len(refusals) - len(lines):
        lines.append(f"- and {hidden} more")
    error = UnsupportedStateError(f"{len(refusals)} values of the state cannot be stored:\n" + "\n".join(lines))
    error.refusals = tuple(refusals)
    return error


class _Preparation:
    """One call of :func:`prepare`. It goes on after a value that is refused, so that a person learns of all at once."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._converts_objects = False
        self.refusals: list[UnsupportedStateError] = []

    def part(self, key: str, value: Any) -> Any:
        # Elsewhere, an object would get back in load_state_dict() what it did not give.
        self._converts_objects = key == EXTRA_STATE_KEY
        return self.value(value, key)

    def value(self, value: Any, place: str) -> Any:
        """Rebuild the containers of ``value`` and check every leaf. Tensors pass by reference."""
        kind = type(value)
        if is_plain_leaf(value):
            return value
        if kind is dict:
            return self._filled({}, value, place)
        if kind is OrderedDict:
            return self._ordered(value, place)
        if kind in (list, tuple):
            return kind([self.value(item, f"{place}[{number}]") for number, item in enumerate(value)])
        try:
            return self._leaf(value, place)
        except UnsupportedStateError as error:
            self.refusals.append(error)
            if len(self.refusals) >= _MAX_REFUSALS:
                raise _all_of(self.refusals) from None
            return None

    def _leaf(self, value: Any, place: str) -> Any:
        if type(value).__module__ == "numpy" and (found := _from_numpy(value, place)) is not None:
            return self.value(found, place)
        if self._converts_objects:
            if isinstance(value, enum.Enum):
                return self.value(value.value, place)
            if isinstance(value, PurePath):
                return str(value)
            if _is_plain_dataclass(value):
                fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
                return self._filled({}, fields, place)
        if type(value) in _TENSORS and value.dtype in _QUANTIZED and not value.is_quantized:
            raise UnsupportedStateError(
                f"{place} is of the type {value.dtype} and has no scale", hint="Store it as whole numbers."
            )
        self._check(value, place)
        return value

    def _filled(self, target: dict[Any, Any], value: Mapping[Any, Any], place: str) -> dict[Any, Any]:
        for key, item in value.items():
            # Most items are plain, and this check is faster than naming their place.
            target[self._key(key, place)] = item if is_plain_leaf(item) else self.value(item, f"{place}[{key!r}]")
        if len(target) != len(value) and not self.refusals:
            raise UnsupportedStateError(
                f"{place} has two keys that are stored as the same",
                expected="keys that differ as plain values",
                got=listed([shown(key) for key in value if not is_plain_leaf(key)]),
            )
        return target

    def _key(self, key: Any, place: str) -> Any:
        if isinstance(key, torch.Tensor):  # it would be found by its identity, and be another one when it is read back
            self.refusals.append(UnsupportedStateError(f"a key of {place} is a tensor", hint="Use a number or a name."))
            return id(key)
        if is_plain_leaf(key):
            return key
        found = self.value(key, f"a key of {place}")
        try:
            hash(found)
        except TypeError:
            what = f"{type(key).__module__}.{type(key).__qualname__}"
            self.refusals.append(UnsupportedStateError(f"a key of {place} is stored as what cannot be one", got=what))
            return id(key)
        return found

    def _ordered(self, value: OrderedDict[Any, Any], place: str) -> OrderedDict[Any, Any]:
        rebuilt: OrderedDict[Any, Any] = OrderedDict()
        self._filled(rebuilt, value, place)
        # state_dict() keeps the version of each module here; load_state_dict() migrates old state by it.
        rebuilt.__dict__.update(self.value(value.__dict__, f"the attributes of {place}"))
        return rebuilt


def is_plain_leaf(value: Any) -> bool:
    """Tell whether every format stores a leaf: a number, a text, or a tensor without attributes of its own."""
    kind = type(value)
    if kind in _TENSORS:
        return (
            value.layout is torch.strided
            and not (value.is_quantized or value.is_nested or value.is_meta or value.__dict__)
            and value.dtype not in _QUANTIZED
            and has_memory(value)
        )
    return kind in _PLAIN and not (kind is int and value.bit_length() > MAX_INT_BITS)


def _is_plain_dataclass(value: Any) -> bool:
    """Tell whether the fields of a dataclass are all that it is."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type | torch.Tensor | Mapping | list | tuple | set)


def _from_numpy(value: Any, place: str) -> Any:
    """Convert an array to a tensor and a scalar to a number. Return ``None`` for other values."""
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind not in "biufc" or value.dtype.char in "gG":
            raise UnsupportedStateError(f"{place} is an array of a type without a tensor", got=str(value.dtype))
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    item = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    return None if type(item) is type(value) else item  # a long double has no plain number


def _check_expansion(payload: Payload) -> None:
    """Refuse expanded tensors that a reader would refuse; see :mod:`ckpt_lib.formats.limits`."""
    total_bytes = 0
    for tensor in {id(tensor): tensor for tensor in tensors_in(payload)}.values():
        if tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_contiguous():
            total_bytes += expanded_bytes(tensor.shape, tensor.stride(), tensor.itemsize)
    if total_bytes > MAX_EXPANDED_BYTES:
        raise UnsupportedStateError(
            f"expanded tensors of the state are {total_bytes} bytes larger than the memory that they lie in",
            expected=f"at most {MAX_EXPANDED_BYTES} bytes",
            hint="Store the tensor that was expanded, and expand it after loading.",
        )
