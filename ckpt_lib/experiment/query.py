"""Questions about an experiment's checkpoints: which one is meant, which is the best, which of them in what order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice, zip_longest

from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.wording import count_of, did_you_mean, listed, shown
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment
from ckpt_lib.experiment.selectors import Selector
from ckpt_lib.experiment.view import View
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.selection import Selection, check_metric_is_known, select_from
from ckpt_lib.policies.ranking import missing_metric, ranked


class MonitorRecord:
    """The measure of the best: what the newest checkpoint records or, before the first save, what is configured.

    A configured one that was given on purpose and differs from the record is told in the log, once.
    """

    def __init__(self, configured: Monitor, *, is_given: bool = False) -> None:
        self._configured = configured
        self._is_to_be_told = is_given

    def of(self, manifests: Sequence[Manifest]) -> Monitor:
        """Return the measure for an experiment of these checkpoints, which are in the order of saving."""
        if not manifests:
            return self._configured
        recorded = manifests[-1].monitor
        self.tell_if_other(recorded)
        return recorded

    def tell_if_other(self, recorded: Monitor) -> None:
        """Warn when ``recorded`` is not what was configured."""
        configured = self._configured
        if not self._is_to_be_told or (recorded.metric, recorded.mode) == (configured.metric, configured.mode):
            return
        self.settle()
        logger.warning(
            "monitor_metric is %s (%s), but the experiment records %s (%s), which goes on to decide what is the best; "
            "to change the record, use `ckpt monitor %s --mode %s` or set_monitor()",
            configured.metric,
            configured.mode,
            recorded.metric,
            recorded.mode,
            configured.metric,
            configured.mode,
        )

    def settle(self) -> None:
        """Say no more of a difference: it is known."""
        self._is_to_be_told = False


class Catalogue:
    """Questions about an experiment's checkpoints. Every answer is computed anew.

    ``record`` says which checkpoint is the best, and ``backups`` where a lost one may still be. What was deleted, as
    ``is_deleted`` says, is neither the best nor the latest, and answers to its id alone.
    """

    def __init__(
        self,
        experiment: Experiment,
        record: MonitorRecord | None = None,
        backups: Experiment | None = None,
        is_deleted: Callable[[Manifest], bool] | None = None,
    ) -> None:
        self.experiment = experiment
        self._monitor_of = (record or MonitorRecord(Monitor())).of
        self._backups = backups
        self._is_deleted = is_deleted or (lambda _: False)
        self._is_indexed = is_deleted is None  # the database knows nothing of what is deleted elsewhere

    def manifests(self) -> list[Manifest]:
        """Return every readable checkpoint that is not in quarantine, oldest first."""
        return list(self.view().usable)

    def view(self) -> View:
        """Return what is there now.

        That there is nothing is said after two equal listings: one may miss what replaces another meanwhile.
        """
        view = self.experiment.index.view()
        for _ in range(ATTEMPTS):
            before = view
            if before.usable or (view := self.experiment.index.view()).entries == before.entries:
                break
        return view

    def unchanged_view(self) -> View:
        """Return what is there now as :meth:`view`, without a listing where the store says that nothing has changed."""
        view = self.experiment.index.unchanged_view()
        return view if view.usable else self.view()

    def ids(self) -> list[str]:
        """Return every id, oldest first, and then those whose manifest cannot be read."""
        view = self.experiment.index.view()
        unreadable = [str(error.checkpoint_id) for error in view.unreadable]
        return [manifest.checkpoint_id for manifest in view.usable] + unreadable

    def id_of(self, name: str) -> str:
        """Return an id as it is, even of a checkpoint that is gone; for anything else, the id that it stands for."""
        return name if is_checkpoint_id(name) else self.resolve(name).checkpoint_id

    def monitor(self, view: View | None = None) -> Monitor:
        """Return the measure of the best."""
        return self._monitor_of((view or self.view()).usable)

    def monitor_warning(self, view: View | None = None) -> str | None:
        """Return why no checkpoint can be the best, where none has recorded the monitored metric; else ``None``."""
        manifests = (view or self.view()).usable
        return missing_metric(self._monitor_of(manifests), manifests)

    def best(self, metric: str | None, mode: Mode | None) -> CheckpointMetadata | None:
        """Return the best healthy checkpoint by any metric, by default the monitored one.

        ``None`` when no value is finite.
        """
        view = self.view()
        manifests, checkpoints = list(view.usable), self._describe(view)
        if metric is not None:
            check_metric_is_known(metric, checkpoints)
        if mode not in (None, "min", "max"):
            raise ConfigError('mode must be "min" or "max"', got=repr(mode))
        monitor = self._monitor_of(manifests)
        if metric not in (None, monitor.metric) and mode is None:
            raise ConfigError(f"a mode is needed for the metric {metric!r}", expected='mode="min" or "max"')
        best = ranked(checkpoints, Monitor(metric=metric or monitor.metric, mode=mode or monitor.mode))
        return best[0] if best else None

    def best_id(self) -> str | None:
        return self._best_id(self.manifests())

    def find(self, selection: Selection) -> list[CheckpointMetadata]:
        """Return the checkpoints that are meant, in their order. Raises as :func:`~ckpt_lib.index.selection.select`."""
        found = self.experiment.indexed.find(selection) if self._is_indexed else None
        return select_from(self.describe_all(), selection) if found is None else found

    def describe_all(self, view: View | None = None) -> list[CheckpointMetadata]:
        """Describe every checkpoint, oldest first."""
        return self._describe(view or self.view())

    def _describe(self, view: View) -> list[CheckpointMetadata]:
        best, latest = self._best_id(view.usable), self._latest_id(view.usable)
        return [
            manifest.describe(
                is_best=manifest.checkpoint_id == best,
                is_latest=manifest.checkpoint_id == latest,
                is_complete=view.is_complete(manifest),
            )
            for manifest in view.usable
        ]

    def describe(self, manifest: Manifest) -> CheckpointMetadata:
        """Describe one checkpoint, among all that there are."""
        overview = self._overview()
        if overview is not None:
            best, latest = overview.best_checkpoint, overview.latest_checkpoint
        else:
            manifests = self.manifests()
            best, latest = self._best_id(manifests), self._latest_id(manifests)
        return manifest.describe(
            is_best=manifest.checkpoint_id == best,
            is_latest=manifest.checkpoint_id == latest,
            is_complete=self.experiment.is_complete(manifest),
        )

    def _overview(self) -> ExperimentOverview | None:
        return self.experiment.indexed.overview() if self._is_indexed else None

    def resolve(self, name: str) -> Manifest:
        """Return the manifest, as it is now, that a name stands for by the grammar of :mod:`.selectors`."""
        if not isinstance(name, str):
            raise ConfigError("a checkpoint's name must be text", got=type(name).__name__)
        if is_checkpoint_id(name):
            return self._get_id(name)
        for _ in range(ATTEMPTS - 1):
            checkpoint_id = self._id_named(name)
            with suppress(CheckpointNotFoundError):  # retired since it was listed: another one has the name now
                return self._get(checkpoint_id)
        return self._get(self._id_named(name))

    def _get(self, checkpoint_id: str) -> Manifest:
        manifest = self.experiment.get(checkpoint_id)
        if manifest.quarantined is None:
            return manifest
        raise CheckpointNotFoundError(
            "the checkpoint is in quarantine",
            checkpoint_id=checkpoint_id,
            path=self.experiment.location(),
            hint=f"`ckpt quarantine` shows why; `ckpt repair {checkpoint_id}` brings it back if its backup can.",
        )

    def _get_id(self, name: str) -> Manifest:
        try:
            return self._get(name)
        except CheckpointNotFoundError as error:
            if self.experiment.read(name).record is None:
                error.hint = self._where_it_is(name, error.hint or "")
            error.checkpoint_id = name
            raise

    def _where_it_is(self, checkpoint_id: str, otherwise: str) -> str:
        """Say where a checkpoint without a record may be found, or what may have been meant by its id."""
        view = self.experiment.index.unchanged_view()
        start = self.experiment.key(checkpoint_id)
        if self._has_backup(checkpoint_id):
            return f"There is a backup of it: `ckpt restore {checkpoint_id}` brings it back."
        if any(key.startswith((f"{start}.", f"{start}/")) for key in view.entries):
            return "Its payload is there without a manifest: `ckpt import` takes it in."
        return f"{did_you_mean(checkpoint_id, _ids_like(checkpoint_id, view.usable))} {otherwise}".strip()

    def _has_backup(self, checkpoint_id: str) -> bool:
        with suppress(CheckpointError):  # no backup, a damaged one, or backups that cannot be reached
            return self._backups is not None and self._backups.get(checkpoint_id).quarantined is None
        return False

    def _count_of_backups(self) -> int:
        with suppress(CheckpointError, OSError):  # they cannot be reached
            return 0 if self._backups is None else len(self._backups.index.view().usable)
        return 0

    def _id_named(self, name: str) -> str:
        """Return the id that a name stands for which is no id itself. Costs one listing where there are any."""
        selector = Selector.parse(name)
        overview = self._overview() if not selector.back and (selector.is_latest or selector.is_best) else None
        if overview is not None and not overview.unreadable_checkpoints:
            checkpoint_id = overview.latest_checkpoint if selector.is_latest else overview.best_checkpoint
            if checkpoint_id is not None:
                return checkpoint_id
        view = self.unchanged_view()
        if selector.is_latest:
            for error in view.unreadable:
                logger.warning("%s may be newer than the latest that can be read: %s", error.checkpoint_id, error)
        found = self.named(name, view.usable)
        if found is None:
            raise self._not_found(name, view.usable)
        return found.checkpoint_id

    def named(self, name: str, manifests: Sequence[Manifest]) -> Manifest | None:
        """Return which of some checkpoints, oldest first, a name stands for, by the grammar of :mod:`.selectors`.

        Raises :class:`CheckpointNotFoundError` for the short form of several ids.
        """
        selector = Selector.parse(name)
        there = (item for item in self._in_order(selector, manifests) if not self._is_deleted(item))
        return next(islice(there, selector.back, None), None)

    def _in_order(self, selector: Selector, manifests: Sequence[Manifest]) -> list[Manifest]:
        """Return the checkpoint that a selector begins with, and then those that come before it."""
        if selector.is_latest:
            return list(reversed(manifests))
        if selector.is_best:
            return ranked(manifests, self._monitor_of(manifests))
        if not selector.is_id and (tagged := selector.tagged(manifests)):
            return tagged[::-1]
        matching = [item for item in selector.matching_ids(manifests) if not self._is_deleted(item)]
        if not matching:
            return []
        if len(matching) > 1:
            raise CheckpointNotFoundError(
                f"{shown(selector.name)} is short for {len(matching)} checkpoints",
                path=self.experiment.location(),
                expected="more of the id",
                got=listed([item.checkpoint_id for item in matching], most=5),
            )
        # By identity: ``index`` would compare thousands of manifests field by field.
        position = next(at for at, item in enumerate(manifests) if item is matching[0])
        return list(reversed(manifests[: position + 1]))

    def _first(self, manifests: Iterable[Manifest]) -> Manifest | None:
        return next((manifest for manifest in manifests if not self._is_deleted(manifest)), None)

    def _best(self, manifests: Sequence[Manifest]) -> Manifest | None:
        return self._first(ranked(manifests, self._monitor_of(manifests)))

    def _best_id(self, manifests: Sequence[Manifest]) -> str | None:
        best = self._best(manifests)
        return best.checkpoint_id if best else None

    def _latest_id(self, manifests: Sequence[Manifest]) -> str | None:
        latest = self._first(reversed(manifests))
        return latest.checkpoint_id if latest else None

    def _not_found(self, name: str, manifests: Sequence[Manifest]) -> CheckpointNotFoundError:
        count = count_of(len(manifests), "checkpoint")
        selector = Selector.parse(name)
        known = _names_like(name, manifests)
        hint = did_you_mean(name, known, otherwise=f"`ckpt list` shows the {count} of the experiment.")
        if "/" in name or os.sep in name:
            hint = "It looks like a path: name an id, a tag, latest or best; `ckpt import` takes files in."
        if not manifests and (backups := self._count_of_backups()):
            hint = f"There are {count_of(backups, 'backup')}: `ckpt list --backups` lists them."
        if selector.back and manifests and self._in_order(selector, manifests):
            hint = f"`ckpt list` shows the {count} of the experiment: so many do not come before {selector.name}."
        elif selector.is_best and manifests:
            monitor = self._monitor_of(manifests)
            hint = missing_metric(monitor, manifests) or f"no healthy checkpoint has a finite {monitor.metric!r}."
            hint = hint[0].upper() + hint[1:]
        path = self.experiment.location()
        return CheckpointNotFoundError(f"no checkpoint answers to {shown(name)}", path=path, hint=hint)


def _names_like(name: str, manifests: Sequence[Manifest]) -> list[str]:
    """Return what a checkpoint can be asked for by, without the ids that a name cannot misspell."""
    tags = {tag for item in manifests for tag in item.tags}
    return ["latest", "best", *sorted(tags), *_ids_like(name, manifests)] if manifests else []


def _ids_like(name: str, manifests: Sequence[Manifest]) -> list[str]:
    """Return the ids that begin with a name, or differ from it in one part: all ids of a run look much alike."""
    parts = name.split("_")

    def is_like(checkpoint_id: str) -> bool:
        pairs = zip_longest(parts, checkpoint_id.split("_"))
        return checkpoint_id.startswith(name) or sum(one != other for one, other in pairs) == 1

    return [item.checkpoint_id for item in manifests if is_like(item.checkpoint_id)]
