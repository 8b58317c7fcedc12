"""What to do about a stored state whose names or shapes are not those of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.state.naming import NamedState
from ckpt_lib.state.stateful import UNCHANGED

_MAX_NAMES = 200_000
_MAX_PLACES = 20
_OPTIONS = (
    "Build the model as it was when the checkpoint was saved, or see load_checkpoint: key_map= renames layers, "
    "strict=False restores what matches, only= restores a part. Prefixes of DistributedDataParallel, DataParallel and "
    "torch.compile make no difference."
)


def advice(payload: Mapping[str, Any], named: NamedState) -> str:
    """Return the hint of an error about a state that does not fit: where the model's names are, if they are there."""
    wanted = [] if named.model_names is None else sorted(named.model_names.by_bare_name, key=len)
    if wanted and (place := _place_to_read(wanted, payload, named)):
        return f'The checkpoint has the names of the model below {place!r}: see only="{place}". {UNCHANGED}'
    if wanted and (submodule := _place_in(wanted, list(named.names))):
        return f"The names in the checkpoint are those of a part of the model: pass model.{submodule}. {UNCHANGED}"
    return f"{_OPTIONS} {UNCHANGED}"


def _place_to_read(wanted: list[str], payload: Mapping[str, Any], named: NamedState) -> str | None:
    """Return what ``only`` should be: in the whole payload or, if a part was asked for, below that."""
    only = named.naming.only
    if only is None:
        return _place_of(wanted, payload)
    place = _place_of(wanted, {stored: named.state[name] for stored, name in named.names.items()})
    return place and f"{only}.{place}"


def _place_of(wanted: list[str], payload: Mapping[str, Any]) -> str | None:
    """Return the dotted name of the part of a payload below which all wanted names are."""
    names = set(islice(_dotted(payload), _MAX_NAMES))
    ending = f".{wanted[-1]}"
    places = sorted({name.removesuffix(ending) for name in names if name.endswith(ending)} - {MODEL_KEY}, key=len)
    found = (place for place in places[:_MAX_PLACES] if all(f"{place}.{name}" in names for name in wanted))
    return next(found, None)


def _place_in(wanted: list[str], stored: list[str]) -> str | None:
    """Return the submodule of the model that has all stored names."""
    if not stored:
        return None
    names, ending = set(wanted), f".{max(stored, key=len)}"
    places = [name.removesuffix(ending) for name in wanted if name.endswith(ending)]
    found = (place for place in places[:_MAX_PLACES] if all(f"{place}.{name}" in names for name in stored))
    return next(found, None)


def _dotted(value: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _dotted(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
