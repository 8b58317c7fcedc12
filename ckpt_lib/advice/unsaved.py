"""Why an experiment has no newer checkpoint, as far as its store tells: for processes that are not the training."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.owners import is_proven_dead
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import is_store_failure
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.view import View
from ckpt_lib.policies.ranking import is_rankable, ranked
from ckpt_lib.policies.saving import EveryEpochs, SaveContext, SavedRecord

_LOOKED_AT = 10
"""How many of the last checkpoints say what the usual interval is."""
_OVERDUE, _OVERDUE_SECONDS = 3.0, 60.0
"""A save is overdue after so many of the usual intervals, and no earlier than after a minute."""


def reasons_stored(locations: Locations, *, now: datetime | None = None) -> tuple[NotSaved, ...]:
    """Return what the store says about why there is no newer checkpoint, problems first. Nothing is changed.

    The policy of the configuration counts only where its options were set, since that of the training may be another.
    Raises :class:`~ckpt_lib.errors.StoreError`.
    """
    view = locations.home.index.view()
    newest = view.usable[-1] if view.usable else None
    problems = [*_lack_of_room(locations, newest), *_claims(view), *_stranded(locations)]
    if newest is None:
        message = "the experiment has no checkpoint yet"
        return (*problems, NotSaved(kind="unknown", message=message, hint="A run that is shared tells more."))
    return (*problems, *_pace(view.usable, now or datetime.now(UTC)), *_configured(locations, view.usable))


def _lack_of_room(locations: Locations, newest: Manifest | None) -> Iterator[NotSaved]:
    if newest is None:
        return
    hint = "`ckpt advise` says what can go."
    if error := commit.lack_of_room(
        locations.home, newest.size_bytes, "for another checkpoint like the last", hint=hint
    ):
        yield NotSaved(kind="no_space", message=f"{error.message}: {error.expected}, {error.got}", hint=hint)


def _claims(view: View) -> Iterator[NotSaved]:
    for claim in view.claims:
        if claim.state == "saving" and is_proven_dead(claim.owner):
            yield NotSaved(
                kind="unfinished",
                message=f"{claim.owner} was killed while it saved {claim.checkpoint_id}",
                hint="`ckpt doctor --fix` removes what it left.",
                checkpoint_id=claim.checkpoint_id,
            )
        elif claim.state == "saving":
            message = f"{claim.owner} is saving {claim.checkpoint_id}"
            yield NotSaved(kind="under_way", message=message, checkpoint_id=claim.checkpoint_id)


def _stranded(locations: Locations) -> Iterator[NotSaved]:
    try:
        view = locations.fallback.index.view() if locations.fallback else None
    except Exception as error:
        if not is_store_failure(error):
            raise
        return
    if view is not None and view.usable:
        newest = view.usable[-1].checkpoint_id
        yield NotSaved(
            kind="in_fallback",
            message=f"{newest} was saved in the fallback folder, because the store failed",
            hint="`ckpt reconcile` moves it to the store.",
            checkpoint_id=newest,
        )


def _pace(saved: Sequence[Manifest], now: datetime) -> Iterator[NotSaved]:
    """Compare the age of the newest checkpoint with the times between the last ones of its run."""
    newest = saved[-1]
    age = max(0.0, (now - newest.timestamp).total_seconds())
    facts: dict[str, Any] = {"checkpoint_id": newest.checkpoint_id, "epoch": newest.epoch, "step": newest.step}
    of_run = [item.timestamp for item in saved if item.run_id == newest.run_id][-_LOOKED_AT:]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(of_run)]
    last = f"{newest.checkpoint_id} was saved {duration(age)} ago"
    usual = statistics.median(gaps) if len(gaps) > 1 else None
    if usual is None:
        yield NotSaved(kind="unknown", message=f"{last}, too early in its run to tell the usual interval", **facts)
    elif age > max(_OVERDUE * usual, _OVERDUE_SECONDS):
        message = f"{last}, although the run saved {_usually(usual)}: it has ended, hangs, or its saves fail"
        yield NotSaved(kind="overdue", message=message, hint="Its log says more.", **facts)
    else:
        left = max(0.0, usual - age)
        message = f"{last}, and the run saves {_usually(usual)}"
        yield NotSaved(kind="interval", message=message, seconds_left=left, **facts)


def _configured(locations: Locations, saved: Sequence[Manifest]) -> Iterator[NotSaved]:
    """Say what the options of the configuration wait for, where they were set."""
    config, newest = locations.config, saved[-1]
    if "save_interval" in config.model_fields_set:
        record = SavedRecord(newest.sequence, newest.epoch, newest.step, newest.metrics)
        context = SaveContext(newest.epoch, newest.step, newest.metrics, (record,))
        (interval,) = EveryEpochs(config.save_interval).why_not(context)
        message = (
            f"save_interval is {config.save_interval}: after epoch {newest.epoch}, epoch {interval.next_epoch} is next"
        )
        yield interval.model_copy(update={"message": message, "epoch": newest.epoch})
    if config.save_best_only:
        monitor = newest.monitor
        of_run = [item for item in saved if item.run_id == newest.run_id]
        if best := ranked(of_run, monitor):
            value = best[0].metrics[monitor.metric]
            assert is_rankable(value)
            wanted = "lower" if monitor.mode == "min" else "higher"
            yield NotSaved(
                kind="not_better",
                message=f"save_best_only is set: a save needs a {monitor.metric} {wanted} than {value}, "
                f"that of {best[0].checkpoint_id}",
                metric=monitor.metric,
                best=value,
                checkpoint_id=best[0].checkpoint_id,
            )


def _usually(seconds: float) -> str:
    return f"every {duration(seconds)}" if seconds >= 1 else "several times a second"
