"""Tools that only read: experiments, checkpoints, comparisons, validation, plans."""

from __future__ import annotations

import time
from typing import Annotated, Any

import anyio.from_thread
from mcp.server.mcpserver import Context
from pydantic import Field

from ckpt_lib.core.monitor import Mode
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointError
from ckpt_lib.experiment.overviews import describe_experiments, find_checkpoints
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.places import Place
from ckpt_lib.maintenance.repair import Remedy
from ckpt_lib.maintenance.validate import ValidationReport
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.mcp.answers import (
    AdviceAnswer,
    BestAnswer,
    CheckpointAnswer,
    CheckpointList,
    ComparisonAnswer,
    DetailedCheckpoint,
    ExperimentAnswer,
    ExperimentList,
    PlanAnswer,
    SummaryAnswer,
    ValidationAnswer,
    fitting,
)
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.reading import MOST_AFTER
from ckpt_lib.web.rules import MaxCheckpoints, rules_of

Experiment = Annotated[str, Field(max_length=100, description="The name of an experiment.")]
Name = Annotated[
    str,
    Field(
        max_length=200, description="An id, latest, best, a tag, or one before these, such as latest~2; or epoch_12."
    ),
]
_SECONDS_BETWEEN_PROGRESS = 1.0


class ReadingTools:
    """The tools that only read a store. Threads may share them."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers

    def list_experiments(
        self, search: Annotated[str, Field(max_length=100, description="Only names that hold this text.")] = ""
    ) -> ExperimentList:
        """List the experiments of the store, with the best and the latest checkpoint of each."""
        found = [
            _experiment(item)
            for item in describe_experiments(self._managers.config)
            if search.casefold() in item.experiment_name.casefold()
        ]
        kept = fitting(found)
        return ExperimentList(items=kept, left_out=len(found) - len(kept))

    def find_checkpoints(
        self,
        *,
        experiment: Annotated[
            str | None, Field(max_length=100, description="The name of one experiment; null for all of them.")
        ] = None,
        where: Annotated[
            tuple[str, ...], Field(max_length=20, description='Conditions that all hold, such as "val_loss<0.3".')
        ] = (),
        tags: Annotated[tuple[str, ...], Field(max_length=20, description="Tags that a checkpoint has, all.")] = (),
        search: Annotated[str, Field(max_length=200, description="A text in id, tags or description.")] = "",
        sort_by: Annotated[
            str, Field(max_length=100, description="sequence, timestamp, epoch, step, file_size, or a metric.")
        ] = "sequence",
        descending: Annotated[bool, Field(description="The largest first; with sequence, the newest first.")] = False,
        limit: Annotated[int, Field(ge=1, le=50)] = 10,
        after: Annotated[
            str | None, Field(max_length=MOST_AFTER, description="The `next` of the answer before.")
        ] = None,
    ) -> CheckpointList:
        """Find checkpoints by conditions on metrics, epoch, step, size and time, in one experiment or in all."""
        asked: dict[str, Any] = {
            "where": where,
            "tags": tags,
            "search": search,
            "sort_by": sort_by,
            "descending": descending,
            "limit": limit + 1,
            "after": after,
        }
        if experiment is None:
            found = find_checkpoints(self._managers.config, **asked)
        else:
            found = self._managers.of(experiment).list_checkpoints(**asked)
        kept = fitting([CheckpointAnswer.of(item) for item in found[:limit]])
        if len(kept) == len(found):
            return CheckpointList(items=kept)
        place = Place.of(found[len(kept) - 1], sort_by, in_all=experiment is None)
        return CheckpointList(items=kept, next=str(place))

    def get_checkpoint(self, experiment: Experiment, name: Name = "latest") -> DetailedCheckpoint:
        """Show one checkpoint: metrics, tags, description, configuration, digest."""
        return DetailedCheckpoint.about(self._managers.of(experiment).get_checkpoint(name))

    def best_checkpoint(
        self,
        context: Context[Any, Any],
        *,
        experiment: Experiment,
        metric: Annotated[
            str | None, Field(max_length=100, description="Null for the one that the experiment monitors.")
        ] = None,
        mode: Annotated[
            Mode | None, Field(description="Which value is better; needed for another metric than the monitored one.")
        ] = None,
        validate_it: Annotated[
            bool, Field(description="Also read every byte of it, to tell whether it is sound; that takes time.")
        ] = False,
    ) -> BestAnswer:
        """Tell which checkpoint of an experiment is the best and, with `validate_it`, whether it is sound."""
        manager = self._managers.of(experiment)
        best, monitor = manager.get_best_checkpoint(metric, mode), manager.monitor
        return BestAnswer(
            metric=metric or monitor.metric,
            mode=mode or monitor.mode,
            checkpoint=None if best is None else CheckpointAnswer.of(best),
            remark=(manager.monitor_warning or "no healthy checkpoint has a finite value") if best is None else None,
            validation=_validated(manager, best.checkpoint_id, context) if best is not None and validate_it else None,
        )

    def validate_checkpoint(
        self, context: Context[Any, Any], experiment: Experiment, name: Name = "latest"
    ) -> ValidationAnswer:
        """Read every byte of a checkpoint and tell whether it is sound, and if not, what is damaged and what helps."""
        manager = self._managers.of(experiment)
        checkpoint_id = name if is_checkpoint_id(name) else manager.get_checkpoint(name).checkpoint_id
        return _validated(manager, checkpoint_id, context)

    def compare_checkpoints(
        self,
        experiment: Experiment,
        names: Annotated[tuple[Name, ...], Field(min_length=2, max_length=6)],
        metrics: Annotated[
            tuple[str, ...] | None, Field(max_length=50, description="Only these metrics; null for all.")
        ] = None,
    ) -> ComparisonAnswer:
        """Set two to six checkpoints side by side: metrics, tags, facts, and what differs in the configuration."""
        return ComparisonAnswer.of(self._managers.of(experiment).compare_checkpoints(names, metrics=metrics))

    def summarize_experiment(self, experiment: Experiment) -> SummaryAnswer:
        """Summarise an experiment: totals, the best and the latest, first, last and extreme values of each metric."""
        return SummaryAnswer.of(self._managers.of(experiment).get_checkpoint_summary())

    def preview_cleanup(
        self,
        experiment: Experiment,
        policy: Annotated[
            dict[str, Any] | None,
            Field(description='Such as {"kind": "newest", "count": 5}; null for the one that is configured.'),
        ] = None,
        max_checkpoints: MaxCheckpoints = None,
    ) -> PlanAnswer:
        """Tell what a cleanup by a retention policy would delete, what that frees, and why. Nothing is deleted."""
        manager = self._managers.of(experiment)
        rules = rules_of(manager, max_checkpoints, policy)
        report = manager.cleanup_checkpoints(policy=rules, dry_run=True)
        return PlanAnswer.of(report, "as configured" if rules is None else str(rules))

    def advise(self, experiment: Experiment) -> AdviceAnswer:
        """Tell what can go from an experiment, what that frees, how sure that is, and by which command it goes."""
        return AdviceAnswer.of(self._managers.of(experiment).advise())


def _experiment(found: ExperimentOverview) -> ExperimentAnswer:
    return ExperimentAnswer(**{name: getattr(found, name) for name in ExperimentAnswer.model_fields})


def _validated(manager: CheckpointManager, checkpoint_id: str, context: Context[Any, Any]) -> ValidationAnswer:
    """Validate a checkpoint, telling the client how far it is; a client that gives up ends it at its next step."""
    done_bytes, told_at = 0, time.monotonic()

    def progress(count: int) -> None:
        nonlocal done_bytes, told_at
        done_bytes += count
        anyio.from_thread.check_cancelled()
        if time.monotonic() - told_at >= _SECONDS_BETWEEN_PROGRESS:
            told_at = time.monotonic()
            anyio.from_thread.run(context.report_progress, done_bytes, None, "bytes read")

    report = manager.validate_checkpoint(checkpoint_id, progress=progress)
    return ValidationAnswer.of(report, None if report else _what_helps(manager, report))


def _what_helps(manager: CheckpointManager, report: ValidationReport) -> Remedy | None:
    try:
        return manager.remedy(report)
    except CheckpointError:  # its bytes are sound, or its backup cannot be asked: the findings say what there is to say
        return None
