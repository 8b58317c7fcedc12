"""Random number generators as Python, NumPy and PyTorch set them, in files that Hugging Face's libraries read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.payload_keys import RNG_KEY
from ckpt_lib.foreign import StoredTensor

_NAMES = ("python", "numpy", "torch")
_NUMPY_KIND = "MT19937"  # the one that numpy.random.set_state takes as a tuple


def random_states(payload: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the state of each process, and sentences about what is not in it.

    Each has ``python``, ``numpy`` and ``torch`` as ``setstate`` of each takes it, and a list ``cuda`` where the
    checkpoint has one. There are none where one of the three is missing: a half is no state that anyone restores.
    """
    stored = payload.get(RNG_KEY) or []
    if not stored:
        return [], ["The checkpoint holds no state of random number generators: they go on as they are."]
    if not all(_is_complete(state) for state in stored):
        return [], ["The checkpoint lacks the state of Python's, NumPy's or PyTorch's generator: all were left out."]
    named = sorted({name for state in stored for name in state.get("named", {})})
    notes = [f"There is no place for the generators {', '.join(named)}: left out."] if named else []
    return [_as_set(state) for state in stored], notes


def _is_complete(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and all(name in state for name in _NAMES)
        and state["numpy"].get("bit_generator") == _NUMPY_KIND
    )


def _as_set(state: Mapping[str, Any]) -> dict[str, Any]:
    python, numpy = state["python"], state["numpy"]
    found = {
        "python": (python["version"], tuple(_words(python["words"])), python["gauss_next"]),
        "numpy": (
            *(numpy["bit_generator"], _words(numpy["state"]["key"]), numpy["state"]["pos"]),
            *(numpy["has_gauss"], numpy["gauss"]),
        ),
        "torch": state["torch"],
    }
    return {**found, "cuda": list(state["cuda"])} if state.get("cuda") else found


def _words(stored: StoredTensor) -> list[int]:
    """Return the words of 32 bits that a payload holds as bytes."""
    data = stored.read().numpy().tobytes()
    return list(struct.unpack(f"={len(data) // 4}I", data))
