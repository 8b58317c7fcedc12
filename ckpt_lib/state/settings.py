"""Finds settings of optimizers and schedulers that a stored state would replace, and keeps those that a caller names.

A setting is a value that an optimizer or a scheduler was built with. Progress is what changed since. To keep a setting,
the stored state is loaded with the caller's value in it: progress stays, and the next steps are those of a restored
object whose setting was then changed. Settings that depend on each other are kept together:

- ``lr`` of an optimizer under a schedule is the rate at which the schedule began. The current rate changes by the same
  factor, and so do the ``base_lrs`` of the scheduler. Without a schedule, ``lr`` is the current rate.
- ``total_steps`` and ``_schedule_phases`` of ``OneCycleLR`` come from one argument, as do both fields for ``min_lr``.
- ``T_0`` of ``CosineAnnealingWarmRestarts`` changes the length of the current cycle by the same factor.
- ``mode`` of ``ReduceLROnPlateau`` resets ``best``, which was found in the other direction.
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
"""Maps a setting to the caller's value and the stored value that replaces it."""

_PROGRESS = {
    *("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_initial_step", "_is_initial"),
    *("T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter"),
    "mode_worse",  # ReduceLROnPlateau computes it from its mode
}
"""The entries of a scheduler's state that record progress instead of settings."""
_NOT_A_SETTING = {"params", "param_names", "initial_lr"}  # initial_lr is compared as lr
_ONLY_WITH_MOMENTUM = {"use_beta1", "base_momentums", "max_momentums"}
_SAME_ARGUMENT = [{"total_steps", "_schedule_phases"}, {"min_lrs", "default_min_lr"}]
_NEEDED_STATE = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg"}
_SHOWN = 20


@dataclass
class MergedState:
    """A state to load, with the settings to keep in it, and the settings that it replaces."""

    state: dict[str, Any]
    replaced: Changes = field(default_factory=dict)
    kept_rates: set[int] = field(default_factory=set)
    """The numbers of the parameter groups that keep the caller's learning rate."""


class _Setting(NamedTuple):
    """One setting: the caller's state, the stored state, and its key in both."""

    mine: Mapping[str, Any]
    stored: dict[str, Any]
    key: str


def merge_optimizer_settings(
    optimizer: Any, state: Mapping[str, Any], keep: Collection[str], schedule: Mapping[str, Any] | None
) -> MergedState:
    """Put the settings to keep into a copy of an optimizer's stored state, and report the settings that it replaces.

    ``schedule`` is the stored state of the scheduler. Settings that the checkpoint lacks keep the caller's value.
    Raises :class:`ConfigError` for a name that is no setting, and :class:`StateMismatchError` for a setting that needs
    state which was not stored.
    """
    own = getattr(optimizer, "param_groups", ())
    groups = [dict(group) for group in state.get("param_groups", ())]
    merged = MergedState({**state, "param_groups": groups} if groups else dict(state))
    names = {
        _in_group(number, len(own), key): (number, key)
        for number, group in enumerate(own)
        for key in group
        if key not in _NOT_A_SETTING and not (key == "momentum" and _is_cycled(group))
    }
    kept = _full_names("optimizer", [_as_rate(name) for name in keep], names)
    for name, (number, key) in names.items():
        setting = _Setting(own[number], groups[number], key)
        if key not in setting.stored:
            setting.stored[key] = setting.mine[key]
            continue
        is_unchanged = _is_unchanged(setting, schedule, number)
        if name in kept and (not is_unchanged or _is_rate_without_schedule(setting)):
            _check_needed_state(setting, state)
            _keep_in_group(setting)
            merged.kept_rates.update({number} if key == "lr" else ())
        elif not is_unchanged:
            merged.replaced[name] = (_built_value(key, setting.mine), _built_value(key, setting.stored))
    for mine, stored in zip(own, groups, strict=True):
        if "initial_lr" in mine:
            stored.setdefault("initial_lr", mine["initial_lr"])
    return merged


def merge_scheduler_settings(
    scheduler: Any, state: Mapping[str, Any], keep: Collection[str], kept_rates: Collection[int]
) -> MergedState:
    """Put the settings to keep into a copy of a scheduler's stored state, and report the settings that it replaces.

    Settings of inner schedulers have dotted names, such as ``_schedulers.1.milestones``. Raises :class:`ConfigError`
    for a name that is no setting, and :class:`StateMismatchError` where the inner schedulers differ.
    """
    merged = MergedState(dict(state))
    current = scheduler.state_dict()
    settings = dict(_settings(scheduler, current, merged.state)) if isinstance(current, Mapping) else {}
    kept = _with_same_argument(_full_names("scheduler", keep, settings))
    for name, setting in settings.items():
        if setting.key == "base_lrs":
            _update_base_rates(setting, kept_rates)
        if setting.key not in setting.stored or is_same(setting.mine[setting.key], setting.stored[setting.key]):
            continue
        if name in kept:
            _keep_in_schedule(setting)
        else:
            merged.replaced[name] = (setting.mine[setting.key], setting.stored[setting.key])
    return merged


def describe_changes(changes: Changes) -> str:
    """Describe the first five changes in one line."""
    first = [f"{name} {_in_short(mine)} by {_in_short(stored)}" for name, (mine, stored) in list(changes.items())[:5]]
    more = len(changes) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def is_same(mine: Any, stored: Any) -> bool:
    """Tell whether two settings are equal. Objects that compare by identity count as equal to any other."""
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
    """Tell whether a scheduler cycles the momentum of this group, as it cycles the learning rate."""
    return "max_momentum" in group


