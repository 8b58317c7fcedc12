"""``ExperimentOverview``: what a list of experiments shows of each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ckpt_lib.core import html
from ckpt_lib.core.wording import count_of, size_text


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

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "experiment_name", self.experiment_name
        yield "total_checkpoints", self.total_checkpoints
        yield "best_checkpoint", self.best_checkpoint
        yield "latest_checkpoint", self.latest_checkpoint

    def _repr_html_(self) -> str:
        found = {
            "best": self.best_checkpoint
            and f"{self.best_checkpoint}, {self.monitor_metric} {html.value_text(self.best_value)}",
            "latest": self.latest_checkpoint,
            "saved": self.latest_timestamp,
            "unreadable": self.unreadable_checkpoints or None,
            "in quarantine": self.quarantined_checkpoints or None,
        }
        held = f"{count_of(self.total_checkpoints, 'checkpoint')}, {size_text(self.total_size_bytes)}"
        return html.block(self.experiment_name, html.facts(found), detail=held)
