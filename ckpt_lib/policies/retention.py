"""Retention plans: which checkpoints stay, and why. The rules are in ``rules``; deleting is done elsewhere.

Whatever the policy says, a plan keeps the newest valid checkpoint, the newest valid one that was not thinned, the best
valid one, pinned ones, those in use
(``protected``), and damaged ones, which may still be repaired and count towards no limit.

The policy judges healthy and unhealthy checkpoints separately, so that those of a run with NaN displace no healthy one.
While there is a healthy checkpoint, no unhealthy one is kept as the newest or the best.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ckpt_lib.core import html
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import size_text
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.policies.rules import (
    KeepAllOf,
    KeepAnyOf,
    KeepAtMost,
    KeepBest,
    KeepEvery,
    KeepNewerThan,
    KeepNewest,
    KeepNot,
    KeepPeriods,
    KeepPinned,
    KeepTagged,
    KeepWithin,
    Reasons,
    RetentionPolicy,
    RetentionRecord,
    Status,
)

__all__ = [
    "Decision",
    "KeepAllOf",
    "KeepAnyOf",
    "KeepAtMost",
    "KeepBest",
    "KeepEvery",
    "KeepNewerThan",
    "KeepNewest",
    "KeepNot",
    "KeepPeriods",
    "KeepPinned",
    "KeepTagged",
    "KeepWithin",
    "RetentionPlan",
    "RetentionPolicy",
    "RetentionRecord",
    "Status",
    "plan_retention",
    "policy_from_yaml",
]


class Decision(BaseModel):
    """The decision about one checkpoint, and its reason."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    keep: bool
    reason: str
    epoch: int
    step: int
    size_bytes: int
    status: Status
    thin: bool = False
    """True when it stays and is to lose all but its weights."""


class RetentionPlan(BaseModel):
    """A decision for each checkpoint, newest first."""

    model_config = ConfigDict(frozen=True)

    decisions: tuple[Decision, ...]
    warning: str | None = None
    """Why no checkpoint is kept as the best, if none has the monitored metric."""

    @property
    def kept_ids(self) -> tuple[str, ...]:
        return tuple(decision.checkpoint_id for decision in self.decisions if decision.keep)

    @property
    def deleted_ids(self) -> tuple[str, ...]:
        return tuple(decision.checkpoint_id for decision in self.decisions if not decision.keep)

    @property
    def thinned_ids(self) -> tuple[str, ...]:
        """What stays and is to lose all but its weights."""
        return tuple(decision.checkpoint_id for decision in self.decisions if decision.thin)

    @property
    def freed_bytes(self) -> int:
        """Bytes that the deletions of the plan free."""
        return sum(decision.size_bytes for decision in self.decisions if not decision.keep)

    @property
    def fingerprint(self) -> str:
        """The same for every plan that deletes and thins the same checkpoints."""
        text = json.dumps({"delete": sorted(self.deleted_ids), "thin": sorted(self.thinned_ids)})
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "kept", len(self.kept_ids)
        yield "deleted", len(self.deleted_ids)
        yield "thinned", len(self.thinned_ids)
        yield "freed", size_text(self.freed_bytes)

    def _repr_html_(self) -> str:
        numbers = f"{len(self.kept_ids):,} stay, {len(self.deleted_ids):,} go: {size_text(self.freed_bytes)}"
        # What goes comes first: a long table shows it all the same.
        rows = [
            (_WHAT[item.keep, item.thin], item.checkpoint_id, item.epoch, size_text(item.size_bytes), item.reason)
            for item in sorted(self.decisions, key=lambda decision: (decision.keep, not decision.thin))
        ]
        shown = html.table(("", "checkpoint", "epoch", "size", "why"), rows, numeric=("epoch", "size"))
        return html.block("Retention plan", html.paragraph(self.warning or ""), shown, detail=numbers)


_WHAT = {(True, False): "stays", (True, True): "loses all but its weights", (False, False): "goes"}


