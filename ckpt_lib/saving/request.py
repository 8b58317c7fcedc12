"""``SaveRequest``: what training hands over to be saved, not checked yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.facts import GivenFacts
from ckpt_lib.core.logs import logger
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.payload_keys import (
    EXTRA_STATE_KEY,
    MODEL_KEY,
    OPTIMIZER_KEY,
    OTHERS_KEY,
    PAYLOAD_KEYS,
    SCHEDULER_KEY,
)
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.state.health import HealthCheck
from ckpt_lib.state.stateful import Stateful
from ckpt_lib.state.training_state import TrainingState, training_state

_PARTS = (MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY)
_MAPPINGS = (OTHERS_KEY, EXTRA_STATE_KEY)


class SavableState(Protocol):
    """A state that can be saved."""

    def check(self) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` for what cannot be saved."""

    def payload(self, config: CheckpointConfig) -> dict[str, Any]:
        """The state's part of the payload, by reference; without what ``config`` leaves out."""

    def facts(self) -> dict[str, Any]:
        """Return the facts that a restore compares: kinds of objects, and the optimizer's parameters in their order."""

    def health_check(self, monitor: Monitor) -> HealthCheck:
        """Return the check that finds NaN and infinities in the state."""

    @property
    def model_name(self) -> str: ...

    @property
    def knows_position(self) -> bool:
        """Whether the state says how far an epoch has come, which is asked of each rank of a training."""

    @property
    def optimizer(self) -> Stateful | None:
        """The optimizer whose next step changes the state, if it is known."""


@dataclass(frozen=True)
class ObjectState:
    """The objects of a training, whose ``state_dict()`` is saved."""

    objects: TrainingState
    extra_state: Mapping[str, Any] | None = None

    def check(self) -> None:
        self.objects.check_savable()
        _check_mapping("extra_state", self.extra_state)

    def payload(self, config: CheckpointConfig) -> dict[str, Any]:
        states = self.objects.capture(without=_left_out(config))
        return {**states, EXTRA_STATE_KEY: dict(self.extra_state or {})}

    def facts(self) -> dict[str, Any]:
        return {"kinds": self.objects.kinds(), "parameter_names": self.objects.parameter_names()}

    def health_check(self, monitor: Monitor) -> HealthCheck:
        return HealthCheck.of(self.objects.model, monitor)

    @property
    def model_name(self) -> str:
        return self.objects.model_name

    @property
    def knows_position(self) -> bool:
        return self.objects.data is not None

    @property
    def optimizer(self) -> Stateful | None:
        """Of several optimizers none: each would step without waiting for what the others change."""
        optimizer = self.objects.optimizer
        return None if isinstance(optimizer, Mapping) else optimizer


def _left_out(config: CheckpointConfig) -> frozenset[str]:
    """Return the kinds of state that a configuration leaves out."""
    is_saved = {"optimizer": config.save_optimizer, "scheduler": config.save_scheduler, "rng": config.save_rng}
    return frozenset(kind for kind, saved in is_saved.items() if not saved)


@dataclass(frozen=True)
class StateMapping:
    """States by the payload's keys, for those who have no objects that hold them."""

    states: Mapping[str, Any]

    def check(self) -> None:
        if not isinstance(self.states, Mapping):
            raise ConfigError("state must be a mapping", got=type(self.states).__name__)
        if unknown := sorted(shown(key) for key in self.states.keys() - {*_PARTS, *_MAPPINGS}):
            raise ConfigError(
                f"state has unknown keys: {listed(unknown)}",
                expected=", ".join((*_PARTS, *_MAPPINGS)),
                hint=f'The state of a model alone is {{"{MODEL_KEY}": model.state_dict()}}; "{EXTRA_STATE_KEY}" takes '
                "anything else.",
            )
        if self.states.get(MODEL_KEY) is None:
            raise ConfigError("a checkpoint needs a model", expected=f'state["{MODEL_KEY}"]')
        for key, value in self.states.items():
            _check_mapping(key, value)

    def payload(self, config: CheckpointConfig) -> dict[str, Any]:
        left_out = {PAYLOAD_KEYS[kind] for kind in _left_out(config)}
        given = {key: self.states.get(key) for key in _PARTS if key not in left_out}
        mappings = {key: dict(self.states.get(key) or {}) for key in _MAPPINGS}
        return {**TrainingState(rng=config.save_rng).capture(), **given, **mappings}

    def facts(self) -> dict[str, Any]:
        return {}

    def health_check(self, monitor: Monitor) -> HealthCheck:
        return HealthCheck(monitor, frozenset())  # which tensors are buffers is not known

    @property
    def model_name(self) -> str:
        return "unknown"

    @property
    def knows_position(self) -> bool:
        return False

    @property
    def optimizer(self) -> None:
        return None


@dataclass
class Asked:
    """Somebody outside of the training has asked for a checkpoint, whatever the save policy says.

    A save that the policy refuses is made then, and its failure does not reach the training.
    """

    is_extra: bool = False
    """Whether the policy refused the save."""
    error: Exception | None = None
    """The failure of an extra save."""


@contextmanager
def spared(asked: Asked | None) -> Iterator[None]:
    """Keep the failure of an extra save from the training; ``asked`` remembers it. Others are raised."""
    try:
        yield
    except Exception as error:
        if asked is None or not asked.is_extra:
            raise
        logger.error("a save that another process had asked for failed: %s", error)
        asked.error = error.with_traceback(None)  # whose frames hold the state


@dataclass(frozen=True)
class SaveRequest:
    """A state, the facts of its checkpoint, and when to save it."""

    state: SavableState
    facts: GivenFacts
    compare_content: bool = field(default=False, kw_only=True)
    """Save again under a taken idempotency key when something differs."""
    force: bool = field(default=False, kw_only=True)
    """Save whatever the policy says."""
    is_interruption: bool = field(default=False, kw_only=True)
    """A signal asked for the save, at whatever point of an epoch."""
    asked: Asked | None = field(default=None, kw_only=True)
    """Who outside of the training waits for this save."""


_OBJECTS = ("state", "model", "optimizer", "scheduler")
_OPTIONS = ("compare_content", "force")


def request_from(arguments: Mapping[str, Any]) -> SaveRequest:
    """Return the request that these arguments of ``save_checkpoint`` make. Raises ``TypeError``, as the call would."""
    rest = dict(arguments)
    objects = {name: rest.pop(name) for name in _OBJECTS if name in rest}
    extra_state = rest.pop("extra_state", None)
    facts = {item.name: rest.pop(item.name) for item in fields(GivenFacts) if item.name in rest}
    options = {name: rest.pop(name) for name in _OPTIONS if name in rest}
    if rest:
        raise TypeError(f"unexpected argument {min(rest)!r}")
    if missing := [name for name, is_given in (("model", objects), ("epoch", "epoch" in facts)) if not is_given]:
        raise TypeError(f"missing argument {missing[0]!r}")
    return SaveRequest(ObjectState(training_state(**objects), extra_state), GivenFacts(**facts), **options)


def _check_mapping(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping", got=type(value).__name__)
