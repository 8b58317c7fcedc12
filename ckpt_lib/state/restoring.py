"""Restores models, optimizers and schedulers from a verified payload.

A model accepts what its ``load_state_dict(strict=True)`` accepts, once the names are the model's own; see
:mod:`ckpt_lib.state.naming`. An optimizer's state is matched by parameter names
where both sides have them, else by position. Restored objects share no memory with the payload. After an error, all of
them are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ckpt_lib.core.logs import logger
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.advice import advice
from ckpt_lib.state.model_state import Hint, check_model
from ckpt_lib.state.naming import (
    AS_STORED,
    MODEL_PART,
    NOTHING,
    NamedState,
    Naming,
    check_covered,
    load_named,
    named_for,
    part_of,
)
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
    incomplete: dict[str, list[str]] = field(default_factory=dict)
    """Without ``strict``, the names of tensors that were ``missing`` and ``unexpected``."""


def restore(
    payload: Mapping[str, Any],
    stored: Stored = Stored(),
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    keep: Mapping[str, Collection[str]] | None = None,
    require_exact: bool = False,
    naming: Naming = AS_STORED,
) -> Restored:
    """Load a payload's state into the objects that are passed, and report what that replaced.

    ``keep`` names settings, by part, that keep the caller's value; see :mod:`ckpt_lib.state.settings`. With
    ``require_exact``, a tensor that would lose any value is refused. ``naming`` says how stored names stand for the
    model's. Raises :class:`ConfigError` for wrong arguments,
    and :class:`StateMismatchError` for a state that does not fit; every object then has the state that it had before.
    For that, a model with load hooks or loading code of its own is copied first.
    """
    check_stateful("load_state_dict", model=model, optimizer=optimizer, scheduler=scheduler)
    given = dict(zip(PARTS, (model, optimizer, scheduler), strict=True))
    wanted = {part: stateful for part, stateful in given.items() if stateful is not None}
    if naming.only is not None:
        payload = {**payload, MODEL_PART: part_of(payload, naming.only)}
    states = {part: _state_in(payload, part) for part in wanted}
    named = NOTHING if model is None else named_for(model, states["model"], naming)
    _check_kept(keep, wanted)
    report = Restored()
    types: SavedTypes = {}
    if optimizer is not None:
        _check_kind("optimizer", optimizer, stored)
        if not naming.strict:
            check_covered(optimizer, model, named)
        states["optimizer"] = match_parameters(optimizer, states["optimizer"], stored.names, model, named)
        names = parameter_names(optimizer, model) or stored.names
        types = saved_types(states["optimizer"], names, named.state or payload.get(MODEL_PART))
        if require_exact:
            refuse_rounded_state(optimizer, states["optimizer"], types)
    if scheduler is not None:
        _check_kind("scheduler", scheduler, stored)
    _merge_settings(payload, states, wanted, keep or {}, report)
    hint: Hint = partial(advice, payload, named)
    if model is not None:
        states["model"] = named.state
        report.changed_values = check_model(model, named, require_exact=require_exact, hint=hint)
    report.incomplete = _load(wanted, states, types, named, hint)
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


def _load(
    wanted: Mapping[str, Stateful],
    states: Mapping[str, Mapping[str, Any]],
    types: SavedTypes,
    named: NamedState,
    hint: Hint,
) -> dict[str, list[str]]:
    """Load each part. If one of them refuses its state, bring all of them back to the state before.

    The model comes last, since its tensors are overwritten in place. The other parts replace their state as a whole, so
    keeping their previous state costs no memory.
    """
    undo: list[Callable[[], object]] = []
    incomplete: dict[str, list[str]] = {}
    for part in reversed(list(wanted)):
        stateful, state = wanted[part], states[part]
        try:
            undo.append(way_back(part, stateful, state, strict=named.naming.strict))
            if part == "model":
                incomplete = load_named(stateful, named, own_copy(stateful, state))
            else:
                stateful.load_state_dict(own_copy(stateful, state))
            if part == "optimizer":
                restore_types(stateful, state, types)
        except Exception as error:
            for back in reversed(undo):
                back()
            raise StateMismatchError(
                f"the {part} refused its stored state: {_reason(error)}",
                hint=hint() if part == "model" else UNCHANGED,
            ) from error
    return incomplete


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
