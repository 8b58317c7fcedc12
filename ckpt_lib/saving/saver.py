"""``Saver``: from what training hands over to a committed checkpoint, at once or in the background."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.facts import Draft, check_draft
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import MAX_COUNT
from ckpt_lib.core.plain import changed_values
from ckpt_lib.core.wording import count_of, duration, listed
from ckpt_lib.errors import ConfigError, StateChangedError, UnknownMetricError
from ckpt_lib.experiment.query import MonitorRecord
from ckpt_lib.formats import DEFAULT_FORMAT, Payload, format_named
from ckpt_lib.formats.torch.gc_pause import CollectionPause
from ckpt_lib.policies.ranking import missing_metric, ranked
from ckpt_lib.policies.saving import SaveContext, SavedRecord, SavePolicy, improvements_in
from ckpt_lib.saving.background import BackgroundSaves, SaveHandle, finished, wait_until_all_copied
from ckpt_lib.saving.failover import Committer, Saved
from ckpt_lib.state.health import HealthCheck
from ckpt_lib.state.stateful import MAX_NAMES_BYTES, Stateful, capture, check_parts, kinds_of, parameter_names
from ckpt_lib.stream import HashingWriter
from ckpt_lib.stream.digests import Buffer

if TYPE_CHECKING:
    from ckpt_lib.state.staging import Snapshot, StagingBuffer

logger = logging.getLogger("ckpt_lib")

REFUSALS_TO_WARN = 100
SECONDS_TO_WARN = 1800.0
"""A run that saves nothing for so many calls, or for half an hour, would lose too much in a crash to go on unheard."""


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """The arguments of a save, not checked yet; :meth:`CheckpointManager.save_checkpoint` says what they mean."""

    model: Stateful
    epoch: int
    optimizer: Stateful | None = None
    scheduler: Stateful | None = None
    step: int = 0
    metrics: Mapping[str, Any] | None = None
    tags: Collection[str] = ()
    description: str = ""
    config: Any = None
    extra_state: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    compare_content: bool = False
    epoch_finished: bool = True
    force: bool = False
    """Save whatever the policy says."""


@dataclass(frozen=True)
class _PlannedSave:
    """A save that has been found in order and wanted."""

    draft: Draft
    payload: Payload
    health: HealthCheck | None


class Saver:
    """Saves the checkpoints of one experiment.

    ``parent_id`` is what the run goes on from: the checkpoint that it loaded or saved last.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        policy: SavePolicy,
        *,
        committer: Committer,
        monitor_record: MonitorRecord,
        before_commit: Callable[[], None],
    ) -> None:
        self._config = config
        self._policy = policy
        self._committer = committer
        self._monitor_record = monitor_record
        self._before_commit = before_commit
        self._last_save: float | None = None
        self._may_overlap = config.overlap_copy
        self.background = BackgroundSaves(config.max_pending_saves)
        self.parent_id: str | None = None
        self._run_id = uuid.uuid4().hex
        self._refusals = _Refusals()
        self._has_warned_of_metric = False
        self._has_told_of_changes = False
        self._has_told_of_older_runs = False

    def save(self, request: SaveRequest, after_save: Callable[[Manifest], None]) -> str | None:
        """Save and return the id, or ``None`` when the policy says no; call ``after_save`` with the manifest."""
        self.background.flush()  # earlier ones come first, and what became of them is told first
        planned = self._plan(request)
        if not isinstance(planned, _PlannedSave):
            return planned
        saved = self._commit(planned.draft, planned.health, planned.payload)
        if saved is None:
            return None
        _follow_up(after_save, saved)
        return saved.checkpoint_id

    def start(self, request: SaveRequest, after_save: Callable[[Manifest], None]) -> SaveHandle:
        """Copy the state, and save it in the background; ``after_save`` keeps the object that it is bound to alive."""
        self.background.raise_failure()
        if request.idempotency_key is not None and (handle := self._under_way(request.idempotency_key)):
            return handle
        with CollectionPause():  # training waits
            planned = self._plan(request)
        if not isinstance(planned, _PlannedSave):
            return finished(planned)
        handle = self.background.start(
            planned.draft,
            self._snapshot_of(planned.payload, request.optimizer),
            partial(self._commit_copy, planned.draft, planned.health),
            partial(_follow_up, after_save),
        )
        self._last_save = time.monotonic()
        return handle

    def prepare(self, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> None:
        """Take and touch the memory that saves in the background will need."""
        check_parts(model=model, optimizer=optimizer, scheduler=scheduler)
        payload = format_named(DEFAULT_FORMAT).prepare(self._capture(model, optimizer, scheduler))
        self.background.prepare(self._snapshot_of(payload, optimizer))

    def check(self, request: SaveRequest) -> None:
        """Raise what a save would raise before anything is written."""
        draft = self._checked(request)
        self._check_monitor(draft)
        context = self._context(draft)
        for rule in improvements_in(self._policy):
            rule.check(context)
        layout = format_named(DEFAULT_FORMAT).lay_out(self._payload(draft, request))
        logger.debug("a checkpoint would take %d bytes", layout.size_bytes)

    def _plan(self, request: SaveRequest) -> _PlannedSave | str | None:
        """Check everything that can be checked; what is to be saved, the id it has already, or ``None`` for a no."""
        draft = self._checked(request)
        self._check_monitor(draft)
        if earlier := self._committer.earlier(draft):
            if not request.compare_content:
                return earlier.checkpoint_id
            content = self._content(draft, self._payload(draft, request))
            if content == _content_of(earlier):
                return earlier.checkpoint_id
            draft = replace(draft, idempotency_key=f"{draft.idempotency_key}/{content}")
            if earlier := self._committer.earlier(draft):
                return earlier.checkpoint_id
        if not request.force and not self._wants(draft):
            return None
        health = HealthCheck.of(request.model, draft.monitor) if self._config.health_check else None
        return _PlannedSave(draft, self._payload(draft, request), health)

    def _content(self, draft: Draft, payload: Payload) -> str:
        """Return a digest of what a save would store. Hashing has its cost, so ask for a taken key only."""
        with HashingWriter(_Discard()) as stream:
            format_named(DEFAULT_FORMAT).lay_out(payload).write(stream)
            digests = stream.finish()
        return _content_digest(digests.sha256, draft.tags, draft.description)

    def _checked(self, request: SaveRequest) -> Draft:
        """The facts of a save, or the first error in them."""
        check_parts(model=request.model, optimizer=request.optimizer, scheduler=request.scheduler)
        if request.extra_state is not None and not isinstance(request.extra_state, Mapping):
            raise ConfigError("extra_state must be a mapping", got=type(request.extra_state).__name__)
        draft = check_draft(
            epoch=request.epoch,
            step=request.step,
            model_name=type(request.model).__name__,
            experiment_name=self._committer.home.folder.path,
            metrics=request.metrics,
            config=request.config,
            tags=request.tags,
            description=request.description,
            monitor=self._monitor_record.of(self._committer.saved()),
            idempotency_key=request.idempotency_key,
            with_environment=self._config.save_metadata,
        )
        self._tell_of_changes(request.config, draft.config)
        return replace(draft, epoch_finished=request.epoch_finished, **_facts_of(request))

    def _tell_of_changes(self, given: Any, stored: dict[str, Any]) -> None:
        """Warn once when the run's configuration is stored as something else than was given."""
        if self._has_told_of_changes or not stored:
            return
        changes = list(changed_values(given, stored, "config"))
        if changes:
            logger.warning("stored as JSON holds it: %s", listed(changes))
            self._has_told_of_changes = True

    def _payload(self, draft: Draft, request: SaveRequest) -> Payload:
        return format_named(DEFAULT_FORMAT).prepare(  # named here, because it loads torch
            {
                **self._capture(request.model, request.optimizer, request.scheduler),
                "epoch": draft.epoch,
                "step": draft.step,
                "metrics": draft.metrics,
                "config": draft.config,
                "extra_state": dict(request.extra_state or {}),
            }
        )

    def _capture(self, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> Payload:
        return capture(
            model=model,
            optimizer=optimizer if self._config.save_optimizer else None,
            scheduler=scheduler if self._config.save_scheduler else None,
        )

    def go_on_from(self, manifest: Manifest) -> None:
        """Let the next saves descend from this checkpoint, and belong to its run."""
        self.parent_id, self._run_id = manifest.checkpoint_id, manifest.run_id or self._run_id

    def _check_monitor(self, draft: Draft) -> None:
        """Warn once, or raise, when the monitored metric was never logged: no checkpoint could ever be the best."""
        if draft.monitor.metric in draft.metrics or not draft.metrics or self._has_warned_of_metric:
            return
        saved = self._committer.saved()
        this = SavedRecord(0, draft.epoch, draft.step, draft.metrics)
        if problem := missing_metric(draft.monitor, [*saved, this], is_recorded=bool(saved)):
            if self._config.on_missing_metric == "raise":
                raise UnknownMetricError(problem, got=sorted(draft.metrics))
            logger.warning(problem)
        self._has_warned_of_metric = True

    def _wants(self, draft: Draft) -> bool:
        """Ask the policy; warn once when it has refused for long, and when an older run has a better checkpoint."""
        context = self._context(draft)
        self._tell_of_older_runs(context)
        if self._policy.should_save(context):
            self._refusals = _Refusals()
            return True
        if reason := self._refusals.add(self._policy, context):
            logger.warning(reason)
        return False

    def _tell_of_older_runs(self, context: SaveContext) -> None:
        if self._has_told_of_older_runs or not any(improvements_in(self._policy)):
            return
        self._has_told_of_older_runs = True
        older = [item for item in self._committer.saved() if item.run_id != self._run_id]
        if best := ranked(older, context.monitor):
            logger.warning(
                "this is a new run, measured by its own checkpoints; the best of earlier runs, %s with %s %s, stands",
                best[0].checkpoint_id,
                context.monitor.metric,
                best[0].metrics[context.monitor.metric],
            )

    def _context(self, draft: Draft) -> SaveContext:
        pending = tuple(  # as if saved, after all that are there; asked first, so that none is missed in between
            SavedRecord(
                MAX_COUNT + number,
                handle.draft.epoch,
                handle.draft.step,
                handle.draft.metrics,
                healthy=not self._config.health_check,  # else not known yet: it is nothing to be measured by
            )
            for number, handle in enumerate(self.background.under_way)
            if handle.draft is not None
        )
        manifests = self._committer.saved()
        saved = tuple(
            SavedRecord(manifest.sequence, manifest.epoch, manifest.step, manifest.metrics, healthy=manifest.healthy)
            for manifest in manifests
            if manifest.run_id == self._run_id
        )
        elapsed = None if self._last_save is None else time.monotonic() - self._last_save
        return SaveContext(
            draft.epoch,
            draft.step,
            draft.metrics,
            saved + pending,
            elapsed,
            draft.monitor,
            is_monitor_recorded=bool(manifests),
        )

    def _under_way(self, idempotency_key: str) -> SaveHandle | None:
        for handle in self.background.under_way:
            if handle.draft is not None and handle.draft.idempotency_key == idempotency_key:
                return handle
        return None

    def _snapshot_of(self, payload: Payload, optimizer: Stateful | None) -> Callable[[StagingBuffer], Snapshot]:
        """What copies ``payload`` into a buffer, with ``overlap_copy`` leaving for later what the optimizer's next step
        waits for.
        """
        from ckpt_lib.state.overlap import call_before_steps, unchanged_until_step
        from ckpt_lib.state.staging import Snapshot

        def snapshot_into(buffer: StagingBuffer) -> Snapshot:
            with CollectionPause():
                deferred = unchanged_until_step(optimizer) if self._may_overlap else set()
                if deferred:
                    call_before_steps(wait_until_all_copied)
                return Snapshot(payload, buffer, deferred)

        return snapshot_into

    def _commit_copy(self, draft: Draft, health: HealthCheck | None, snapshot: Snapshot) -> Saved | None:
        try:
            payload = snapshot.payload()
        except StateChangedError:
            self._may_overlap = False  # the loop does what it said that it would not
            raise
        return self._commit(draft, health, payload)

    def _commit(self, draft: Draft, health: HealthCheck | None, payload: Payload) -> Saved | None:
        self._before_commit()
        draft = replace(draft, parent_id=self.parent_id, run_id=self._run_id)
        if health:
            draft = replace(draft, unhealthy=health.find_fault(payload, draft.metrics))
        saved = self._committer.save(draft, format_named(DEFAULT_FORMAT), payload)
        if saved is not None:
            self.parent_id = saved.checkpoint_id
            if draft.unhealthy:
                logger.warning("%s is unhealthy: %s", saved.checkpoint_id, draft.unhealthy)
        self._last_save = time.monotonic()  # after a failure, too: the policy says when to try again
        return saved


def _follow_up(after_save: Callable[[Manifest], None], saved: Saved) -> None:
    if not saved.is_stranded:
        after_save(saved.manifest)


def _facts_of(request: SaveRequest) -> dict[str, Any]:
    """What a restore compares: the kinds of objects, and which parameter the optimizer holds in which place."""
    kinds = kinds_of(model=request.model, optimizer=request.optimizer, scheduler=request.scheduler)
    names = None if request.optimizer is None else parameter_names(request.optimizer, request.model)
    if names and sum(len(name) for group in names for name in group) > MAX_NAMES_BYTES:
        names = None
    return {"kinds": kinds, "parameter_names": names}


class _Discard:
    """A sink for bytes of which only the digest is wanted."""

    def write(self, data: Buffer, /) -> int:
        return memoryview(data).nbytes


def _content_of(manifest: Manifest) -> str:
    return _content_digest(manifest.payload.sha256, manifest.tags, manifest.description)


def _content_digest(payload_sha256: str, tags: Sequence[str], description: str) -> str:
    """Equal digests mean the same payload, and the same labels; metrics and configuration are in the payload."""
    return hashlib.sha256(json.dumps([payload_sha256, list(tags), description]).encode()).hexdigest()[:32]


class _Refusals:
    """How often and for how long a policy has said no without a yes in between."""

    def __init__(self) -> None:
        self._count = 0
        self._since = time.monotonic()
        self._has_warned = False

    def add(self, policy: SavePolicy, context: SaveContext) -> str | None:
        """Note a refusal; return the warning that is due, once, when nothing has been saved for long."""
        self._count += 1
        seconds = time.monotonic() - self._since
        if self._has_warned or (self._count < REFUSALS_TO_WARN and seconds < SECONDS_TO_WARN):
            return None
        self._has_warned = True
        best = ranked(context.saved, context.monitor)
        measure = f"; the best {context.monitor.metric} so far is {best[0].metrics[context.monitor.metric]}"
        return (
            f"nothing has been saved for {count_of(self._count, 'call')} and {duration(seconds)}: {policy!r} refuses "
            f"epoch {context.epoch}, step {context.step}, {dict(context.metrics)}{measure if best else ''}. "
            "save_checkpoint(force=True) saves all the same."
        )
