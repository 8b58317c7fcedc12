"""``Finder``: lists, compares and summarises the stored checkpoints of one experiment."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ckpt_lib.advice.results import Advice
from ckpt_lib.advice.stored import Step, StoredAdvisor
from ckpt_lib.advice.whereabouts import Diagnosis, diagnose
from ckpt_lib.analysis.results import CheckpointComparison, ExperimentSummary
from ckpt_lib.core import html
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Mode
from ckpt_lib.errors import CheckpointError
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.index.conditions import Condition
from ckpt_lib.index.selection import Selection, check_metric_is_known
from ckpt_lib.loading.compare import compare_named
from ckpt_lib.maintenance.keeper import check_policy
from ckpt_lib.maintenance.maintainer import Maintainer
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.stream import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Finder(Maintainer):
    """Lists, compares and summarises checkpoints.

    It is the part of :class:`ckpt_lib.manager.CheckpointManager` that only reads.
    """

    def list_checkpoints(
        self,
        *,
        where: Collection[str | Condition] = (),
        tags: Collection[str] = (),
        search: str = "",
        min_epoch: int | None = None,
        max_epoch: int | None = None,
        sort_by: str = "sequence",
        descending: bool = False,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[CheckpointMetadata]:
        """The checkpoints, oldest first unless told otherwise; see :func:`ckpt_lib.index.selection.select`."""
        selection = Selection.of(
            where=where,
            tags=tags,
            search=search,
            min_epoch=min_epoch,
            max_epoch=max_epoch,
            sort_by=sort_by,
            descending=descending,
            limit=limit,
            after=after,
        )
        return self._catalogue.find(selection)

    def checkpoint_ids(self) -> list[str]:
        """Every id there is, oldest first, and then those whose manifest cannot be read."""
        return self._catalogue.ids()

    def get_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """The metadata of one checkpoint."""
        return self._catalogue.describe(self._catalogue.resolve(checkpoint_id))

    def get_latest_checkpoint(self) -> CheckpointMetadata | None:
        """The newest checkpoint, by order of saving; ``None`` when there is none."""
        return next(reversed(self._catalogue.describe_all()), None)

    def get_best_checkpoint(self, metric: str | None = None, mode: Mode | None = None) -> CheckpointMetadata | None:
        """The best healthy checkpoint by any metric, by default the monitored one; ``None`` when no value is finite.

        Of equals, the earlier. Another metric than the monitored needs a ``mode``.

        Raises :class:`~ckpt_lib.errors.UnknownMetricError` for a ``metric`` that no checkpoint has.
        """
        return self._catalogue.best(metric, mode)

    def compare_checkpoints(
        self, checkpoint_ids: Sequence[str], *, metrics: Collection[str] | None = None, tensors: bool = False
    ) -> CheckpointComparison:
        """Set checkpoints side by side; names such as ``run-7/best`` are those of another experiment of the store.

        ``metrics`` restricts ``metrics_comparison``. With ``tensors``, ``tensors_comparison`` maps each further id to
        how its tensors differ from the first one's; that loads them, two at a time.
        """
        return compare_named(
            self._catalogue, checkpoint_ids, metrics=metrics, tensors=tensors, catalogue_of=self._catalogue_of
        )

    def _catalogue_of(self, experiment_name: str) -> Catalogue:
        check_experiment_exists(self._locations.home.store, experiment_name)
        return Locations(self.config, experiment_name).catalogue

    def get_checkpoint_summary(self) -> ExperimentSummary:
        """Return totals, the best and the latest id, and statistics of every metric."""
        from ckpt_lib.analysis.statistics import summarize  # pandas, only where it is used

        view = self._catalogue.unchanged_view()
        return summarize(
            self._catalogue.describe_all(view),
            self.experiment_name,
            total_backups=len(self.backup_ids()),
            unreadable=[str(error.checkpoint_id) for error in view.unreadable],
            monitor=self._catalogue.monitor(view),
            monitor_warning=self._catalogue.monitor_warning(view),
        )

    def advise(self, *, policy: RetentionPolicy | None = None, progress: Step | None = None) -> Advice:
        """Return what can go, what that frees, and the command for it; what stays, and what each checkpoint costs.

        Leftovers, the trash, damage, duplicates, checkpoints that are worse than a later one in every metric, and the
        state of optimizers that no run needs. What a cleanup always keeps is never suggested, nor what is tagged or the
        newest of its run. ``policies`` tells what ``max_checkpoints`` would do, and ``policy`` if given. Nothing is
        changed. No payload is read but the structure of those that could be thinned, so damage counts that validation
        has found, or that sizes show.
        """
        check_policy(policy, "reasons")
        return StoredAdvisor(self._locations, self._lineage.in_use, policy, progress).advise()

    def why_not_loaded(self, name: str = "latest", *, progress: Progress | None = None) -> Diagnosis:
        """Return where a checkpoint is, what is wrong with it, and which command helps.

        It is looked for in the store, the trash, the quarantine, the backups and the fallback folder, and every byte of
        it is read. Nothing is raised for a name that nothing answers to: ``state`` is ``"unknown"`` then.
        """
        return diagnose(self, self._locations, name, progress)

    def metrics_history(self) -> DataFrame:
        """Return a row for each value that each metric of each checkpoint ever had, in the order of saving and of time.

        ``source`` names what measured it after the save, and is empty for the save itself.
        """
        from ckpt_lib.analysis.frames import metrics_history  # pandas, only where it is used

        return metrics_history(self._catalogue.describe_all())

    def plot_metrics(self, names: Collection[str] | None = None) -> Figure:
        """Plot the metrics, or those of ``names``, over the epoch; a notebook shows the figure that this returns.

        The best, the latest, damaged and thinned checkpoints are marked. Damage is what sizes show, and what was set
        aside in quarantine; no payload is read. Raises :class:`~ckpt_lib.errors.UnknownMetricError` for a name that no
        checkpoint has.
        """
        from ckpt_lib.analysis.plots import metrics_figure  # matplotlib, only where it is used

        checkpoints, damaged = self._with_quarantined()
        for name in names or ():
            check_metric_is_known(name, checkpoints)
        return metrics_figure(checkpoints, names=names, damaged=damaged)

    def plot_sizes(self) -> Figure:
        """Plot the size of each checkpoint over the epoch, with the marks of :meth:`plot_metrics`."""
        from ckpt_lib.analysis.plots import sizes_figure

        checkpoints, damaged = self._with_quarantined()
        return sizes_figure(checkpoints, damaged=damaged)

    def _with_quarantined(self) -> tuple[list[CheckpointMetadata], set[str]]:
        """Return all checkpoints in the order of saving, and the ids of those in quarantine among them."""
        aside = [item.checkpoint for item in self.list_quarantined()]
        checkpoints = sorted([*self._catalogue.describe_all(), *aside], key=lambda item: item.sequence)
        return checkpoints, {item.checkpoint_id for item in aside}

    def _repr_html_(self) -> str:
        from ckpt_lib.analysis.notebook import experiment_html

        try:
            checkpoints, monitor = self._catalogue.describe_all(), self._catalogue.monitor()
            warning = self._catalogue.monitor_warning()
        except CheckpointError as error:  # whoever shows a manager has not asked for its checkpoints
            return html.block(self.experiment_name, html.paragraph(str(error)))
        return experiment_html(self.experiment_name, self._locations.home.location(), checkpoints, monitor, warning)
