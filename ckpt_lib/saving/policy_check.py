"""``PolicyCheck``: whether the save policy wants a save, and what is said once when it never does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from operator import is_
from typing import Any

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import MAX_COUNT
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.wording import count_of, duration
from ckpt_lib.errors import UnknownMetricError
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.policies.ranking import missing_metric, ranked
from ckpt_lib.policies.saving import SaveContext, SavedRecord, SavePolicy, improvements_in, reasons_against
from ckpt_lib.saving.background import BackgroundSaves
from ckpt_lib.saving.failover import FailoverWriter

REFUSALS_TO_WARN = 100
SECONDS_TO_WARN = 1800.0
"""A run that saves nothing for so many calls, or for half an hour, would lose too much in a crash to go on unheard."""


class PolicyCheck:
    """Asks a save policy, with what the run has saved so far and what it is saving in the background."""

    def __init__(
        self,
        policy: SavePolicy,
        config: CheckpointConfig,
        writer: FailoverWriter,
        background: BackgroundSaves,
        lineage: Lineage,
    ) -> None:
        self._policy = policy
        self._config = config
        self._writer = writer
        self._background = background
        self._lineage = lineage
        self._last_save: float | None = None
        self._refusals = _Refusals()
        self._refused: tuple[SaveContext, datetime] | None = None
        """What the policy refused last, and when, unless a later save was made all the same."""
        self._has_warned_of_metric = False
        self._has_told_of_older_runs = False
        self._answered: tuple[str, tuple[Manifest, ...], tuple[SavedRecord, ...]] = (lineage.run_id, (), ())

    def note_save(self) -> None:
        """Count the time since the last save from now on."""
        self._last_save = time.monotonic()

    def note_forced(self) -> None:
        """Note that a save is made without asking the policy."""
        self._refused = None

    def check(self, facts: CheckpointFacts) -> None:
        """Raise what the policy would raise for a save with these metrics."""
        self.check_monitor(facts)
        context = self._context(facts)
        for rule in improvements_in(self._policy):
            rule.check(context)

    def check_monitor(self, facts: CheckpointFacts) -> None:
        """Warn once, or raise, when the monitored metric was never logged: no checkpoint could ever be the best."""
        if facts.monitor.metric in facts.metrics or not facts.metrics or self._has_warned_of_metric:
            return
        saved = self._writer.saved()
        this = SavedRecord(0, facts.epoch, facts.step, facts.metrics)
        if problem := missing_metric(facts.monitor, [*saved, this], is_recorded=bool(saved)):
            if self._config.on_missing_metric == "raise":
                raise UnknownMetricError(problem, got=sorted(facts.metrics))
            logger.warning(problem)
        self._has_warned_of_metric = True

    def wants(self, facts: CheckpointFacts) -> bool:
        """Ask the policy; warn once when it has refused for long, and when an older run has a better checkpoint."""
        self._refused = None
        context = self._context(facts)
        self._tell_of_older_runs(context)
        if self._policy.should_save(context) or self._has_lost_what_refuses(facts, context):
            self._refusals = _Refusals()
            return True
        self._refused = context, datetime.now(UTC)
        if reason := self._refusals.add(self._policy, context):
            logger.warning(reason)
        return False

    def why_not(self) -> tuple[NotSaved, ...]:
        """Return why the policy refused the last save that it was asked about; nothing if it agreed."""
        if (refused := self._refused) is None:
            return ()
        context, at = refused
        facts: dict[str, Any] = {"epoch": context.epoch, "step": context.step, "time": at}
        try:
            reasons = reasons_against(self._policy, context)
        except Exception as error:  # of a policy of the user's, which may look at what has changed since
            message = f"the save policy {self._policy!r} refused, and cannot say why: {error!r}"
            return (NotSaved(kind="policy", message=message, **facts),)
        return tuple(reason.model_copy(update=facts) for reason in reasons)

    def _has_lost_what_refuses(self, facts: CheckpointFacts, context: SaveContext) -> bool:
        """Look again when a better checkpoint stands in the way: it may be gone since the last listing."""
        with suppress(UnknownMetricError):  # of a save that the policy refuses for another reason
            if not all(rule.should_save(context) for rule in improvements_in(self._policy)):
                self._writer.look_again()
                return self._policy.should_save(self._context(facts))
        return False

    def _tell_of_older_runs(self, context: SaveContext) -> None:
        if self._has_told_of_older_runs or not any(improvements_in(self._policy)):
            return
        self._has_told_of_older_runs = True
        older = [item for item in self._writer.saved() if item.run_id != self._lineage.run_id]
        if best := ranked(older, context.monitor):
            logger.warning(
                "this is a new run, measured by its own checkpoints; the best of earlier runs, %s with %s %s, stands",
                best[0].checkpoint_id,
                context.monitor.metric,
                best[0].metrics[context.monitor.metric],
            )

    def _context(self, facts: CheckpointFacts) -> SaveContext:
        pending = tuple(  # as if saved, after all that are there; asked first, so that none is missed in between
            SavedRecord(
                MAX_COUNT + number,
                handle.facts.epoch,
                handle.facts.step,
                handle.facts.metrics,
                healthy=not self._config.health_check,  # else not known yet: it is nothing to be measured by
            )
            for number, handle in enumerate(self._background.under_way)
            if handle.facts is not None
        )
        manifests = self._writer.saved()
        saved = self._records_of(manifests)
        elapsed = None if self._last_save is None else time.monotonic() - self._last_save
        return SaveContext(
            facts.epoch,
            facts.step,
            facts.metrics,
            (*saved, *pending),
            elapsed,
            facts.monitor,
            is_monitor_recorded=bool(manifests),
        )

    def _records_of(self, manifests: Sequence[Manifest]) -> tuple[SavedRecord, ...]:
        """Return the records of this run's checkpoints; the last answer is continued where it still holds."""
        run_id, known, records = self._answered  # read at once: other threads may save as well
        if run_id != self._lineage.run_id or len(known) > len(manifests) or not all(map(is_, known, manifests)):
            run_id, known, records = self._lineage.run_id, (), ()
        later = (
            SavedRecord(number, manifest.epoch, manifest.step, manifest.metrics, healthy=manifest.healthy)
            for number, manifest in enumerate(manifests[len(known) :], start=len(known))
            if manifest.run_id == run_id
        )
        records = (*records, *later)
        self._answered = run_id, tuple(manifests), records
        return records


class _Refusals:
    """The count and duration of a policy's refusals since it last agreed."""

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
        best, metric = ranked(context.saved, context.monitor), context.monitor.metric
        measure = f"; the best {metric} so far is {best[0].metrics[metric]}" if best else ""
        return (
            f"nothing has been saved for {count_of(self._count, 'call')} and {duration(seconds)}: {policy!r} refuses "
            f"epoch {context.epoch}, step {context.step}, {dict(context.metrics)}{measure}. "
            "save_checkpoint(force=True) saves all the same."
        )
