"""Save policies: frozen values that decide when to save. ``AllOf`` and ``AnyOf`` combine them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ckpt_lib.config import LIMIT_64, CheckpointConfig
from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.wording import briefly, duration
from ckpt_lib.errors import ConfigError, UnknownMetricError
from ckpt_lib.policies.ranking import is_better, is_rankable, ranked


@dataclass(frozen=True)
class SavedRecord:
    """An earlier checkpoint of the run, as policies see it."""

    sequence: int
    epoch: int
    step: int
    metrics: Mapping[str, Metric]
    healthy: bool = True
    """``False`` if the health check marked it or has not checked it yet."""


@dataclass(frozen=True)
class SaveContext:
    """The facts that a policy decides by. ``saved`` holds the checkpoints of this run, oldest first."""

    epoch: int
    step: int
    metrics: Mapping[str, Metric]
    saved: tuple[SavedRecord, ...] = ()
    seconds_since_last_save: float | None = None
    """``None`` if this process has saved nothing yet."""
    monitor: Monitor = field(default_factory=Monitor)
    """The recorded monitor or, before the first save of the experiment, the configured one."""
    is_monitor_recorded: bool = True


class SavePolicy(Protocol):
    """An object that decides when to save.

    It may have a method ``why_not(context)`` as well, which returns one :class:`~ckpt_lib.core.not_saved.NotSaved` for
    each reason to refuse; :func:`reasons_against` asks it.
    """

    def should_save(self, context: SaveContext) -> bool:
        """Return whether to save now."""
        ...


def _check_positive(name: str, number: Any, kind: type[float] = int) -> None:
    is_number = isinstance(number, int | kind) and not isinstance(number, bool)
    if not is_number or not number > 0 or (isinstance(number, int) and number >= LIMIT_64):
        wanted = "whole number" if kind is int else "number"
        raise ConfigError(f"{name} must be a positive {wanted} under 2**63", got=briefly(number))


def _check_parts(policies: Sequence[Any]) -> None:
    if not policies:
        raise ConfigError("there is no policy to combine", expected="at least one policy")
    for policy in policies:
        if not callable(getattr(policy, "should_save", None)):
            raise ConfigError("this is not a save policy", expected="a method should_save", got=type(policy).__name__)


@dataclass(frozen=True)
class EveryEpochs:
    """Save if the epoch is a multiple of ``epochs``, or that many epochs have passed since the run's last save."""

    epochs: int = 1

    def __post_init__(self) -> None:
        _check_positive("epochs", self.epochs)

    def should_save(self, context: SaveContext) -> bool:
        return _is_due(context.epoch, self.epochs, [item.epoch for item in context.saved[-1:]])

    def why_not(self, context: SaveContext) -> tuple[NotSaved, ...]:
        following = _next_due(context.epoch, self.epochs, [item.epoch for item in context.saved[-1:]])
        message = f"epoch {context.epoch} is between saves: {self!r} saves at epoch {following} next"
        return (NotSaved(kind="interval", message=message, next_epoch=following),)


@dataclass(frozen=True)
class EverySteps:
    """Save if the step is a multiple of ``steps``, or that many steps have passed since the run's last save."""

    steps: int

    def __post_init__(self) -> None:
        _check_positive("steps", self.steps)

    def should_save(self, context: SaveContext) -> bool:
        return _is_due(context.step, self.steps, [item.step for item in context.saved[-1:]])

    def why_not(self, context: SaveContext) -> tuple[NotSaved, ...]:
        following = _next_due(context.step, self.steps, [item.step for item in context.saved[-1:]])
        message = f"step {context.step} is between saves: {self!r} saves at step {following} next"
        return (NotSaved(kind="interval", message=message, next_step=following),)


def _is_due(now: int, interval: int, last_saved: Sequence[int]) -> bool:
    """Return whether ``interval`` has passed. Counts may skip multiples, as with gradient accumulation."""
    last = last_saved[0] if last_saved else 0
    return now % interval == 0 or now - last >= interval


def _next_due(now: int, interval: int, last_saved: Sequence[int]) -> int:
    """Return the first later count for which :func:`_is_due` is true."""
    last = last_saved[0] if last_saved else 0
    return max(now + 1, min(now - now % interval + interval, last + interval))


@dataclass(frozen=True)
class EverySeconds:
    """Save if this process has not saved for ``seconds``; the first call always saves."""

    seconds: float

    def __post_init__(self) -> None:
        _check_positive("seconds", self.seconds, float)

    def should_save(self, context: SaveContext) -> bool:
        elapsed = context.seconds_since_last_save
        return elapsed is None or elapsed >= self.seconds

    def why_not(self, context: SaveContext) -> tuple[NotSaved, ...]:
        elapsed = context.seconds_since_last_save or 0.0
        left = max(0.0, self.seconds - elapsed)
        message = f"the last save was {duration(elapsed)} before, and {self!r} waits for another {duration(left)}"
        return (NotSaved(kind="too_soon", message=message, seconds_left=left),)


