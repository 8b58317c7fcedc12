"""Finds out what the names in a checkpoint of another program stand for, and puts each entry under our key for it.

The usual names are known: ``state_dict``, ``opt``, ``lr_schedulers``, ``global_step``, ``args`` and many more. A
``key_map`` decides where it says something. What has no known name and is plain goes to ``extra_state``; what is not
plain is left out by name. Half a model is never returned: if one of its tensors cannot be read, there is no payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY, MODEL_KEY, OPTIMIZER_KEY, OTHERS_KEY, PAYLOAD_KEYS
from ckpt_lib.core.wording import did_you_mean, listed, shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.foreign.base import Facts, StoredObject, StoredTensor
from ckpt_lib.foreign.known_facts import COUNTS, FACTS, FactFinder, count_of
from ckpt_lib.foreign.modules import has_hooks, holds_tensors, is_module, unreadable, weight_bytes, weights_of
from ckpt_lib.foreign.plain_values import REFUSED, PlainConverter

_STATES: dict[str, tuple[str, ...]] = {
    "model": (
        *(MODEL_KEY, "state_dict", "model", "model_state", "net", "network", "model_weights", "weights", "params"),
        "module",
    ),
    "optimizer": (
        OPTIMIZER_KEY,
        "optimizer",
        "optimizers",
        "optimizer_states",
        "optimizer_state",
        "optim_state_dict",
        "opt",
        "optim",
    ),
    "scheduler": (
        *(PAYLOAD_KEYS["scheduler"], "scheduler", "lr_schedulers", "lr_scheduler", "lr_scheduler_state_dict", "sched"),
        "lr_sched",
    ),
}
"""The names of each state, the likelier first: of several, the first that holds such a state is taken."""
_EMAS = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_state", "ema_model")
_OTHERS = (
    *_EMAS,
    "scaler",
    "scaler_state_dict",
    "grad_scaler",
    "amp_scaler",
    "MixedPrecision",
    "native_amp_scaling_state",
)
_TARGETS = (*_STATES, "others", *FACTS, EXTRA_STATE_KEY)
_EXTRA_SUFFIX = "_extra_state"


@dataclass(frozen=True)
class MappedContents:
    """A checkpoint of another program under the keys of :mod:`ckpt_lib.core.payload_keys`, as far as it has them."""

    payload: Mapping[str, Any] | None
    """``None`` where it cannot be loaded; ``obstacle`` says why."""
    facts: Facts = field(default_factory=Facts)
    left_out: tuple[str, ...] = ()
    """What ``payload`` lacks, and why: one sentence each."""
    obstacle: str | None = None


def to_payload(contents: Mapping[str, Any], key_map: Mapping[str, str] | None = None) -> MappedContents:
    """Put the entries of a checkpoint under our keys: by ``key_map`` where it names them, else by their usual names.

    ``key_map`` is such as ``{"netG": "model", "opt": "optimizer", "averaged": "others"}``. Its targets are ``model``,
    ``optimizer``, ``scheduler``, ``others``, ``epoch``, ``step``, ``metrics``, ``config`` and ``extra_state``. Several
    names with one target become several states under their names. A dot reaches into a dict, as in ``trainer.model``.
    Raises :class:`~ckpt_lib.errors.ConfigError` for a name that the checkpoint does not have, for a target that is
    none, for an epoch or a step that is no count, and for two names of either.
    """
    assignment = _Assignment(contents)
    assignment.take_given(dict(key_map or {}))
    assignment.take_states()
    assignment.take_others()
    return assignment.mapped()


def own_payload(contents: Mapping[str, Any]) -> MappedContents:
    """Return the payload of a checkpoint of this library, which has our keys and nothing else."""
    facts = FactFinder()
    facts.writer = "prefect-checkpoints"
    for kind in FACTS:
        if facts.kind_of(kind, contents.get(kind)) == kind:
            facts.take(kind, kind, contents[kind])
    states = {key: contents.get(key) for key in (*PAYLOAD_KEYS.values(), EXTRA_STATE_KEY)}
    if found := unreadable(states):
        reason = f"{len(found)} of its values can be read by torch.load alone: {listed(found, 5)}"
        return MappedContents(None, facts.found(), obstacle=reason)
    return MappedContents({key: state for key, state in states.items() if state is not None}, facts.found())


class _Assignment:
    """Takes the entries of one kind after the other; what remains is extra."""

    def __init__(self, contents: Mapping[str, Any]) -> None:
        self._contents = contents
        self._rest = dict(contents)
        self._payload: dict[str, Any] = {}
        self._facts = FactFinder()
        self._extra: dict[str, Any] = {}
        self._left_out: list[str] = []
        self._obstacles: list[str] = []
        self._is_given = False
        """Whether a ``key_map`` names the model."""

    # --- by key_map ---

    def take_given(self, key_map: dict[str, str]) -> None:
        self._is_given = "model" in key_map.values()
        _check_targets(key_map)
        found = {source: self._taken(source) for source in key_map}
        for target in _TARGETS:
            chosen = {source: found[source] for source in key_map if key_map[source] == target}
            if not chosen:
                continue
            if target in _STATES:
                self._assign(target, chosen)
            elif target == "others":
                for source, value in chosen.items():
                    self._assign_other(source, value)
            elif target == EXTRA_STATE_KEY:
                self._extra |= chosen
            else:
                for source, value in chosen.items():
                    self._assign_given_fact(target, source, value)

    def _taken(self, source: str) -> Any:
        """Return the entry that ``key_map`` names, and count it as taken."""
        if source in self._contents:
            self._rest.pop(source, None)
            return self._contents[source]
        value: Any = self._contents
        for part in source.split("."):
            if isinstance(value, StoredObject):
                value = value.entries if isinstance(value.entries, Mapping) else value.state
            if not isinstance(value, Mapping) or part not in value:
                raise ConfigError(
                    f"key_map names {shown(source)}, which the checkpoint does not have",
                    expected=listed([str(key) for key in self._contents], 20),
                    hint=did_you_mean(source, [str(key) for key in self._contents]),
                )
            value = value[part]
        return value

    # --- by their names ---

    def take_states(self) -> None:
        if MODEL_KEY not in self._payload and not self._obstacles and _is_bare_model(self._contents):
            whole = self._contents.get("", self._contents)
            self._rest.clear()
            self._assign("model", {"": whole})
        if not self._payload and _is_optimizer(self._contents):
            self._rest.clear()
            self._assign("optimizer", {"": self._contents})
        for kind, names in _STATES.items():
            if PAYLOAD_KEYS[kind] in self._payload or self._obstacles:
                continue
            name = next((name for name in names if name in self._rest and _FITS[kind](self._rest[name])), None)
            if name is not None:
                self._assign(kind, {name: self._rest.pop(name)})
            elif kind == "model":
                self._take_average()
        if not self._obstacles:
            self._look_for_more()

    def _take_average(self) -> None:
        """Take the averaged weights for those of the model, of a checkpoint that has only these."""
        if self._more(_is_model):
            return
        name = next((name for name in _EMAS if _is_model(self._rest.get(name))), None)
        if name is not None:
            self._assign("model", {name: self._rest.pop(name)})
            self._left_out.append(f"It has no weights besides the averaged ones in {name}: those are the model's.")

    def _look_for_more(self) -> None:
        """Refuse to take the smaller of two models for the one, and say which states have no known name."""
        taken = self._payload.get(MODEL_KEY)
        models = [] if self._is_given else self._more(_is_model)
        larger = [name for name in models if taken is not None and weight_bytes(self._rest[name]) > weight_bytes(taken)]
        if larger:
            self._obstacles.append(
                f"{listed(larger, 5)} may be the model as well, with more weights than what has a usual name; "
                f"name the model with key_map, such as {{{larger[0]!r}: 'model'}}"
            )
        elif models and taken is None:
            self._obstacles.append(self._nothing_found())
        elif models:
            self._left_out.append(f"{listed(models, 5)} may be models, too: they are in extra_state under these names.")
        if optimizers := self._more(_is_optimizer):
            self._left_out.append(
                f"{listed(optimizers, 5)} may be states of optimizers: they are in extra_state; key_map can name them."
            )

    def _more(self, is_one: Callable[[Any], bool]) -> list[str]:
        """Return the names of what nobody has taken that may be such a state; averages have their own names."""
        return [str(name) for name, value in self._rest.items() if name not in _OTHERS and is_one(value)]

    def take_others(self) -> None:
        for name in _OTHERS:
            if name in self._rest and (_is_model(self._rest[name]) or _is_state(self._rest[name])):
                self._assign_other(name, self._rest.pop(name))
        for name, value in list(self._rest.items()):
            fact = self._facts.kind_of(name, value)
            if fact is not None:
                del self._rest[name]
                self._assign_fact(fact, str(name), value)

    # --- taking ---

    def _assign(self, kind: str, chosen: dict[str, Any]) -> None:
        """Put one state under our key for its kind, or several under their names."""
        states = {
            name: state for name, value in chosen.items() if (state := self._state(kind, name, value)) is not REFUSED
        }
        if states:
            self._payload[PAYLOAD_KEYS[kind]] = states if len(chosen) > 1 else next(iter(states.values()))

    def _state(self, kind: str, name: str, value: Any) -> Any:
        """Return the state that an entry is, or :data:`REFUSED` with the reason noted."""
        if kind == "model":
            return self._model(name, value)
        if isinstance(value, list):  # of Lightning, one for each optimizer
            value = {str(number): item for number, item in enumerate(value)} if len(value) != 1 else value[0]
        values = PlainConverter()
        state = values.plain(value, name)
        if values.refused:
            self._leave_out(values.refused, f"the whole state of the {kind} is left out")
            return REFUSED
        return state

    def _model(self, name: str, value: Any) -> Any:
        place = name or "it"
        if is_module(value):
            if has_hooks(value):
                self._left_out.append(f"{place} has hooks that change its state_dict(); none was run.")
            value = weights_of(value)
        if isinstance(value, StoredObject) and isinstance(value.entries, Mapping):
            value = dict(value.entries)
        if isinstance(value, StoredObject):
            self._obstacles.append(f"{place} is a {value.class_name}, and no weights are found in what is stored of it")
            return REFUSED
        if not isinstance(value, Mapping) or not holds_tensors(value):
            self._obstacles.append(f"{place} holds no weights")
            return REFUSED
        if found := unreadable(value):
            self._obstacles.append(
                f"{len(found)} of the model's values can be read by their own program alone: {listed(found, 5)}"
            )
            return REFUSED
        return value

    def _assign_other(self, name: str, value: Any) -> None:
        values = PlainConverter()
        state = values.plain(weights_of(value) if is_module(value) else value, name)
        if values.refused:
            self._leave_out(values.refused, f"the whole state {name} is left out")
        else:
            self._payload.setdefault(OTHERS_KEY, {})[name] = state

    def _assign_given_fact(self, kind: str, source: str, value: Any) -> None:
        if kind in COUNTS and count_of(value) is None:
            raise ConfigError(
                f"key_map names {shown(source)} as the {kind}, and it is no count",
                expected="a whole number from 0 on",
                got=shown(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}",
            )
        self._assign_fact(kind, source, value, is_given=True)

    def _assign_fact(self, kind: str, name: str, value: Any, *, is_given: bool = False) -> None:
        taken = self._facts.take(kind, name, value, is_given=is_given)
        self._leave_out(taken.refused, f"the {kind} lacks them")
        if taken.has_tensors:  # a configuration holds none, so they are kept beside it
            self._rest[name] = value

    def _leave_out(self, places: list[str], what: str) -> None:
        if places:
            self._left_out.append(f"No plain values are {listed(places, 5)}: {what}.")

    def mapped(self) -> MappedContents:
        """Return the payload, with what nobody has taken as ``extra_state``."""
        self._facts.look_at(self._contents)
        values = PlainConverter()
        extra = values.plain({**self._rest, **self._extra}, "")
        self._leave_out(values.refused, "they are left out")
        if extra:
            self._payload[EXTRA_STATE_KEY] = extra
        if not self._obstacles and not {MODEL_KEY, OPTIMIZER_KEY} & self._payload.keys():
            self._obstacles.append(self._nothing_found())
        return MappedContents(
            payload=None if self._obstacles else self._payload,
            facts=self._facts.found(),
            left_out=tuple(self._left_out),
            obstacle="; ".join(self._obstacles) or None,
        )

    def _nothing_found(self) -> str:
        objects = [name for name in _STATES["model"] if isinstance(self._contents.get(name), StoredObject)]
        if objects:
            found: StoredObject = self._contents[objects[0]]
            return f"{objects[0]} is a {found.class_name}, and no weights are found in what is stored of it"
        likely = self._more(_is_model)
        hint = f"name them with key_map, such as {{{likely[0]!r}: 'model'}}" if likely else "it may be no checkpoint"
        return f"no weights of a model are under a name that is known ({listed(likely, 5) or 'it has none'}); {hint}"


def _check_targets(key_map: Mapping[str, str]) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` for a target that does not exist, and for two counts of one kind."""
    for target in key_map.values():
        if target not in _TARGETS:
            raise ConfigError(
                "key_map names a target that does not exist",
                expected=", ".join(_TARGETS),
                got=shown(target),
                hint=did_you_mean(str(target), _TARGETS),
            )
    for count in COUNTS:
        names = [shown(name) for name, target in key_map.items() if target == count]
        if len(names) > 1:
            raise ConfigError(
                f"key_map names more than one {count}",
                expected=f"one name for the {count}",
                got=" and ".join(names),
                hint="Keep the name that counts what training has done; give the others to extra_state.",
            )


