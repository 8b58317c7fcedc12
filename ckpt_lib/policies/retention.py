"""What stays: policies as frozen values, and a pure planner that gives a reason for every checkpoint.

The planner deletes nothing. Whatever the policy says, a plan keeps the newest valid checkpoint, the best valid one,
pinned ones, those in use (``protected``), and damaged ones, which wait for repair and count towards no limit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.config import Mode, Monitor, config_error
from ckpt_lib.metadata import StoredMetric
from ckpt_lib.policies.ranking import ranked

Status = Literal["valid", "unverified", "damaged"]


class RetentionRecord(BaseModel):
    """One checkpoint as far as retention may ask."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    sequence: int
    epoch: int
    step: int
    timestamp: datetime
    size_bytes: int
    metrics: Mapping[str, StoredMetric] = {}
    tags: tuple[str, ...] = ()
    pinned: bool = False
    healthy: bool = True
    status: Status = "unverified"


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # type checkers know the options from the fields

        def __init__(self, **options: Any) -> None:
            # As in CheckpointConfig: a wrong option raises our one error.
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise config_error(error) from None

    @abstractmethod
    def reasons(self, records: Sequence[RetentionRecord]) -> dict[str, str]:
        """Id to reason for each checkpoint this policy keeps. ``records`` are undamaged, newest first."""


class KeepNewest(_Policy):
    """Keep the ``count`` newest."""

    kind: Literal["newest"] = "newest"
    count: int = Field(default=10, ge=0)

    def reasons(self, records: Sequence[RetentionRecord]) -> dict[str, str]:
        return {
            record.checkpoint_id: f"newest {position} of {self.count}"
            for position, record in enumerate(records[: self.count], start=1)
        }


class KeepBest(_Policy):
    """Keep the ``count`` best by ``metric``; NaN, infinities, text and missing values never compete."""

    kind: Literal["best"] = "best"
    metric: str = "val_loss"
    mode: Mode = "min"
    count: int = Field(default=1, ge=0)

    def reasons(self, records: Sequence[RetentionRecord]) -> dict[str, str]:
        best = ranked(records, Monitor(metric=self.metric, mode=self.mode))[: self.count]
        return {
            record.checkpoint_id: f"best {position} of {self.count} by {self.metric}"
            for position, record in enumerate(best, start=1)
        }


class KeepTagged(_Policy):
    """Keep what carries one of ``tags``."""

    kind: Literal["tagged"] = "tagged"
    tags: tuple[str, ...] = Field(min_length=1)

    def reasons(self, records: Sequence[RetentionRecord]) -> dict[str, str]:
        tagged = ((record, next((tag for tag in self.tags if tag in record.tags), None)) for record in records)
        return {record.checkpoint_id: f"tagged {tag!r}" for record, tag in tagged if tag is not None}


class KeepAtMost(_Policy):
    """Keep ``count`` in all: the best by ``metric``, and the newest others. ``max_checkpoints`` stands for this.

    Pinned checkpoints stay besides and do not use up the number.
    """

    kind: Literal["at_most"] = "at_most"
    count: int = Field(default=10, ge=0)
    metric: str = "val_loss"
    mode: Mode = "min"

    def reasons(self, records: Sequence[RetentionRecord]) -> dict[str, str]:
        rolling = [record for record in records if not record.pinned]
        best = KeepBest(metric=self.metric, mode=self.mode, count=min(self.count, 1)).reasons(rolling)
        others = [record for record in rolling if record.checkpoint_id not in best]
        newest = others[: self.count - len(best)]
        return best | {record.checkpoint_id: f"among the {self.count} to keep" for record in newest}


class KeepAnyOf(_Policy):
    """Keep what at least one of ``policies`` keeps; the first to keep it gives the reason."""

    kind: Literal["any_of"] = "any_of"
    policies: tuple[RetentionPolicy, ...] = Field(min_length=1)

    def reasons(self, records: Sequence[RetentionRecord]) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for policy in self.policies:
            reasons = policy.reasons(records) | reasons
        return reasons


RetentionPolicy = Annotated[KeepNewest | KeepBest | KeepTagged | KeepAtMost | KeepAnyOf, Field(discriminator="kind")]
KeepAnyOf.model_rebuild()


class Decision(BaseModel):
    """Keep or delete one checkpoint, and why."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    keep: bool
    reason: str
    epoch: int
    step: int
    size_bytes: int
    status: Status


class RetentionPlan(BaseModel):
    """A decision for each checkpoint, newest first."""

    model_config = ConfigDict(frozen=True)

    decisions: tuple[Decision, ...]

    @property
    def kept_ids(self) -> tuple[str, ...]:
        return tuple(decision.checkpoint_id for decision in self.decisions if decision.keep)

    @property
    def deleted_ids(self) -> tuple[str, ...]:
        return tuple(decision.checkpoint_id for decision in self.decisions if not decision.keep)

    @property
    def freed_bytes(self) -> int:
        """What carrying the plan out frees."""
        return sum(decision.size_bytes for decision in self.decisions if not decision.keep)


def plan_retention(
    records: Iterable[RetentionRecord],
    policy: RetentionPolicy,
    *,
    monitors: Collection[Monitor],
    protected: Mapping[str, str] | None = None,
) -> RetentionPlan:
    """Decide about every record. Each of ``monitors`` says what a best one is; ``protected`` maps ids to reasons.

    Order is by sequence alone: no clock, and no time stamp of a file, has a say.
    """
    newest_first = sorted(records, key=lambda record: (record.sequence, record.checkpoint_id), reverse=True)
    whole = [record for record in newest_first if record.status != "damaged"]
    reasons = policy.reasons(whole) | dict(protected or {}) | _always_kept(newest_first, whole, monitors)
    return RetentionPlan(
        decisions=tuple(
            Decision(
                checkpoint_id=record.checkpoint_id,
                keep=record.checkpoint_id in reasons,
                reason=reasons.get(record.checkpoint_id, "no rule keeps it"),
                **record.model_dump(include={"epoch", "step", "size_bytes", "status"}),
            )
            for record in newest_first
        )
    )


def _always_kept(
    records: Sequence[RetentionRecord], whole: Sequence[RetentionRecord], monitors: Collection[Monitor]
) -> dict[str, str]:
    reasons: dict[str, dict[str, None]] = {}

    def keep(kept: Iterable[RetentionRecord], reason: str) -> None:
        for record in kept:
            reasons.setdefault(record.checkpoint_id, {})[reason.format(status=record.status)] = None

    keep((record for record in records if record.pinned), "pinned")
    keep((record for record in records if record.status == "damaged"), "damaged: waits for repair")
    # Both: an unverified checkpoint may turn out damaged, and then the newest valid one is what is left.
    for candidates in (whole, [record for record in whole if record.status == "valid"]):
        keep(candidates[:1], "newest {status}")
        for monitor in monitors:
            keep(ranked(candidates, monitor)[:1], f"best {{status}} by {monitor.metric}")
    valid = [record for record in whole if record.status == "valid"]
    healthy = [record for record in valid if record.healthy]
    if healthy[:1] != valid[:1]:
        keep(healthy[:1], "newest valid healthy")
    return {checkpoint_id: ", ".join(found) for checkpoint_id, found in reasons.items()}
