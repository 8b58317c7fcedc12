"""Restores the objects of a training from a verified payload.

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
from ckpt_lib.state.model_state import Fit, check_model, fit_of, refuse_differences
from ckpt_lib.state.naming import (
    AS_STORED,
    NOTHING,
    NamedModels,
    NamedState,
    Naming,
    check_covered,
    load_named,
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
from ckpt_lib.state.stateful import UNCHANGED, Names, check_stateful, is_module, parameter_names
from ckpt_lib.state.stored_state import StoredState
from ckpt_lib.state.training_state import Part, TrainingState
from ckpt_lib.state.undo import Undo, own_copy, way_back


@dataclass(frozen=True)
class Stored:
    """The classes and parameter names of the objects whose state is in a payload, from its manifest."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    names: Names | Mapping[str, Names] | None = None

    def names_of(self, part: Part) -> Names | None:
        """Return the parameter names of one optimizer."""
        if isinstance(self.names, Mapping):
            return None if part.name is None else self.names.get(part.name)
        return self.names if part.name is None else None


@dataclass
class Restored:
    """What a caller of a restore may not expect."""

    replaced: dict[str, Changes] = field(default_factory=dict)
    """Maps part and setting to the caller's value and the stored value that replaced it."""
    changed_values: list[str] = field(default_factory=list)
    """Tensors of the model whose types or ties could not hold the stored values."""
    not_restored: list[str] = field(default_factory=list)
    """What the payload holds beside, such as ``optimizer_state_dict`` or ``others.ema``."""
    approximate: list[str] = field(default_factory=list)
    """Why training may not go on exactly as it would have."""
    incomplete: dict[str, list[str]] = field(default_factory=dict)
    """Without ``strict``, the names of tensors that were ``missing`` and ``unexpected``."""

    def told(self) -> dict[str, Any]:
        """Return what a load tells its caller."""
        told: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "incomplete"}
        return told | self.incomplete


def restore(
    found: StoredState,
    stored: Stored,
    state: TrainingState,
    *,
    keep: Mapping[str, Collection[str]] | None = None,
    require_exact: bool = False,
    naming: Naming = AS_STORED,
) -> Restored:
    """Load a payload's state into the objects of ``state``, and report what that replaced.

    ``keep`` names settings, by part, that keep the caller's value; see :mod:`ckpt_lib.state.settings`. With
    ``require_exact``, a tensor that would lose any value is refused. ``naming`` says how stored names stand for the
    model's. Raises :class:`ConfigError` for wrong arguments,
    and :class:`StateMismatchError` for a state that does not fit; every object then has the state that it had before.
    For that, a model with load hooks or loading code of its own is copied first.
    """
    if naming.only is not None:
        found = found.with_model(part_of(found.payload, naming.only))
    parts = {part.label: part for part in state.parts() if part.label != "rng" or found.find("rng", None)}
    check_stateful("load_state_dict", **{label: part.item for label, part in parts.items()})
    _check_kept(keep, parts)
    states = {label: found.of(part) for label, part in parts.items()}
    fits = {
        label: fit_of(part.item, states[label], naming if part.kind == "model" else AS_STORED)
        for label, part in parts.items()
        if part.kind == "model" or (part.kind == "others" and is_module(part.item))
    }
    states |= {label: fit.named.state for label, fit in fits.items()}
    report = Restored(not_restored=found.beside(state), approximate=found.approximations(state))
    types = _check_fit(found, states, parts, fits, stored, report=report, require_exact=require_exact)
    _merge_settings(found, states, parts, keep or {}, report)
    report.incomplete = _load(parts, states, types, fits, found.payload)
    _warn(report)
    return report


def _check_fit(
    found: StoredState,
    states: dict[str, Any],
    parts: Mapping[str, Part],
    fits: Mapping[str, Fit],
    stored: Stored,
    *,
    report: Restored,
    require_exact: bool,
) -> dict[str, SavedTypes]:
    """Put the states into the order of what they are for; return the types of what optimizers hold.

    Models come first: where their layers differ, their optimizers do not fit either.
    """
    hints = {}
    models = {part.name: fits[label].named for label, part in parts.items() if part.kind == "model"}
    for label, part in parts.items():
        if part.kind == "model":
            hints[label] = hint = partial(advice, found.payload, models[part.name], part.item)
            changed = check_model(fits[label], require_exact=require_exact, hint=hint)
            report.changed_values += changed if part.name is None else [f"{part.name}.{name}" for name in changed]
    try:
        return _match_optimizers(found, states, parts, models, stored, require_exact=require_exact)
    except StateMismatchError:
        for label, hint in hints.items():
            refuse_differences(fits[label], hint)
        raise


def _check_kind(part: Part, stored: Stored) -> None:
    kind, saved = type(part.item).__qualname__, stored.kinds.get(part.label)
    # A class may move to another module, such as from a script into a package. Its name must be the same.
    if saved is not None and saved.rpartition(".")[2] != kind.rpartition(".")[2]:
        raise StateMismatchError(
            f"the checkpoint was saved with another kind of {part.label}",
            expected=kind,
            got=saved,
            hint=f"{UNCHANGED} To go on with a new {part.kind}, leave out {part.argument}.",
        )