@dataclass(frozen=True)
class OnImprovement:
    """Save if ``metric`` beats every healthy checkpoint of this run. NaN and infinities never do.

    The default metric is the monitored one, the default mode "min". Raises
    :class:`~ckpt_lib.errors.UnknownMetricError` if a save passes no such metric: because of a misspelt name, nothing
    would ever be saved.
    """

    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "min", "max"):
            raise ConfigError("mode must be 'min' or 'max'", got=repr(self.mode))
        if self.metric is None and self.mode is not None:
            raise ConfigError("a mode needs its metric", expected='metric="val_loss"', got=repr(self))

    def should_save(self, context: SaveContext) -> bool:
        monitor = self.check(context)
        best = ranked(context.saved, monitor)
        value = context.metrics[monitor.metric]
        return is_better(value, best[0].metrics[monitor.metric] if best else None, monitor.mode)

    def why_not(self, context: SaveContext) -> tuple[NotSaved, ...]:
        monitor = self.check(context)
        metric, value = monitor.metric, context.metrics[monitor.metric]
        facts: dict[str, Any] = {"kind": "not_better", "metric": metric, "value": value}
        if not is_rankable(value):
            return (
                NotSaved(message=f"{metric} is {briefly(value)}, which is never better than another value", **facts),
            )
        earlier = ranked(context.saved, monitor)
        if not earlier:
            return ()
        best, of_best = earlier[0], earlier[0].metrics[metric]
        assert is_rankable(of_best)
        wanted = "lower" if monitor.mode == "min" else "higher"
        message = f"{metric} {value} is not {wanted} than {of_best}, the best so far, of epoch {best.epoch}"
        return (NotSaved(message=message, best=of_best, **facts),)

    def check(self, context: SaveContext) -> Monitor:
        """Return what is compared; raise :class:`~ckpt_lib.errors.UnknownMetricError` if the save does not pass it."""
        monitor = Monitor(metric=self.metric, mode=self.mode or "min") if self.metric else context.monitor
        if monitor.metric not in context.metrics:
            raise UnknownMetricError(
                f"saving depends on the metric {monitor.metric!r}, which was not given",
                expected=f"metrics={{{monitor.metric!r}: …}}",
                got=sorted(context.metrics),
                hint=self._hint(context),
            )
        return monitor

    def _hint(self, context: SaveContext) -> str:
        if self.metric:
            return "Pass it in metrics, or give OnImprovement a metric that you pass."
        if not context.is_monitor_recorded:
            return "Pass it in metrics, or set monitor_metric in the configuration to one that you pass."
        return "Pass it in metrics, or monitor one that you pass: `ckpt monitor METRIC --mode min` or set_monitor()."


@dataclass(frozen=True)
class When:
    """Save if ``predicate(context)`` is true."""

    predicate: Callable[[SaveContext], bool]

    def __post_init__(self) -> None:
        if not callable(self.predicate):
            raise ConfigError("predicate must be a function", got=type(self.predicate).__name__)

    def should_save(self, context: SaveContext) -> bool:
        return bool(self.predicate(context))


@dataclass(frozen=True, init=False)
class AllOf:
    """Save if every policy says so."""

    policies: tuple[SavePolicy, ...]

    def __init__(self, *policies: SavePolicy) -> None:
        _check_parts(policies)
        object.__setattr__(self, "policies", policies)

    def should_save(self, context: SaveContext) -> bool:
        return all(policy.should_save(context) for policy in self.policies)

    def why_not(self, context: SaveContext) -> tuple[NotSaved, ...]:
        refusing = [policy for policy in self.policies if not policy.should_save(context)]
        return tuple(reason for policy in refusing for reason in reasons_against(policy, context))


@dataclass(frozen=True, init=False)
class AnyOf:
    """Save if at least one policy says so."""

    policies: tuple[SavePolicy, ...]

    def __init__(self, *policies: SavePolicy) -> None:
        _check_parts(policies)
        object.__setattr__(self, "policies", policies)

    def should_save(self, context: SaveContext) -> bool:
        return any(policy.should_save(context) for policy in self.policies)

    def why_not(self, context: SaveContext) -> tuple[NotSaved, ...]:
        reasons = [reason for policy in self.policies for reason in reasons_against(policy, context)]
        hint = "The save policy is AnyOf: it saves as soon as one of its policies does."
        return tuple(reason.model_copy(update={"hint": hint}) for reason in reasons)


def policy_of(config: CheckpointConfig) -> SavePolicy:
    """Return the policy that ``save_interval`` and ``save_best_only`` stand for."""
    interval = EveryEpochs(config.save_interval)
    if not config.save_best_only:
        return interval
    return AllOf(interval, OnImprovement())


def reasons_against(policy: SavePolicy, context: SaveContext) -> tuple[NotSaved, ...]:
    """Return why a policy refuses to save: what its ``why_not`` returns, or that it refused.

    Raises what the policy raises.
    """
    explain = getattr(policy, "why_not", None)
    if callable(explain) and (found := tuple(explain(context))):
        return found
    return (NotSaved(kind="policy", message=f"the save policy {policy!r} refused"),)


def improvements_in(policy: Any) -> Iterator[OnImprovement]:
    """Yield every ``OnImprovement`` in a policy, itself included."""
    if isinstance(policy, OnImprovement):
        yield policy
    for part in getattr(policy, "policies", ()):
        yield from improvements_in(part)
