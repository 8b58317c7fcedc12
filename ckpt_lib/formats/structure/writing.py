"""Takes a payload apart: JSON, and the tensors that are stored beside it, each byte once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.base import Payload
from ckpt_lib.formats.preparing import prepare, too_deep
from ckpt_lib.formats.structure.decoding import excess
from ckpt_lib.formats.structure.sharing import Stored, View, odd_stride, store_once
from ckpt_lib.formats.structure.values import TENSOR, Encoder, check_spelling, json_bytes

_GROUP = "tensors"


@dataclass(frozen=True)
class Structured:
    """A payload taken apart."""

    tensors: Mapping[str, torch.Tensor]
    """What the files have to hold, by the names that the JSON has for them: ``0``, ``1``, and so on."""
    spelled: Mapping[str, Any]

    def text(self, facts: Mapping[str, Any] | None = None) -> bytes:
        """Return the JSON, for :func:`parse`. ``facts`` is what else the format has to know, as JSON holds it.

        Raises :class:`UnsupportedStateError` for one that is too large to be read back.
        """
        text = json_bytes({"facts": dict(facts or {}), "payload": self.spelled})
        check_size(text)
        return text


def prepared(payload: Mapping[str, Any]) -> Payload:
    """Return the payload as :func:`take_apart` takes it: what :meth:`Format.prepare` has to do.

    Raises :class:`UnsupportedStateError` with the place of each value that has no spelling.
    """
    return prepare(payload, check_spelling)


def take_apart(payload: Payload) -> Structured:
    """Return a prepared payload as JSON, and the tensors that are stored beside it. None of them is copied.

    Raises :class:`UnsupportedStateError` for what could not be read back.
    """
    try:
        spelled, found = spell(payload)
    except RecursionError as error:
        raise too_deep() from error
    names: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for item in found:
        name = names.setdefault(id(item.stored), str(len(names)))
        tensors[name] = item.stored.source
        item.place(_GROUP, name)
    return Structured(tensors, spelled)


class Placed(NamedTuple):
    """A tensor of a payload, and what is stored for it."""

    name: str
    """Its dotted name in the payload."""
    reference: dict[str, Any]
    """What stands for it in the JSON."""
    stored: Stored
    view: View | None
    """How it is a view of what is stored; ``None`` if it has the same elements."""

    def place(self, group: str, name: str) -> None:
        """Note under which name it is stored, and in which group of files."""
        self.reference[TENSOR] = f"{group}/{name}"


def spell(payload: Payload) -> tuple[dict[str, Any], list[Placed]]:
    """Return a prepared payload as JSON, and its tensors, which are still to be placed. None of them is copied.

    Raises :class:`UnsupportedStateError` for what could not be read back.
    """
    found: list[tuple[torch.Tensor, str, dict[str, Any]]] = []
    resolved: dict[int, torch.Tensor] = {}

    def refer(tensor: torch.Tensor, name: str) -> dict[str, Any]:
        if tensor.is_conj() or tensor.is_neg():
            if id(tensor) not in resolved:
                resolved[id(tensor)] = tensor.detach().resolve_conj().resolve_neg()
            tensor = resolved[id(tensor)]
        reference: dict[str, Any] = {TENSOR: ""}
        found.append((tensor, name, reference))
        return reference

    spelled = Encoder(refer).encode(payload, "")
    placed = []
    for (tensor, name, reference), (stored, view) in zip(found, store_once([item[0] for item in found]), strict=True):
        if view is not None:
            reference["view"] = _spelled_view(view)
        elif stride := odd_stride(tensor):
            reference["stride"] = list(stride)
        placed.append(Placed(name, reference, stored, view))
    return spelled, placed


def _spelled_view(view: View) -> dict[str, Any]:
    dtype = str(view.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(view.shape), "stride": list(view.stride), "offset": view.offset}


def check_size(text: bytes) -> None:
    """Raise :class:`UnsupportedStateError` for JSON that is too large to be read back."""
    if reason := excess(text):
        raise UnsupportedStateError(
            f"the state has too many parts to be read back: {reason}",
            hint="Store long lists of numbers as tensors.",
        )
