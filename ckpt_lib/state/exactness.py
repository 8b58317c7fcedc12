"""Tells whether a model can hold stored values exactly, with its own types and tied tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def changed_values(
    current: Mapping[str, Any], state: Mapping[str, Any], *, exactly: bool, uncommon: Mapping[str, Any]
) -> list[str]:
    """Return the names of a model's tensors that cannot hold the values stored for them.

    ``uncommon`` has those of the ``current`` tensors that may be of another type than what is stored for them.

    Overflows, lost fractions, wrapped numbers and different values for one tied tensor always count. With ``exactly``,
    any rounding counts too.
    """
    return sorted({*_changed_by_type(uncommon, state, exactly=exactly), *_changed_by_ties(current, state)})


def _changed_by_type(current: Mapping[str, Any], state: Mapping[str, Any], *, exactly: bool) -> Iterator[str]:
    """Yield the names of tensors with values that another type does not hold: exactly, or but for rounding."""
    import torch

    for name, value in current.items():
        stored = state.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(stored, torch.Tensor) or is_lazy(value):
            continue
        if value.dtype == stored.dtype:
            continue
        if value.is_quantized or stored.is_quantized:
            is_changed = exactly  # quantized values are compared with no others
        else:
            is_changed = not is_held(stored, value.dtype) if exactly else _loses(stored, value.dtype)
        if is_changed:
            yield name


def is_held(stored: Any, dtype: Any) -> bool:
    """Tell whether another type can hold every value of a tensor exactly."""
    import torch

    values = _comparable(stored.detach())
    with torch.no_grad():
        if values.is_complex() and not dtype.is_complex:
            return not bool(values.imag.any()) and is_held(values.real, dtype)
        back = values.to(dtype).to(values.dtype)
        return bool(((back == values) | (back.isnan() & values.isnan())).all())


def _comparable(tensor: Any) -> Any:
    """Return the stored values of a tensor, without sparse indices, in a wider type if its own has no comparison."""
    import torch

    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    is_narrow = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.to(torch.float32) if is_narrow else tensor


def _loses(stored: Any, dtype: Any) -> bool:
    """Tell whether a conversion changes values by more than rounding."""
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
    """Yield the names of tied tensors for which different values were stored. Loading keeps the last of these."""
    import torch

    at: dict[int, list[str]] = {}
    for name, value in current.items():
        if not isinstance(value, torch.Tensor) or is_lazy(value) or not value.numel() or name not in state:
            continue
        if value.layout is torch.strided and not value.is_nested:
            at.setdefault(value.data_ptr(), []).append(name)
    for names in at.values():
        seen: dict[tuple[Any, ...], str] = {}
        for name in names if len(names) > 1 else ():
            value = current[name]
            first = seen.setdefault((value.shape, value.stride(), value.device), name)
            if first != name and not _equal(state[first], state[name]):
                yield first


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def is_lazy(value: Any) -> bool:
    """Tell whether ``value`` is a lazy parameter, which takes its shape from the loaded tensor and has none before."""
    from torch.nn import parameter

    return bool(parameter.is_lazy(value))
