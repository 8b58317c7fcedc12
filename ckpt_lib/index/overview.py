"""``ExperimentOverview``: what a list of experiments shows of each."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class ExperimentOverview(BaseModel):
    """An experiment in a few numbers, as it was ``as_of``."""

    model_config = ConfigDict(frozen=True)

    experiment_name: str
    total_checkpoints: int = Field(ge=0, description="Those that readers are shown.")
    total_size_bytes: int = Field(ge=0, description="Of all their payload files.")
    latest_checkpoint: str | None = None
    latest_timestamp: AwareDatetime | None = None
    best_checkpoint: str | None = None
    monitor_metric: str | None = Field(default=None, description="The metric that decides which is the best.")
    best_value: float | None = None
    unreadable_checkpoints: int = Field(default=0, ge=0, description="Those whose manifest cannot be read.")
    quarantined_checkpoints: int = Field(default=0, ge=0)
    as_of: datetime
