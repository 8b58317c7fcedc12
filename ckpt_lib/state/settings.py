"""Settings that a caller built anew and a stored state would replace: which differ, and how the caller's are kept.

A setting is what an optimizer or a scheduler was built with; what it has reached since is progress. To keep a setting
is to load the stored state with the caller's value in it, so that all that was reached stays and the next steps are
those of a restored object on which the setting was changed. Where one setting alone would contradict another, both are
kept:

- ``lr`` of an optimizer under a schedule is the rate that the schedule began with. The present rate changes by the same
  factor, and the ``base_lrs`` of the scheduler follow. Without a schedule, it is the present rate.
- ``total_steps`` and ``_schedule_phases`` of ``OneCycleLR`` are one thing, as are the two spellings of ``min_lr``.
- ``T_0`` of ``CosineAnnealingWarmRestarts`` changes the length of the present cycle by the same factor.
- ``mode`` of ``ReduceLROnPlateau`` begins with a new ``best``: the old one was found in the other direction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckpt_lib.core.wording import briefly, did_you_mean
from ckpt_lib.errors import ConfigError, StateMismatchError

Changes = dict[str, tuple[Any, Any]]
"""Setting to the caller's value and the stored one that takes its place."""

_PROGRESS = {
    *("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_initial_step", "_is_initial"),
    *("T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter"),
    "mode_worse",  # which ReduceLROnPlateau computes from its mode
}
"""What a scheduler's state says of how far it has come, and not of how it was built."""
_NOT_A_SETTING = {"params", "param_names", "initial_lr"}  # the last one is what lr began with, and compared as lr
_ONLY_WITH_MOMENTUM = {"use_beta1", "base_momentums", "max_momentums"}
_SAME_ARGUMENT = [{"total_steps", "_schedule_phases"}, {"min_lrs", "default_min_lr"}]
_NEEDED_STATE = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg"}
_SHOWN = 20


@dataclass
class Settled:
    """A state to load, and what it replaces."""

    state: dict[str, Any]
    replaced: Changes = field(default_factory=dict)
    rates_kept: set[int] = field(default_factory=set)
    """The parameter groups whose learning rate is the caller's."""


class _Place(NamedTuple):
    """Where a setting stands on both sides."""

    mine: Mapping[str, Any]
    stored: dict[str, Any]
    key: str


def settle_optimizer(
    optimizer: Any, state: Mapping[str, Any], keep: Collection[str], schedule: Mapping[str, Any] | None
) -> Settled:
    """Put the settings to keep into a copy of an optimizer's stored state, and say which others it replaces.

    ``schedule`` is the stored state of the scheduler. What the checkpoint lacks stays as the caller built it. Raises
    :class:`ConfigError` for a name that is no setting, :class:`StateMismatchError` for one that needs state which was
    not stored.
    """
    own = getattr(optimizer, "param_groups", ())
    groups = [dict(group) for group in state.get("param_groups", ())]
    settled = Settled({**state, "param_groups": groups} if groups else dict(state))
    names = {
        _in_group(number, len(own), key): (number, key)
        for number, group in enumerate(own)
        for key in group
        if key not in _NOT_A_SETTING and not (key == "momentum" and _is_cycled(group))
    }
    kept = _kept("optimizer", [_as_rate(name) for name in keep], names)
    for name, (number, key) in names.items():
        place = _Place(own[number], groups[number], key)
        if key not in place.stored:
            place.stored[key] = place.mine[key]
            continue
        is_settled = _is_settled(place, schedule, number)
        if name in kept and (not is_settled or _is_rate_without_schedule(place)):
            _check_needed_state(place, state)
            _keep_in_group(place)
            settled.rates_kept.update({number} if key == "lr" else ())
        elif not is_settled:
            settled.replaced[name] = (_setting(key, place.mine), _setting(key, place.stored))
    for mine, stored in zip(own, groups, strict=True):
        if "initial_lr" in mine:
            stored.setdefault("initial_lr", mine["initial_lr"])
    return settled


def settle_scheduler(
    scheduler: Any, state: Mapping[str, Any], keep: Collection[str], rates_kept: Collection[int]
) -> Settled:
    """Put the settings to keep into a copy of a scheduler's stored state, and say which others it replaces.

    Those of schedulers within it have dotted names, as ``_schedulers.1.milestones``. Raises :class:`ConfigError` for a
    name that is no setting, :class:`StateMismatchError` where other schedulers are within it.
    """
    settled = Settled(dict(state))
    current = scheduler.state_dict()
    places = dict(_places(scheduler, current, settled.state)) if isinstance(current, Mapping) else {}
    kept = _with_same_argument(_kept("scheduler", keep, places))
    for name, place in places.items():
        if place.key == "base_lrs":
            _follow_rates(place, rates_kept)
        if place.key not in place.stored or is_same(place.mine[place.key], place.stored[place.key]):
            continue
        if name in kept:
            _keep_in_schedule(place)
        else:
            settled.replaced[name] = (place.mine[place.key], place.stored[place.key])
    return settled