def _built_value(key: str, group: Mapping[str, Any]) -> Any:
    """Return the value that a group was built with: the initial learning rate, or cycled betas without the first."""
    if key == "lr":
        return group.get("initial_lr", group["lr"])
    if key == "betas" and _is_cycled(group):
        return tuple(group["betas"][1:])
    return group[key]


def _is_unchanged(setting: _Setting, schedule: Mapping[str, Any] | None, number: int) -> bool:
    key = setting.key
    if key == "betas" and _is_cycled(setting.mine):
        return is_same(setting.mine[key][1:], setting.stored[key][1:])
    mine, stored = _built_value(key, setting.mine), _built_value(key, setting.stored)
    return is_same(mine, stored) or (key == "lr" and _is_reduced(mine, stored, schedule, number))


def _is_reduced(mine: Any, stored: Any, schedule: Mapping[str, Any] | None, number: int) -> bool:
    """Tell whether ``ReduceLROnPlateau``, which stores no initial rate, leads from one learning rate to the other."""
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


def _is_rate_without_schedule(setting: _Setting) -> bool:
    """Tell whether the stored learning rate comes from a schedule that the caller no longer uses."""
    return setting.key == "lr" and "initial_lr" in setting.stored and "initial_lr" not in setting.mine


def _check_needed_state(setting: _Setting, state: Mapping[str, Any]) -> None:
    """Refuse to keep a setting whose next step would fail in PyTorch, for lack of state that was not stored."""
    entries = [state.get("state", {}).get(number) for number in setting.stored.get("params", ())]
    for entry in entries:
        needed = _NEEDED_STATE.get(setting.key)
        if setting.key == "momentum" and isinstance(entry, Mapping) and "square_avg" in entry:  # RMSprop
            needed = "momentum_buffer"
        if needed and entry and setting.mine[setting.key] and needed not in entry:
            raise StateMismatchError(
                f"keep names {setting.key}, which works on {needed}, and the checkpoint holds none",
                hint=f"Leave {setting.key} out of keep, or leave out optimizer= to begin with a new one. "
                "Nothing was changed.",
            )


def _keep_in_group(setting: _Setting) -> None:
    mine, stored, key = setting
    if key == "betas" and _is_cycled(mine):
        stored[key] = (stored[key][0], *mine[key][1:])
    elif key == "lr" and "initial_lr" in stored:
        first = mine.get("initial_lr", mine["lr"])
        under_schedule = "initial_lr" in mine and float(stored["initial_lr"])
        factor = float(stored["lr"]) / float(stored["initial_lr"]) if under_schedule else 1
        stored["lr"], stored["initial_lr"] = first * factor, copy.deepcopy(first)
    else:
        stored[key] = copy.deepcopy(_built_value(key, mine))


# --- schedulers ---


def _settings(outer: Any, current: Mapping[str, Any], stored: dict[str, Any], prefix: str = "") -> Iterator[Any]:
    """Yield name and :class:`_Setting` for a scheduler and the schedulers within it, whose stored states are copied."""
    for key, value in current.items():
        within = _schedulers_within(outer, key, value)
        if within:
            theirs = stored[key] = _states_within(prefix + key, within, value, stored.get(key))
            for number, scheduler in enumerate(within):
                yield from _settings(scheduler, value[number], theirs[number], f"{prefix}{key}.{number}.")
        elif key not in _PROGRESS:
            yield f"{prefix}{key}", _Setting(current, stored, key)


def _schedulers_within(outer: Any, key: str, value: Any) -> Sequence[Any]:
    """Return the inner schedulers whose states are the entries of ``value``."""
    found = getattr(outer, "__dict__", {}).get(key)
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
    """Tell whether a state has the settings of this scheduler. Classes that are not PyTorch's are not compared."""
    if not type(scheduler).__module__.startswith("torch.optim."):
        return True
    return not (current.keys() ^ stored.keys()) - _PROGRESS - _ONLY_WITH_MOMENTUM - {"verbose"}


def _described(state: Mapping[str, Any]) -> str:
    names = sorted(str(name) for name in state.keys() - _PROGRESS - {"base_lrs"})
    return f"one with {' and '.join(names)}" if names else "one without settings"


def _with_same_argument(kept: set[str]) -> set[str]:
    """Add the settings that come from the same constructor argument as those to keep."""
    added: set[str] = set()
    for name in kept:
        prefix, dot, key = name.rpartition(".")
        added.update(f"{prefix}{dot}{other}" for names in _SAME_ARGUMENT if key in names for other in names)
    return kept | added


def _update_base_rates(setting: _Setting, kept_rates: Collection[int]) -> None:
    mine, stored = setting.mine["base_lrs"], setting.stored.get("base_lrs")
    if isinstance(stored, list) and len(stored) == len(mine):
        rates = [mine[number] if number in kept_rates else rate for number, rate in enumerate(stored)]
        setting.stored["base_lrs"] = copy.deepcopy(rates)


def _keep_in_schedule(setting: _Setting) -> None:
    mine, stored, key = setting
    if key == "T_0" and "T_i" in stored:
        stored["T_i"] = stored["T_i"] // stored[key] * mine[key]
    if key == "mode" and "best" in stored:
        stored["best"] = mine["best"]
    stored[key] = copy.deepcopy(mine[key])


# --- names ---


def _full_names(part: str, keep: Collection[str], names: Collection[str]) -> set[str]:
    """Return the full names of the settings to keep. A short name stands for every group and scheduler that has it."""
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
