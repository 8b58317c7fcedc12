"""Retention rules: frozen values that say which checkpoints they keep, and why.

Rules are stable: deleting what a rule rejects never changes what it keeps, so a second cleanup finds nothing to do.
:class:`KeepNot` is restricted to rules for which that holds. Checkpoints are ordered by sequence. Time stamps affect
only rules about time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ckpt_lib.config import LIMIT_64, config_error
from ckpt_lib.core.metadata import StoredMetric
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.policies.ranking import ranked

MAX_POLICY_LEVELS = 8
MAX_POLICY_PARTS = 100
"""How deep any_of, all_of and not may nest, and how many policies they may contain."""

Status = Literal["valid", "unverified", "damaged"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RetentionRecord(BaseModel):
    """A checkpoint as retention rules see it."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    sequence: int
    epoch: int
    step: int
    timestamp: AwareDatetime
    size_bytes: int
    metrics: Mapping[str, StoredMetric] = {}
    tags: tuple[str, ...] = ()
    pinned: bool = False
    status: Status = "unverified"
    healthy: bool = True
    """``False`` if the health check found NaN or infinities."""
    thinned: bool = False
    """True when it holds only its weights: no run can go on from it."""


Reasons = dict[str, str]
"""For each checkpoint that stays, its id and the reason."""


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    judges_alone: ClassVar[bool] = False
    """True when the rule judges each checkpoint independently of the others."""

    if not TYPE_CHECKING:  # type checkers know the options from the fields

        def __init__(self, **options: Any) -> None:
            # As in CheckpointConfig, a wrong option raises ConfigError.
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise config_error(error) from None

    @abstractmethod
    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        """Return what this policy keeps of undamaged ``records``, newest first. All are healthy, or none is."""

    @abstractmethod
    def __str__(self) -> str:
        """Describe in a few words what the policy keeps."""


# --- by order and rank ---


class KeepNewest(_Policy):
    """Keep the ``count`` newest."""

    kind: Literal["newest"] = "newest"
    count: int = Field(default=10, ge=0, lt=LIMIT_64, description="How many of the newest stay.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        return {
            record.checkpoint_id: f"newest {position} of {self.count}"
            for position, record in enumerate(records[: self.count], start=1)
        }

    def __str__(self) -> str:
        return f"newest {self.count}"


