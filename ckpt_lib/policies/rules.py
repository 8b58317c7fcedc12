"""The rules of retention: frozen values that say which checkpoints they keep, and why.

Each rule but :class:`KeepNot` keeps what it kept when others have gone, so that a cleanup straight after a cleanup
finds nothing to do, however rules are combined. Order is by sequence alone. Time stamps count only for rules about
time, and no rule trusts a clock with more than its own checkpoints: what a plan always keeps is not theirs to decide.
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
"""How deep any_of, all_of and not may nest, and of how many policies they may be made."""

Status = Literal["valid", "unverified", "damaged"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RetentionRecord(BaseModel):
    """One checkpoint as far as retention may ask."""

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
    """Whether the run itself was sound: not so with NaN among the weights."""


Reasons = dict[str, str]
"""Checkpoint id to the reason why it stays, for each that does."""


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    judges_alone: ClassVar[bool] = False
    """Whether the verdict on a checkpoint is the same whatever others there are."""

    if not TYPE_CHECKING:  # type checkers know the options from the fields

        def __init__(self, **options: Any) -> None:
            # As in CheckpointConfig: a wrong option raises our one error.
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise config_error(error) from None

    @abstractmethod
    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        """What this policy keeps. ``records`` are undamaged and newest first; all are healthy, or none is."""

    @abstractmethod
    def __str__(self) -> str:
        """What the policy keeps, in a few words."""


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
    """Keep the ``count`` best by ``metric``; NaN, infinities, text and missing values never compete, nor do unhealthy
    checkpoints.
    """

    kind: Literal["best"] = "best"
    metric: str = Field(default="val_loss", description="The metric that decides.")
    mode: Mode = Field(default="min", description="Whether a smaller or a larger metric is better.")
    count: int = Field(default=1, ge=0, lt=LIMIT_64, description="How many of the best stay.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        healthy = [record for record in records if record.healthy]
        best = ranked(healthy, Monitor(metric=self.metric, mode=self.mode))[: self.count]
        return {
            record.checkpoint_id: f"best {position} of {self.count} by {self.metric}"
            for position, record in enumerate(best, start=1)
        }

    def __str__(self) -> str:
        return f"best {self.count} by {self.metric}"


class KeepAtMost(_Policy):
    """Keep ``count`` in all: the best by ``metric``, and the newest others. ``max_checkpoints`` stands for this.

    Pinned checkpoints stay besides and do not use up the number.
    """

    kind: Literal["at_most"] = "at_most"
    count: int = Field(default=10, ge=0, lt=LIMIT_64, description="How many stay in all.")
    metric: str = Field(default="val_loss", description="The metric that decides which is the best.")
    mode: Mode = Field(default="min", description="Whether a smaller or a larger metric is better.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        rolling = [record for record in records if not record.pinned]
        best = KeepBest(metric=self.metric, mode=self.mode, count=min(self.count, 1)).reasons(rolling, now)
        others = [record for record in rolling if record.checkpoint_id not in best]
        newest = others[: self.count - len(best)]
        return best | {record.checkpoint_id: f"among the {self.count} to keep" for record in newest}

    def __str__(self) -> str:
        return f"best by {self.metric} and newest others, {self.count} in all"


class KeepWithin(_Policy):
    """Keep as many of the newest as ``budget_bytes`` hold.

    It ends with the first that does not fit; one larger than the whole budget is passed over. Pinned checkpoints stay
    besides and do not use up the budget.
    """

    kind: Literal["within"] = "within"
    budget_bytes: int = Field(ge=0, lt=LIMIT_64, description="How many bytes the newest checkpoints may take.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        kept, left_bytes = [], self.budget_bytes
        for record in records:
            if record.pinned or record.size_bytes > self.budget_bytes:
                continue
            # Going on to smaller, older ones would let what is kept change when others go.
            if record.size_bytes > left_bytes:
                break
            left_bytes -= record.size_bytes
            kept.append(record)
        return dict.fromkeys((record.checkpoint_id for record in kept), str(self))

    def __str__(self) -> str:
        return f"newest within {self.budget_bytes:,} bytes"


# --- at intervals ---


class _OneLength(_Policy):
    """A rule whose only option is a length, in one of several units."""

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
        """The unit that was given, and how many of it."""
        return self._given[0]


class KeepEvery(_OneLength):
    """Keep one for every so many ``epochs``, ``steps`` or ``hours``: the first saved in each such interval.

    Intervals begin at epoch 0, at step 0, or with the year 1970 in UTC: neither newer checkpoints nor the time of the
    cleanup change which one of an interval stays. Hours are those of the checkpoints' time stamps.
    """

    kind: Literal["every"] = "every"
    epochs: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="One for every so many epochs.")
    steps: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="One for every so many steps.")
    hours: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="One for every so many hours.")

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
    """Grandfather, father, son: keep the newest of each of the last so many hours, days, weeks, months and years *that
    have one*. Gaps use up nothing.

    Periods are those of the calendar in UTC, by the checkpoints' time stamps; weeks begin on Monday. The last ones are
    the last that were saved into, so that a clock that once ran ahead displaces nothing for long.
    """

    kind: Literal["periods"] = "periods"
    hourly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of so many hours.")
    daily: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of so many days.")
    weekly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of so many weeks.")
    monthly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of so many months.")
    yearly: int = Field(default=0, ge=0, lt=LIMIT_64, description="Keep the newest of so many years.")

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
    """Keep what is not older than so many ``seconds``, ``hours`` or ``days``, by its time stamp and the time of the
    cleanup.
    """

    kind: Literal["newer_than"] = "newer_than"
    judges_alone: ClassVar[bool] = True
    seconds: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="The age in seconds up to which all stay.")
    hours: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="The age in hours up to which all stay.")
    days: int | None = Field(default=None, ge=1, lt=LIMIT_64, description="The age in days up to which all stay.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        unit, count = self._length
        most_seconds = count * _SECONDS[unit]
        newer = (record for record in records if (now - record.timestamp).total_seconds() <= most_seconds)
        return dict.fromkeys((record.checkpoint_id for record in newer), str(self))

    def __str__(self) -> str:
        unit, count = self._length
        return f"newer than {count} {unit if count > 1 else unit[:-1]}"


class KeepTagged(_Policy):
    """Keep what carries one of ``tags``."""

    kind: Literal["tagged"] = "tagged"
    judges_alone: ClassVar[bool] = True
    tags: tuple[str, ...] = Field(min_length=1, description="One of these tags is enough.")

    def reasons(self, records: Sequence[RetentionRecord], now: datetime) -> Reasons:
        tagged = ((record, next((tag for tag in self.tags if tag in record.tags), None)) for record in records)
        return {record.checkpoint_id: f"tagged {tag!r}" for record, tag in tagged if tag is not None}

    def __str__(self) -> str:
        return f"tagged {' or '.join(map(repr, self.tags))}"


class KeepPinned(_Policy):
    """Keep what is pinned, which stays anyway: to keep nothing else, or as a part of other rules."""

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
        # Before its parts are looked at one by one: a file may nest as deep, and repeat as often, as it likes.
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
    """Keep what each of ``policies`` keeps; each judges all checkpoints, not only those that another one keeps."""

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

    ``policy`` must judge each checkpoint by itself: by tag, pin or age. All but the newest ten, say, are others after
    every cleanup; repeated, it would give up everything bit by bit.
    """

    kind: Literal["not"] = "not"
    policy: RetentionPolicy = Field(
        description="What it keeps is given up: tagged, pinned, newer_than, or made of these."
    )

    @model_validator(mode="after")
    def _judged_alone(self) -> Self:
        for rule in _rules_in(self.policy):
            if not rule.judges_alone:
                raise ValueError(
                    f"not cannot be applied to `{rule}`, which depends on what other checkpoints there are: "
                    "each cleanup would give up some more"
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
    """What a policy combines, whether it is one already or still the options of one."""
    options = dict(policy) if isinstance(policy, _Policy | Mapping) else {}
    many = options.get("policies")
    return [*(many if isinstance(many, list | tuple) else ()), *([options["policy"]] if "policy" in options else ())]


def _rules_in(policy: _Policy) -> Iterator[_Policy]:
    """The rules that a policy is made of, without what combines them."""
    parts = _parts_of(policy)
    if not parts:
        yield policy
    for part in parts:
        yield from _rules_in(part)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # at either end of time, where hours do not matter
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
