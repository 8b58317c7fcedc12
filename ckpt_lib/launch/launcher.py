"""Runs a training command until it is done, restarting it as its policy says."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.names import check_experiment_name
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import ConfigError, LaunchError
from ckpt_lib.launch.child import Order, SupervisedCommand
from ckpt_lib.launch.command import ATTEMPT, child_environment, directory_of, with_program, words_of
from ckpt_lib.launch.locking import VARIABLE, LaunchLock
from ckpt_lib.launch.outcome import classify, oom_kill_count
from ckpt_lib.launch.output import Output
from ckpt_lib.launch.progress import Progress
from ckpt_lib.launch.report import LaunchAttempt, LaunchReport
from ckpt_lib.launch.restarts import RestartPolicy
from ckpt_lib.store import location, open_store
from ckpt_lib.store.registry import scheme_of

_LONGEST_SECONDS_BETWEEN_LOOKS = 30.0
_LOOKS_PER_STALL = 10
_SHORTEST_STALL_SECONDS = 0.1


@dataclass(frozen=True)
class LaunchRequest:
    """What to launch. Everything is checked when this is made.

    Raises :class:`~ckpt_lib.errors.ConfigError`, or :class:`~ckpt_lib.errors.InvalidNameError`.
    """

    command: str | Sequence[str]
    config: CheckpointConfig
    experiment_name: str
    launch_id: str
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    stall_seconds: float | None = None
    stop_seconds: float = 60.0
    environment: Mapping[str, str] | None = None
    directory: str | None = None

    def __post_init__(self) -> None:
        if sys.platform != "linux":
            raise ConfigError("commands can be launched on Linux only", got=sys.platform)
        check_experiment_name(self.experiment_name)
        if scheme_of(self.config.checkpoint_dir) == "memory":
            raise ConfigError("another process cannot reach a store in memory", got=self.config.checkpoint_dir)
        _check_number("the deadline of a stop", self.stop_seconds, at_least=0)
        _check_number("the wait before a restart", self.restarts.delay_seconds, at_least=0)
        _check_number("the number of restarts", min(self.restarts.max_restarts, self.restarts.max_fruitless_restarts))
        if self.stall_seconds is not None:
            _check_number("the time without a checkpoint", self.stall_seconds, at_least=_SHORTEST_STALL_SECONDS)
        self.order()

    def order(self, number: int = 1, lock: LaunchLock | None = None) -> Order:
        """Return what the supervisor is to run in the attempt of that number."""
        directory = directory_of(self.directory)
        environment = child_environment(self.config, self.experiment_name, self.launch_id, self.environment)
        # torchrun kills its ranks after 30 seconds by default, whatever time there is.
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(max(1, int(self.stop_seconds))))
        environment |= {ATTEMPT: str(number)} | ({VARIABLE: lock.name} if lock else {})
        command = with_program(words_of(self.command), environment, directory)
        return Order(command, environment, directory, self.stop_seconds)

    def lock(self) -> LaunchLock:
        """Return the lock that keeps other launches of the experiment away."""
        store = location(open_store(self.config.checkpoint_dir))
        place = os.path.realpath(store) if os.path.isabs(store) else store
        return LaunchLock(place, self.experiment_name, self.stop_seconds)


class Launcher:
    """One launch: the attempts of a command, under one lock.

    ``list_ids`` returns the ids of the experiment's checkpoints, ``log_line`` takes each line of the command's output,
    and ``tell`` what the launcher has to say.
    """

    def __init__(
        self,
        request: LaunchRequest,
        list_ids: Callable[[], Collection[str]],
        *,
        log_line: Callable[[str], object],
        tell: Callable[[str], object],
    ) -> None:
        self._request = request
        self._list_ids = list_ids
        self._log_line = log_line
        self._tell = tell
        self._progress: Progress | None = None
        self._attempts: list[LaunchAttempt] = []
        self._stopped_by: BaseException | None = None

    @property
    def stopped_by(self) -> BaseException | None:
        """What interrupted :meth:`run`, such as Ctrl-C: to be raised once the report has been dealt with."""
        return self._stopped_by

    def run(self) -> LaunchReport:
        """Run the command until it is done, or its restarts are used up.

        An exception that a signal raises in this thread asks the command to stop, and ends the launch when nothing of
        the command is left; then it is in :attr:`stopped_by`.

        A restart that is refused counts as an attempt that failed. Raises
        :class:`~ckpt_lib.errors.AlreadyRunningError`, :class:`~ckpt_lib.errors.LaunchError` or
        :class:`~ckpt_lib.errors.ConfigError` if nothing was started, and what ``list_ids`` raises at the beginning.
        """
        request = self._request
        with request.lock() as lock:
            while True:
                self._attempts.append(self._attempt(len(self._attempts) + 1, lock))
                if self._attempts[-1].outcome != "done":
                    self._tell(f"Attempt {len(self._attempts)}: {self._attempts[-1]}")
                conclusion = request.restarts.conclusion(self._attempts)
                if self._stopped_by is not None:
                    conclusion = "the launch was asked to stop"
                conclusion = conclusion or self._pause(request.restarts.delay(self._attempts))
                if conclusion:
                    return self._report(conclusion)

    def _report(self, conclusion: str) -> LaunchReport:
        return LaunchReport(
            experiment_name=self._request.experiment_name,
            command=tuple(words_of(self._request.command)),
            launch_id=self._request.launch_id,
            attempts=tuple(self._attempts),
            conclusion=conclusion,
        )

    def _pause(self, seconds: float) -> str | None:
        """Wait before a restart; return why there is none, if the wait was interrupted."""
        self._tell(f"Restarting in {duration(seconds)}; the training resumes from its newest checkpoint")
        try:
            time.sleep(seconds)
        except BaseException as error:
            self._stopped_by = error
            return "the launch was asked to stop"
        return None

    def _attempt(self, number: int, lock: LaunchLock) -> LaunchAttempt:
        output, progress = Output(self._log_line), self._progress or Progress(self._list_ids)
        self._progress = progress
        progress.begin_attempt()
        oom_kills, started_at, began = oom_kill_count(), datetime.now(UTC), time.monotonic()
        try:
            command = SupervisedCommand(self._request.order(number, lock), lock, output)
        except (ConfigError, LaunchError, OSError) as error:
            if number == 1:
                raise
            return _not_started(number, started_at, error)
        try:
            stop_reason, is_hung = self._watch(command, progress)
        finally:
            command.close()
        seconds = time.monotonic() - began
        progress.look()
        ending = classify(
            command.exit.code,
            output.tail,
            stop_reason=stop_reason,
            is_hung=is_hung,
            oom_kills=oom_kill_count() - oom_kills,
        )
        return LaunchAttempt(
            number=number,
            outcome=ending.outcome,
            evidence=ending.evidence,
            exit_code=command.exit.code,
            was_killed=command.exit.was_killed,
            started_at=started_at,
            seconds=seconds,
            checkpoint_ids=progress.new_ids,
            last_lines=output.tail,
        )

    def _watch(self, command: SupervisedCommand, progress: Progress) -> tuple[str | None, bool]:
        """Wait for the command's end; return why it was stopped, if it was, and whether it hung."""
        stall = self._request.stall_seconds
        stop_reason, is_hung = None, False
        while True:
            try:
                if command.wait(_seconds_between_looks(stall)):
                    return stop_reason, is_hung
                if stop_reason is None and stall is not None and progress.look() > stall:
                    stop_reason, is_hung = f"no new checkpoint for {duration(stall)}", True
                    self._tell(f"Stopping the command: {stop_reason}")
                    command.stop()
            except BaseException as error:  # Ctrl-C, or what Prefect makes of SIGTERM
                self._stopped_by = self._stopped_by or error
                stop_reason = stop_reason or f"the launch was asked to stop ({type(error).__name__})"
                command.stop()


def _not_started(number: int, started_at: datetime, error: Exception) -> LaunchAttempt:
    """Return the attempt of a restart that was refused: its program or folder may be gone, and come back."""
    return LaunchAttempt(
        number=number,
        outcome="failed",
        evidence=f"it could not be started again: {error}",
        exit_code=None,
        was_killed=False,
        started_at=started_at,
        seconds=0,
        checkpoint_ids=(),
        last_lines=(),
    )


def _check_number(what: str, value: float, at_least: float = 0) -> None:
    if not at_least <= value < math.inf:
        raise ConfigError(f"{what} cannot be {value}", expected=f"a number from {at_least} on", got=repr(value))


def _seconds_between_looks(stall_seconds: float | None) -> float | None:
    if stall_seconds is None:
        return None
    return min(_LONGEST_SECONDS_BETWEEN_LOOKS, stall_seconds / _LOOKS_PER_STALL)
