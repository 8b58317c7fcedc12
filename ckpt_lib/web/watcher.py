"""``Watcher``: publishes what changes in a store and in the jobs of a server, while somebody follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pydantic import BaseModel, Field

from ckpt_lib import events
from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.logs import failures_logged
from ckpt_lib.experiment.layout import FOLDER_SUFFIX
from ckpt_lib.experiment.listing import is_experiment
from ckpt_lib.store import location, open_store
from ckpt_lib.web.changes import ChangeKind, Watched
from ckpt_lib.web.feed import Feed
from ckpt_lib.web.job import Job
from ckpt_lib.web.jobs import Jobs

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LISTINGS = 30.0
"""For stores that cannot tell whether a folder has changed, and after a store has failed."""
_SHARE_OF_TIME = 0.05
"""The most of a processor's time that looking may take."""
_SECONDS_AFTER_THE_LAST = 60.0
"""How long it goes on when nobody follows: clients that lost their connection come back."""

_TOLD: dict[events.EventKind, ChangeKind] = {
    "checkpoint.corrupted": "checkpoint.damaged",
    "checkpoint.repaired": "checkpoint.repaired",
}
"""What this process finds out about files, which no record shows."""


class CheckpointChange(BaseModel):
    """The data of an event about a checkpoint."""

    experiment_name: str
    checkpoint_id: str
    is_backup: bool = Field(default=False, description="Whether it is about the backup of the checkpoint.")


class Watcher:
    """Looks at the store once a second, on a thread that runs while somebody follows, and for a minute longer."""

    def __init__(self, config: CheckpointConfig, jobs: Jobs, feed: Feed) -> None:
        self._config = config
        self._store = open_store(config.checkpoint_dir)
        self._location = location(self._store)
        self._jobs = jobs
        self._feed = feed
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: dict[str, Watched] = {}
        self._next_listing = 0.0
        self._done_bytes: dict[str, int] = {}
        self._wanted_at = 0.0
        self._unsubscribe: Callable[[], None] = lambda: None
        jobs.listen(self._publish_job)

    def start(self) -> None:
        """Let the feed be complete from now on. Returns once what the store holds is known.

        Raises :class:`~ckpt_lib.errors.StoreError` if the store does not answer.
        """
        with self._lock:
            self._wanted_at = time.monotonic()
            if self._thread is not None or self._ending.is_set():
                return
            self._watched = {name: self._known(name) for name in self._names()}
            self._feed.start_anew()
            self._unsubscribe = events.subscribe(self._hear)
            self._next_listing = time.monotonic() + _SECONDS_BETWEEN_LISTINGS
            self._thread = threading.Thread(target=self._run, name="ckpt-watcher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        with self._lock:
            thread = self._thread
            self._unsubscribe()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        wait_seconds = _SECONDS_BETWEEN_LOOKS
        while not self._ending.wait(wait_seconds):
            if self._rests():
                return
            began = time.monotonic()
            wait_seconds = _SECONDS_BETWEEN_LISTINGS
            with failures_logged("watching the store"):
                self._publish_progress()
                self._look()
                wait_seconds = max(_SECONDS_BETWEEN_LOOKS, (time.monotonic() - began) / _SHARE_OF_TIME)

    def _rests(self) -> bool:
        """Let the thread end if nobody has followed for a while."""
        with self._lock:
            now = time.monotonic()
            if self._feed.followers:
                self._wanted_at = now
            if now - self._wanted_at <= _SECONDS_AFTER_THE_LAST:
                return False
            self._thread, self._watched = None, {}
            self._unsubscribe()
            return True

    def _look(self) -> None:
        now, names = time.monotonic(), self._names()
        lists_anyway = now >= self._next_listing
        if lists_anyway:
            self._next_listing = now + _SECONDS_BETWEEN_LISTINGS
        for name in names:
            watched = self._watched.setdefault(name, Watched(self._config, self._store, name))
            for change in watched.changes(lists_anyway=lists_anyway):
                self._publish(change.kind, name, change.checkpoint_id)

    def _names(self) -> list[str]:
        folders = [entry.key.removesuffix(FOLDER_SUFFIX) for entry in self._store.list("") if entry.is_folder]
        return [name for name in folders if name in self._watched or is_experiment(self._store, name)]

    def _known(self, name: str) -> Watched:
        watched = Watched(self._config, self._store, name)
        watched.note_present()
        return watched

    def _publish(self, kind: ChangeKind, experiment_name: str, checkpoint_id: str, *, is_backup: bool = False) -> None:
        change = CheckpointChange(experiment_name=experiment_name, checkpoint_id=checkpoint_id, is_backup=is_backup)
        self._feed.publish(kind, change.model_dump_json())

    def _publish_job(self, job: Job) -> None:
        self._feed.publish("job", job.summary().for_clients().model_dump_json())

    def _publish_progress(self) -> None:
        """Tell of jobs that have gone on since the last look; each new state is told at once."""
        now = {job.job_id: job for job in self._jobs.unfinished()}
        for job_id, job in now.items():
            if job.done_bytes != self._done_bytes.get(job_id, 0):
                self._jobs.tell(job_id)
        self._done_bytes = {job_id: job.done_bytes for job_id, job in now.items()}

    def _hear(self, event: events.Event) -> None:
        kind = _TOLD.get(event.kind)
        if kind is not None and event.store == self._location and event.checkpoint_id is not None:
            is_backup = bool(event.details.get("is_backup"))
            self._publish(kind, event.experiment_name, event.checkpoint_id, is_backup=is_backup)
