"""Scrub: read all that an experiment holds, copies included, before someone needs it.

Files are hashed on all processors, as fast or as slow as is wished, and the page cache is left as it was found. What
was done is recorded beside the checkpoints, so that a scrub that was killed goes on where it stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib.core import html
from ckpt_lib.core.damage import Damage
from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.wording import briefly, count_of
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import payload_version
from ckpt_lib.maintenance.backup_status import Verified, note_verified
from ckpt_lib.maintenance.validate import (
    ValidationReport,
    examine,
    find_unloadable,
    unreadable_report,
    with_tensors,
)
from ckpt_lib.stream import Progress, find_damages
from ckpt_lib.stream.chunks import processor_count
from ckpt_lib.stream.page_cache import NeutralReader

RECORD_NAME = ".ckpt-scrub.json"
_MAX_RECORD_BYTES = 64 * 2**20
_SECONDS_BETWEEN_RECORDS = 1.0
_SECONDS_BETWEEN_PROGRESS = 0.1

Side = Literal["checkpoints", "backups"]


class ScrubReport(BaseModel):
    """The outcome of a whole round over an experiment's checkpoints and backups; true when all are intact."""

    model_config = ConfigDict(frozen=True)

    experiment_name: str
    started_at: AwareDatetime
    completed_at: AwareDatetime
    checkpoints: tuple[ValidationReport, ...] = ()
    backups: tuple[ValidationReport, ...] = ()
    bytes_read: int = 0
    files_resumed: int = 0

    @property
    def is_intact(self) -> bool:
        return all(self.checkpoints) and all(self.backups)

    def __bool__(self) -> bool:
        return self.is_intact

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "experiment_name", self.experiment_name
        yield "is_intact", self.is_intact
        yield "checkpoints", len(self.checkpoints)
        yield "backups", len(self.backups)
        yield "bytes_read", self.bytes_read

    def _repr_html_(self) -> str:
        sides = (("checkpoint", self.checkpoints), ("backup", self.backups))
        rows = [(item.checkpoint_id, copy, item.message) for copy, reports in sides for item in reports if not item]
        read = f"{count_of(len(self.checkpoints), 'checkpoint')} and {count_of(len(self.backups), 'backup')} read"
        detail = f"{self.experiment_name}: {read}, {f'{len(rows):,} damaged' if rows else 'all intact'}"
        return html.block("Scrub", html.table(("damaged", "copy", "what"), rows), detail=detail)


class _Outcome(BaseModel):
    """The verdict on one payload, which had this version then."""

    version: str
    checked_at: AwareDatetime
    report: ValidationReport


class _Round(BaseModel):
    """One pass over everything, as it is recorded."""

    schema_version: Literal[1] = 1
    experiment_name: str
    started_at: AwareDatetime
    completed_at: AwareDatetime | None = None
    outcomes: dict[str, _Outcome] = {}


@dataclass(frozen=True)
class _Item:
    """One payload to read; ``other`` is where its other copy would be."""

    side: Side
    experiment: Experiment
    other: Experiment
    manifest: Manifest

    @property
    def key(self) -> str:
        return f"{self.side}/{self.manifest.checkpoint_id}"


class _StoppedError(Exception):
    """The scrub ends before this file does."""


class _Pace:
    """Keeps all threads together below a rate, counts what they read, and stops them."""

    def __init__(self, max_bytes_per_second: float | None) -> None:
        self._rate = max_bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self._stop = threading.Event()
        self.bytes_read = 0

    def __call__(self, count: int) -> None:
        """Account for ``count`` bytes, and wait until they were due."""
        delay = 0.0
        with self._lock:
            self.bytes_read += count
            if self._rate is not None:
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + count / self._rate
                delay = self._free_at - now
        if self._stop.wait(delay) if delay > 0 else self._stop.is_set():
            raise _StoppedError

    def stop(self) -> None:
        self._stop.set()