class KeepBest(_Policy):
    """Keep the ``count`` best by ``metric``.

    NaN, infinities, text and missing values do not compete, nor do unhealthy checkpoints.
    """

    kind: Literal["best"] = "best"
    metric: str = Field(default="val_loss", description="The metric that decides.")
    mode: Mode = Field(default="min", description="Whether a smaller or a larger metric is better.")
    count: int = Field(default=1, ge=0, lt=LIMIT_64, description="How many of the best stay.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        healthy = [record for record in records if record.healthy]
        best = ranked(healthy, Monitor(metric=self.metric, mode=self.mode))[: self.count]
        return {
            record.checkpoint_id: f"best by {self.metric}" + (f", {position} of {self.count}" if self.count > 1 else "")
            for position, record in enumerate(best, start=1)
        }

    def __str__(self) -> str:
        return f"best {self.count} by {self.metric}"


class KeepAtMost(_Policy):
    """Keep ``count`` in all: the best by ``metric``, and the newest others. ``max_checkpoints`` stands for this rule.

    Pinned checkpoints are kept in addition and do not count.
    """

    kind: Literal["at_most"] = "at_most"
    count: int = Field(default=10, ge=0, lt=LIMIT_64, description="How many stay in all.")
    metric: str = Field(default="val_loss", description="The metric that decides which is the best.")
    mode: Mode = Field(default="min", description="Whether a smaller or a larger metric is better.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        rolling = [record for record in records if not record.pinned]
        best = KeepBest(metric=self.metric, mode=self.mode, count=min(self.count, 1)).reasons(rolling, now)
        others = [record for record in rolling if record.checkpoint_id not in best]
        if len(rolling) < len(records):  # a pinned one may be better, and is kept for that
            best = {name: f"{reason} of those not pinned" for name, reason in best.items()}
        newest = others[: self.count - len(best)]
        return best | {record.checkpoint_id: f"among the {self.count} to keep" for record in newest}

    def __str__(self) -> str:
        return f"best by {self.metric} and newest others, {self.count} in all"


class KeepWithin(_Policy):
    """Keep as many of the newest as ``budget_bytes`` hold.

    The rule stops at the first that does not fit, and skips any that is larger than the whole budget. Pinned
    checkpoints are kept in addition and do not count.
    """

    kind: Literal["within"] = "within"
    budget_bytes: int = Field(ge=0, lt=LIMIT_64, description="How many bytes the newest checkpoints may take.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        kept, left_bytes = [], self.budget_bytes
        for record in records:
            if record.pinned or record.size_bytes > self.budget_bytes:
                continue
            # Keeping smaller, older ones instead would change what is kept when others are deleted.
            if record.size_bytes > left_bytes:
                break
            left_bytes -= record.size_bytes
            kept.append(record)
        return dict.fromkeys((record.checkpoint_id for record in kept), str(self))

    def __str__(self) -> str:
        return f"newest within {self.budget_bytes:,} bytes"


# --- at intervals ---


class _OneLength(_Policy):
    """A rule with a single option: a length in one of several units."""

    @property
    def _given(self) -> list[tuple[str, int]]:
        return [(unit, count) for unit, count in self if unit != "kind" and count is not None]

    @model_validator(mode="after")
    def _just_one(self) -> Self:
        if len(self._given) != 1:
            units = [name for name in type(self).model_fields if name != "kind"]
            raise ValueError(f"exactly one of {', '.join(units)} must be given")
        return self

    @property
    def _length(self) -> tuple[str, int]:
        """The given unit and number."""
        return self._given[0]


class KeepEvery(_OneLength):
    """Keep the first checkpoint of each interval of so many ``epochs``, ``steps`` or ``hours``.

    Intervals are counted from epoch 0, step 0, or the start of 1970 in UTC, so neither newer checkpoints nor the time
    of the cleanup change which one stays. Hours are taken from time stamps.
    """

    kind: Literal["every"] = "every"
    epochs: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="Keep one per this many epochs.")
    steps: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="Keep one per this many steps.")
    hours: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="Keep one per this many hours.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        unit, length = self._length
        position = _POSITIONS[unit]
        firsts = {position(record) // length: record for record in records}  # the oldest comes last, and stays
        reason = f"first of its {length} {unit}" if length > 1 else f"first of its {unit[:-1]}"
        return dict.fromkeys((record.checkpoint_id for record in firsts.values()), reason)

    def __str__(self) -> str:
        unit, length = self._length
        return f"first of every {length} {unit}" if length > 1 else f"first of every {unit[:-1]}"


class KeepPeriods(_Policy):
    """Keep the newest checkpoint of each of the last hours, days, weeks, months and years (grandfather-father-son).

    Periods without a checkpoint do not count. Periods are those of the calendar in UTC, by time stamps; weeks begin on
    Monday. The last periods are those saved into last, so a clock that once ran ahead displaces nothing for long.
    """

    kind: Literal["periods"] = "periods"
    hourly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of this many hours.")
    daily: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of this many days.")
    weekly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of this many weeks.")
    monthly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of this many months.")
    yearly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of this many years.")

    @model_validator(mode="after")
    def _some_period(self) -> Self:
        if not self._counts:
            raise ValueError(f"at least one of {', '.join(_PERIODS)} must be more than 0")
        return self

    @property
    def _counts(self) -> dict[str, int]:
        return {period: count for period in _PERIODS if (count := getattr(self, period))}

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        moments = [(_in_utc(record.timestamp), record) for record in records]
        found: dict[str, list[str]] = {}
        for period, count in self._counts.items():
            newest: dict[Any, RetentionRecord] = {}
            for moment, record in moments:
                newest.setdefault(_PERIODS[period](moment), record)
            for position, record in enumerate(list(newest.values())[:count], start=1):
                found.setdefault(record.checkpoint_id, []).append(f"{period} {position} of {count}")
        return {checkpoint_id: ", ".join(reasons) for checkpoint_id, reasons in found.items()}

    def __str__(self) -> str:
        return "newest of each period: " + ", ".join(f"{count} {period}" for period, count in self._counts.items())


# --- by what each one is ---


class KeepNewerThan(_OneLength):
    """Keep what is at most so many ``seconds``, ``hours`` or ``days`` old at the time of the cleanup."""

    kind: Literal["newer_than"] = "newer_than"
    judges_alone: ClassVar[bool] = True
    seconds: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="Keep all up to this age in seconds.")
    hours: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="Keep all up to this age in hours.")
    days: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="Keep all up to this age in days.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        unit, count = self._length
        most_seconds = count * _SECONDS[unit]
        newer = (record for record in records if (now - record.timestamp).total_seconds() <= most_seconds)
        return dict.fromkeys((record.checkpoint_id for record in newer), str(self))

    def __str__(self) -> str:
        unit, count = self._length
        return f"newer than {count} {unit if count > 1 else unit[:-1]}"


