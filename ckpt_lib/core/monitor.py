"""``Monitor``: which metric decides what is the best checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Mode = Literal["min", "max"]


class Monitor(BaseModel):
    """The metric that decides which checkpoint is the best, and whether lower or higher is better."""

    model_config = ConfigDict(frozen=True, extra="allow")  # a manifest's rewrite keeps fields of newer versions

    metric: str = "val_loss"
    mode: Mode = "min"

    def changed_to(self, other: Monitor) -> Monitor:
        """Return the other, or this one where both measure the same: it keeps its fields of newer versions."""
        return self if (self.metric, self.mode) == (other.metric, other.mode) else other
