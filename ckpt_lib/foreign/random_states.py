"""The states of random number generators in folders of Hugging Face's libraries, as payloads of ours hold them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ckpt_lib.core.payload_keys import RNG_KEY
from ckpt_lib.core.wording import listed
from ckpt_lib.errors import UnsafePayloadError, UnsupportedFormatError
from ckpt_lib.foreign.base import ForeignCheckpoint, StoredObject, StoredTensor
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.torch_parts import read_torch

_WORDS = {"python": 625, "numpy": 624}
"""How many words of 32 bits the Mersenne Twister of each has; Python's has its position among them."""
_RECONSTRUCT = tuple(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))


def with_random_states(
    checkpoint: ForeignCheckpoint, files: FoundFiles, names: Sequence[str], keys: Mapping[str, str]
) -> ForeignCheckpoint:
    """Return a checkpoint with the generators of each process, in whose order the files are named.

    ``keys`` says how a file calls those of ``python``, ``numpy``, ``torch`` and ``cuda``. If one of the files holds
    anything else, all are left out, and the checkpoint says so. Raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` for one that is cut off or contradicts itself.
    """
    if not names or checkpoint.payload is None:
        return checkpoint
    states = [_read(files, name, keys) for name in names]
    if all(state is not None for state in states):
        return replace(checkpoint, payload={**checkpoint.payload, RNG_KEY: states})
    sentence = f"{listed(list(names))}: no states of the generators of Python, NumPy and PyTorch are found there."
    return replace(checkpoint, left_out=(*checkpoint.left_out, sentence), unread=(*checkpoint.unread, sentence))


def _read(files: FoundFiles, name: str, keys: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        return _state_of(read_torch(files, name), keys)
    except (UnsafePayloadError, UnsupportedFormatError):  # something else has that name
        return None


def _state_of(value: Any, keys: Mapping[str, str]) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    python, numpy = _python_state(value.get(keys["python"])), _numpy_state(value.get(keys["numpy"]))
    cpu, cuda = value.get(keys["torch"]), value.get(keys["cuda"])
    if python is None or numpy is None or not _is_bytes(cpu):
        return None
    state = {"python": python, "numpy": numpy, "torch": cpu}
    devices = list(cuda) if isinstance(cuda, list | tuple) else [cuda]
    return {**state, "cuda": devices} if devices and all(map(_is_bytes, devices)) else state


def _python_state(value: Any) -> dict[str, Any] | None:
    match value:
        case (int(version), tuple(words), None | float() as gauss_next) if len(words) == _WORDS["python"]:
            stored = _stored(words)
            return None if stored is None else {"version": version, "words": stored, "gauss_next": gauss_next}
    return None


def _numpy_state(value: Any) -> dict[str, Any] | None:
    match value:
        case (str(kind), key, int(pos), int(has_gauss), float(gauss)):
            words = _array_of(key) if isinstance(key, StoredObject) else key
            stored = _stored(words) if isinstance(words, list | tuple) and len(words) == _WORDS["numpy"] else None
            if stored is not None:
                state = {"key": stored, "pos": pos}
                return {"bit_generator": kind, "state": state, "has_gauss": has_gauss, "gauss": gauss}
    return None


def _array_of(item: StoredObject) -> tuple[int, ...] | None:
    """Return the words of a pickled array of NumPy."""
    match item.state:
        case (_, (int(count),), StoredObject(class_name="numpy.dtype", arguments=("u4", *_)) as kind, _, bytes(data)):
            if item.class_name in _RECONSTRUCT and len(data) == 4 * count:
                is_swapped = isinstance(kind.state, tuple) and len(kind.state) > 1 and kind.state[1] == ">"
                return struct.unpack(f"{'>' if is_swapped else '<'}{count}I", data)
    return None


def _stored(words: Sequence[Any]) -> StoredTensor | None:
    """Return words of 32 bits as the tensor of bytes that a payload of ours has for them."""
    if not all(type(word) is int and 0 <= word < 2**32 for word in words):
        return None
    found = torch.frombuffer(bytearray(struct.pack(f"={len(words)}I", *words)), dtype=torch.uint8)
    return StoredTensor(torch.uint8, tuple(found.shape), object(), lambda: found)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, StoredTensor) and value.dtype == torch.uint8
