"""``RunRequests``: what the page has asked live runs of this machine for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.logs import logger
from ckpt_lib.errors import CheckpointError, RunUnavailableError
from ckpt_lib.live import LiveRun, live_runs
from ckpt_lib.store import location, open_store

_KEPT = 20


class SharedRun(LiveRun):
    """A live run, with a name that the page's buttons send."""

    @property
    def name(self) -> str:
        """Return the name: nobody else's socket has it while the run lasts."""
        return Path(self.socket).stem + f"-{self.owner.pid}"


@dataclass(frozen=True)
class RunRequest:
    """A save or a load that a run was asked for."""

    number: int
    run: SharedRun
    asked_for: str
    """``save``, or ``load`` and the id."""
    asked_at: datetime
    outcome: str | None = None
    """What came of it; ``None`` while the run has not answered."""
    has_failed: bool = False


class RunRequests:
    """The requests of one server, the newest first. A run answers at the next safe point of its training loop."""

    def __init__(self, config: CheckpointConfig) -> None:
        self._store = location(open_store(config.checkpoint_dir))
        self._lock = threading.Lock()
        self._requests: dict[int, RunRequest] = {}
        self._count = 0

    def runs_of(self, experiment: str | None = None) -> list[SharedRun]:
        """Return the live runs of the store, or of one experiment, the oldest first."""
        return [SharedRun(**dict(run)) for run in live_runs(experiment, store=self._store)]

    def loading_runs(self, experiment: str) -> list[SharedRun]:
        """Return the live runs of an experiment that take loads."""
        found = []
        for run in self.runs_of(experiment):
            with suppress(RunUnavailableError):  # it has just ended
                if run.status().takes_loads:
                    found.append(run)
        return found

    def all(self) -> list[RunRequest]:
        """Return the last requests, the newest first."""
        with self._lock:
            return sorted(self._requests.values(), key=lambda item: -item.number)

    def are_waiting(self) -> bool:
        """Tell whether a run has not answered yet."""
        with self._lock:
            return any(item.outcome is None for item in self._requests.values())

    def save(self, name: str) -> SharedRun:
        """Ask a run to save. Raises :class:`~ckpt_lib.errors.RunUnavailableError` if there is none of this name."""
        return self._ask(name, "save", lambda run: f"saved {run.save()}")

    def load(self, name: str, checkpoint_id: str) -> SharedRun:
        """Ask a run to load a checkpoint. Raises as :meth:`save`."""
        return self._ask(name, f"load {checkpoint_id}", lambda run: f"loaded {run.load(checkpoint_id)}")

    def _ask(self, name: str, asked_for: str, ask: Callable[[SharedRun], str]) -> SharedRun:
        run = next((run for run in self.runs_of() if run.name == name), None)
        if run is None:
            raise RunUnavailableError("the run has ended", hint="Live runs shows those that are there.")
        with self._lock:
            self._count += 1
            request = RunRequest(self._count, run, asked_for, datetime.now(UTC))
            self._requests[request.number] = request
            for number in sorted(self._requests)[:-_KEPT]:
                del self._requests[number]
        # It waits for the training: the answer may take minutes, and the server does not stay for it.
        threading.Thread(target=self._wait, args=(request, ask), name="ckpt-run-request", daemon=True).start()
        return run

    def _wait(self, request: RunRequest, ask: Callable[[SharedRun], str]) -> None:
        try:
            answered = replace(request, outcome=ask(request.run))
        except CheckpointError as error:
            answered = replace(request, outcome=error.message, has_failed=True)
        except Exception:
            logger.exception("asking %s failed with an unexpected error", request.run.owner)
            answered = replace(request, outcome="the server failed; its log says why", has_failed=True)
        with self._lock:
            if request.number in self._requests:
                self._requests[request.number] = answered
