"""The states of a training by kind: what formats need that hold all of it in files by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY, OTHERS_KEY, PAYLOAD_KEYS, SCHEDULER_KEY
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import UnsupportedStateError

SCALER = "scaler"
"""The name, among others, of the state of a gradient scaler."""
_WEIGHTS_ALONE = "For the weights alone, say --format hf-folder --only model."


def states_by_name(payload: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the states of one kind by name; one without a name is called as its kind."""
    state = payload.get(PAYLOAD_KEYS[kind])
    if not state:
        return {}
    return dict(state) if _are_several(state, kind) else {kind: state}


def _are_several(state: Any, kind: str) -> bool:
    if not isinstance(state, Mapping) or not all(isinstance(item, Mapping) for item in state.values()):
        return False
    return kind != "optimizer" or "param_groups" not in state


def one_state(payload: Mapping[str, Any], kind: str, program: str) -> Any:
    """Return the one state of a kind; ``None`` if there is none.

    Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for several.
    """
    states = states_by_name(payload, kind)
    if len(states) > 1:
        raise UnsupportedStateError(
            f"the checkpoint holds several states of a {kind}, and {program} has a place for one",
            got=listed(list(map(shown, states))),
            hint="Convert it to the format torch, or to accelerate, which holds several.",
        )
    return next(iter(states.values()), None)


def require_training(payload: Mapping[str, Any], kinds: Iterable[str], program: str) -> None:
    """Raise :class:`~ckpt_lib.errors.UnsupportedStateError` where one of these kinds of state is missing."""
    keys = {"model": MODEL_KEY, "optimizer": OPTIMIZER_KEY, "scheduler": SCHEDULER_KEY}
    missing = [kind for kind in kinds if not payload.get(keys[kind])]
    if missing:
        raise UnsupportedStateError(
            f"{program} cannot go on from the checkpoint: it lacks the state of the {' and the '.join(missing)}",
            expected=", ".join(kinds),
            hint=f"Save it with {', '.join(f'{kind}={kind}' for kind in missing)}. {_WEIGHTS_ALONE}",
        )


def refuse_only_model(format_name: str) -> UnsupportedStateError:
    """Return the error for the wish to have the weights alone in a format that holds a training."""
    return UnsupportedStateError(f"{format_name} holds a whole training, not the weights alone", hint=_WEIGHTS_ALONE)


def others_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of other objects by name, but for that of the scaler."""
    return {name: state for name, state in (payload.get(OTHERS_KEY) or {}).items() if name != SCALER}


def scaler_of(payload: Mapping[str, Any]) -> Any:
    """Return the state of the gradient scaler; ``None`` if there is none."""
    return (payload.get(OTHERS_KEY) or {}).get(SCALER)
