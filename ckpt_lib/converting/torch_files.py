"""Contents as one file of ``torch.save``, whose tensors are read and cast when they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ckpt_lib.converting.files import NewFile
from ckpt_lib.converting.tensors import Sharing, tensor_stream
from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.foreign import StoredTensor, tensors_in
from ckpt_lib.formats.preparing import prepare, too_deep
from ckpt_lib.formats.tensor_bytes import TensorStream
from ckpt_lib.formats.torch.format import check_readable
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.state.tree import map_leaves

_ORDER = (MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY, "epoch", "step", "metrics", "config")


def script_contents(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return what training scripts store, under the names that PyTorch's documentation gives it.

    These are ``model_state_dict``, ``optimizer_state_dict``, ``epoch`` and so on. What the checkpoint lacks is left
    out, and the entries of ``extra_state`` stay in it.
    """
    ordered = (*_ORDER, *(key for key in payload if key not in _ORDER))
    return {key: payload[key] for key in ordered if payload.get(key) is not None and not _is_empty(payload[key])}


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def torch_file(name: str, contents: Mapping[str, Any], model_key: str | None, dtype: torch.dtype | None) -> NewFile:
    """Return the file. What lies under ``model_key`` is cast; for ``None``, the contents are the state of a model.

    Tensors that share memory share it again, unless they are cast and are no views of the same elements. Raises
    :class:`~ckpt_lib.errors.UnsupportedStateError` for what ``torch.load(weights_only=True)`` would not read.
    """
    held = dict(contents) if model_key else {MODEL_KEY: contents}
    streams = _Streams(held, dtype)
    weights = model_key or MODEL_KEY
    changed = {key: map_leaves(value, streams.change(cast=key == weights)) for key, value in held.items()}
    prepared = prepare(changed, _check)
    try:
        layout = ArchiveLayout(prepared if model_key else prepared[MODEL_KEY])
    except RecursionError as error:
        raise too_deep() from error
    return NewFile(name, layout.size_bytes, layout.write_to)


class _Streams:
    """What is written for each stored tensor: one object for all that are the same."""

    def __init__(self, contents: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        named = list(tensors_in(contents))
        self._names = {id(tensor): name for name, tensor in reversed(named)}
        self._sharing = Sharing(tensor for _, tensor in named)
        self._dtype = dtype
        self._made: dict[tuple[int, torch.dtype], TensorStream | torch.Tensor] = {}

    def change(self, *, cast: bool) -> Callable[[Any], Any]:
        """Return the function that takes a leaf of the contents to what is written for it."""
        return partial(self._changed, dtype=self._dtype if cast else None)

    def _changed(self, value: Any, *, dtype: torch.dtype | None) -> Any:
        if isinstance(value, torch.Tensor) and dtype is not None:
            raise UnsupportedStateError(
                "the model holds a tensor that is no ordinary one, such as a sparse or quantized one",
                hint="Convert it without a dtype.",
            )
        if not isinstance(value, StoredTensor):
            return value
        first = self._sharing.first_of(value)
        wanted = dtype if dtype is not None and first.dtype.is_floating_point else first.dtype
        key = (id(first), wanted)
        if key not in self._made:
            is_view = wanted == first.dtype and self._sharing.overlaps(first)
            self._made[key] = first.read().detach() if is_view else tensor_stream(self._names[id(first)], first, wanted)
        return self._made[key]


def _check(value: Any, place: str) -> None:
    if not isinstance(value, TensorStream):
        check_readable(value, place)
