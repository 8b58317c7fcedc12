"""Carrying retention out: establish what is valid, plan, and delete what the plan says, checking again each time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core import html
from ckpt_lib.core.manifest import Manifest, ObsoletePayload
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import count_of, listed, shown, size_text
from ckpt_lib.errors import CheckpointError, ProtectedCheckpointError
from ckpt_lib.events import Events
from ckpt_lib.experiment.deletion import Check, Deletion, delete_all, purge, refuse_pinned
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.replacement import remove_obsolete
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.experiment.view import View
from ckpt_lib.maintenance.thinner import Thinner, Thinning
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.policies.ranking import missing_metric, ranked
from ckpt_lib.policies.retention import RetentionPlan, RetentionPolicy, RetentionRecord, Status, plan_retention

_MAX_LOOKS = 10
_MIN_BATCH = 64
"""Each batch lists the folder, and reads what the plan relies on, so a cleanup takes ``_MAX_LOOKS`` batches or so."""
_MAX_NAMED = 10
Protects = Callable[[Collection[str]], Mapping[str, str]]
"""Returns, of some ids, those that stay, with the reason."""


class CleanupReport(BaseModel):
    """The plan and outcome of a cleanup. After a dry run nothing is deleted and nothing swept."""

    model_config = ConfigDict(frozen=True)

    plan: RetentionPlan
    dry_run: bool
    deleted_ids: tuple[str, ...] = ()
    thinned_ids: tuple[str, ...] = ()
    """The checkpoints that lost all but their weights."""
    freed_bytes: int = 0
    trashed_bytes: int = 0
    """The bytes to be freed later: until then ``deleted_ids``, and what ``thinned_ids`` lost, can be brought back."""
    expired_ids: tuple[str, ...] = ()
    """The checkpoints deleted earlier whose time in the trash was over: removed for good."""
    expired_bytes: int = 0
    """Their bytes, and those of what had been thinned away so long ago."""
    spared: dict[str, str] = {}
    """Ids that the plan gave up, or meant to thin, and why they were left as they are."""
    swept: tuple[str, ...] = ()
    """Leftovers of dead processes that were removed."""
    backups: CleanupReport | None = None
    """The report on the backups, if they were cleaned up as well."""
    backups_error: str | None = None
    """Why the backups were not cleaned up, though they should have been."""

    @property
    def fingerprint(self) -> str:
        """Stands for what the plan deletes and thins, of the backups as well: to carry out just what was shown."""
        return self.plan.fingerprint + (f".{self.backups.plan.fingerprint}" if self.backups else "")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "dry_run", self.dry_run
        yield "plan", self.plan
        yield "deleted", len(self.deleted_ids)
        yield "freed", size_text(self.freed_bytes)
        yield "spared", len(self.spared)

    def _repr_html_(self) -> str:
        done = f"{count_of(len(self.deleted_ids), 'checkpoint')} deleted, {size_text(self.freed_bytes)} freed"
        later = f", {size_text(self.trashed_bytes)} later" if self.trashed_bytes else ""
        return html.block(
            "Cleanup",
            html.table(("spared", "why"), list(self.spared.items())),
            html.paragraph(self.backups_error or ""),
            self.plan._repr_html_(),
            detail="only planned: nothing is deleted" if self.dry_run else done + later,
        )


class _Assessment:
    """The status of each checkpoint's bytes; reads as few of them as the question needs, and each only once."""

    def __init__(self, experiment: Experiment, view: View, known: KnownVersions) -> None:
        self._experiment = experiment
        self._manifests = {manifest.checkpoint_id: manifest for manifest in view.usable}
        self._known = known
        self._statuses: dict[str, Status] = {
            manifest.checkpoint_id: "unverified" if view.is_complete(manifest) else "damaged"
            for manifest in view.usable
        }

    def is_valid(self, checkpoint_id: str) -> bool:
        """Read it, if that has not been done, and remember the outcome."""
        if self._statuses[checkpoint_id] == "unverified":
            is_valid = self._known.verify(self._experiment, self._manifests[checkpoint_id])
            self._statuses[checkpoint_id] = "valid" if is_valid else "damaged"
        return self._statuses[checkpoint_id] == "valid"

    def verify_newest_and_best(self, monitors: Collection[Monitor]) -> None:
        """Verify until the newest valid checkpoint, the newest healthy one and the best by each monitor are known."""
        manifests = list(self._manifests.values())
        healthy = [manifest for manifest in manifests if manifest.healthy]
        full = [manifest for manifest in healthy or manifests if manifest.thinned is None]
        best = [ranked(manifests, monitor) for monitor in monitors]
        for candidates in (manifests[::-1], healthy[::-1], full[::-1], *best):
            next((manifest for manifest in candidates if self.is_valid(manifest.checkpoint_id)), None)

    def records(self) -> list[RetentionRecord]:
        return [record_of(manifest, self._statuses[name]) for name, manifest in self._manifests.items()]


