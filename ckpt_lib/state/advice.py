"""What to do about a stored state whose names or shapes are not those of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.state.exactness import is_lazy
from ckpt_lib.state.naming import NamedState
from ckpt_lib.state.stateful import UNCHANGED, shape_of
from ckpt_lib.state.wrappers import bare_spellings, starts_of

_MAX_NAMES = 200_000
_MAX_PLACES = 20
_MAX_ENTRIES = 5
_OPTIONS = (
    "Build the model as it was when the checkpoint was saved, or see load_checkpoint: key_map= renames layers, "
    "strict=False restores what matches, only= restores a part. Prefixes of DistributedDataParallel, DataParallel and "
    "torch.compile make no difference."
)


def advice(payload: Mapping[str, Any], named: NamedState, model: Any) -> str:
    """Return the hint of an error about a state that does not fit: where the model's tensors are, if they are there."""
    wanted = _shapes_of_bare_names(named, model)
    if wanted and (place := _place_to_read(wanted, payload, named)):
        return f'The checkpoint has the names of the model below {place!r}: see only="{place}". {UNCHANGED}'
    if wanted and (submodule := _place_in(wanted, named)):
        return f"The names in the checkpoint are those of a part of the model: pass model.{submodule}. {UNCHANGED}"
    if entries := _entries_to_leave_out(wanted, named):
        return f"{_leaving_out(entries, named)} {UNCHANGED}"
    return f"{_OPTIONS} {UNCHANGED}"


Shapes = Mapping[str, Any]
"""Shapes by the dotted names of tensors."""


def _shapes_of_bare_names(named: NamedState, model: Any) -> dict[str, Any]:
    """Return the shapes of the model's tensors, the longest name last; none for one that is no module."""
    if named.model_names is None:
        return {}
    current = model.state_dict()
    by_bare_name = named.model_names.by_bare_name
    return {bare: _shape(current.get(by_bare_name[bare])) for bare in sorted(by_bare_name, key=len)}


def _shape(tensor: Any) -> tuple[int, ...] | None:
    """Return the shape that a stored tensor must have; ``None`` where any will do."""
    return None if tensor is None or is_lazy(tensor) else shape_of(tensor)


def _entries_to_leave_out(wanted: Shapes, named: NamedState) -> list[str]:
    """Return the stored names of tensors of another shape, or of layers that hold nothing but tensors."""
    known = {} if named.model_names is None else named.model_names.by_bare_name
    spelled = bare_spellings(named.names)
    layers = {name.rpartition(".")[0] for name in spelled.values()}
    outer = {start.removesuffix(".") for layer in layers for start in starts_of(layer)}
    entries: dict[str, None] = {}
    for bare, shape in wanted.items():
        stored = named.stored_names.get(known[bare])
        if stored is not None and shape not in (None, shape_of(named.state[known[bare]])):
            layer = spelled[stored].rpartition(".")[0]
            entries[layer if layer and layer not in outer else spelled[stored]] = None
    return list(entries)


def _leaving_out(entries: list[str], named: NamedState) -> str:
    shown = ", ".join(f'"{entry}": "dropped.{entry}"' for entry in entries[:_MAX_ENTRIES])
    more = ", ..." if len(entries) > _MAX_ENTRIES else ""
    where = "in key_map= also " if named.naming.key_map is not None else "key_map="
    return (
        "Build the model as it was when the checkpoint was saved, or see load_checkpoint: "
        f"pass strict=False and {where}{{{shown}{more}}}. "
        "What gets a name that the model does not have is left out, and the rest is restored."
    )


def _place_to_read(wanted: Shapes, payload: Mapping[str, Any], named: NamedState) -> str | None:
    """Return what ``only`` should be: in the whole payload or, if a part was asked for, below that."""
    only = named.naming.only
    if only is None:
        return _place_of(wanted, payload)
    place = _place_of(wanted, {stored: named.state[name] for stored, name in named.names.items()})
    return place and f"{only}.{place}"


def _place_of(wanted: Shapes, payload: Mapping[str, Any]) -> str | None:
    """Return the dotted name of the part of a payload below which all wanted names are, with their shapes."""
    names = dict(islice(_dotted(payload), _MAX_NAMES))
    ending = f".{list(wanted)[-1]}"
    places = sorted({name.removesuffix(ending) for name in names if name.endswith(ending)} - {MODEL_KEY}, key=len)
    found = (
        place for place in places[:_MAX_PLACES] if all(_has(names, f"{place}.{name}", wanted[name]) for name in wanted)
    )
    return next(found, None)


def _has(names: Shapes, name: str, shape: Any) -> bool:
    return name in names and (shape is None or names[name] is None or names[name] == shape)


def _place_in(wanted: Shapes, named: NamedState) -> str | None:
    """Return the submodule of the model that has all stored names, with their shapes."""
    stored = {name: shape_of(named.state[own]) for name, own in named.names.items()}
    if not stored:
        return None
    ending = f".{max(stored, key=len)}"
    places = [name.removesuffix(ending) for name in wanted if name.endswith(ending)]
    found = (
        place for place in places[:_MAX_PLACES] if all(_has(wanted, f"{place}.{name}", stored[name]) for name in stored)
    )
    return next(found, None)


def _dotted(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name of each value, and its shape if it has one."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _dotted(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", shape_of(item)
