"""Metrics that are added to a checkpoint after its save, as evaluations do; what they replace stays on record."""

from __future__ import annotations

import math
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

        So it does when another source has replaced one since, unless this one is to ``replace`` that. A value that
        another source or the save has recorded gets an entry for this one, so that it is known to have measured it.

        Raises :class:`~ckpt_lib.errors.MetricConflictError` for another value, unless it is to be replaced, and
        :class:`~ckpt_lib.errors.InvalidMetricError` when a manifest has no room for more.
        """
        recorded = manifest.metrics
        new = {name: value for name, value in self.metrics.items() if not _is_recorded(recorded, name, value)}
        own = recorded_from(manifest.added_metrics, self.source)
        unmeasured = {name: value for name, value in self.metrics.items() if not _is_recorded(own, name, value)}
        unknown = new | unmeasured if self.replace else unmeasured
        if not unknown:
            return manifest
        if not self.replace and (others := sorted(new.keys() & unknown.keys() & recorded.keys())):
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

    def span(self, manifest: Manifest) -> tuple[int, int]:
        """Return where the record of a manifest's additions has these, once they are recorded: from, and up to where.

        Of several additions by which this source has recorded them, it is the last one.
        """
        added = manifest.added_metrics
        own = {item.name: number for number, item in enumerate(added) if item.source == self.source}
        first = last = max(own[name] for name in self.metrics)
        while first and added[first - 1].name in self.metrics and added[first - 1].source in (self.source, None):
            if added[first - 1].source and added[first - 1].at != added[last].at:
                break
            first -= 1
        return first, last + 1

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


def recorded_from(added: Iterable[AddedMetric], source: str) -> dict[str, Metric]:
    """Return the newest value of each metric that a source has added, whether or not it counts now."""
    return {item.name: item.value for item in added if item.source == source}


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
    """Add metrics to a checkpoint and its backup; return its manifest, and whether that was changed.

    Emits ``checkpoint.metrics_added``, and ``checkpoint.best_changed`` if that has made another checkpoint the best. If
    the process is killed on the way, the next call with the same metrics emits the events, with the same keys, and
    edits the backup. A backup that cannot be reached is logged, and fails nothing.
    """
    is_changed = False

    def change(before: Manifest) -> Manifest:
        nonlocal is_changed
        after = addition(before)
        is_changed = after is not before
        return after

    manifest = edits.edit(locations.home, locations.catalogue.resolve(name).checkpoint_id, change)
    first, stop = addition.span(manifest)
    key = f"{manifest.uid}/{stop}"
    values = ", ".join(f"{name}={value}" for name, value in addition.metrics.items())
    locations.events.emit(
        "checkpoint.metrics_added",
        f"{addition.source} added to {manifest.checkpoint_id}: {values}",
        checkpoint=locations.best.describe(manifest),
        key=key,
        source=addition.source,
        metrics=list(addition.metrics),
    )
    with failures_logged("looking for the best checkpoint"):
        locations.best.note_addition(manifest, without_additions(manifest, first), key)
    carry_to_backup(manifest, locations.backups)
    return manifest, is_changed


def without_additions(manifest: Manifest, first: int) -> Manifest:
    """Return a manifest as it was before the addition ``first`` of its record, and all later ones."""
    added = {item.name for item in manifest.added_metrics}
    metrics = {name: value for name, value in manifest.metrics.items() if name not in added}
    of_save = [item for item in manifest.added_metrics if item.source is None]
    for item in (*of_save, *manifest.added_metrics[:first]):
        metrics[item.name] = item.value
    return manifest.changed(metrics=metrics, added_metrics=manifest.added_metrics[:first])


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
