"""A checkpoint as a folder from which the ``Trainer`` of Transformers resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ckpt_lib.converting.files import NewFile, text_file
from ckpt_lib.converting.hf_folder import hf_files
from ckpt_lib.converting.random_states import random_states
from ckpt_lib.converting.torch_files import torch_file
from ckpt_lib.converting.training_parts import one_state, others_of, require_training, scaler_of
from ckpt_lib.converting.weights import weights_of
from ckpt_lib.core.payload_keys import DATA_KEY, EXTRA_STATE_KEY, MODEL_KEY, OTHERS_KEY
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.foreign.hugging_face import STATE_FILE, metrics_of
from ckpt_lib.state.training_state import is_mid_epoch

STATE_KEY = "trainer_state"
"""Where an import puts the Trainer's own state, in ``extra_state``."""
_PROGRAM = "the Trainer of Transformers"
_CONTROL = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
_CALLBACKS = {
    "TrainerControl": {"args": dict.fromkeys(_CONTROL, False), "attributes": {}},
    "EarlyStoppingCallback": [],
}
"""The Trainer looks the states of its callbacks up by these names when it saves, and fails where one is missing."""
_INTERVALS = dict.fromkeys(("save_steps", "logging_steps", "eval_steps"), 500)
"""The Trainer goes by those that are stored, not by its arguments; these are its own where nobody says others."""


def trainer_files(
    payload: Mapping[str, Any], dtype: torch.dtype | None, max_shard_bytes: int
) -> tuple[list[NewFile], list[str]]:
    """Return the files of the folder, the Trainer's own state last, and sentences about what is not in it.

    Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for a checkpoint that the Trainer would not resume from, or
    only in part: it starts without a word with a new optimizer where there is no scheduler beside it.
    """
    require_training(payload, ("model", "optimizer", "scheduler"), _PROGRAM)
    model, optimizer, scheduler = (one_state(payload, kind, _PROGRAM) for kind in ("model", "optimizer", "scheduler"))
    config = payload.get("config") or {}
    _refuse_adapter(config)
    _require_steps(payload, optimizer)
    weights = weights_of({MODEL_KEY: model}, dtype)
    files, notes = hf_files(weights, config, dtype, max_shard_bytes)
    files += [_file("optimizer.pt", optimizer), _file("scheduler.pt", scheduler)]
    if scaler := scaler_of(payload):
        files.append(_file("scaler.pt", scaler))
    states, about_random = random_states(payload)
    for number, state in enumerate(states):
        is_alone = len(states) == 1
        files.append(_file("rng_state.pth" if is_alone else f"rng_state_{number}.pth", _random_state(state, is_alone)))
    trainer_state, about_state = _trainer_state(payload)
    files.append(text_file(STATE_FILE, _as_json(trainer_state)))
    return files, [*notes, *about_random, *about_state, *_left_out(payload)]


def _as_json(state: Mapping[str, Any]) -> bytes:
    try:
        return f"{json.dumps(state, indent=2, sort_keys=True)}\n".encode()
    except (TypeError, ValueError) as error:
        raise UnsupportedStateError(
            f"{EXTRA_STATE_KEY}[{STATE_KEY!r}] holds what JSON cannot: {error}",
            hint="Keep numbers, texts, lists and mappings there, and tensors under another key.",
        ) from error


def _file(name: str, state: Any) -> NewFile:
    return torch_file(name, state, None, None)


def _refuse_adapter(config: Mapping[str, Any]) -> None:
    if "peft_type" in config:
        raise UnsupportedStateError(
            f"the checkpoint holds an adapter of PEFT, whose files {_PROGRAM} reads by other names",
            hint="Load it into the model, and save that with save_pretrained.",
        )


def _require_steps(payload: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
    """Refuse a training without a count of its steps: the Trainer would train it from the beginning."""
    if not payload.get("step") and optimizer.get("state"):
        raise UnsupportedStateError(
            f"the checkpoint does not say its step, by which {_PROGRAM} knows where to go on",
            hint="Save it with step=, the number of steps that the optimizer has made.",
        )


def _random_state(state: Mapping[str, Any], is_alone: bool) -> dict[str, Any]:
    """Return a state under the Trainer's names. One process has the generator of its first GPU there."""
    found = {"python": state["python"], "numpy": state["numpy"], "cpu": state["torch"]}
    if "cuda" in state:
        found["cuda"] = state["cuda"][0] if is_alone else state["cuda"]
    return found


def _trainer_state(payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what the Trainer had stored itself, brought to the step of the checkpoint."""
    extra = payload.get(EXTRA_STATE_KEY)
    kept = extra.get(STATE_KEY) if isinstance(extra, Mapping) else None
    own = dict(kept) if isinstance(kept, Mapping) else {}
    step = payload.get("step") or 0
    epoch = _epoch(payload, own, step)
    history = [entry for entry in own.get("log_history") or [] if isinstance(entry, Mapping)]
    known = metrics_of(own)
    if fresh := {name: value for name, value in (payload.get("metrics") or {}).items() if known.get(name) != value}:
        history.append({**fresh, "epoch": epoch, "step": step})
    callbacks = own.get("stateful_callbacks")
    state = {
        "train_batch_size": 0,  # none: only a search for the largest one that fits begins with it
        **_INTERVALS,
        **own,
        "epoch": epoch,
        "global_step": step,
        "log_history": history,
        "stateful_callbacks": {**_CALLBACKS, **(callbacks if isinstance(callbacks, Mapping) else {})},
    }
    return state, _about_unknown([name for name in ("train_batch_size", *_INTERVALS) if name not in own])


def _about_unknown(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"The checkpoint does not say {', '.join(names)}. The Trainer goes by the {STATE_FILE}, which has "
        f"500 steps for each interval: change them there, or save with {EXTRA_STATE_KEY}={{{STATE_KEY!r}: {{...}}}}."
    ]


def _epoch(payload: Mapping[str, Any], own: Mapping[str, Any], step: int) -> float:
    """Return the epochs that are over, with a fraction; it is only shown: the Trainer goes by its steps."""
    epochs, steps = own.get("epoch"), own.get("global_step")
    if isinstance(epochs, int | float) and isinstance(steps, int) and epochs > 0 and steps > 0:
        return step * epochs / steps
    ended = payload.get("epoch") or 0
    return float(ended if is_mid_epoch(payload) else ended + 1)


def _left_out(payload: Mapping[str, Any]) -> list[str]:
    extra = payload.get(EXTRA_STATE_KEY)
    missing = [DATA_KEY] if payload.get(DATA_KEY) else []
    missing += [f"{OTHERS_KEY}.{name}" for name in others_of(payload)]
    missing += [f"{EXTRA_STATE_KEY}.{key}" for key in (extra if isinstance(extra, Mapping) else ()) if key != STATE_KEY]
    return [f"The Trainer has no place for {', '.join(missing)}: left out."] if missing else []