def record_of(manifest: Manifest, status: Status) -> RetentionRecord:
    """Return a checkpoint as a plan sees it."""
    shared = set(RetentionRecord.model_fields) - {"size_bytes", "status", "thinned"}
    facts = {name: getattr(manifest, name) for name in shared}
    is_thinned = manifest.thinned is not None
    return RetentionRecord(**facts, size_bytes=manifest.removable_bytes, status=status, thinned=is_thinned)


def kept_if_valid(manifests: Iterable[Manifest], policy: RetentionPolicy, monitors: Collection[Monitor]) -> set[str]:
    """Return the ids that a cleanup of these checkpoints would keep, were they all valid."""
    records = [record_of(manifest, "valid") for manifest in manifests]
    return set(plan_retention(records, policy, now=datetime.now(UTC), monitors=monitors).kept_ids)


def clean(
    experiment: Experiment,
    policy: RetentionPolicy,
    *,
    monitor: Monitor,
    protected: Mapping[str, str] | None = None,
    protects: Protects = lambda _: {},
    known: KnownVersions | None = None,
    dry_run: bool = False,
    grace_seconds: float = 0.0,
    trash_seconds: float = 0.0,
    thinner: Thinner | None = None,
    fingerprint: str | None = None,
) -> CleanupReport:
    """Plan, then delete batch by batch, and then thin one by one what the ``thinner`` says.

    A plan of another ``fingerprint``, if one is given, raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` before
    anything is changed.

    Killed at any point, every checkpoint is either whole or deleted.

    When the store fails on the way, the batches deleted before stay deleted, and the error says what is gone.

    What is deleted can be brought back for ``grace_seconds``; what was deleted more than ``trash_seconds`` ago is
    removed.

    The newest and the best valid checkpoint are verified first. With ``known``, what it has seen to be intact counts
    as verified, and the others that stay count as they are. Without, whatever stays while others go is read as well:
    a damaged one takes no other's place. What is ``protected`` stays, and what ``protects`` has a reason for: it is
    asked of what would go. The experiment's events tell of each that is deleted.
    """
    view = experiment.index.view()
    verified = known or KnownVersions()
    assessment = _Assessment(experiment, view, verified)
    thin_after = thinner.after if thinner else None
    plan = _plan(
        assessment,
        view,
        policy,
        monitor=monitor,
        protected=protected,
        protects=protects,
        reads_all=known is None,
        thin_after=thin_after,
    )
    if thinner:
        plan = thinner.without_thin_ones(experiment, view, plan)
    if fingerprint is not None and fingerprint != plan.fingerprint:
        raise _changed_plan(plan, fingerprint)
    if dry_run:
        return CleanupReport(plan=plan, dry_run=True)
    swept = sweep(experiment)
    expired = expire(experiment, trash_seconds, verified)
    # Where readers lose what they have open, files stay for as long as the trash keeps them.
    for_good = not grace_seconds and (not trash_seconds or experiment.store.capabilities.memory_map)
    outcome = _delete(experiment, view, plan, for_good=for_good)
    thinning = Thinning()
    if thinner and plan.thinned_ids:
        check = _check_of_plan(experiment, *_planned(view, plan))
        thinning = thinner.carry_out(experiment, plan, check, verified, for_good=for_good)
    return CleanupReport(
        plan=plan,
        dry_run=False,
        deleted_ids=tuple(manifest.checkpoint_id for manifest in outcome.deleted),
        thinned_ids=tuple(thinning.thinned_ids),
        freed_bytes=_size_bytes(outcome.freed) + thinning.freed_bytes,
        trashed_bytes=_size_bytes(outcome.deleted) - _size_bytes(outcome.freed) + thinning.trashed_bytes,
        spared={name: error.message for name, error in (outcome.refused | thinning.refused).items()},
        swept=(*swept.claims, *swept.files),
        expired_ids=tuple(manifest.checkpoint_id for manifest in expired.checkpoints),
        expired_bytes=_size_bytes(expired.checkpoints) + sum(item.size_bytes for item in expired.payloads),
    )


