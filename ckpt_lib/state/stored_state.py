"""``StoredState``: where a payload holds the state of each object of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY, PAYLOAD_KEYS, PER_PROCESS
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.training_state import Part, TrainingState


class StoredState:
    """The states in a payload, found by kind and name.

    In data-parallel training each process has its own position and its own generators, and the payload a list of them.
    """

    def __init__(self, payload: Mapping[str, Any], rank: int = 0, world_size: int = 1) -> None:
        self.payload = payload
        self._rank = rank
        self._world_size = world_size

    def with_model(self, state: Mapping[str, Any]) -> StoredState:
        """Return the same with another state of the model."""
        return StoredState({**self.payload, MODEL_KEY: state}, self._rank, self._world_size)

    def of(self, part: Part) -> Mapping[str, Any]:
        """Return the state of one object. Raises :class:`StateMismatchError` if the payload does not hold it."""
        found = self.find(part.kind, part.name)
        if isinstance(found, Mapping):
            return found
        count = self._processes(part.kind)
        if count not in (0, self._world_size):
            raise StateMismatchError(
                f"the {part.label} state is that of another number of processes",
                expected=self._world_size,
                got=count,
                hint=f"Leave out {part.argument} to go on without it.",
            )
        raise StateMismatchError(
            f"the checkpoint holds no {part.label} state",
            hint=f"Leave out {part.argument}, or load a checkpoint that was saved with it.",
        )

    def find(self, kind: str, name: str | None) -> Any:
        """Return the state of a kind and, if it is one of several, a name; ``None`` if there is none."""
        found: Any = self.payload.get(PAYLOAD_KEYS[kind])
        if kind in PER_PROCESS:
            found = found[self._rank] if self._processes(kind) == self._world_size else None
        if kind == "rng" and isinstance(found, Mapping):
            found = found.get("named", {}) if name is not None else found if "torch" in found else None
        return found if name is None else found.get(name) if isinstance(found, Mapping) else None

    def _processes(self, kind: str) -> int:
        found = self.payload.get(PAYLOAD_KEYS[kind])
        return len(found) if isinstance(found, list) else 0

    def flat_model_state(self) -> dict[str, Any]:
        """Return the tensors of the model by name; those of several models by the model's name as well."""
        state = self.payload.get(MODEL_KEY)
        flat: dict[str, Any] = {}
        for name, value in state.items() if isinstance(state, Mapping) else ():
            flat |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, Mapping) else {}
            flat[name] = value
        return flat

    def beside(self, state: TrainingState) -> list[str]:
        """Return the names of what is stored and belongs to no object of ``state``."""
        parts = list(state.parts())
        wanted = {(part.kind, part.name) for part in parts}
        found = []
        for kind, key in PAYLOAD_KEYS.items():
            stored = self.payload.get(key)
            if kind in PER_PROCESS:
                stored = stored[0] if stored else None
            names = self._names_of(kind, stored, {part.name for part in parts if part.kind == kind})
            found += [_shown(kind, name) for name in names if (kind, name) not in wanted]
        return found

    @staticmethod
    def _names_of(kind: str, stored: Any, asked: set[str | None]) -> list[str | None]:
        """Return the names of the states of one kind: of all where they are named, and else ``None``."""
        if not stored:
            return []
        if kind == "rng":
            return list(stored.get("named", {}))
        is_named = kind == "others" or bool(asked - {None})
        return list(stored) if is_named else [None]

    def approximations(self, state: TrainingState) -> list[str]:
        """Say, a sentence each, why a training that goes on from here may not be exactly the one that was saved."""
        from ckpt_lib.state.data import approximation_of

        reasons = []
        if state.rng and self.find("rng", None) is None:
            count = self._processes("rng")
            reasons.append(
                f"{count} processes have saved their random number generators, and {self._world_size} go on"
                if count not in (0, self._world_size)
                else "the checkpoint holds no state of Python's, NumPy's and PyTorch's random number generators"
            )
        for part in state.parts():
            found = self.find(part.kind, part.name) if part.kind == "data" else None
            if isinstance(found, Mapping) and (reason := approximation_of(part.item, found)):
                reasons.append(f"{part.label}: {reason}")
        return reasons


def _shown(kind: str, name: str | None) -> str:
    return PAYLOAD_KEYS[kind] if name is None else f"{PAYLOAD_KEYS[kind]}.{name}"