class KeepTagged(_Policy):
    """Keep checkpoints with at least one of ``tags``."""

    kind: Literal["tagged"] = "tagged"
    judges_alone: ClassVar[bool] = True
    tags: tuple[str, ...] = Field(min_length=1, description="One of these tags is enough.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        tagged = ((record, next((tag for tag in self.tags if tag in record.tags), None)) for record in records)
        return {record.checkpoint_id: f"tagged {tag!r}" for record, tag in tagged if tag is not None}

    def __str__(self) -> str:
        return f"tagged {' or '.join(map(repr, self.tags))}"


class KeepPinned(_Policy):
    """Keep pinned checkpoints, which stay anyway: to keep nothing else, or as a part of other rules."""

    kind: Literal["pinned"] = "pinned"
    judges_alone: ClassVar[bool] = True

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        return {record.checkpoint_id: "pinned" for record in records if record.pinned}

    def __str__(self) -> str:
        return "pinned"


# --- combinations ---


class _Combination(_Policy):
    @model_validator(mode="before")
    @classmethod
    def _not_too_large(cls, options: Any) -> Any:
        # Before the parts are validated: a file may nest and repeat them without limit.
        layer, count = [options], 0
        for _ in range(MAX_POLICY_LEVELS):
            layer = [part for item in layer for part in _parts_of(item)]
            count += len(layer)
            if not layer:
                return options
            if count > MAX_POLICY_PARTS:
                break
        raise ValueError(
            f"a policy may be made of {MAX_POLICY_PARTS} others at most, nested {MAX_POLICY_LEVELS} levels deep"
        )


class KeepAnyOf(_Combination):
    """Keep what at least one of ``policies`` keeps; the first to keep it gives the reason."""

    kind: Literal["any_of"] = "any_of"
    policies: tuple[RetentionPolicy, ...] = Field(min_length=1, description="One of them is enough.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        reasons: Reasons = {}
        for policy in self.policies:
            reasons = policy.reasons(records, now) | reasons
        return reasons

    def __str__(self) -> str:
        return f"({' or '.join(map(str, self.policies))})"


class KeepAllOf(_Combination):
    """Keep what all ``policies`` keep. Each judges all checkpoints, not only those that another one keeps."""

    kind: Literal["all_of"] = "all_of"
    policies: tuple[RetentionPolicy, ...] = Field(min_length=1, description="All of them must agree.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        found = [policy.reasons(records, now) for policy in self.policies]
        agreed = set.intersection(*map(set, found))
        return {checkpoint_id: " and ".join(reasons[checkpoint_id] for reasons in found) for checkpoint_id in agreed}

    def __str__(self) -> str:
        return f"({' and '.join(map(str, self.policies))})"


class KeepNot(_Combination):
    """Keep what ``policy`` does not keep.

    ``policy`` must judge each checkpoint independently: by tag, pin or age. "All but the newest ten", for example,
    would delete ten others at each cleanup.
    """

    kind: Literal["not"] = "not"
    policy: RetentionPolicy = Field(
        description="What this policy keeps is deleted: tagged, pinned, newer_than, or a combination of these."
    )

    @model_validator(mode="after")
    def _judged_alone(self) -> Self:
        for rule in _rules_in(self.policy):
            if not rule.judges_alone:
                raise ValueError(
                    f"not cannot be applied to `{rule}`, which depends on the other checkpoints: "
                    "each cleanup would delete more"
                )
        return self

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        excluded = self.policy.reasons(records, now)
        return {record.checkpoint_id: str(self) for record in records if record.checkpoint_id not in excluded}

    def __str__(self) -> str:
        return f"not {self.policy}"


RetentionPolicy = Annotated[
    KeepNewest
    | KeepBest
    | KeepAtMost
    | KeepWithin
    | KeepEvery
    | KeepPeriods
    | KeepNewerThan
    | KeepTagged
    | KeepPinned
    | KeepAnyOf
    | KeepAllOf
    | KeepNot,
    Field(discriminator="kind"),
]

for _combination in (KeepAnyOf, KeepAllOf, KeepNot):
    _combination.model_rebuild()


def _parts_of(policy: Any) -> list[Any]:
    """Return the parts of a policy, or of the options of one."""
    options = dict(policy) if isinstance(policy, _Policy | Mapping) else {}
    many = options.get("policies")
    return [*(many if isinstance(many, list | tuple) else ()), *([options["policy"]] if "policy" in options else ())]


def _rules_in(policy: _Policy) -> Iterator[_Policy]:
    """Yield the rules in a policy, without combinations."""
    parts = _parts_of(policy)
    if not parts:
        yield policy
    for part in parts:
        yield from _rules_in(part)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # at the first or last representable day, where hours do not matter
        return moment.replace(tzinfo=UTC)


_POSITIONS: dict[str, Callable[[RetentionRecord], int]] = {
    "epochs": lambda record: record.epoch,
    "steps": lambda record: record.step,
    "hours": lambda record: (record.timestamp - _EPOCH) // timedelta(hours=1),
}
_PERIODS: dict[str, Callable[[datetime], Any]] = {
    "hourly": lambda moment: (moment.date(), moment.hour),
    "daily": datetime.date,
    "weekly": lambda moment: moment.isocalendar()[:2],
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: moment.year,
}
_SECONDS = {"seconds": 1, "hours": 3600, "days": 86400}
