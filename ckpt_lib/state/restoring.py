"""Restores models, optimizers and schedulers from a verified payload.

A model accepts what its ``load_state_dict(strict=True)`` accepts. An optimizer's state is matched by parameter names
where both sides have them, else by position. Restored objects share no memory with the payload. After an error, all of
them are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.core.logs import logger
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.model_state import check_model
from ckpt_lib.state.optimizer_state import (
    SavedTypes,
    match_parameters,
    refuse_rounded_state,
    restore_types,
    saved_types,
)
from ckpt_lib.state.settings import (
    Changes,
    MergedState,
    describe_changes,
    merge_optimizer_settings,
    merge_scheduler_settings,
)
from ckpt_lib.state.stateful import PARTS, UNCHANGED, Names, Stateful, check_stateful, parameter_names
from ckpt_lib.state.undo import own_copy, way_back


@dataclass(frozen=True)
class Stored:
    """The classes and parameter names of the objects whose state is in a payload, from its manifest."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    names: Names | None = None


@dataclass
class Restored:
    """The changes by a restore that a caller may not expect."""

    replaced: dict[str, Changes] = field(default_factory=dict)
    """Maps part and setting to the caller's value and the stored value that replaced it."""
    changed_values: list[str] = field(default_factory=list)
    """Tensors of the model whose types or ties could not hold the stored values."""


def restore(
    payload: Mapping[str, Any],
    stored: Stored = Stored(),
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    keep: Mapping[str, Collection[str]] | None = None,
    require_exact: bool = False,
) -> Restored:
    """Load a payload's state into the objects that are passed, and report what that replaced.

    ``keep`` names settings, by part, that keep the caller's value; see :mod:`ckpt_lib.state.settings`. With
    ``require_exact``, a tensor that would lose any value is refused. Raises :class:`ConfigError` for wrong arguments,
    and :class:`StateMismatchError` for a state that does not fit; every object then has the state that it had before.
    For that, a model with load hooks or loading code of its own is copied first.
    """
    check_stateful("load_state_dict", model=model, optimizer=optimizer, scheduler=scheduler)
    given = dict(zip(PARTS, (model, optimizer, scheduler), strict=True))
    wanted = {part: stateful for part, stateful in given.items() if stateful is not None}
    states = {part: _state_in(payload, part) for part in wanted}
    _check_kept(keep, wanted)
    report = Restored()
    types: SavedTypes = {}
    if optimizer is not None:
        _check_kind("optimizer", optimizer, stored)
        states["optimizer"] = match_parameters(optimizer, states["optimizer"], stored.names, model)
        names = parameter_names(optimizer, model) or stored.names
        types = saved_types(states["optimizer"], names, payload.get("model_state_dict"))
        if require_exact:
            refuse_rounded_state(optimizer, states["optimizer"], types)
    if scheduler is not None:
        _check_kind("scheduler", scheduler, stored)
    _merge_settings(payload, states, wanted, keep or {}, report)
    if model is not None:
        report.changed_values = check_model(model, states["model"], require_exact=require_exact)
    _load(wanted, states, types)
    _warn(report)
    return report


def _state_in(payload: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = payload.get(f"{part}_state_dict")
    if not isinstance(found, Mapping):
        raise StateMismatchError(
            f"the checkpoint holds no {part} state",
            hint=f"Leave out {part}=, or load a checkpoint that was saved with it.",
        )
    return found


def _check_kind(part: str, stateful: Stateful, stored: Stored) -> None:
    kind, saved = type(stateful).__qualname__, stored.kinds.get(part)
    # A class may move to another module, such as from a script into a package. Its name must be the same.
    if saved is not None and saved.rpartition(".")[2] != kind.rpartition(".")[2]:
        raise StateMismatchError(
            f"the checkpoint was saved with another kind of {part}",
            expected=kind,
            got=saved,
            hint=f"{UNCHANGED} To go on with a new {part}, leave out {part}=.",
        )


def _merge_settings(
    payload: Mapping[str, Any],
    states: dict[str, Mapping[str, Any]],
    wanted: Mapping[str, Stateful],
    keep: Mapping[str, Collection[str]],
    report: Restored,
) -> None:
    """Put the settings to keep into the states, and report the settings that the states replace."""
    merged: dict[str, MergedState] = {}
    if (stateful := wanted.get("optimizer")) is not None:
        schedule = payload.get("scheduler_state_dict")
        merged["optimizer"] = merge_optimizer_settings(
            stateful, states["optimizer"], keep.get("optimizer", ()), schedule
        )
    if (stateful := wanted.get("scheduler")) is not None:
        kept_rates = merged["optimizer"].kept_rates if "optimizer" in merged else ()
        merged["scheduler"] = merge_scheduler_settings(
            stateful, states["scheduler"], keep.get("scheduler", ()), kept_rates
        )
    for part, result in merged.items():
        states[part] = result.state
        if result.replaced:
            report.replaced[part] = result.replaced


def _check_kept(keep: Mapping[str, Collection[str]] | None, wanted: Collection[str]) -> None:
    for part, names in (keep or {}).items():
        if part not in ("optimizer", "scheduler") or part not in wanted or isinstance(names, str):
            raise ConfigError(
                "keep lists settings of an optimizer or a scheduler that is passed",
                expected='keep={"optimizer": ["lr"]}',
                got=shown({part: names}),
            )


def _load(wanted: Mapping[str, Stateful], states: Mapping[str, Mapping[str, Any]], types: SavedTypes) -> None:
    """Load each part. If one of them refuses its state, bring all of them back to the state before.

    The model comes last, since its tensors are overwritten in place. The other parts replace their state as a whole, so
    keeping their previous state costs no memory.
    """
    undo: list[Callable[[], object]] = []
    for part in reversed(list(wanted)):
        stateful, state = wanted[part], states[part]
        try:
            undo.append(way_back(part, stateful, state))
            stateful.load_state_dict(own_copy(stateful, state))
            if part == "optimizer":
                restore_types(stateful, state, types)
        except Exception as error:
            for back in reversed(undo):
                back()
            raise StateMismatchError(
                f"the {part} refused its stored state: {_reason(error)}", hint=UNCHANGED
            ) from error


def _warn(report: Restored) -> None:
    for part, changes in report.replaced.items():
        logger.warning(
            "the stored %s replaces settings that were built anew: %s; keep= keeps yours",
            part,
            describe_changes(changes),
        )
    if report.changed_values:
        logger.warning("the model cannot hold these stored values exactly: %s", listed(report.changed_values, 5))


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
