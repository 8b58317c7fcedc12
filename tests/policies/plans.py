"""Plans of a few records at a fixed time, and what they keep for which reasons."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from ckpt_lib.core.monitor import Monitor
from ckpt_lib.policies.retention import RetentionPlan, RetentionPolicy, RetentionRecord, plan_retention

ADAPTER: TypeAdapter[RetentionPolicy] = TypeAdapter(RetentionPolicy)
LOSS = Monitor(metric="val_loss", mode="min")
NOW = datetime(2024, 1, 1, tzinfo=UTC)


def plan_of(records: list[RetentionRecord], policy: RetentionPolicy, **options: Any) -> RetentionPlan:
    return plan_retention(records, policy, **{"now": NOW, "monitors": [LOSS], **options})


def record(sequence: int, loss: Any = None, **facts: Any) -> RetentionRecord:
    fields: dict[str, Any] = {"epoch": sequence, "step": 0, "timestamp": NOW, "size_bytes": 10, "status": "valid"}
    metrics = {} if loss is None else {"val_loss": loss}
    return RetentionRecord(
        **(fields | {"checkpoint_id": f"c{sequence}", "sequence": sequence, "metrics": metrics} | facts)
    )


def kept(records: list[RetentionRecord], policy: RetentionPolicy, **options: Any) -> set[str]:
    return set(plan_of(records, policy, **options).kept_ids)


def reasons_of(records: list[RetentionRecord], policy: RetentionPolicy, **options: Any) -> dict[str, str]:
    """The reason for each, without what a plan always keeps: a pinned newest one hides it."""
    return {decision.checkpoint_id: decision.reason for decision in plan_of(records, policy, **options).decisions}
