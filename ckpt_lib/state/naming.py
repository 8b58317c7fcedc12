"""Brings the stored state of a model into the names of the model that it is restored into.

Three things may differ: the levels that wrappers add, which are told by themselves; layers that were renamed since,
which ``key_map`` tells; and where the model's part lies in the payload, which ``only`` tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.renames import KeyMap, check_key_map, renamed, unmatched
from ckpt_lib.state.stateful import UNCHANGED, Names, is_module
from ckpt_lib.state.ties import with_tied
from ckpt_lib.state.training_state import TrainingState
from ckpt_lib.state.wrappers import ModelNames, bare_spellings, is_usual, starts_of, state_name


@dataclass(frozen=True)
class Naming:
    """How the names of a payload stand for those of a model, besides wrappers."""

    key_map: KeyMap | None = None
    strict: bool = True
    """Refuse a state that does not have all of the model's names, and no others."""
    only: str | None = None
    """The place in the payload below which the model's state is; by default that of the whole model."""

    def check(self, keys: Collection[str] | None, state: TrainingState) -> None:
        """Raise :class:`ConfigError` for options that cannot work with each other, or with what is passed."""
        check_key_map(self.key_map)
        model = state.model
        if not isinstance(self.strict, bool):
            raise ConfigError("strict must be true or false", got=shown(self.strict))
        for name, is_given in (("key_map", self.key_map is not None), ("strict=False", not self.strict)):
            if is_given and not is_module(model):
                raise ConfigError(f"{name} needs a model to restore into", expected="model=<torch.nn.Module>")
        if self.only is not None:
            self._check_only(keys, state)

    def _check_only(self, keys: Collection[str] | None, state: TrainingState) -> None:
        if not isinstance(self.only, str) or not all(self.only.split(".")):
            raise ConfigError("only must be the name of a part", expected='"model_state_dict.encoder"', got=self.only)
        if keys is not None:
            raise ConfigError("only and keys were both given", hint="only reads what keys=[only] reads.")
        if [part.label for part in state.parts()] != ["model"]:
            raise ConfigError(
                "only restores a part of the state into a model, and into nothing else",
                expected="model=, without optimizer= or anything else",
                hint="An optimizer's state belongs to the whole model: restore both without only=.",
            )


AS_STORED = Naming()
"""The whole state of a model, with every name as it is but for wrappers."""


@dataclass(frozen=True)
class NamedState:
    """The stored state of a model, in the model's names."""

    state: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    """Maps the stored names to the model's."""
    model_names: ModelNames | None = None
    naming: Naming = AS_STORED

    def bare_of_stored(self, parameters: Names) -> Names:
        """Return the bare names that the model has for the parameters that a stored optimizer names.

        An optimizer that was built before its model was wrapped has names without the levels of the wrapper.
        """
        by_bare, names = self._by_bare_name, self.names
        return self.bare_of(_each(lambda name: names.get(name) or by_bare.get(name) or name, parameters))

    def bare_of(self, parameters: Names) -> Names:
        """Return the bare names of parameters that an optimizer of the model names."""
        model_names = self.model_names
        return parameters if model_names is None else _each(model_names.bare, parameters)

    @cached_property
    def _by_bare_name(self) -> Mapping[str, str]:
        return {bare: self.names[name] for name, bare in bare_spellings(self.names).items()}

    @cached_property
    def stored_names(self) -> Mapping[str, str]:
        """The stored names by those of the model."""
        return {name: stored for stored, name in self.names.items()}


def _each(change: Callable[[str], str], parameters: Names) -> Names:
    return tuple(tuple(change(state_name(name)) for name in group) for group in parameters)


