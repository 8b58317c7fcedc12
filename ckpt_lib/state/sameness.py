"""Whether two payloads are the same, bit for bit: types, structure, numbers, and the bytes of tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckpt_lib.state.memory import is_per_channel


def first_difference(found: Any, wanted: Any, place: str = "the payload") -> str | None:
    """Return where two payloads differ, such as ``model_state_dict.weight``; ``None`` where they are the same.

    NaN is the same as NaN of the same bits, and 0.0 is not the same as -0.0.
    """
    if isinstance(wanted, torch.Tensor):
        return None if isinstance(found, torch.Tensor) and _same_tensors(found, wanted) else place
    if type(found) is not type(wanted):
        return place
    if isinstance(wanted, np.ndarray):
        is_same = (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
        return None if is_same else place
    if isinstance(wanted, Mapping):
        return _first_in_mappings(found, wanted, place)
    if isinstance(wanted, list | tuple):
        return _first_in_sequences(found, wanted, place)
    return None if _spelled(found) == _spelled(wanted) else place


def _spelled(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def _first_in_sequences(found: Sequence[Any], wanted: Sequence[Any], place: str) -> str | None:
    if len(found) != len(wanted):
        return place
    items = enumerate(zip(found, wanted, strict=True))
    return _first(first_difference(one, other, f"{place}[{number}]") for number, (one, other) in items)


def _first_in_mappings(found: Mapping[Any, Any], wanted: Mapping[Any, Any], place: str) -> str | None:
    if list(found) != list(wanted):
        return place
    # state_dict() keeps the versions of modules in its attributes.
    if hasattr(wanted, "__dict__") and (difference := first_difference(vars(found), vars(wanted), place)):
        return difference
    start = "" if place == "the payload" else f"{place}."
    return _first(first_difference(found[key], value, f"{start}{key}") for key, value in wanted.items())


def _first(differences: Iterable[str | None]) -> str | None:
    return next((place for place in differences if place), None)


def _same_tensors(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    facts = ("dtype", "requires_grad", "layout", "is_quantized", "is_nested")
    if any(getattr(found, fact) != getattr(wanted, fact) for fact in facts):
        return False
    if is_dense(wanted):
        return found.shape == wanted.shape and torch.equal(_bytes(found), _bytes(wanted))
    return first_difference(_parts(found), _parts(wanted)) is None


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is elements in memory, and nothing besides."""
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the dense tensors that a tensor of any kind consists of."""
    if is_dense(tensor):
        return [tensor]
    return [dense for part in _parts(tensor) if isinstance(part, torch.Tensor) for dense in dense_parts(part)]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    # A single element may keep an odd stride, which is contiguous all the same and no bytes to torch.
    if not flat.numel():
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)


def _parts(tensor: torch.Tensor) -> list[Any]:
    """Return the dense tensors and the numbers that a tensor of another kind consists of."""
    tensor = tensor.detach()
    if is_traceable_wrapper_subclass(tensor):
        names, facts = tensor.__tensor_flatten__()
        return [*(getattr(tensor, name) for name in names), repr(facts)]
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.shape, tensor.int_repr(), str(tensor.qscheme()), *_scales(tensor)]
    if tensor.layout is torch.strided or tensor.is_mkldnn:
        return [tensor.shape, tensor.to_dense()]
    return [tensor.shape, *_sparse_parts(tensor)]


def _sparse_parts(tensor: torch.Tensor) -> list[Any]:
    if tensor.layout is torch.sparse_coo:
        return [tensor.is_coalesced(), tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]


def _scales(tensor: torch.Tensor) -> list[Any]:
    if is_per_channel(tensor):
        return [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis()]
    return [tensor.q_scale(), tensor.q_zero_point()]
