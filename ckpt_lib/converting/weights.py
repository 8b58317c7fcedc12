"""The weights of a model, and nothing else: what files of safetensors hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ckpt_lib.converting.tensors import Sharing, tensor_stream
from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.foreign import StoredTensor
from ckpt_lib.formats.safetensors.header import FORMAT_KEY, METADATA_KEY
from ckpt_lib.formats.structure.dtypes import NAMES
from ckpt_lib.formats.tensor_bytes import TensorStream

_TARGET = "a file of safetensors"


@dataclass(frozen=True)
class Weights:
    """The tensors of a model by name, each once."""

    tensors: dict[str, TensorStream] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    """Names of tensors that are the same memory as another one, with the name of that."""


def weights_of(payload: Mapping[str, Any], dtype: torch.dtype | None) -> Weights:
    """Return the weights of the one model in a payload.

    Tensors that share all of their memory are there once; those that share a part of it are there in full. Raises
    :class:`~ckpt_lib.errors.UnsupportedStateError` for what such a file cannot hold.
    """
    state = payload.get(MODEL_KEY)
    if not isinstance(state, Mapping) or not state:
        raise UnsupportedStateError("the checkpoint holds no model", hint="Convert all of it to the format torch.")
    _refuse(state)
    sharing = Sharing(state.values())
    found = Weights()
    names: dict[int, str] = {}
    for name, tensor in state.items():
        first = sharing.first_of(tensor)
        kept = names.setdefault(id(first), name)
        if name in (kept, FORMAT_KEY):  # no note in the metadata can have that name
            found.tensors[name] = tensor_stream(name, tensor, dtype)
        else:
            found.tied[name] = kept
    _refuse_types(found)
    return found


def _refuse(state: Mapping[str, Any]) -> None:
    others = [name for name, value in state.items() if not isinstance(value, StoredTensor)]
    if others and all(isinstance(value, Mapping) for value in state.values()):
        raise UnsupportedStateError(
            f"the checkpoint holds several models, and {_TARGET} holds the weights of one",
            got=listed(list(map(shown, others))),
            hint="Convert it to the format torch.",
        )
    if others:
        raise UnsupportedStateError(
            f"{_TARGET} holds ordinary tensors only, and the state of the model holds something else",
            got=listed(list(map(shown, others))),
            hint="Convert it to the format torch.",
        )
    odd = [name for name in state if not isinstance(name, str) or name == METADATA_KEY]
    if odd:
        raise UnsupportedStateError(f"no tensor of {_TARGET} can have this name", got=listed(list(map(shown, odd))))


def _refuse_types(weights: Weights) -> None:
    for name, tensor in weights.tensors.items():
        if tensor.dtype not in NAMES:
            raise UnsupportedStateError(
                f"{shown(name)} has a type that safetensors does not know",
                expected=", ".join(str(dtype).removeprefix("torch.") for dtype in NAMES),
                got=str(tensor.dtype).removeprefix("torch."),
                hint="Convert it to the format torch, or cast it.",
            )
