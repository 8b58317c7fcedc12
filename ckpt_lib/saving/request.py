"""``SaveRequest``: what training hands over to be saved, not checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.facts import GivenFacts
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.state.health import HealthCheck
from ckpt_lib.state.stateful import MAX_NAMES_BYTES, Names, Stateful, capture, check_parts, kinds_of, parameter_names

_PARTS = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict")


class TrainingState(Protocol):
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
    def optimizer(self) -> Stateful | None:
        """The optimizer whose next step changes the state, if it is known."""


@dataclass(frozen=True, kw_only=True)
class TrainingObjects:
    """Model, optimizer and scheduler, whose ``state_dict()`` is saved."""

    model: Stateful
    optimizer: Stateful | None = None
    scheduler: Stateful | None = None
    extra_state: Mapping[str, Any] | None = None

    def check(self) -> None:
        check_parts(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        _check_mapping("extra_state", self.extra_state)

    def payload(self, config: CheckpointConfig) -> dict[str, Any]:
        states = capture(
            model=self.model,
            optimizer=self.optimizer if config.save_optimizer else None,
            scheduler=self.scheduler if config.save_scheduler else None,
        )
        return {**states, "extra_state": dict(self.extra_state or {})}

    def facts(self) -> dict[str, Any]:
        kinds = kinds_of(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        return {"kinds": kinds, "parameter_names": self._parameter_names()}

    def _parameter_names(self) -> Names | None:
        names = None if self.optimizer is None else parameter_names(self.optimizer, self.model)
        is_too_long = names and sum(len(name) for group in names for name in group) > MAX_NAMES_BYTES
        return None if is_too_long else names

    def health_check(self, monitor: Monitor) -> HealthCheck:
        return HealthCheck.of(self.model, monitor)

    @property
    def model_name(self) -> str:
        return type(self.model).__name__


@dataclass(frozen=True)
class StateMapping:
    """States by the payload's keys, for those who have no objects that hold them."""

    states: Mapping[str, Any]

    def check(self) -> None:
        if not isinstance(self.states, Mapping):
            raise ConfigError("state must be a mapping", got=type(self.states).__name__)
        if unknown := sorted(shown(key) for key in self.states.keys() - {*_PARTS, "extra_state"}):
            raise ConfigError(
                f"state has unknown keys: {listed(unknown)}",
                expected=", ".join((*_PARTS, "extra_state")),
                hint='The state of a model alone is {"model_state_dict": model.state_dict()}; "extra_state" takes '
                "anything else.",
            )
        if self.states.get("model_state_dict") is None:
            raise ConfigError("a checkpoint needs a model", expected='state["model_state_dict"]')
        for key, value in self.states.items():
            _check_mapping(key, value)

    def payload(self, config: CheckpointConfig) -> dict[str, Any]:
        left_out = {
            *(() if config.save_optimizer else ("optimizer_state_dict",)),
            *(() if config.save_scheduler else ("scheduler_state_dict",)),
        }
        states = {part: None if part in left_out else self.states.get(part) for part in _PARTS}
        return {**states, "extra_state": dict(self.states.get("extra_state") or {})}

    def facts(self) -> dict[str, Any]:
        return {}

    def health_check(self, monitor: Monitor) -> HealthCheck:
        return HealthCheck(monitor, frozenset())  # which tensors are buffers is not known

    @property
    def model_name(self) -> str:
        return "unknown"

    @property
    def optimizer(self) -> None:
        return None


@dataclass(frozen=True)
class SaveRequest:
    """A state, the facts of its checkpoint, and when to save it."""

    state: TrainingState
    facts: GivenFacts
    compare_content: bool = field(default=False, kw_only=True)
    """Save again under a taken idempotency key when something differs."""
    force: bool = field(default=False, kw_only=True)
    """Save whatever the policy says."""


_OPTIONS = ("compare_content", "force")


def request_from(arguments: Mapping[str, Any]) -> SaveRequest:
    """Return the request that these arguments of ``save_checkpoint`` make. Raises ``TypeError``, as the call would."""
    state, facts = (_arguments_of(kind, arguments) for kind in (TrainingObjects, GivenFacts))
    if unknown := arguments.keys() - {*state, *facts, *_OPTIONS}:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    if missing := {"model", "epoch"} - arguments.keys():
        raise TypeError(f"missing argument {max(missing)!r}")
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    return SaveRequest(TrainingObjects(**state), GivenFacts(**facts), **options)


def _arguments_of(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: arguments[item.name] for item in fields(kind) if item.name in arguments}


def _check_mapping(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping", got=type(value).__name__)
