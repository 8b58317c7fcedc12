"""Carrying retention out: establish what is valid, plan, and delete what the plan says, checking again each time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import CheckpointError, ProtectedCheckpointError
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index, View
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, CheckpointFolder
from ckpt_lib.maintenance.validate import KnownVersions, validate
from ckpt_lib.policies.ranking import missing_metric, ranked
from ckpt_lib.policies.retention import RetentionPlan, RetentionPolicy, RetentionRecord, Status, plan_retention

_MAX_LOOKS = 64
_MIN_BATCH = 64
"""Each batch lists the folder twice, so a cleanup takes at most ``_MAX_LOOKS`` batches or so. Saves wait while a batch
holds the lock: longer in a larger folder."""
_MAX_NAMED = 10


class CleanupReport(BaseModel):
    """What a cleanup decided and did. After a dry run nothing is deleted and nothing swept."""

    model_config = ConfigDict(frozen=True)

    plan: RetentionPlan
    dry_run: bool
    deleted_ids: tuple[str, ...] = ()
    freed_bytes: int = 0
    trashed_bytes: int = 0
    """What is freed later: those of ``deleted_ids`` can be brought back until then."""
    expired_ids: tuple[str, ...] = ()
    """What had been deleted before, and whose time in the trash was over: removed for good."""
    expired_bytes: int = 0
    spared: dict[str, str] = {}
    """Ids that the plan gave up and that were found changed when their turn came."""
    swept: tuple[str, ...] = ()
    """Leftovers of dead processes that were removed."""
    backups: CleanupReport | None = None
    """What was decided about the backups, and done, if they were cleaned up as well."""
    backups_error: str | None = None
    """Why the backups were not cleaned up, though they should have been."""


class _Assessment:
    """What is known of each checkpoint's bytes; reads as few of them as the question needs, and each only once."""

    def __init__(self, folder: CheckpointFolder, view: View, known: KnownVersions | None) -> None:
        self._folder = folder
        self._manifests = {manifest.checkpoint_id: manifest for manifest in view.manifests}
        self._known = known
        self._statuses: dict[str, Status] = {
            manifest.checkpoint_id: "unverified" if view.is_complete(manifest) else "damaged"
            for manifest in view.manifests
        }

    def is_valid(self, checkpoint_id: str) -> bool:
        """Read it, if that has not been done, and remember the outcome."""
        if self._statuses[checkpoint_id] == "unverified":
            self._statuses[checkpoint_id] = "valid" if self._verify(self._manifests[checkpoint_id]) else "damaged"
        return self._statuses[checkpoint_id] == "valid"

    def _verify(self, manifest: Manifest) -> bool:
        if self._known is not None and self._known.is_valid(self._folder, manifest):
            return True
        found = validate(self._folder, manifest, manifest.experiment_name)
        if self._known is not None and (found or found.is_unloadable):
            self._known.remember(self._folder, manifest, is_loadable=found.is_valid)
        return found.is_valid

    def find_pillars(self, monitors: Collection[Monitor]) -> None:
        """Verify until the newest valid checkpoint, the newest healthy one and the best by each monitor are known."""
        manifests = list(self._manifests.values())
        healthy = [manifest for manifest in manifests if manifest.healthy]
        for candidates in (manifests[::-1], healthy[::-1], *(ranked(manifests, monitor) for monitor in monitors)):
            next((manifest for manifest in candidates if self.is_valid(manifest.checkpoint_id)), None)

    def records(self) -> list[RetentionRecord]:
        return [_record(manifest, self._statuses[name]) for name, manifest in self._manifests.items()]


def _record(manifest: Manifest, status: Status) -> RetentionRecord:
    shared = set(RetentionRecord.model_fields) - {"size_bytes", "status"}
    facts = {name: getattr(manifest, name) for name in shared}
    return RetentionRecord(**facts, size_bytes=manifest.payload.size_bytes, status=status)


def kept_if_valid(manifests: Iterable[Manifest], policy: RetentionPolicy, monitors: Collection[Monitor]) -> set[str]:
    """The ids that a cleanup of these checkpoints would keep, were they all valid."""
    records = [_record(manifest, "valid") for manifest in manifests]
    return set(plan_retention(records, policy, now=datetime.now(UTC), monitors=monitors).kept_ids)