@dataclass(frozen=True)
class NamedModels:
    """The stored states of all models of a training: of one or, by name, of several."""

    by_name: Mapping[str | None, NamedState]

    def bare_of_stored(self, parameters: Names) -> Names:
        """Return what :meth:`NamedState.bare_of_stored` does, in names that begin with that of the model."""
        return self._of_each(parameters, NamedState.bare_of_stored)

    def bare_of(self, parameters: Names) -> Names:
        """Return what :meth:`NamedState.bare_of` does, in names that begin with that of the model."""
        return self._of_each(parameters, NamedState.bare_of)

    def _of_each(self, parameters: Names, bare: Callable[[NamedState, Names], Names]) -> Names:
        if None in self.by_name:
            return bare(self.by_name[None], parameters)

        def bare_name(name: str) -> str:
            model, _, rest = name.partition(".")
            named = self.by_name.get(model)
            return name if named is None else f"{model}.{bare(named, ((rest,),))[0][0]}"

        return tuple(tuple(map(bare_name, group)) for group in parameters)

    @property
    def state(self) -> dict[str, Any]:
        """The tensors of all models by the names of their parameters."""
        return {
            name if model is None else f"{model}.{name}": value
            for model, named in self.by_name.items()
            for name, value in named.state.items()
        }


def named_for(model: Any, current: Any, stored: Mapping[str, Any], naming: Naming = AS_STORED) -> NamedState:
    """Return a stored state in the names of ``model``, whose own is ``current``; as they are where nothing differs.

    Objects that are no ``torch.nn.Module`` get their state as it is. Raises :class:`ConfigError` for a ``key_map`` that
    has an entry for nothing, or one name for two tensors.
    """
    is_usual_state = is_module(model) and isinstance(current, Mapping)
    if not is_usual_state or not all(isinstance(name, str) for name in (*current, *stored)):
        return NamedState(stored, naming=naming)
    model_names = ModelNames(model, current)
    if naming.key_map is not None:
        names = _mapped(naming.key_map, list(stored), model_names)
    elif current.keys() != stored.keys():
        names = model_names.spellings_of(stored)
    else:
        return NamedState(stored, {name: name for name in stored}, model_names, naming)
    _refuse_doubles(names)
    is_as_stored = all(stored_name == name for stored_name, name in names.items())
    state = stored if is_as_stored else _with_names(stored, names)
    return NamedState(with_tied(state, current), names, model_names, naming)


def _mapped(key_map: KeyMap, stored: list[str], model_names: ModelNames) -> dict[str, str]:
    """Map stored names as ``key_map`` says, whose entries may leave out the levels that a wrapper added."""
    best: dict[str, str] = {}
    missed: set[str] = set()
    known = {*model_names.by_bare_name.values()}
    bare = bare_spellings(stored) if isinstance(key_map, Mapping) else {}
    for spelling in ({name: name for name in stored}, bare):
        found, unused = renamed(key_map, list(spelling.values())) if spelling else ({}, {""})
        if unused:
            missed = missed or unused
            continue
        names = _spelled({name: (spelled, found[spelled]) for name, spelled in spelling.items()}, model_names)
        if len(known.intersection(names.values())) > len(known.intersection(best.values())) or not best:
            best = names
    if not best:
        raise unmatched(min(missed), stored)
    return best


def _spelled(names: Mapping[str, tuple[str, str]], model_names: ModelNames) -> dict[str, str]:
    """Spell mapped names as the model does: those that ``key_map`` has changed are the model's already, or bare."""
    known = model_names.by_bare_name
    settled = {}
    for stored, (before, after) in names.items():
        if after != before and (after in known or after in known.values()):
            settled[stored] = known.get(after, after)
    open_names = {stored: after for stored, (_, after) in names.items() if stored not in settled}
    spellings = model_names.spellings_of(open_names.values())
    return {stored: settled.get(stored) or spellings[open_names[stored]] for stored in names}


