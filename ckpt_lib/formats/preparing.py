"""Brings a payload into the types that formats store, and refuses the rest before anything is written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

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


def prepare(payload: Mapping[str, Any], check: Check) -> Payload:
    """Return the payload with its containers rebuilt. NumPy scalars become Python numbers; tensors pass by reference.

    ``check`` judges what is no number, text, ordinary tensor, dict, list or tuple. Raises
    :class:`UnsupportedStateError`, as it does, and for a payload that is nested too deeply or contains itself, and for
    tensors that no reader would expand.
    """
    try:
        prepared = {key: prepare_value(value, key, check) for key, value in payload.items()}
    except RecursionError as error:
        raise too_deep() from error
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


def prepare_value(value: Any, place: str, check: Check) -> Any:
    """Rebuild the containers of ``value`` and check every leaf. Tensors pass by reference."""
    kind = type(value)
    if is_plain_leaf(value):
        return value
    if kind is dict:
        return dict(_items(value, place, check))
    if kind is OrderedDict:
        return _ordered(value, place, check)
    if kind in (list, tuple):
        return kind(prepare_value(item, f"{place}[{number}]", check) for number, item in enumerate(value))
    if kind.__module__ == "numpy" and (found := _from_numpy(value, place, check)) is not None:
        return found
    check(value, place)
    return value


def is_plain_leaf(value: Any) -> bool:
    """Tell whether every format stores a leaf: a number, a text, or a tensor without attributes of its own."""
    kind = type(value)
    if kind in _TENSORS:
        return (
            value.layout is torch.strided
            and not (value.is_quantized or value.is_nested or value.is_meta or value.__dict__)
            and has_memory(value)
        )
    return kind in _PLAIN and not (kind is int and value.bit_length() > MAX_INT_BITS)


def _items(value: Mapping[Any, Any], place: str, check: Check) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items():
        # Most items are plain, and this check is faster than naming their place.
        plain_key = key if is_plain_leaf(key) else prepare_value(key, f"a key of {place}", check)
        yield plain_key, item if is_plain_leaf(item) else prepare_value(item, f"{place}[{key!r}]", check)


def _ordered(value: OrderedDict[Any, Any], place: str, check: Check) -> OrderedDict[Any, Any]:
    rebuilt = OrderedDict(_items(value, place, check))
    # state_dict() keeps the version of each module here; load_state_dict() migrates old state by it.
    rebuilt.__dict__.update(prepare_value(value.__dict__, f"the attributes of {place}", check))
    return rebuilt


def _from_numpy(value: Any, place: str, check: Check) -> Any:
    """Convert an array to a tensor and a scalar to a number. Return ``None`` for other values."""
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind not in "biufc" or value.dtype.itemsize > 16:
            raise UnsupportedStateError(f"{place} is an array of a type without a tensor", got=str(value.dtype))
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    item = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    return None if type(item) is type(value) else prepare_value(item, place, check)  # a long double has no plain number


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
