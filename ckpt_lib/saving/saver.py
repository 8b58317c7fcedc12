"""``Saver``: the steps from what training hands over to a committed checkpoint, at once or in the background.

Check what was given, ask the save policy, write with failover, then back up and clean up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.core.manifest import Manifest, payload_sha256
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.payload_keys import DATA_KEY, EXTRA_STATE_KEY, RESUME_ONLY_KEYS, RNG_KEY
from ckpt_lib.core.plain import changed_values
from ckpt_lib.core.wording import listed
from ckpt_lib.errors import CheckpointError, ConfigError, StateChangedError
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.stored_payload import StoredPayload, format_of
from ckpt_lib.formats import (
    Format,
    Payload,
    check_compression,
    check_format_name,
    compressed_format,
    format_named,
)
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.policies.saving import SavePolicy
from ckpt_lib.saving.background import BackgroundSaves, SaveHandle, finished, wait_until_all_copied
from ckpt_lib.saving.check_report import CheckReport, report_of
from ckpt_lib.saving.failover import FailoverWriter, Saved
from ckpt_lib.saving.last_outcome import LastOutcome
from ckpt_lib.saving.policy_check import PolicyCheck
from ckpt_lib.saving.post_save import PostSave
from ckpt_lib.saving.reconciler import Reconciler
from ckpt_lib.saving.request import Asked, ObjectState, SaveRequest, request_from, spared
from ckpt_lib.state.health import HealthCheck
from ckpt_lib.state.stateful import Stateful
from ckpt_lib.state.training_state import is_mid_epoch
from ckpt_lib.stream import HashingWriter
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.mirror import PATIENCE_SECONDS
from ckpt_lib.stream.threads import Helper

if TYPE_CHECKING:
    from ckpt_lib.state.staging import Snapshot, StagingBuffer


@dataclass(frozen=True)
class _PlannedSave:
    """A save that has been found in order and wanted."""

    facts: CheckpointFacts
    payload: Payload
    health: HealthCheck | None


class Saver:
    """Saves the checkpoints of one experiment."""

    def __init__(
        self,
        locations: Locations,
        policy: SavePolicy,
        *,
        writer: FailoverWriter,
        lineage: Lineage,
        post_save: PostSave,
        reconciler: Reconciler | None,
    ) -> None:
        check_format_name(locations.config.format)
        if locations.config.compression:
            check_compression()
        self._locations = locations
        self._config = locations.config
        self._writer = writer
        self._lineage = lineage
        self._post_save = post_save
        self._reconciler = reconciler
        self.background = BackgroundSaves(self._config.max_pending_saves)
        self._policy = PolicyCheck(policy, self._config, writer, self.background, lineage)
        self._outcome = LastOutcome()
        self._may_overlap = self._config.overlap_copy
        self._has_told_of_changes = False
        self._follows_lost_checkpoints = False

    # --- what is called ---

    def save(self, request: SaveRequest) -> str | None:
        """Save and return the id, or ``None`` when the policy says no."""
        if not request.is_interruption:  # which comes at once, after the commits under way
            self.background.flush()  # earlier ones come first, and what became of them is told first
        saved: Saved | None = None
        with spared(request.asked), self._outcome.of(request.facts):
            planned = self._plan(request)
            if not isinstance(planned, _PlannedSave):
                return planned
            saved = self._write(planned.facts, planned.health, planned.payload, with_backup=not request.is_interruption)
        if saved is None:
            return None
        self._follow_up(saved, is_last=request.is_interruption)
        return saved.checkpoint_id

    def start(self, request: SaveRequest) -> SaveHandle:
        """Copy the state, and save it in the background; the handle keeps all alive that the save needs."""
        self.background.raise_failure()
        key = request.facts.idempotency_key
        if key is not None and (handle := self._under_way(key)):
            return handle
        with spared(request.asked), self._outcome.of(request.facts):
            with CollectionPause():  # training waits
                planned = self._plan(request)
            if not isinstance(planned, _PlannedSave):
                return finished(planned)
            handle = self.background.start(
                planned.facts,
                self._snapshot_of(planned.payload, request.state.optimizer),
                partial(self._write_copy, planned.facts, planned.health, request.asked),
                self._follow_up,
            )
            self._policy.note_save()
            return handle
        return finished(None)

    def save_preempted(self, state: Callable[[], Mapping[str, Any] | None]) -> None:
        """Save what ``state`` returns, unless that is ``None``, whatever the policy says, after all saves under way."""
        self._locations.events.emit("training.preempted", "a signal asked training to stop")
        self.background.wait_for_commits()  # not for what follows them, which may wait for a backup location
        if (given := state()) is not None:
            try:
                request = request_from({**given, "force": True})
            except TypeError as error:
                raise ConfigError(
                    f"what state() returned cannot be saved: {error}", expected="the arguments of save_checkpoint"
                ) from error
            self.save(replace(request, is_interruption=True))
        self.background.wait_all()
        self._post_save.snapshot.catch_up()
        self._post_save.backups.wait()

    def check(self, request: SaveRequest) -> CheckReport:
        """Raise what a save would raise before anything is written, and return what it would store."""
        facts = self._checked(request)
        given = self._given_payload(facts, request)
        stored_format = compressed_format(self._format, self._config.compression)
        report = report_of(given, self._format.prepare(given), self._format, stored_format)
        self._policy.check(facts)
        return report

    def why_not_saved(self) -> tuple[NotSaved, ...]:
        """Return why there is no newer checkpoint: failures, saves under way, and then what the policy refused."""
        return self._outcome.reasons(self.background.under_way, self._policy.why_not())

    def prepare(self, state: ObjectState) -> None:
        """Take and touch the memory that saves in the background will need."""
        state.check()
        payload = self._format.prepare(state.payload(self._config))
        self.background.prepare(self._snapshot_of(payload, state.optimizer))

    def flush(self) -> None:
        """Return once every save so far is committed and followed up, and backed up unless that takes too long.

        Raises an error that no one has seen.
        """
        try:
            self.background.flush()
        finally:
            self._post_save.backups.wait()
        self._post_save.snapshot.catch_up()
        self._post_save.backups.raise_failure()

    def close(self) -> None:
        """:meth:`flush`, and let go of the memory for copies."""
        try:
            self.flush()
        finally:
            self.background.close()

    @property
    def _format(self) -> Format:
        return format_named(self._config.format)  # not before a save, because it loads torch

    # --- the steps ---

    def _plan(self, request: SaveRequest) -> _PlannedSave | str | None:
        """Check everything that can be checked; what is to be saved, the id it has already, or ``None`` for a no."""
        facts = self._checked(request)
        self._policy.check_monitor(facts)
        if earlier := self._writer.earlier(facts):
            if not request.compare_content:
                return self._repeated(request, earlier)
            payload = self._payload(facts, request)
            if self._is_repeat(facts, payload, earlier):
                return self._repeated(request, earlier)
            content = self._content(facts, payload)
            facts = replace(facts, idempotency_key=f"{facts.idempotency_key}/{content}")
            if earlier := self._writer.earlier(facts):
                return self._repeated(request, earlier)
        if not self._is_wanted(request, facts):
            return None
        health = request.state.health_check(facts.monitor) if self._config.health_check else None
        payload = self._payload(facts, request)
        facts = replace(facts, epoch_finished=_is_epoch_finished(request, payload))
        return _PlannedSave(facts, payload, health)

    def _is_wanted(self, request: SaveRequest, facts: CheckpointFacts) -> bool:
        if request.force:
            self._policy.note_forced()
            return True
        if self._policy.wants(facts):
            return True
        if request.asked is None:
            return False
        request.asked.is_extra = True
        self._policy.note_forced()
        return True

    def _repeated(self, request: SaveRequest, earlier: Manifest) -> str:
        self._outcome.note_repeat(request.facts, earlier.checkpoint_id)
        return earlier.checkpoint_id

    def _checked(self, request: SaveRequest) -> CheckpointFacts:
        """Return the facts of a save, or raise the first error in them."""
        request.state.check()
        facts = request.facts.checked(
            model_name=request.state.model_name,
            experiment_name=self._locations.name,
            monitor=self._locations.monitor_record.of(self._writer.saved()),
            with_environment=self._config.save_metadata,
        )
        self._tell_of_changes(request.facts.config, facts.config)
        return replace(facts, **request.state.facts())

    def _tell_of_changes(self, given: Any, stored: dict[str, Any]) -> None:
        """Warn once when the run's configuration is stored as something else than was given."""
        if self._has_told_of_changes or not stored:
            return
        changes = list(changed_values(given, stored, "config"))
        if changes:
            logger.warning("stored as JSON holds it: %s", listed(changes))
            self._has_told_of_changes = True

    def _payload(self, facts: CheckpointFacts, request: SaveRequest) -> Payload:
        return self._format.prepare(self._given_payload(facts, request))

    def _given_payload(self, facts: CheckpointFacts, request: SaveRequest) -> Payload:
        state = request.state.payload(self._config)
        extra_state = state.pop(EXTRA_STATE_KEY)
        return {
            **state,
            "epoch": facts.epoch,
            "step": facts.step,
            "metrics": facts.metrics,
            "config": facts.config,
            EXTRA_STATE_KEY: extra_state,
        }

    def _content(self, facts: CheckpointFacts | Manifest, payload: Payload, without: Sequence[str] = ()) -> str:
        """Return a digest of what a save would store, which has its cost: ask for a taken key only.

        Generators and positions do not count: whoever repeats a save may have drawn a random number in between, as
        Prefect does before a retry.
        """
        sink = _DigestSink()
        left_out = dict.fromkeys((RNG_KEY, DATA_KEY, *without))
        self._format.lay_out({**payload, **left_out}).write(sink)
        return _content_digest(payload_sha256(sink.digests), facts.tags, facts.description)

    def _is_repeat(self, facts: CheckpointFacts, payload: Payload, earlier: Manifest) -> bool:
        """Tell whether a save would store what a checkpoint holds, or held before it was thinned.

        One that cannot be read is no repeat.
        """
        without = RESUME_ONLY_KEYS if earlier.thinned else ()
        with suppress(CheckpointError, OSError):
            with StoredPayload(self._locations.home, earlier.files, verify=True) as source:
                stored = self._format.prepare(format_of(earlier).read(source))
            return self._content(earlier, stored, without) == self._content(facts, payload, without)
        return False

    def _follow_lost_checkpoints(self) -> None:
        """Let saves be newer than the backups of what home has lost, also where nobody has resumed from them.

        A backup location that does not answer keeps no save waiting for more than a moment.
        """
        if self._follows_lost_checkpoints or not self._config.backup_dir:
            return
        self._follows_lost_checkpoints = True
        home, backups = self._locations.home.index, self._locations.backups.index

        def look() -> None:
            with failures_logged("looking for backups of lost checkpoints"):
                for backup in backups.view().manifests:
                    home.note(backup.sequence)

        if not self._writer.saved():
            looking = Helper(look, "ckpt-look")
            looking.start()
            looking.wait(PATIENCE_SECONDS)

    def _write_copy(
        self, facts: CheckpointFacts, health: HealthCheck | None, asked: Asked | None, snapshot: Snapshot
    ) -> Saved | None:
        with spared(asked), self._outcome.of(facts):
            try:
                payload = snapshot.payload()
            except StateChangedError:
                self._may_overlap = False  # the loop does what it said that it would not
                raise
            return self._write(facts, health, payload)
        return None

    def _write(
        self, facts: CheckpointFacts, health: HealthCheck | None, payload: Payload, *, with_backup: bool = True
    ) -> Saved | None:
        if self._reconciler is not None:
            self._reconciler.before_save()
        self._follow_lost_checkpoints()
        facts = replace(facts, parent_id=self._lineage.parent_id, run_id=self._lineage.run_id)
        if health:
            facts = replace(facts, unhealthy=health.find_fault(payload, facts.metrics))
        stored_format = compressed_format(self._format, self._config.compression)
        saved = self._writer.save(facts, stored_format, payload, with_backup=with_backup)
        self._outcome.note(facts, saved, self._writer.take_failure())
        if saved is not None:
            self._lineage.parent_id = saved.checkpoint_id
            if not saved.in_fallback and saved.manifest.uid == facts.uid:  # else it was saved before
                with failures_logged(f"telling of {saved.checkpoint_id}"):
                    self._locations.best.tell_of_save(saved.manifest)
            if facts.unhealthy:
                logger.warning("%s is unhealthy: %s", saved.checkpoint_id, facts.unhealthy)
        self._policy.note_save()  # after a failure, too: the policy says when to try again
        return saved

    def _follow_up(self, saved: Saved, *, is_last: bool = False) -> None:
        if saved.in_fallback:
            return
        self._post_save.run(saved.manifest, saved.twin, is_last=is_last)

    # --- in the background ---

    def _under_way(self, idempotency_key: str) -> SaveHandle | None:
        for handle in self.background.under_way:
            if handle.facts is not None and handle.facts.idempotency_key == idempotency_key:
                return handle
        return None

    def _snapshot_of(self, payload: Payload, optimizer: Stateful | None) -> Callable[[StagingBuffer], Snapshot]:
        """Return what copies ``payload`` into a buffer; ``overlap_copy`` leaves for later what a step will wait for."""
        from ckpt_lib.state.overlap import call_before_steps, unchanged_until_step
        from ckpt_lib.state.staging import Snapshot

        def snapshot_into(buffer: StagingBuffer) -> Snapshot:
            with CollectionPause():
                deferred = unchanged_until_step(optimizer) if self._may_overlap else set()
                if deferred:
                    call_before_steps(wait_until_all_copied)
                return Snapshot(payload, buffer, deferred)

        return snapshot_into