def _refuse_doubles(names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for stored, name in names.items():
        if (first := seen.setdefault(name, stored)) != stored:
            raise ConfigError(
                f"key_map gives two stored tensors the name {name!r}", got=f"{first} and {stored}", hint=UNCHANGED
            )


def _with_names(stored: Mapping[str, Any], names: Mapping[str, str]) -> OrderedDict[str, Any]:
    state: OrderedDict[str, Any] = OrderedDict((names[name], value) for name, value in stored.items())
    versions = getattr(stored, "_metadata", None)
    if isinstance(versions, Mapping):
        state._metadata = _moved_versions(versions, names)  # type: ignore[attr-defined]
    return state


def _moved_versions(versions: Mapping[Any, Any], names: Mapping[str, str]) -> OrderedDict[str, Any]:
    """Return the versions of modules, by which loading migrates old states, under the modules' new names."""
    moved: OrderedDict[str, Any] = OrderedDict()
    paths = dict(_moved_paths(names))
    for path in (path for path in versions if isinstance(path, str)):
        prefix = f"{path}." if path else ""
        above = next((start for start in (prefix, *starts_of(path)) if start in paths), None)
        if above is not None:
            moved.setdefault((paths[above] + prefix[len(above) :]).removesuffix("."), versions[path])
    return moved


def _moved_paths(names: Mapping[str, str]) -> dict[str, str]:
    """Return where each prefix of stored names went: the outer levels that a tensor's two names do not share."""
    paths: dict[str, str] = {}
    for stored, name in ((stored, name) for stored, name in names.items() if is_usual(stored)):
        before, after = stored.split(".")[:-1], name.split(".")[:-1]
        paths.setdefault(_prefix(before), _prefix(after))
        while before and after and before.pop() == after.pop():
            paths.setdefault(_prefix(before), _prefix(after))
    return paths


def _prefix(parts: list[str]) -> str:
    return "".join(f"{part}." for part in parts)


def spellings_of_part(only: str) -> list[str]:
    """Return the names that a part of a state may have: as given, or with the levels of wrappers of the whole model."""
    place, dot, rest = only.partition(".")
    levels = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")
    return [f"{place}.{level}{rest}" for level in levels] if dot else [only]


def part_of(payload: Mapping[str, Any], only: str) -> Mapping[str, Any]:
    """Return what lies in a payload below the dotted name ``only``, by the rest of its names.

    Raises :class:`ConfigError` for a name that has no names below it.
    """
    found = next((part for name in spellings_of_part(only) if (part := _below(payload, name))), None)
    if found is None:
        raise ConfigError(f"{only!r} is no part with names below it", expected=f'"{MODEL_KEY}.encoder"')
    return found


def _below(value: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    names = {key: key[len(path) + 1 :] for key in value if isinstance(key, str) and key.startswith(f"{path}.")}
    if names:
        return _with_names(_chosen(value, names), names)
    for key, inner in value.items():
        if isinstance(inner, Mapping) and isinstance(key, str):
            if key == path:
                return inner
            if path.startswith(f"{key}.") and (found := _below(inner, path[len(key) + 1 :])):
                return found
    return {}


def _chosen(value: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    chosen: OrderedDict[str, Any] = OrderedDict((name, value[name]) for name in names)
    chosen.__dict__.update(getattr(value, "__dict__", {}))
    return chosen


NOTHING = NamedState({})
"""Takes the place of a model's state where no model is restored."""


def load_named(model: Any, named: NamedState, own: Mapping[str, Any]) -> dict[str, list[str]]:
    """Load ``own``, a copy of a named state; without ``strict``, return the names that were missing or unexpected.

    Missing ones are named as in the model, unexpected ones as they are stored. Raises :class:`StateMismatchError` when
    nothing was restored.
    """
    if named.naming.strict:
        model.load_state_dict(own)
        return {}
    missing, unexpected = model.load_state_dict(own, strict=False)
    if missing and not named.state.keys() - set(unexpected):
        raise nothing_matches(named)
    return {"missing": list(missing), "unexpected": [named.stored_names.get(name, name) for name in unexpected]}


def nothing_matches(named: NamedState, hint: str | None = None) -> StateMismatchError:
    """Return the error for a state that has no name of the model."""
    return StateMismatchError(
        "nothing in the checkpoint has a name of the model", got=listed(list(named.names), 5), hint=hint
    )


def check_covered(optimizer: Any, model: Any, named: NamedState) -> None:
    """Raise :class:`StateMismatchError` unless all parameters of an optimizer are in a state that may lack some.

    Momentum for weights that were not restored would be that of other weights.
    """
    known = {id(parameter): state_name(name) for name, parameter in model.named_parameters()}
    parameters = [parameter for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]]
    names = [known.get(id(parameter), "a parameter outside the model") for parameter in parameters]
    if lacking := [name for name in names if name not in named.state]:
        raise StateMismatchError(
            f"with strict=False, parameters of the optimizer are not in the checkpoint: {listed(lacking, 5)}",
            expected="a state of all parameters of the optimizer",
            hint=f"Leave out optimizer= to begin with a new one, or name renamed layers in key_map=. {UNCHANGED}",
        )
