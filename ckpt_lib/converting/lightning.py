"""Contents as Lightning 2 stores them, so that its ``Trainer`` goes on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_lib.core.payload_keys import (
    DATA_KEY,
    EXTRA_STATE_KEY,
    MODEL_KEY,
    OPTIMIZER_KEY,
    OTHERS_KEY,
    RNG_KEY,
    SCHEDULER_KEY,
)
from ckpt_lib.state.training_state import is_mid_epoch

MODEL_NAME = "state_dict"
_VERSION_NAME = "pytorch-lightning_version"
_VERSION = "2.0.0"  # the first with this structure; Lightning takes older ones to its own, and newer ones are the same
_STATE = "state_dict"
_OWN = ("loops", "callbacks")


def lightning_contents(payload: Mapping[str, Any], *, only_model: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the contents of the file, and sentences about what it cannot hold.

    What Lightning itself stored and an import put into ``extra_state`` gets its place back, but for ``only_model``.
    """
    extra = payload.get(EXTRA_STATE_KEY)
    own = extra if isinstance(extra, Mapping) else {}
    config, epoch, step = payload.get("config"), payload.get("epoch") or 0, payload.get("step") or 0
    contents: dict[str, Any] = {
        "epoch": epoch,
        "global_step": step,
        _VERSION_NAME: own.get(_VERSION_NAME, _VERSION),
        MODEL_NAME: payload.get(MODEL_KEY),
    }
    if config:
        contents["hyper_parameters"] = config
    if only_model:
        return contents, []
    mid_epoch = is_mid_epoch(payload) is True
    contents["loops"] = _loops(epoch if mid_epoch else epoch + 1, step)
    contents["callbacks"] = {}
    optimizers, schedulers = _listed(payload.get(OPTIMIZER_KEY), "param_groups"), _listed(payload.get(SCHEDULER_KEY))
    if optimizers or schedulers:  # without them, Lightning says that there are only weights
        contents |= {"optimizer_states": optimizers, "lr_schedulers": schedulers}
    taken = [key for key in own if key in contents and key not in (*_OWN, _VERSION_NAME)]
    contents |= {key: value for key, value in own.items() if key not in taken}
    return contents, _left_out(payload, taken, mid_epoch=mid_epoch and "loops" not in own)


def _listed(state: Any, mark: str | None = None) -> list[Any]:
    """Return the states of several optimizers or schedulers, in order; one is a mapping that has ``mark``."""
    if not state:
        return []
    if isinstance(state, list | tuple):
        return list(state)
    is_one = not isinstance(state, Mapping) or not all(isinstance(item, Mapping) for item in state.values())
    return [state] if is_one or (mark is not None and mark in state) else list(state.values())


def _left_out(payload: Mapping[str, Any], taken: Sequence[str], *, mid_epoch: bool) -> list[str]:
    found = []
    if mid_epoch:
        found.append("Lightning starts the epoch again: it has no place for the position in the data.")
    missing = [key for key in (DATA_KEY, OTHERS_KEY, RNG_KEY, "metrics") if payload.get(key)]
    missing += [f"{EXTRA_STATE_KEY}.{key}" for key in taken]
    if missing:
        found.append(f"Lightning has no place for {', '.join(missing)}: left out.")
    return found


def _loops(epochs: int, steps: int) -> dict[str, Any]:
    """Return the progress of a trainer that has ended so many epochs, and made so many steps of its optimizers."""
    steps_done = {"total": {"ready": steps, "completed": steps}, "current": {"ready": 0, "completed": 0}}
    cleared = {"total": _counts(steps, "started"), "current": _counts(0, "started")}
    return {
        "fit_loop": {
            _STATE: {},
            f"epoch_loop.{_STATE}": {"_batches_that_stepped": steps},
            "epoch_loop.batch_progress": _batches(steps),
            "epoch_loop.scheduler_progress": _progress(0, 0),
            f"epoch_loop.automatic_optimization.{_STATE}": {},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {"step": steps_done, "zero_grad": cleared}
            },
            f"epoch_loop.manual_optimization.{_STATE}": {},
            "epoch_loop.manual_optimization.optim_step_progress": _progress(0, 0),
            f"epoch_loop.val_loop.{_STATE}": {},
            "epoch_loop.val_loop.batch_progress": _batches(0),
            "epoch_progress": _progress(epochs, epochs, "started", "processed"),
        },
        "validate_loop": {_STATE: {}, "batch_progress": _batches(0)},
        "test_loop": {_STATE: {}, "batch_progress": _batches(0)},
        "predict_loop": {_STATE: {}, "batch_progress": _batches(0)},
    }


def _batches(count: int) -> dict[str, Any]:
    return {**_progress(count, 0, "started", "processed"), "is_last_batch": count > 0}


def _progress(total: int, current: int, *further: str) -> dict[str, Any]:
    return {"total": _counts(total, *further), "current": _counts(current, *further)}


def _counts(count: int, *further: str) -> dict[str, int]:
    return dict.fromkeys(("ready", "completed", *further), count)
