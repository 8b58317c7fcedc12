"""Whether tensors hold the values that were stored for them: in other types, and under several names for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def changed_values(current: Mapping[str, Any], state: Mapping[str, Any], *, exactly: bool) -> list[str]:
    """Return the names of a model's tensors that cannot hold what is stored for them.

    Overflows, lost fractions, wrapped numbers and different values for one tied tensor always count; with ``exactly``
    so does any rounding.
    """
    by_type = _differing(current, state) if exactly else _changed_by_type(current, state)
    return sorted({*by_type, *_changed_by_ties(current, state)})


def _casts(current: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the model's tensor and the stored one, of each that loading gives another type."""
    import torch

    for name, value in current.items():
        stored = state.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(stored, torch.Tensor) or is_lazy(value):
            continue
        if value.dtype != stored.dtype:
            yield name, value, stored


def _changed_by_type(current: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    for name, value, stored in _casts(current, state):
        is_quantized = value.is_quantized or stored.is_quantized
        if not is_quantized and _loses(stored, value.dtype):
            yield name


def _differing(current: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    """The names of tensors of which any value would differ, if only by rounding."""
    for name, value, stored in _casts(current, state):
        if value.is_quantized or stored.is_quantized or not is_held(stored, value.dtype):
            yield name


def is_held(stored: Any, dtype: Any) -> bool:
    """Whether every value of a tensor is the same in another type."""
    import torch

    values = _comparable(stored.detach())
    with torch.no_grad():
        if values.is_complex() and not dtype.is_complex:
            return not bool(values.imag.any()) and is_held(values.real, dtype)
        back = values.to(dtype).to(values.dtype)
        return bool(((back == values) | (back.isnan() & values.isnan())).all())


def _comparable(tensor: Any) -> Any:
    """What a tensor stores, without the places of a sparse one, and wider where its type has no comparisons."""
    import torch

    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    is_narrow = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.to(torch.float32) if is_narrow else tensor


def _loses(stored: Any, dtype: Any) -> bool:
    """Whether a conversion changes more than the last digits of floating numbers."""
    import torch

    if stored.layout is not torch.strided:
        return False
    with torch.no_grad():
        if stored.is_complex() and not dtype.is_complex and bool(stored.imag.any()):
            return True
        real = stored.real if stored.is_complex() and not dtype.is_complex else stored
        real = _comparable(real)
        converted = _comparable(real.to(dtype))
        if real.is_floating_point() and dtype.is_floating_point:
            return bool((torch.isfinite(real) & ~torch.isfinite(converted)).any())
        return bool((converted.to(real.dtype) != real).any())


def _changed_by_ties(current: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    """The names of one tensor of the model for which different ones were stored: the last of them stays."""
    import torch

    seen: dict[tuple[Any, ...], str] = {}
    for name, value in current.items():
        if not isinstance(value, torch.Tensor) or is_lazy(value) or not value.numel() or name not in state:
            continue
        if value.layout is not torch.strided or value.is_nested:
            continue
        place = (value.data_ptr(), value.shape, value.stride(), value.device)
        first = seen.setdefault(place, name)
        if first != name and not _equal(state[first], state[name]):
            yield first


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def is_lazy(value: Any) -> bool:
    """Whether it is a parameter that takes its shape from what is loaded; asking it for one is an error."""
    from torch.nn import parameter

    return bool(parameter.is_lazy(value))