def _is_epoch_finished(request: SaveRequest, payload: Payload) -> bool:
    """Tell whether the epoch was trained to its end: as the caller says or, if nothing is said, the data loader.

    If neither does, an interruption came in the middle of it, and any other save at its end.
    """
    given, is_mid = request.facts.epoch_finished, is_mid_epoch(payload)
    if given and is_mid:
        raise ConfigError(
            "epoch_finished=True is given in the middle of the data loader's epoch: a resume would take the rest of it "
            "for the next epoch",
            hint="Leave epoch_finished out, and save after the loop over the batches. Where epochs end early on "
            "purpose, call end_epoch() of the ResumableLoader before the save.",
        )
    if given is not None:
        return given
    return not (request.is_interruption if is_mid is None else is_mid)


class _DigestSink:
    """Takes the files of a payload of which only the digests are wanted."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextmanager
    def open(self, name: str = "") -> Iterator[HashingWriter]:
        with HashingWriter(_Discard()) as stream:
            yield stream
            self.digests[name] = stream.finish().sha256


class _Discard:
    """Takes bytes and keeps none."""

    def write(self, data: Buffer, /) -> int:
        return memoryview(data).nbytes


def _content_digest(payload_sha256: str, tags: Sequence[str], description: str) -> str:
    """Equal digests mean the same payload, and the same labels; metrics and configuration are in the payload."""
    return hashlib.sha256(json.dumps([payload_sha256, list(tags), description]).encode()).hexdigest()[:32]