def _is_model(value: Any) -> bool:
    return is_module(value) or (isinstance(value, Mapping) and not _is_optimizer(value) and _are_weights(value))


def _are_weights(state: Mapping[Any, Any]) -> bool:
    """Tell whether all that is in a dict may be tensors, as in the state of a model, or in those of several."""
    return bool(state) and all(
        isinstance(value, StoredTensor | StoredObject)
        or str(name).endswith(_EXTRA_SUFFIX)
        or (isinstance(value, Mapping) and _are_weights(value))
        for name, value in state.items()
    )


def _is_bare_model(contents: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is the state of a model, or a module, and nothing else."""
    if tuple(contents) == ("",):
        return is_module(contents[""]) or isinstance(contents[""], StoredObject)
    if not all(isinstance(name, str) for name in contents) or not any(map(_is_tensor, contents.values())):
        return False
    return all(_is_tensor(value) or name.endswith(_EXTRA_SUFFIX) or "." in name for name, value in contents.items())


def _is_tensor(value: Any) -> bool:
    """Tell whether a value is a tensor, or an object that only torch's own code makes one of."""
    return isinstance(value, StoredTensor) or (
        isinstance(value, StoredObject) and value.class_name.startswith(("torch._utils.", "torch._tensor."))
    )


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_optimizer, value))
    if not isinstance(value, Mapping):
        return False
    return {"state", "param_groups"} <= value.keys() or (
        bool(value) and all(isinstance(item, Mapping) and "param_groups" in item for item in value.values())
    )


def _is_state(value: Any) -> bool:
    return bool(value) and (isinstance(value, Mapping) or (isinstance(value, list) and all(map(_is_state, value))))


_FITS = {"model": _is_model, "optimizer": _is_optimizer, "scheduler": _is_state}