def plan_retention(
    records: Iterable[RetentionRecord],
    policy: RetentionPolicy,
    *,
    now: datetime,
    monitors: Collection[Monitor],
    protected: Mapping[str, str] | None = None,
    thin_after: int | None = None,
) -> RetentionPlan:
    """Decide about every record. ``protected`` maps ids in use to reasons for keeping them.

    Of those that stay, all but the newest ``thin_after`` are to be thinned: the unhealthy ones are counted by
    themselves. The newest, the best, pinned, damaged and ``protected`` ones never are.

    The best by each of ``monitors`` is kept. Checkpoints are ordered by sequence, never by time stamps. ``now`` is used
    by rules about age, and cannot affect what every plan keeps. Raises :class:`~ckpt_lib.errors.ConfigError` if it has
    no time zone.
    """
    if now.tzinfo is None:
        raise ConfigError("now must have a time zone", got=repr(now), hint="datetime.now(UTC)")
    newest_first = sorted(records, key=lambda record: (record.sequence, record.checkpoint_id), reverse=True)
    whole = [record for record in newest_first if record.status != "damaged"]
    reasons = _wanted(policy, whole, now) | dict(protected or {}) | _always_kept(newest_first, whole, monitors)
    kept = [record for record in whole if record.checkpoint_id in reasons]
    thin = set() if thin_after is None else _to_thin(kept, thin_after, monitors) - set(protected or {})
    return RetentionPlan(
        decisions=tuple(
            Decision(
                checkpoint_id=record.checkpoint_id,
                keep=record.checkpoint_id in reasons,
                reason=reasons.get(record.checkpoint_id) or _said_of(record, "no rule keeps it"),
                epoch=record.epoch,
                step=record.step,
                size_bytes=record.size_bytes,
                status=record.status,
                thin=record.checkpoint_id in thin,
            )
            for record in newest_first
        )
    )


def _to_thin(kept: Sequence[RetentionRecord], thin_after: int, monitors: Collection[Monitor]) -> set[str]:
    """Return which of the records that stay, newest first, are to lose all but their weights."""
    full = [record for record in kept if not record.thinned]
    spared = set(_always_kept(full, full, monitors))
    for healthy in (True, False):
        spared |= set([record.checkpoint_id for record in full if record.healthy is healthy][:thin_after])
    return {record.checkpoint_id for record in full} - spared


def _wanted(policy: RetentionPolicy, whole: Sequence[RetentionRecord], now: datetime) -> Reasons:
    """Return what the policy keeps of the healthy records, and of the others."""
    reasons: Reasons = {}
    for healthy in (True, False):
        alike = [record for record in whole if record.healthy is healthy]
        found = policy.reasons(alike, now) if alike else {}
        reasons |= {
            record.checkpoint_id: _said_of(record, found[record.checkpoint_id])
            for record in alike
            if record.checkpoint_id in found
        }
    return reasons


def _said_of(record: RetentionRecord, reason: str) -> str:
    return reason if record.healthy else f"unhealthy: {reason}"


def _always_kept(
    records: Sequence[RetentionRecord], whole: Sequence[RetentionRecord], monitors: Collection[Monitor]
) -> Reasons:
    reasons: dict[str, dict[str, None]] = {}

    def keep(kept: Iterable[RetentionRecord], reason: str) -> None:
        for record in kept:
            reasons.setdefault(record.checkpoint_id, {})[reason] = None

    keep((record for record in records if record.pinned), "pinned")
    keep((record for record in records if record.status == "damaged"), "damaged: waits for repair")
    # Both, because an unverified checkpoint may turn out to be damaged.
    for candidates in (whole, [record for record in whole if record.status == "valid"]):
        healthy = [record for record in candidates if record.healthy]
        # An unhealthy checkpoint is better than none.
        newest = healthy or candidates
        for record in newest[:1]:
            keep([record], _said_of(record, _first("newest", record)))
        if newest and newest[0].thinned:  # no run can go on from it
            full = [record for record in newest if not record.thinned]
            for record in full[:1]:
                keep([record], _said_of(record, f"{_first('newest', record)} with all of its state"))
        for monitor in monitors:
            for record in ranked(healthy, monitor)[:1]:
                keep([record], f"{_first('best', record)} by {monitor.metric}")
    return {checkpoint_id: ", ".join(found) for checkpoint_id, found in reasons.items()}


def _first(of_what: str, record: RetentionRecord) -> str:
    """Say of what a record is the first, and among the valid ones if it is one of them."""
    return f"{of_what} valid" if record.status == "valid" else of_what


def policy_from_yaml(path: str | os.PathLike[str]) -> RetentionPolicy:
    """Read a policy from a YAML file, such as ``{kind: newest, count: 5}``.

    Raises :class:`~ckpt_lib.errors.ConfigError` if the file is missing or unreadable, or holds no policy.
    """
    from ckpt_lib.core.yaml_files import read_yaml  # here, as most policies come from elsewhere

    loaded = read_yaml(path, "the policy file")
    try:
        return _ADAPTER.validate_python(loaded)
    except ValidationError as error:
        # Omit the input, which may be any amount of text.
        problems = (item["msg"].removeprefix("Value error, ") for item in error.errors(include_url=False))
        raise ConfigError(
            f"the policy file holds no retention policy: {'; '.join(problems)}",
            path=str(path),
            hint="The file is a mapping such as `{kind: newest, count: 5}`, with no key above it.",
        ) from error


_ADAPTER: TypeAdapter[RetentionPolicy] = TypeAdapter(RetentionPolicy)
