"""Random number generators as objects with ``state_dict()`` and ``load_state_dict()``.

A state holds bytes as tensors and otherwise plain values, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import ConfigError, StateMismatchError

_SEED_SEQUENCE = "seed_sequence"
_ACCELERATORS = ("cuda", "xpu")


class GlobalGenerators:
    """The generators that code uses when it names none: those of Python, NumPy and PyTorch, and of each GPU.

    A GPU that the process has not used yet has no state.
    """

    def state_dict(self) -> dict[str, Any]:
        state = {
            "python": _python_state(random),
            "numpy": _with_tensors(np.random.get_state(legacy=False)),
            "torch": torch.get_rng_state(),
        }
        for name in _ACCELERATORS:
            device = getattr(torch, name)
            if device.is_available() and device.is_initialized():
                state[name] = device.get_rng_state_all()
        if torch.backends.mps.is_available():
            state["mps"] = torch.mps.get_rng_state()
        return state

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Set every generator that this machine has too; warn of one that it lacks.

        Raises :class:`StateMismatchError` for a state that does not fit, with every generator as it was.
        """
        before = self.state_dict()
        try:
            self._set(state)
        except Exception as error:
            self._set(before)
            raise _unfit("generators of Python, NumPy and PyTorch", error) from error

    def _set(self, state: Mapping[str, Any]) -> None:
        _set_python_state(random, state["python"])
        np.random.set_state(_with_arrays(state["numpy"], np.random.get_state(legacy=False)))
        torch.set_rng_state(state["torch"])
        for name in _ACCELERATORS:
            stored, count = state.get(name, ()), getattr(torch, name).device_count()
            for number, device_state in enumerate(stored[:count]):
                getattr(torch, name).set_rng_state(device_state, number)
            if len(stored) > count:
                logger.warning(
                    "generators of %d %s devices were saved, and %d are here: the others are left out",
                    len(stored),
                    name,
                    count,
                )
        if "mps" in state and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"])


_KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def is_generator(item: Any) -> bool:
    """Tell whether :class:`NamedGenerator` takes an object."""
    return isinstance(item, _KINDS) and not isinstance(item, random.SystemRandom)


class NamedGenerator:
    """One generator: ``torch.Generator``, ``random.Random``, ``numpy.random.Generator`` or ``RandomState``."""

    def __init__(self, generator: Any) -> None:
        """Raises :class:`ConfigError` for anything else."""
        if not is_generator(generator):
            raise ConfigError(
                "this is no generator with a state",
                expected="torch.Generator, random.Random, numpy.random.Generator or numpy.random.RandomState",
                got=type(generator).__name__,
            )
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        generator = self._generator
        if isinstance(generator, torch.Generator):
            return {"torch": generator.get_state()}
        if isinstance(generator, random.Random):
            return {"python": _python_state(generator)}
        return {"numpy": _with_tensors(_numpy_state(generator)), **_seed_sequence_of(generator)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Raises :class:`StateMismatchError` for the state of another kind of generator; nothing was changed then."""
        generator, before = self._generator, self.state_dict()
        if state.keys() - {_SEED_SEQUENCE} != before.keys() - {_SEED_SEQUENCE}:
            raise StateMismatchError(
                "the state is that of another kind of generator", expected=", ".join(before), got=", ".join(state)
            )
        try:
            if isinstance(generator, torch.Generator):
                generator.set_state(state["torch"])
            elif isinstance(generator, random.Random):
                _set_python_state(generator, state["python"])
            else:
                _set_numpy_state(generator, _with_arrays(state["numpy"], _numpy_state(generator)))
                _set_seed_sequence(generator, state)
        except Exception as error:
            raise _unfit("generator", error) from error


def _unfit(what: str, error: Exception) -> StateMismatchError:
    return StateMismatchError(f"the stored state does not fit the {what}: {error!r}")


def _python_state(generator: Any) -> dict[str, Any]:
    version, words, gauss_next = generator.getstate()
    return {"version": version, "words": _as_bytes(np.array(words, dtype=np.uint32)), "gauss_next": gauss_next}


def _set_python_state(generator: Any, state: Mapping[str, Any]) -> None:
    words = _as_array(state["words"], np.dtype(np.uint32)).tolist()
    generator.setstate((state["version"], tuple(words), state["gauss_next"]))


def _numpy_state(generator: Any) -> Any:
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _set_numpy_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _seed_sequence_of(generator: Any) -> dict[str, Any]:
    """Return what ``Generator.spawn`` makes children from, and how many there are; nothing where it makes none."""
    bits = getattr(generator, "bit_generator", None)
    seeds = getattr(bits, "seed_seq", None)
    if not isinstance(seeds, np.random.SeedSequence) or not isinstance(bits.__getstate__(), tuple):
        return {}  # NumPy before 1.26 could not set it
    entropy = seeds.entropy
    found = {
        "entropy": list(map(int, entropy)) if isinstance(entropy, Sequence | np.ndarray) else entropy,
        "spawn_key": list(map(int, seeds.spawn_key)),
        "pool_size": int(seeds.pool_size),
        "n_children_spawned": int(seeds.n_children_spawned),
    }
    return {_SEED_SEQUENCE: found}


def _set_seed_sequence(generator: Any, state: Mapping[str, Any]) -> None:
    if stored := state.get(_SEED_SEQUENCE):
        bits = generator.bit_generator
        seeds = np.random.SeedSequence(**{**stored, "spawn_key": tuple(stored["spawn_key"])})
        bits.__setstate__((bits.state, seeds))  # what unpickling calls: there is no other way to set it


def _with_tensors(state: Any) -> Any:
    """Return NumPy's state of a generator with the bytes of its arrays as tensors."""
    if isinstance(state, Mapping):
        return {key: _with_tensors(value) for key, value in state.items()}
    return _as_bytes(state) if isinstance(state, np.ndarray) else state


def _with_arrays(state: Any, like: Any) -> Any:
    """Undo :func:`_with_tensors`; the arrays have the types of those in ``like``."""
    if isinstance(state, Mapping):
        return {key: _with_arrays(value, like[key]) for key, value in state.items()}
    return _as_array(state, like.dtype) if isinstance(state, torch.Tensor) else state


def _as_bytes(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8)


def _as_array(tensor: torch.Tensor, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.cpu().numpy().tobytes(), dtype=kind)
