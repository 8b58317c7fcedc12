"""Metrics that are added to a checkpoint after its save, as evaluations do; what they replace stays on record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import MAX_METRICS, AddedMetric, Metric, check_metrics, check_source
from ckpt_lib.errors import CheckpointNotFoundError, InvalidMetricError, MetricConflictError
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.locations import Locations

TELLING_SECONDS = 10.0
"""Whoever adds metrics has told of them by then; listeners may wait for a server, for less."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Addition:
    """Metrics to add, and what measured them. Called with a manifest, it returns the changed one."""

    metrics: Mapping[str, Metric]
    source: str
    replace: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @classmethod
    def of(cls, metrics: Mapping[str, Any], source: str, *, replace: bool) -> Self:
        """Raise :class:`~ckpt_lib.errors.InvalidMetricError` or the like for what cannot be added."""
        checked = check_metrics(metrics)
        if not checked:
            raise InvalidMetricError("there are no metrics to add", expected="{'accuracy': 0.91}")
        return cls(checked, check_source(source), bool(replace))

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the manifest itself when this source has recorded all of these values already.

        A value that another source or the save has recorded gets an entry for this one, so that it is known to have
        measured it.

        Raises :class:`~ckpt_lib.errors.MetricConflictError` for another value, unless it is to be replaced, and
        :class:`~ckpt_lib.errors.InvalidMetricError` when a manifest has no room for more.
        """
        recorded = manifest.metrics
        new = {name: value for name, value in self.metrics.items() if not _is_recorded(recorded, name, value)}
        own = {item.name: item.value for item in manifest.added_metrics if item.source == self.source}
        unknown = new | {name: value for name, value in self.metrics.items() if not _is_recorded(own, name, value)}
        if not unknown:
            return manifest
        if not self.replace and (others := sorted(new.keys() & recorded.keys())):
            raise self._conflict(manifest, others[0])
        of_save = [_of_save(manifest, name) for name in unknown if name in recorded and not _was_added(manifest, name)]
        added = [AddedMetric(name=name, value=value, at=self.at, source=self.source) for name, value in unknown.items()]
        changed = manifest.changed(
            metrics={**recorded, **unknown}, added_metrics=(*manifest.added_metrics, *of_save, *added)
        )
        if max(len(changed.metrics), len(changed.added_metrics)) > MAX_METRICS:
            raise InvalidMetricError(
                "there is no room for more metrics in the manifest",
                checkpoint_id=manifest.checkpoint_id,
                expected=f"at most {MAX_METRICS}, and as many additions",
            )
        return changed

    def _conflict(self, manifest: Manifest, name: str) -> MetricConflictError:
        earlier = recorded_by(manifest.added_metrics, name)
        by = f"{earlier.source!r} at {earlier.at.isoformat()}" if earlier and earlier.source else "the save"
        return MetricConflictError(
            f"the metric {name!r} was recorded with another value by {by}",
            checkpoint_id=manifest.checkpoint_id,
            expected=repr(manifest.metrics[name]),
            got=f"{self.metrics[name]!r} from {self.source!r}",
            hint="Give the metric another name, or replace the value (replace=True, `--replace`): the "
            "earlier one stays on record.",
        )


def recorded_by(added: Iterable[AddedMetric], name: str) -> AddedMetric | None:
    """Return the addition that a metric's value is from; ``None`` when it is from the save."""
    return next((item for item in reversed(tuple(added)) if item.name == name), None)


def _was_added(manifest: Manifest, name: str) -> bool:
    return recorded_by(manifest.added_metrics, name) is not None


def _of_save(manifest: Manifest, name: str) -> AddedMetric:
    return AddedMetric(name=name, value=manifest.metrics[name], at=manifest.timestamp, source=None)


def _is_recorded(recorded: Mapping[str, Metric], name: str, value: Metric) -> bool:
    """Tell whether a value is there already; NaN, which differs from itself, counts as the same again."""
    if name not in recorded:
        return False
    there = recorded[name]
    if isinstance(there, float) and isinstance(value, float) and math.isnan(there):
        return math.isnan(value)
    return there == value


def add_metrics(locations: Locations, name: str, addition: Addition) -> tuple[Manifest, bool]:
    """Add metrics to a checkpoint and then to its backup; return its manifest, and whether that was changed.

    Also looks for the best checkpoint anew, and tells of both. Killed before all that, the next call with the same
    metrics does it: the manifest says that nobody was told. A backup that cannot be reached is logged, and fails
    nothing.
    """
    checkpoint_id = locations.catalogue.resolve(name).checkpoint_id
    is_changed = False
    with locations.best.look_after():
        best_id = locations.best.best_id

        def change(manifest: Manifest) -> Manifest:
            nonlocal is_changed
            changed = addition(manifest)
            is_changed = changed is not manifest
            if not is_changed or manifest.untold_best is not None:
                return changed
            return changed.changed(untold_best=best_id)

        manifest = edits.edit(locations.home, checkpoint_id, change)
        is_told = not is_changed and _is_told_by_another(locations.home, manifest)
        if not is_told:
            _tell(locations, manifest, addition)
    if not is_told:
        with failures_logged("noting that added metrics were told of"), suppress(CheckpointNotFoundError):
            edits.edit(locations.home, checkpoint_id, _told)
    carry_to_backup(manifest, locations.backups)
    return manifest, is_changed


def _tell(locations: Locations, manifest: Manifest, addition: Addition) -> None:
    values = ", ".join(f"{name}={manifest.metrics[name]}" for name in addition.metrics)
    locations.events.emit(
        "checkpoint.metrics_added",
        f"{addition.source} added to {manifest.checkpoint_id}: {values}",
        checkpoint=locations.best.describe(manifest),
        source=addition.source,
        metrics=list(addition.metrics),
    )
    if manifest.untold_best is not None:
        locations.best.go_back_to(manifest.untold_best, manifest.checkpoint_id)


def _is_told_by_another(home: Experiment, manifest: Manifest) -> bool:
    """Tell whether whoever added the metrics has told of them, or does so in time; else it was killed."""
    deadline = time.monotonic() + TELLING_SECONDS
    while manifest.untold_best is not None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        manifest = home.get(manifest.checkpoint_id)
    return manifest.untold_best is None


def _told(manifest: Manifest) -> Manifest:
    return manifest if manifest.untold_best is None else manifest.changed(untold_best=None)


def carry_to_backup(manifest: Manifest, backups: Experiment) -> None:
    """Give the backup of a checkpoint, if there is one, the metrics that were added since it was made.

    Backups are ranked by them when some are retired, and a restore brings them back. The record of additions only
    grows, so the longer one is the newer. Whoever makes a backup calls this afterwards, as whoever adds metrics does:
    one of them sees what the other has written.
    """

    def change(backup: Manifest) -> Manifest:
        if backup.uid != manifest.uid or len(backup.added_metrics) >= len(manifest.added_metrics):
            return backup
        return backup.changed(metrics=manifest.metrics, added_metrics=manifest.added_metrics)

    if manifest.added_metrics:
        what = f"adding metrics to the backup of {manifest.checkpoint_id}"
        with failures_logged(what), suppress(CheckpointNotFoundError):
            edits.edit(backups, manifest.checkpoint_id, change)
