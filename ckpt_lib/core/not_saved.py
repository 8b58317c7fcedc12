"""``NotSaved``: one reason why there is no newer checkpoint."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

NotSavedKind = Literal[
    "never_asked",
    "interval",
    "too_soon",
    "not_better",
    "policy",
    "failed",
    "no_space",
    "under_way",
    "already_saved",
    "in_fallback",
    "other_rank",
    "overdue",
    "unfinished",
    "unknown",
]
"""The kinds of reasons.

- ``never_asked``: no save was called yet.
- ``interval``: the save policy waits for an epoch or a step.
- ``too_soon``: the save policy waits for a length of time.
- ``not_better``: the metric does not beat the best.
- ``policy``: another save policy refused.
- ``failed``: the save failed.
- ``no_space``: the store has too little space for the save.
- ``under_way``: a save is being written.
- ``already_saved``: the save repeated an earlier one.
- ``in_fallback``: the checkpoint is in the fallback folder.
- ``other_rank``: rank 0 of the training saves, and this process is another rank.
- ``overdue``: the last checkpoint is older than the experiment's usual interval.
- ``unfinished``: a process ended in the middle of a save.
- ``unknown``: nothing that is stored tells.
"""


class NotSaved(BaseModel):
    """One reason why there is no newer checkpoint. As text, it is its message and its hint."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    kind: NotSavedKind
    message: str
    hint: str | None = None
    """What to do."""
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it came to be: of a refusal or failure, the time of the save."""
    epoch: int | None = None
    step: int | None = None
    next_epoch: int | None = None
    """The next epoch that an interval accepts."""
    next_step: int | None = None
    seconds_left: float | None = None
    metric: str | None = None
    value: float | int | str | None = None
    """The value of ``metric`` in the save."""
    best: float | int | None = None
    """The value to beat."""
    checkpoint_id: str | None = None
    """The checkpoint that the reason names."""
    error: str | None = None
    """The class of the error that the save raised."""

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.hint}" if self.hint else f"{self.message.rstrip('.')}."