def shown(changes: Changes) -> str:
    """Return a line that names the first of some changes."""
    first = [f"{name} {_in_short(mine)} by {_in_short(stored)}" for name, (mine, stored) in list(changes.items())[:5]]
    more = len(changes) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def is_same(mine: Any, stored: Any) -> bool:
    """Whether two settings are equal; an object that compares by identity is not told from another."""
    import torch

    if isinstance(mine, torch.Tensor) or isinstance(stored, torch.Tensor):
        return _is_same_tensor(mine, stored)
    if isinstance(mine, Mapping) and isinstance(stored, Mapping):
        names = (mine.keys() | stored.keys()) - _PROGRESS
        return all(name in mine and name in stored and is_same(mine[name], stored[name]) for name in names)
    if hasattr(mine, "tolist") or hasattr(stored, "tolist"):  # numbers and arrays of NumPy
        return is_same(*(value.tolist() if hasattr(value, "tolist") else value for value in (mine, stored)))
    if isinstance(mine, list | tuple) and isinstance(stored, list | tuple):
        return len(mine) == len(stored) and all(map(is_same, mine, stored))
    if _compares_by_identity(mine) or _compares_by_identity(stored):
        return True
    return bool(mine == stored) or all(isinstance(value, float) and math.isnan(value) for value in (mine, stored))


def _compares_by_identity(value: Any) -> bool:
    compares: Any = type(value).__eq__
    return value is not None and compares is object.__eq__


def _is_same_tensor(mine: Any, stored: Any) -> bool:
    import torch

    if not all(isinstance(value, torch.Tensor | bool | int | float | complex) for value in (mine, stored)):
        return False
    tensor = mine if isinstance(mine, torch.Tensor) else stored
    one, other = (
        value.detach().to(tensor.device) if isinstance(value, torch.Tensor) else torch.full_like(tensor, value)
        for value in (mine, stored)
    )
    return one.shape == other.shape and torch.allclose(one, other.to(one.dtype), rtol=0, atol=0, equal_nan=True)


def _in_short(value: Any) -> str:
    return " ".join(briefly(value).split())


# --- parameter groups ---


def _in_group(number: int, count: int, key: str) -> str:
    return key if count == 1 else f"param_groups[{number}].{key}"


def _as_rate(name: str) -> str:
    prefix, dot, key = name.rpartition(".")
    return f"{prefix}{dot}lr" if key == "initial_lr" else name


def _is_cycled(group: Mapping[str, Any]) -> bool:
    """Whether a scheduler moves the momentum up and down, as it does the learning rate."""
    return "max_momentum" in group


def _setting(key: str, group: Mapping[str, Any]) -> Any:
    """What a group was built with: the learning rate before a scheduler moved it, of cycled betas the other ones."""
    if key == "lr":
        return group.get("initial_lr", group["lr"])
    if key == "betas" and _is_cycled(group):
        return tuple(group["betas"][1:])
    return group[key]


def _is_settled(place: _Place, schedule: Mapping[str, Any] | None, number: int) -> bool:
    key = place.key
    if key == "betas" and _is_cycled(place.mine):
        return is_same(place.mine[key][1:], place.stored[key][1:])
    mine, stored = _setting(key, place.mine), _setting(key, place.stored)
    return is_same(mine, stored) or (key == "lr" and _is_reduced(mine, stored, schedule, number))