def _merge_settings(
    found: StoredState,
    states: dict[str, Any],
    parts: Mapping[str, Part],
    keep: Mapping[str, Collection[str]],
    report: Restored,
) -> None:
    """Put the settings to keep into the states, and report the settings that the states replace."""
    merged: dict[str, MergedState] = {}
    for label, part in parts.items():
        if part.kind == "optimizer":
            schedule = found.find("scheduler", part.name)
            merged[label] = merge_optimizer_settings(part.item, states[label], keep.get(label, ()), schedule)
    for label, part in parts.items():
        if part.kind == "scheduler":
            optimizer = merged.get(label.replace("scheduler", "optimizer", 1))  # of the same name
            kept_rates = optimizer.kept_rates if optimizer else ()
            merged[label] = merge_scheduler_settings(part.item, states[label], keep.get(label, ()), kept_rates)
    for label, result in merged.items():
        states[label] = result.state
        if result.replaced:
            report.replaced[label] = result.replaced


def _check_kept(keep: Mapping[str, Collection[str]] | None, parts: Mapping[str, Part]) -> None:
    for label, names in (keep or {}).items():
        if label not in parts or parts[label].kind not in ("optimizer", "scheduler") or isinstance(names, str):
            raise ConfigError(
                "keep lists settings of an optimizer or a scheduler that is passed",
                expected='keep={"optimizer": ["lr"]}',
                got=shown({label: names}),
            )


def _match_optimizers(
    found: StoredState,
    states: dict[str, Any],
    parts: Mapping[str, Part],
    models: Mapping[str | None, NamedState],
    stored: Stored,
    *,
    require_exact: bool,
) -> dict[str, SavedTypes]:
    """Put the states of optimizers in the order of their parameters; return the types of what they hold."""
    types: dict[str, SavedTypes] = {}
    named = NamedModels(models)
    own = {part.name: part.item for part in parts.values() if part.kind == "model"}
    model = own.get(None, own)
    for label, part in parts.items():
        if part.kind in ("optimizer", "scheduler"):
            _check_kind(part, stored)
        if part.kind == "optimizer":
            if models and None in models and not models[None].naming.strict:
                check_covered(part.item, model, models[None])
            names = stored.names_of(part)
            states[label] = match_parameters(part.item, states[label], names, model, named)
            own_names = parameter_names(part.item, model) or names
            types[label] = saved_types(states[label], own_names, named.state or found.flat_model_state())
            if require_exact:
                refuse_rounded_state(part.item, states[label], types[label])
    return types


def _load(
    parts: Mapping[str, Part],
    states: Mapping[str, Any],
    types: Mapping[str, SavedTypes],
    fits: dict[str, Fit],
    payload: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Load each part. If one of them refuses its state, or on Ctrl-C, bring all of them back to the state before.

    Models come last, since their tensors are overwritten in place: of the very last one no copy is needed, unless its
    loading can fail. An interrupt of just that load leaves it with a part of the stored state, and says so. Random
    number generators are set twice: at first to see that their states fit, and again at the end, since loading may draw
    from them.
    """
    generators = [label for label, part in parts.items() if part.kind == "rng"]
    others = [label for label in reversed(list(parts)) if label not in generators]
    incomplete: dict[str, list[str]] = {}
    undo = Undo()
    label, named = "", NOTHING
    try:
        for label in (*generators, *others):
            part, state = parts[label], states[label]
            is_last = label == others[-1] if others else False
            fit = fits.pop(label, None)
            if fit is not None and label != others[0]:  # what was loaded before may have changed it
                fit = fit.renewed()
            named = NOTHING if fit is None else fit.named
            undo.add(label, way_back(part.kind, part.item, fit, is_last=is_last))
            incomplete |= _load_one(part, fit, state)
            if label in types:
                restore_types(part.item, state, types[label])
        for label in generators:
            parts[label].item.load_state_dict(states[label])
    except BaseException as error:  # also Ctrl-C
        part = parts[label]
        hint = partial(advice, payload, named, part.item) if part.kind == "model" else lambda: UNCHANGED
        told = _taken_back(undo, error, label, hint)
        if told is error:
            raise
        raise told from error
    return incomplete


def _load_one(part: Part, fit: Fit | None, state: Any) -> dict[str, list[str]]:
    """Load one part; of a model loaded without ``strict``, return the names that were missing or unexpected."""
    is_model = part.kind == "model"
    if fit is not None and fit.is_copied_plainly():
        fit.copy()
        return {"missing": [], "unexpected": []} if is_model and not fit.named.naming.strict else {}
    own = own_copy(fit, state)
    if fit is not None:
        fit.release()
    if fit is not None and is_model:
        return load_named(part.item, fit.named, own)
    part.item.load_state_dict(own)
    if part.kind == "data":
        from ckpt_lib.state.data import draw_first_numbers

        draw_first_numbers(part.item)
    return {}


def _taken_back(undo: Undo, error: BaseException, label: str, hint: Callable[[], str]) -> BaseException:
    """Bring all objects back, and return the error that tells what has happened: an interrupt as it came."""
    failed = undo.run()
    told = next((found for found in (error, *failed.values()) if not isinstance(found, Exception)), None)
    if told is None:
        lost = f"These may hold a part of what was stored: {', '.join(failed)}. Build them anew before you go on."
        reason = f"the {label} refused its stored state: {_reason(error)}"
        told = StateMismatchError(reason, hint=lost if failed else hint())
    for part, why in failed.items():
        told.add_note(f"the {part} could not be brought back: {why!r}")
    return told


def _warn(report: Restored) -> None:
    for reason in report.approximate:
        logger.warning("training may not go on exactly as it would have: %s", reason)
    for part, changes in report.replaced.items():
        logger.warning(
            "the stored %s replaces settings that were built anew: %s; keep= keeps yours",
            part,
            describe_changes(changes),
        )
    if report.changed_values:
        logger.warning("the model cannot hold these stored values exactly: %s", listed(report.changed_values, 5))


def _reason(error: BaseException) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