def scrub(
    home: Experiment,
    backups: Experiment,
    *,
    max_bytes_per_second: float | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> ScrubReport:
    """Read every payload of an experiment and of its backups to its end, and compare its SHA-256.

    The outcome of each file is recorded in ``.ckpt-scrub.json`` of the experiment's folder. Killed or interrupted, the
    next call goes on with the files that were not done, and those that changed since; ``restart`` begins anew, as does
    the call after a round that came to its end. What the page cache holds of the files stays as it was.

    ``progress`` is called by this thread. Damage is reported, not raised. Raises
    :class:`~ckpt_lib.errors.ConfigError` for a rate that is not positive, and what the store raises when it does not
    answer.
    """
    if max_bytes_per_second is not None and not max_bytes_per_second > 0:
        raise ConfigError(
            "max_bytes_per_second must be more than 0",
            got=briefly(max_bytes_per_second),
            hint="Leave it out to read at full speed.",
        )
    items = [
        *(_Item("checkpoints", home, backups, manifest) for manifest in home.index.view().usable),
        *(_Item("backups", backups, home, manifest) for manifest in backups.index.view().usable),
    ]
    current = None if restart else _unfinished_round(home)
    scrubber = _Scrubber(
        home, current or _Round(experiment_name=home.name, started_at=datetime.now(UTC)), max_bytes_per_second
    )
    done = scrubber.run(items, progress)
    note_verified(
        backups, {item.manifest.checkpoint_id: scrubber.verified(item) for item in items if item.side == "backups"}
    )
    unreadable = {"checkpoints": home.index.unreadable(), "backups": backups.index.unreadable()}

    def reports(side: Side) -> tuple[ValidationReport, ...]:
        found = [done[item.key] for item in items if item.side == side and item.key in done]
        broken = [unreadable_report(error, str(error.checkpoint_id), home.name) for error in unreadable[side]]
        return (*found, *broken)

    return ScrubReport(
        experiment_name=home.name,
        started_at=scrubber.round.started_at,
        completed_at=scrubber.round.completed_at or datetime.now(UTC),
        checkpoints=reports("checkpoints"),
        backups=reports("backups"),
        bytes_read=scrubber.pace.bytes_read,
        files_resumed=scrubber.files_resumed,
    )


class _Scrubber:
    """Carries one round on to its end."""

    def __init__(self, home: Experiment, current: _Round, max_bytes_per_second: float | None) -> None:
        self._home = home
        self.round = current
        self.pace = _Pace(max_bytes_per_second)
        self.files_resumed = 0
        self._reported_bytes = 0
        self._recorded_at = time.monotonic()

    def run(self, items: Sequence[_Item], progress: Progress | None) -> dict[str, ValidationReport]:
        """Read what was not read in this round, on all processors; return the reports of all files that are there."""
        earlier = self._still_valid(items)
        self.files_resumed = len(earlier)
        self.round.outcomes = earlier
        if progress and earlier:
            progress(sum(outcome.report.size_bytes for outcome in earlier.values()))
        # The large ones first: one that is begun last keeps one processor busy while the others wait.
        open_items = sorted(
            (item for item in items if item.key not in earlier), key=lambda item: -item.manifest.size_bytes
        )
        try:
            for item, outcome in self._outcomes(open_items, progress):
                self.round.outcomes[item.key] = outcome
                self._record(at_most_every=_SECONDS_BETWEEN_RECORDS)
            self.round.completed_at = datetime.now(UTC)
        finally:
            if items:  # a mistyped name creates no experiment
                self._record()
        return {key: outcome.report for key, outcome in self.round.outcomes.items()}

    def verified(self, item: _Item) -> Verified | None:
        """Return which version of a payload was read in this round and found valid."""
        outcome = self.round.outcomes.get(item.key)
        return Verified(version=outcome.version, at=outcome.checked_at) if outcome and outcome.report else None

    def _still_valid(self, items: Sequence[_Item]) -> dict[str, _Outcome]:
        """Return what this round has found already, of payloads that are as they were then."""
        found = {}
        for item in items:
            outcome = self.round.outcomes.get(item.key)
            if (
                outcome
                and outcome.version == payload_version(item.experiment, item.manifest)
                and outcome.report.checkpoint_id == item.manifest.checkpoint_id
            ):
                found[item.key] = outcome
        return found

    def _outcomes(self, items: Sequence[_Item], progress: Progress | None) -> Iterator[tuple[_Item, _Outcome]]:
        """Yield each payload's outcome as it comes; what was deleted meanwhile has none."""
        with ThreadPoolExecutor(processor_count(), thread_name_prefix="ckpt-scrub") as pool:
            pending: dict[Future[_Outcome | None], _Item] = {pool.submit(self._examine, item): item for item in items}
            try:
                while pending:
                    done, _ = wait(pending, timeout=_SECONDS_BETWEEN_PROGRESS, return_when=FIRST_COMPLETED)
                    self._report_progress(progress)
                    # A failure ends this, so it comes after what was read at the same time.
                    for future in sorted(done, key=lambda future: future.exception() is not None):
                        item = pending.pop(future)
                        if outcome := future.result():
                            yield item, outcome
            finally:  # whatever ends this, the threads end at their next piece
                self.pace.stop()
                pool.shutdown(wait=False, cancel_futures=True)

    def _examine(self, item: _Item) -> _Outcome | None:
        version = payload_version(item.experiment, item.manifest)

        def find(file: BinaryIO, entry: FileEntry) -> list[Damage]:
            with NeutralReader(file, self.pace) as source:
                # Both within the context, at whose end the page cache forgets what they read.
                return find_damages(source, entry) or find_unloadable(item.experiment, item.manifest)

        report = examine(item.experiment, item.manifest, find)
        if not report:
            try:
                item.experiment.check_current(item.manifest)
            except CheckpointNotFoundError:  # deleted meanwhile, which is no damage
                return None
            report = with_tensors(report, item.manifest, item.experiment, item.other)
        return _Outcome(version=version or "", checked_at=datetime.now(UTC), report=report)

    def _report_progress(self, progress: Progress | None) -> None:
        done, self._reported_bytes = self.pace.bytes_read - self._reported_bytes, self.pace.bytes_read
        if progress and done:
            progress(done)

    def _record(self, at_most_every: float = 0.0) -> None:
        """Write the record; it only saves work, so a failure is logged and the scrub goes on."""
        if time.monotonic() - self._recorded_at < at_most_every:
            return
        self._recorded_at = time.monotonic()
        try:
            self._home.store.put(self._home.key(RECORD_NAME), self.round.model_dump_json().encode())
        except CheckpointError as error:
            logger.warning("the scrub's progress was not recorded: %s", error)


def _unfinished_round(home: Experiment) -> _Round | None:
    """Return the round that an earlier call did not finish.

    ``None`` for a finished, missing, damaged or foreign record.
    """
    try:
        found = home.read_small(RECORD_NAME, _MAX_RECORD_BYTES)
        earlier = _Round.model_validate_json(found[0]) if found else None
    except (CheckpointError, ValidationError):
        return None
    if earlier is None or earlier.experiment_name != home.name or earlier.completed_at is not None:
        return None
    return earlier