def _is_reduced(mine: Any, stored: Any, schedule: Mapping[str, Any] | None, number: int) -> bool:
    """Whether ``ReduceLROnPlateau`` leads from one learning rate to the other: it does not note where it began."""
    names = ("factor", "min_lrs", "patience", "last_epoch")
    if not isinstance(schedule, Mapping) or any(name not in schedule for name in names):
        return False
    factor, least, patience, epochs = (schedule[name] for name in names)
    rate = float(mine)
    for _ in range(epochs // (patience + 1)):
        rate = max(rate * factor, least[number])
        if math.isclose(rate, float(stored), rel_tol=1e-6):
            return True
    return False


def _is_rate_without_schedule(place: _Place) -> bool:
    """Whether the learning rate comes from a schedule that the caller has given up."""
    return place.key == "lr" and "initial_lr" in place.stored and "initial_lr" not in place.mine


def _check_needed_state(place: _Place, state: Mapping[str, Any]) -> None:
    """Refuse what PyTorch would stumble over in the next step."""
    entries = [state.get("state", {}).get(number) for number in place.stored.get("params", ())]
    for entry in entries:
        needed = _NEEDED_STATE.get(place.key)
        if place.key == "momentum" and isinstance(entry, Mapping) and "square_avg" in entry:  # RMSprop
            needed = "momentum_buffer"
        if needed and entry and place.mine[place.key] and needed not in entry:
            raise StateMismatchError(
                f"keep names {place.key}, which works on {needed}, and the checkpoint holds none",
                hint=f"Leave {place.key} out of keep, or leave out optimizer= to begin with a new one. "
                "Nothing was changed.",
            )


def _keep_in_group(place: _Place) -> None:
    mine, stored, key = place
    if key == "betas" and _is_cycled(mine):
        stored[key] = (stored[key][0], *mine[key][1:])
    elif key == "lr" and "initial_lr" in stored:
        first = mine.get("initial_lr", mine["lr"])
        under_schedule = "initial_lr" in mine and float(stored["initial_lr"])
        factor = float(stored["lr"]) / float(stored["initial_lr"]) if under_schedule else 1
        stored["lr"], stored["initial_lr"] = first * factor, copy.deepcopy(first)
    else:
        stored[key] = copy.deepcopy(_setting(key, mine))


# --- schedulers ---


def _places(owner: Any, current: Mapping[str, Any], stored: dict[str, Any], prefix: str = "") -> Iterator[Any]:
    """Yield the name and the place of each setting of a scheduler and of those within it, whose states it copies."""
    for key, value in current.items():
        within = _schedulers_within(owner, key, value)
        if within:
            theirs = stored[key] = _states_within(prefix + key, within, value, stored.get(key))
            for number, scheduler in enumerate(within):
                yield from _places(scheduler, value[number], theirs[number], f"{prefix}{key}.{number}.")
        elif key not in _PROGRESS:
            yield f"{prefix}{key}", _Place(current, stored, key)


def _schedulers_within(owner: Any, key: str, value: Any) -> Sequence[Any]:
    """The schedulers of which a value of the state holds the states."""
    found = getattr(owner, "__dict__", {}).get(key)
    if not isinstance(found, list | tuple) or not isinstance(value, list | tuple) or len(found) != len(value):
        return ()
    is_state = all(hasattr(one, "load_state_dict") for one in found) and all(isinstance(one, Mapping) for one in value)
    return found if is_state else ()


def _states_within(name: str, within: Sequence[Any], current: Sequence[Any], stored: Any) -> list[dict[str, Any]]:
    states = [dict(state) for state in stored] if isinstance(stored, list | tuple) else []
    fits = len(states) == len(within) and all(map(_is_state_of, within, current, states))
    if not fits:
        raise StateMismatchError(
            f"the checkpoint was saved with other schedulers in {name}",
            expected=", ".join(_described(state) for state in current),
            got=", ".join(_described(state) for state in states) or briefly(stored),
            hint="Build the scheduler as it was when the checkpoint was saved. Nothing was changed.",
        )
    return states


def _is_state_of(scheduler: Any, current: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether a state has the settings of this scheduler; its class is not stored, and others may add theirs late."""
    if not type(scheduler).__module__.startswith("torch.optim."):
        return True
    return not (current.keys() ^ stored.keys()) - _PROGRESS - _ONLY_WITH_MOMENTUM - {"verbose"}


def _described(state: Mapping[str, Any]) -> str:
    names = sorted(str(name) for name in state.keys() - _PROGRESS - {"base_lrs"})
    return f"one with {' and '.join(names)}" if names else "one without settings"


def _with_same_argument(kept: set[str]) -> set[str]:
    """Add the settings that come from the same argument as those to keep."""
    added: set[str] = set()
    for name in kept:
        prefix, dot, key = name.rpartition(".")
        added.update(f"{prefix}{dot}{other}" for names in _SAME_ARGUMENT if key in names for other in names)
    return kept | added


def _follow_rates(place: _Place, rates_kept: Collection[int]) -> None:
    mine, stored = place.mine["base_lrs"], place.stored.get("base_lrs")
    if isinstance(stored, list) and len(stored) == len(mine):
        rates = [mine[number] if number in rates_kept else rate for number, rate in enumerate(stored)]
        place.stored["base_lrs"] = copy.deepcopy(rates)


def _keep_in_schedule(place: _Place) -> None:
    mine, stored, key = place
    if key == "T_0" and "T_i" in stored:
        stored["T_i"] = stored["T_i"] // stored[key] * mine[key]
    if key == "mode" and "best" in stored:
        stored["best"] = mine["best"]
    stored[key] = copy.deepcopy(mine[key])


# --- names ---


def _kept(part: str, keep: Collection[str], names: Collection[str]) -> set[str]:
    """Return the full names of what is to be kept; a short one stands for every group and scheduler that has it."""
    kept: set[str] = set()
    for wanted in keep:
        found = {name for name in names if wanted in (name, name.rpartition(".")[2])}
        if not found:
            _refuse(part, wanted, names)
        kept |= found
    return kept


def _refuse(part: str, wanted: str, names: Collection[str]) -> None:
    inner = sorted(name for name in names if name.startswith(f"{wanted}."))
    if wanted.rpartition(".")[2] in _PROGRESS:
        message = f"keep names {wanted}, which is what the {part} has reached and no setting"
    elif inner:
        message = f"keep names {wanted}, which holds progress besides settings"
    else:
        message = f"keep names {wanted}, a setting that the {part} does not have"
    known = inner or sorted(names)
    raise ConfigError(
        message,
        expected=f"some of {', '.join(known[:_SHOWN])}{' …' if len(known) > _SHOWN else ''}",
        got=briefly(wanted),
        hint=None if inner else did_you_mean(wanted, names) or None,
    )