def clean(
    folder: CheckpointFolder,
    index: Index,
    policy: RetentionPolicy,
    *,
    monitor: Monitor,
    protected: Mapping[str, str] | None = None,
    known: KnownVersions | None = None,
    dry_run: bool = False,
    grace_seconds: float = 0.0,
    trash_seconds: float = 0.0,
) -> CleanupReport:
    """Plan, then delete batch by batch. Killed at any point, every checkpoint is either whole or gone.

    When the store fails on the way, the batches deleted before stay deleted, and the error says what is gone.

    What is deleted can be brought back for ``grace_seconds``; what was deleted more than ``trash_seconds`` ago is
    removed. What any living process is loading, copying or going on from stays.

    The newest and the best valid checkpoint are verified first. With ``known``, what it has seen to be intact counts
    as verified, and the others that stay count as they are. Without, whatever stays while others go is read as well:
    a damaged one takes no other's place.
    """
    view = index.view()
    manifests = view.manifests
    # What the runs themselves took for the best stays too, whoever cleans up with whatever configuration.
    monitors = list(dict.fromkeys([monitor, *(manifest.monitor for manifest in manifests)]))
    protected = {**folder.held(), **(protected or {})}
    assessment = _Assessment(folder, view, known)
    assessment.find_pillars(monitors)
    now = datetime.now(UTC)
    while True:
        plan = plan_retention(assessment.records(), policy, now=now, monitors=monitors, protected=protected)
        plan = plan.model_copy(update={"warning": missing_metric(monitor, manifests)})
        doubtful = [item.checkpoint_id for item in plan.decisions if item.keep and item.status == "unverified"]
        if known is not None or not plan.deleted_ids or not doubtful:
            break
        for checkpoint_id in doubtful:
            assessment.is_valid(checkpoint_id)
    if dry_run:
        return CleanupReport(plan=plan, dry_run=True)
    swept = commit.sweep(folder, view.entries.values(), grace_seconds=trash_seconds)
    planned = {manifest.checkpoint_id: manifest for manifest in manifests}
    relied_on = [planned[item.checkpoint_id] for item in plan.decisions if item.keep and item.status == "valid"]
    deleted: list[Manifest] = []
    spared: dict[str, str] = {}
    # Oldest first: whatever stops this, what is left is the newer part.
    doomed_ids = plan.deleted_ids[::-1]
    batch_size = max(_MIN_BATCH, len(manifests) // _MAX_LOOKS)
    with _telling_what_is_gone(folder, doomed_ids):
        for start in range(0, len(doomed_ids), batch_size):
            gone, refused = commit.delete_all(
                folder,
                doomed_ids[start : start + batch_size],
                make_check=partial(_check_of_plan, folder, planned, relied_on),
                grace_seconds=grace_seconds,
            )
            deleted += gone
            spared |= {checkpoint_id: error.message for checkpoint_id, error in refused.items()}
    deleted_bytes = sum(manifest.payload.size_bytes for manifest in deleted)
    return CleanupReport(
        plan=plan,
        dry_run=False,
        deleted_ids=tuple(manifest.checkpoint_id for manifest in deleted),
        freed_bytes=0 if grace_seconds else deleted_bytes,
        trashed_bytes=deleted_bytes if grace_seconds else 0,
        spared=spared,
        swept=tuple(swept.leftovers),
        expired_ids=tuple(manifest.checkpoint_id for manifest in swept.expired),
        expired_bytes=sum(manifest.payload.size_bytes for manifest in swept.expired),
    )


@contextmanager
def _telling_what_is_gone(folder: CheckpointFolder, doomed_ids: Sequence[str]) -> Iterator[None]:
    """Add to an error which of the checkpoints are deleted all the same."""
    try:
        yield
    except CheckpointError as error:
        with suppress(CheckpointError):  # the store that failed may not even list them
            listed = folder.manifest_entries()
            gone = [checkpoint_id for checkpoint_id in doomed_ids if checkpoint_id not in listed]
            more = f" and {len(gone) - _MAX_NAMED} more" if len(gone) > _MAX_NAMED else ""
            named = f": {', '.join(gone[:_MAX_NAMED])}{more}" if gone else ""
            error.message = (
                f"{error.message.rstrip('.')}; of {count_of(len(doomed_ids), 'checkpoint')} to delete, "
                f"{len(gone)} {'is' if len(gone) == 1 else 'are'} gone{named}"
            )
        raise


def _check_of_plan(
    folder: CheckpointFolder, planned: Mapping[str, Manifest], relied_on: Sequence[Manifest]
) -> commit.Check:
    """Make a check that refuses a checkpoint which someone pinned, tagged, replaced or began to use since the plan.

    It refuses every checkpoint when one of the valid ones that were to stay instead has gone since.
    """
    in_use = folder.held()
    sizes_bytes = {entry.name: entry.size_bytes for entry in folder.store.entries(folder.path) if not entry.is_folder}
    kept_are_complete = all(
        kept.checkpoint_id + MANIFEST_SUFFIX in sizes_bytes
        and sizes_bytes.get(kept.payload.name) == kept.payload.size_bytes
        for kept in relied_on
    )

    def check(current: Manifest) -> CheckpointError | None:
        # Compared as text: a NaN among the metrics would make a manifest differ from itself.
        if current.model_dump_json() != planned[current.checkpoint_id].model_dump_json():
            reason = "changed since the plan was made; the next cleanup decides again"
        elif current.checkpoint_id in in_use:
            reason = in_use[current.checkpoint_id]
        elif not kept_are_complete:
            reason = "what the plan meant to keep is gone; the next cleanup decides again"
        else:
            return None
        return ProtectedCheckpointError(reason, checkpoint_id=current.checkpoint_id)

    return check