def _changed_plan(plan: RetentionPlan, fingerprint: str) -> ProtectedCheckpointError:
    """Return the error for a plan that is another by now, or once all that stays was read and some was damaged."""
    damaged = [item.checkpoint_id for item in plan.decisions if item.status == "damaged"]
    if damaged:
        hint = f"These are damaged: {listed(damaged)}. Repair or delete them, and look at the plan again."
    else:
        hint = "Checkpoints were saved, changed or deleted since. Look at the plan as it is now."
    return ProtectedCheckpointError(
        "the plan is no longer the one that was shown; nothing was deleted",
        expected=f"the fingerprint {shown(fingerprint)}",
        got=plan.fingerprint,
        hint=hint,
    )


def _plan(
    assessment: _Assessment,
    view: View,
    policy: RetentionPolicy,
    *,
    monitor: Monitor,
    protected: Mapping[str, str] | None,
    protects: Protects,
    reads_all: bool,
    thin_after: int | None,
) -> RetentionPlan:
    manifests = view.usable
    # What the runs themselves took for the best stays too, whoever cleans up with whatever configuration.
    monitors = list(dict.fromkeys([monitor, *(manifest.monitor for manifest in manifests)]))
    assessment.verify_newest_and_best(monitors)
    now = datetime.now(UTC)  # a dry run writes nothing; delete_all asks the store's clock
    protected = {**in_use(manifests, now), **(protected or {})}
    asked: set[str] = set()
    while True:
        plan = plan_retention(
            assessment.records(), policy, now=now, monitors=monitors, protected=protected, thin_after=thin_after
        )
        doomed = set(plan.deleted_ids) - asked
        asked |= doomed
        if doomed and (reasons := protects(doomed)):
            protected |= reasons
            continue
        doubtful = [item.checkpoint_id for item in plan.decisions if item.keep and item.status == "unverified"]
        if not reads_all or not plan.deleted_ids or not doubtful:
            return plan.model_copy(update={"warning": missing_metric(monitor, manifests)})
        for checkpoint_id in doubtful:
            assessment.is_valid(checkpoint_id)


def in_use(manifests: Iterable[Manifest], now: datetime) -> dict[str, str]:
    """Map those that a run has just resumed from to the reason to keep them."""
    return {
        manifest.checkpoint_id: "in use: a run has resumed from it"
        for manifest in manifests
        if manifest.in_use_until and manifest.in_use_until > now
    }


@dataclass
class Expired:
    """What was removed because its time in the trash was over."""

    checkpoints: list[Manifest] = field(default_factory=list)
    payloads: list[ObsoletePayload] = field(default_factory=list)
    """What checkpoints held before they were thinned, or thinned no more."""


def expire(experiment: Experiment, trash_seconds: float, known: KnownVersions) -> Expired:
    """Remove the files of what was deleted more than ``trash_seconds`` ago, and of what somebody began to remove.

    So do the payloads in whose place others came so long ago. Nothing goes, and nothing comes back by itself, when
    nothing is live: a person has deleted the last one. When all that is live is damaged, the newest sound one comes
    back.
    """
    view = experiment.index.view()
    expired, is_sound = Expired(), partial(known.verify, experiment)
    if view.valid and (view.deleted or view.purging):
        expired.checkpoints = purge(experiment, grace_seconds=trash_seconds, is_sound=is_sound)
    if any(item.obsolete for item in view.valid):
        expired.payloads = remove_obsolete(experiment, grace_seconds=trash_seconds, is_sound=is_sound)
    return expired


