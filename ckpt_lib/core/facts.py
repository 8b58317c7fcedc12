"""``CheckpointFacts``: what a manifest will say of a checkpoint, each fact checked before anything is written."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from ckpt_lib.core.metadata import MAX_COUNT, Metric, check_count, check_metrics
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import check_description, check_tags
from ckpt_lib.core.plain import check_run_config
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError


@dataclass(frozen=True)
class CheckpointFacts:
    """The facts of a checkpoint that is about to be saved."""

    epoch: int
    step: int
    model_name: str
    experiment_name: str
    metrics: dict[str, Metric] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    description: str = ""
    monitor: Monitor = field(default_factory=Monitor)
    parent_id: str | None = None
    run_id: str | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    parameter_names: tuple[tuple[str, ...], ...] | dict[str, tuple[tuple[str, ...], ...]] | None = None
    epoch_finished: bool = True
    libraries: dict[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    unhealthy: str | None = None
    home_uid: str | None = None
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))


@dataclass(frozen=True)
class GivenFacts:
    """The unchecked arguments of a save; ``CheckpointManager.save_checkpoint`` documents them."""

    epoch: Any
    step: Any = 0
    metrics: Mapping[str, Any] | None = None
    tags: Collection[str] = ()
    description: str = ""
    config: Any = None
    idempotency_key: str | None = None
    epoch_finished: bool | None = None
    """``None``: the data loader of the state says so, and without one it is."""

    def checked(
        self, *, model_name: str, experiment_name: str, monitor: Monitor, with_environment: bool
    ) -> CheckpointFacts:
        """The facts of a checkpoint. Raises :class:`~ckpt_lib.errors.ConfigError` or the like for the first wrong one.

        ``with_environment`` adds the run's configuration and the versions of the libraries.
        """
        key = self.idempotency_key
        if key is not None and not (isinstance(key, str) and key.isprintable()):
            raise ConfigError("idempotency_key must be a visible text", got=shown(key))
        return CheckpointFacts(
            epoch=check_count("epoch", self.epoch, below=MAX_COUNT),
            step=check_count("step", self.step, below=MAX_COUNT),
            model_name=model_name,
            experiment_name=experiment_name,
            metrics=check_metrics(self.metrics),
            config=check_run_config(self.config) if with_environment else {},
            tags=check_tags(self.tags),
            description=check_description(self.description),
            monitor=monitor,
            epoch_finished=self.epoch_finished is not False,
            libraries=dict(_libraries()) if with_environment else {},
            idempotency_key=key,
        )


@cache
def _libraries() -> dict[str, str]:
    return {
        "prefect-checkpoints": version("prefect-checkpoints"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }
