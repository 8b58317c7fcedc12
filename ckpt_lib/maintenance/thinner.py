"""``Thinner``: thins checkpoints one by one, as a person asks or as a cleanup has planned."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    ProtectedCheckpointError,
    StoreError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.experiment.deletion import refuse_pinned
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.replacement import Check, remove_obsolete
from ckpt_lib.experiment.view import View
from ckpt_lib.maintenance.thin import droppable, thin, unthin
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.policies.retention import RetentionPlan


@dataclass
class Thinning:
    """The outcome of thinning what a cleanup has planned."""

    thinned_ids: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    trashed_bytes: int = 0
    refused: dict[str, CheckpointError] = field(default_factory=dict)


class Thinner:
    """Thins the checkpoints of an experiment: all but the newest ``after`` of those that a cleanup keeps, if given."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self._lean: set[str] = set()
        """The digests of payloads that have nothing to drop."""

    def has_work(self, view: View) -> bool:
        """Tell whether a cleanup may find something to thin."""
        if self.after is None:
            return False
        return sum(item.thinned is None and item.sha256 not in self._lean for item in view.usable) > self.after

    def without_thin_ones(self, experiment: Experiment, view: View, plan: RetentionPlan) -> RetentionPlan:
        """Return the plan without thinning what has nothing to drop, or cannot be looked at."""
        planned = {manifest.checkpoint_id: manifest for manifest in view.usable}
        decisions = tuple(
            item.model_copy(update={"thin": item.thin and self._has_something(experiment, planned[item.checkpoint_id])})
            for item in plan.decisions
        )
        return plan.model_copy(update={"decisions": decisions})

    def _has_something(self, experiment: Experiment, manifest: Manifest) -> bool:
        if manifest.is_in_place or manifest.sha256 in self._lean:
            return False
        try:
            has_something = bool(droppable(experiment, manifest))
        except StoreUnavailableError:
            raise
        except CheckpointError:  # deleted meanwhile, or damaged, which validation reports
            return False
        if not has_something:
            self._lean.add(manifest.sha256)
        return has_something

    def thin(
        self, experiment: Experiment, checkpoint_id: str, known: KnownVersions, check: Check = refuse_pinned
    ) -> Manifest:
        """Thin one checkpoint and tell of it; see :func:`ckpt_lib.maintenance.thin.thin`."""
        before = experiment.get(checkpoint_id)
        manifest = thin(experiment, checkpoint_id, check=check)
        if before.thinned is None and manifest.thinned is not None:
            known.remember(experiment, manifest, is_loadable=True)
            freed_bytes = before.size_bytes - manifest.size_bytes
            message = f"thinned {checkpoint_id}: {freed_bytes} bytes less"
            experiment.events.emit(
                "checkpoint.thinned", message, checkpoint=manifest.describe(), freed_bytes=freed_bytes
            )
        return manifest

    def unthin(self, experiment: Experiment, checkpoint_id: str, known: KnownVersions) -> Manifest:
        """Bring back what one checkpoint lost, and tell of it; see :func:`ckpt_lib.maintenance.thin.unthin`."""
        before = experiment.get(checkpoint_id)
        manifest = unthin(experiment, checkpoint_id)
        if before.thinned is not None and manifest.thinned is None:
            known.remember(experiment, manifest)
            message = f"{checkpoint_id} has all of its state again"
            experiment.events.emit("checkpoint.unthinned", message, checkpoint=manifest.describe())
        return manifest

    def carry_out(
        self, experiment: Experiment, plan: RetentionPlan, check: Check, known: KnownVersions, *, for_good: bool
    ) -> Thinning:
        """Thin what a plan says, oldest first; ``for_good`` removes what they lose at once.

        None is thinned once the newest valid checkpoint that keeps everything has gone. An error about one of them
        spares that one; an error of the store spares the others, too.
        """
        outcome = Thinning()
        kept_whole = [
            item.checkpoint_id for item in plan.decisions if item.keep and not item.thin and item.status == "valid"
        ]

        def may_thin(manifest: Manifest) -> CheckpointError | None:
            return check(manifest) or self._refuse_alone(experiment, kept_whole, manifest)

        for checkpoint_id in plan.thinned_ids[::-1]:
            try:
                size_bytes = experiment.get(checkpoint_id).size_bytes
                manifest = self.thin(experiment, checkpoint_id, known, may_thin)
            except CheckpointError as error:
                outcome.refused[checkpoint_id] = error
                if isinstance(error, StoreError) and not isinstance(error, VersionConflictError):
                    break
                continue
            outcome.thinned_ids.append(checkpoint_id)
            outcome.trashed_bytes += size_bytes - manifest.size_bytes
        if for_good and outcome.thinned_ids:
            self._remove(experiment, outcome, known)
        return outcome

    @staticmethod
    def _refuse_alone(experiment: Experiment, kept_whole: list[str], manifest: Manifest) -> CheckpointError | None:
        for checkpoint_id in kept_whole:
            record = experiment.read(checkpoint_id).record
            if isinstance(record, Manifest) and record.is_valid and record.thinned is None:
                return None
        return ProtectedCheckpointError(
            "no valid checkpoint with all of its state is left that a run could go on from",
            checkpoint_id=manifest.checkpoint_id,
        )

    @staticmethod
    def _remove(experiment: Experiment, outcome: Thinning, known: KnownVersions) -> None:
        thinned = set(outcome.thinned_ids)
        remove_obsolete(
            experiment,
            grace_seconds=0,
            only=lambda item: item.checkpoint_id in thinned,
            is_sound=partial(known.verify, experiment),
        )
        manifests = [item for item in experiment.index.view().manifests if item.checkpoint_id in thinned]
        left_bytes = sum(payload.size_bytes for item in manifests for payload in item.obsolete)
        outcome.freed_bytes, outcome.trashed_bytes = outcome.trashed_bytes - left_bytes, left_bytes
