"""``TrainingState``: everything that a training consists of, named once for saving and resuming."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.core.payload_keys import DATA_KEY, OTHERS_KEY, PAYLOAD_KEYS, PER_PROCESS
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.state.stateful import (
    MAX_NAMES_BYTES,
    Names,
    Stateful,
    check_stateful,
    kind_of,
    parameter_names,
    state_of,
)

Named = Stateful | Mapping[str, Stateful]
"""One object, or several by name."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Part:
    """One object of a training, such as a model, and the place of its state in a payload."""

    kind: str
    """``model``, ``optimizer``, ``scheduler``, ``data``, ``others`` or ``rng``."""
    name: str | None
    """Its name among several of its kind."""
    item: Stateful

    @property
    def label(self) -> str:
        """What messages and manifests call it, such as ``optimizer`` or ``optimizer.generator``."""
        return self.kind if self.name is None else f"{self.kind}.{self.name}"

    @property
    def argument(self) -> str:
        """How a caller passes it, such as ``optimizer=`` or ``generators={'noise': ...}``."""
        keyword = "generators" if self.kind == "rng" else self.kind
        return f"{keyword}=" if self.name is None else f"{keyword}={{{self.name!r}: ...}}"


_STATE_DICTS = ("model", "optimizer", "scheduler")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The objects whose state is a training's: saved, and restored, together.

    ::

        state = TrainingState(model=model, optimizer=optimizer, data=loader, others={"scaler": scaler})
        resumed = manager.resume(state)
        manager.save_checkpoint(state, epoch=epoch)

    Anything with ``state_dict()`` and ``load_state_dict()`` will do. Models, optimizers, schedulers and data loaders
    may each be several, by name: ``model={"generator": g, "discriminator": d}``.
    """

    model: Named | None = None
    optimizer: Named | None = None
    scheduler: Named | None = None
    data: Named | None = None
    """What hands out batches and knows its position: a :class:`~ckpt_lib.state.data.ResumableLoader`, torchdata's
    ``StatefulDataLoader``, or a sampler or dataset with a state."""
    others: Mapping[str, Stateful] = field(default_factory=dict)
    """Everything else with a state: a gradient scaler, averaged weights, early stopping, callbacks."""
    generators: Mapping[str, Any] = field(default_factory=dict)
    """Random number generators that the code names: ``torch.Generator``, ``random.Random`` or NumPy's."""
    rng: bool = True
    """Whether the generators that code uses when it names none belong to it: those of Python, NumPy and PyTorch."""

    def __post_init__(self) -> None:
        """Raises :class:`~ckpt_lib.errors.ConfigError` for what has no state, or a name that cannot be stored."""
        for kind in ("others", "generators"):
            if not isinstance(getattr(self, kind), Mapping):
                raise ConfigError(
                    f"{kind} must be a mapping of names to objects", got=type(getattr(self, kind)).__name__
                )
        for part in self.parts():
            _check_name(part)
            if part.kind == "data":
                _check_data(part)
            check_stateful("state_dict", **{part.label: part.item})

    def parts(self) -> Iterator[Part]:
        """Every object, in an order of which the reverse is safe: random numbers may be drawn until the end.

        The generators without a name come first.
        """
        from ckpt_lib.state.generators import GlobalGenerators, NamedGenerator

        if self.rng:
            yield Part("rng", None, GlobalGenerators())
        yield from (Part("rng", name, NamedGenerator(item)) for name, item in self.generators.items())
        for kind in (*_STATE_DICTS, "data"):
            given = getattr(self, kind)
            if isinstance(given, Mapping):
                yield from (Part(kind, name, item) for name, item in given.items())
            elif given is not None:
                yield Part(kind, None, given)
        yield from (Part("others", name, item) for name, item in self.others.items())

    def check_savable(self) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` without a model."""
        if self.model is None or (isinstance(self.model, Mapping) and not self.model):
            raise ConfigError("a checkpoint needs a model", expected="model=<torch.nn.Module>")

    def capture(self, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the state as a payload holds it, by reference; ``None`` for each kind that is not given.

        ``without`` names kinds to leave out. Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for a state that
        is no mapping.
        """
        states: dict[str, Any] = {**dict.fromkeys(PAYLOAD_KEYS.values()), OTHERS_KEY: {}}
        for part in reversed(list(self.parts())):
            if part.kind in without:
                continue
            key, state = PAYLOAD_KEYS[part.kind], state_of(part.label, part.item)
            if part.name is None:
                states[key] = {**state, **(states[key] or {})} if part.kind == "rng" else state
            elif part.kind == "rng":
                states[key] = {"named": {part.name: state, **(states[key] or {"named": {}})["named"]}}
            else:
                states[key] = {part.name: state, **(states[key] or {})}
        for kind in PER_PROCESS:
            if (state := states[PAYLOAD_KEYS[kind]]) is not None:
                states[PAYLOAD_KEYS[kind]] = [state]
        return states

    def kinds(self) -> dict[str, str]:
        """Return the class of each object, as ``module.ClassName``."""
        return {part.label: kind_of(part.item) for part in self.parts() if part.kind != "rng"}

    def parameter_names(self) -> Names | dict[str, Names] | None:
        """Return the names of the optimizer's parameters, or of each optimizer's; ``None`` when there are too many."""
        names = {}
        for part in self.parts():
            if part.kind == "optimizer" and (found := parameter_names(part.item, self.model)):
                names[part.name] = found
        size_bytes = sum(len(name) for found in names.values() for group in found for name in group)
        if not names or size_bytes > MAX_NAMES_BYTES:
            return None
        return names[None] if None in names else {str(name): found for name, found in names.items()}

    @property
    def model_name(self) -> str:
        """The class of the model, or of each."""
        models = self.model.values() if isinstance(self.model, Mapping) else [self.model]
        return "+".join(type(model).__name__ for model in models)


def training_state(
    state: TrainingState | None = None,
    *,
    model: Named | TrainingState | None = None,
    optimizer: Named | None = None,
    scheduler: Named | None = None,
    rng: bool = True,
) -> TrainingState:
    """Return the state that the arguments of a call name: a whole one, or object by object.

    A whole one may also come as the model. ``rng`` says whether the generators without a name belong to one that is
    named object by object. Raises :class:`~ckpt_lib.errors.ConfigError` for a whole one beside objects.
    """
    if state is None and isinstance(model, TrainingState):
        state, model = model, None
    if state is None:
        assert not isinstance(model, TrainingState)
        return TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, rng=rng)
    if not isinstance(state, TrainingState):
        raise ConfigError(
            "state must be a TrainingState",
            expected="TrainingState(model=model, optimizer=optimizer)",
            got=type(state).__name__,
        )
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if given := [name for name, item in objects.items() if item is not None]:
        raise ConfigError(
            f"{given[0]} is given beside a TrainingState",
            expected="one of them",
            hint=f"Name it once: TrainingState(..., {given[0]}=...).",
        )
    return state


def is_mid_epoch(payload: Mapping[str, Any]) -> bool | None:
    """Tell from the state of data loaders whether an epoch goes on in any of them; ``None`` if they do not say."""
    from ckpt_lib.state import data

    (position, *_) = payload.get(DATA_KEY) or [{}]
    answers = [data.is_mid_epoch(state) for state in (position, *position.values()) if isinstance(state, Mapping)]
    known = [answer for answer in answers if answer is not None]
    return any(known) if known else None


def _check_name(part: Part) -> None:
    if part.name is not None and not (isinstance(part.name, str) and _NAME.fullmatch(part.name)):
        raise ConfigError(
            f"the name of {part.kind} cannot be stored",
            expected="1 to 100 letters, digits, _ and -",
            got=shown(part.name),
        )


def _check_data(part: Part) -> None:
    if not callable(getattr(part.item, "state_dict", None)):
        raise ConfigError(
            f"{part.label} does not know its position: it has no state_dict()",
            expected="an object with a state, such as ResumableLoader(loader)",
            got=type(part.item).__name__,
            hint="Wrap a DataLoader: from ckpt_lib import ResumableLoader.",
        )