def _size_bytes(manifests: Iterable[Manifest]) -> int:
    return sum(manifest.removable_bytes for manifest in manifests)


def _delete(experiment: Experiment, view: View, plan: RetentionPlan, *, for_good: bool) -> Deletion:
    """Delete what the plan gives up."""
    planned, relied_on = _planned(view, plan)
    deletion = Deletion()
    # Oldest first: whatever stops this, what is left is the newer part.
    doomed_ids = plan.deleted_ids[::-1]
    batch_size = max(_MIN_BATCH, len(planned) // _MAX_LOOKS)
    with _telling_what_is_gone(experiment, doomed_ids):
        for start in range(0, len(doomed_ids), batch_size):
            outcome = delete_all(
                experiment,
                doomed_ids[start : start + batch_size],
                relied_on=[manifest.checkpoint_id for manifest in relied_on],
                check=_check_of_plan(experiment, planned, relied_on),
                for_good=for_good,
            )
            tell_of_deletion(experiment.events, outcome.deleted)
            deletion.deleted += outcome.deleted
            deletion.freed += outcome.freed
            deletion.refused |= outcome.refused
    return deletion


def _planned(view: View, plan: RetentionPlan) -> tuple[dict[str, Manifest], list[Manifest]]:
    """Return what was planned for, by id, and what the plan relies on."""
    planned = {manifest.checkpoint_id: manifest for manifest in view.usable}
    return planned, [planned[item.checkpoint_id] for item in plan.decisions if item.keep and item.status == "valid"]


def tell_of_deletion(events: Events, manifests: Iterable[Manifest]) -> None:
    """Emit an event for each checkpoint that was deleted."""
    for manifest in manifests:
        events.emit("checkpoint.deleted", f"deleted {manifest.checkpoint_id}", checkpoint=manifest.describe())


@contextmanager
def _telling_what_is_gone(experiment: Experiment, doomed_ids: Sequence[str]) -> Iterator[None]:
    """Add to an error which of the checkpoints are deleted all the same."""
    try:
        yield
    except CheckpointError as error:
        with suppress(CheckpointError):  # the store that failed may not even list them
            listed = {manifest.checkpoint_id for manifest in experiment.index.manifests()}
            gone = [checkpoint_id for checkpoint_id in doomed_ids if checkpoint_id not in listed]
            more = f" and {len(gone) - _MAX_NAMED} more" if len(gone) > _MAX_NAMED else ""
            named = f": {', '.join(gone[:_MAX_NAMED])}{more}" if gone else ""
            error.message = (
                f"{error.message.rstrip('.')}; of {count_of(len(doomed_ids), 'checkpoint')} to delete, "
                f"{len(gone)} {'is' if len(gone) == 1 else 'are'} gone{named}"
            )
        raise


def _check_of_plan(experiment: Experiment, planned: Mapping[str, Manifest], relied_on: Sequence[Manifest]) -> Check:
    """Make a check that refuses a checkpoint which someone pinned, tagged or replaced since the plan.

    It refuses every checkpoint when one of the valid ones that were to stay instead has lost its files since.
    """
    view = experiment.index.view()
    kept_are_complete = all(view.is_complete(kept) for kept in relied_on)

    def check(current: Manifest) -> CheckpointError | None:
        if error := refuse_pinned(current):
            return error
        known = planned[current.checkpoint_id]
        if current is not known and _facts(current) != _facts(known):
            reason = "changed since the plan was made; the next cleanup decides again"
        elif not kept_are_complete:
            reason = "what the plan meant to keep is gone; the next cleanup decides again"
        else:
            return None
        return ProtectedCheckpointError(reason, checkpoint_id=current.checkpoint_id)

    return check


def _facts(manifest: Manifest) -> str:
    """Return what a plan goes by, as text: a NaN among the metrics would make a manifest differ from itself."""
    unimportant = {"revision", "state", "next", "obsolete"}
    return json.dumps(manifest.model_dump(mode="json", exclude=unimportant), sort_keys=True)
