"""What retention must keep, said a second time: slow, naive, and without a line of the planner."""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from ckpt_lib.core.monitor import Monitor
from ckpt_lib.policies.retention import RetentionRecord

Records = list[RetentionRecord]
Ids = set[str]

_PERIODS = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G week %V", "monthly": "%Y-%m", "yearly": "%Y"}


def kept_ids(
    records: Collection[RetentionRecord],
    policy: Any,
    *,
    now: datetime,
    monitors: Collection[Monitor],
    protected: Collection[str] = (),
) -> Ids:
    """The ids of all records that have to stay."""
    whole = [record for record in records if record.status != "damaged"]
    kept = {record.checkpoint_id for record in records if record.checkpoint_id in protected}
    for healthy in (True, False):
        kept |= wanted(policy, [record for record in whole if record.healthy == healthy], now)
    return kept | always_kept(records, monitors)


def always_kept(records: Collection[RetentionRecord], monitors: Collection[Monitor]) -> Ids:
    """What stays whatever the policy."""
    kept = {record.checkpoint_id for record in records if record.pinned or record.status == "damaged"}
    for statuses in ({"valid"}, {"valid", "unverified"}):
        group = [record for record in records if record.status in statuses]
        sound = [record for record in group if record.healthy]
        kept |= newest(sound, 1) if sound else newest(group, 1)
        for monitor in monitors:
            kept |= best(sound, monitor.metric, monitor.mode, 1)
    return kept


def newest(records: Records, count: int) -> Ids:
    return {one.checkpoint_id for one in records if sum(other.sequence > one.sequence for other in records) < count}


def best(records: Records, metric: str, mode: str, count: int) -> Ids:
    left = [record for record in records if record.healthy and _competes(record.metrics.get(metric))]
    chosen: Ids = set()
    while left and len(chosen) < count:
        values = [record.metrics[metric] for record in left]
        top = min(values) if mode == "min" else max(values)  # type: ignore[type-var]
        winner = min((record for record in left if record.metrics[metric] == top), key=lambda record: record.sequence)
        left.remove(winner)
        chosen.add(winner.checkpoint_id)
    return chosen


def _competes(value: object) -> bool:
    return isinstance(value, int | float) and not (
        isinstance(value, float) and (math.isnan(value) or math.isinf(value))
    )


def wanted(policy: Any, records: Records, now: datetime) -> Ids:  # noqa: PLR0911  one for each kind
    """What the policy itself keeps of some undamaged records."""
    everything = {record.checkpoint_id for record in records}
    match policy.kind:
        case "any_of":
            return set().union(*(wanted(part, records, now) for part in policy.policies))
        case "all_of":
            return everything.intersection(*(wanted(part, records, now) for part in policy.policies))
        case "not":
            return everything - wanted(policy.policy, records, now)
        case "newest":
            return newest(records, policy.count)
        case "best":
            return best(records, policy.metric, policy.mode, policy.count)
        case "at_most":
            return _at_most(policy, records)
        case "within":
            return _within(policy.budget_bytes, records)
        case "every":
            return _every(policy, records)
        case "periods":
            return set().union(*(_periods(period, getattr(policy, period), records) for period in _PERIODS))
        case "newer_than":
            seconds = (policy.seconds or 0) + 3600 * (policy.hours or 0) + 86400 * (policy.days or 0)
            oldest = now.timestamp() - seconds
            return {record.checkpoint_id for record in records if record.timestamp.timestamp() >= oldest}
        case "tagged":
            return {record.checkpoint_id for record in records if set(record.tags) & set(policy.tags)}
        case "pinned":
            return {record.checkpoint_id for record in records if record.pinned}
    raise AssertionError(f"the model does not know {policy.kind}")


def _at_most(policy: Any, records: Records) -> Ids:
    rolling = [record for record in records if not record.pinned]
    first = best(rolling, policy.metric, policy.mode, 1) if policy.count else set()
    return first | newest([one for one in rolling if one.checkpoint_id not in first], policy.count - len(first))


def _within(budget_bytes: int, records: Records) -> Ids:
    fitting = [record for record in records if not record.pinned and record.size_bytes <= budget_bytes]
    return {
        one.checkpoint_id
        for one in fitting
        if sum(other.size_bytes for other in fitting if other.sequence >= one.sequence) <= budget_bytes
    }


def _every(policy: Any, records: Records) -> Ids:
    def interval(record: RetentionRecord) -> int:
        if policy.epochs:
            return record.epoch // int(policy.epochs)
        if policy.steps:
            return record.step // int(policy.steps)
        return math.floor(record.timestamp.timestamp() / 3600 / int(policy.hours))

    return {
        one.checkpoint_id
        for one in records
        if not any(interval(other) == interval(one) and other.sequence < one.sequence for other in records)
    }


def _periods(period: str, count: int, records: Records) -> Ids:
    seen: list[str] = []
    kept: Ids = set()
    for record in sorted(records, key=lambda record: -record.sequence):
        name = record.timestamp.astimezone(UTC).strftime(_PERIODS[period])
        if name not in seen:
            seen.append(name)
            if len(seen) <= count:
                kept.add(record.checkpoint_id)
    return kept
