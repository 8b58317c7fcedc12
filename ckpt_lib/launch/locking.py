"""One launch of an experiment at a time on this machine, until the last process of the one before has ended."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import AlreadyRunningError, LaunchError
from ckpt_lib.launch.processes import stop_all, with_variable

VARIABLE = "CKPT_LAUNCH_LOCK"
"""The environment variable, with the name of the lock, by which the processes of a launch can be found."""
SECONDS_TO_WAIT = 60.0
"""More than it takes to end a run that Prefect puts back: 30 seconds for the run, and some for an orphan."""
_PAUSE_SECONDS = 0.2
_RECORD_BYTES = 200


class LaunchLock:
    """The kernel's lock of a file in the user's state folder, one for each store and experiment.

    The supervisor inherits it, so it is released when both this process and the supervisor have let go of it: the
    supervisor does when nothing of its command is left. A kill of either cannot leave it held, nor released too soon.

    Used as a context. Entering raises :class:`~ckpt_lib.errors.AlreadyRunningError` if the lock is still held after
    :data:`SECONDS_TO_WAIT`, and :class:`~ckpt_lib.errors.LaunchError` if there can be no lock. Where a supervisor was
    killed, what is left of its command is ended first.
    """

    def __init__(self, store: str, experiment_name: str, stop_seconds: float) -> None:
        readable = re.sub(r"[^A-Za-z0-9_.-]", "-", experiment_name)[:80]
        digest = hashlib.sha256(f"{store}\n{experiment_name}".encode()).hexdigest()[:16]
        self._path = platformdirs.user_state_path("prefect-checkpoints", appauthor=False) / "launch"
        self._path /= f"{readable}-{digest}.lock"
        self._experiment_name = experiment_name
        self._stop_seconds = stop_seconds
        self.descriptor = -1

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self._path)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while not self._take():
            if time.monotonic() > deadline:
                raise AlreadyRunningError(
                    f"a launch of experiment {self._experiment_name} is running on this machine",
                    path=self.name,
                    expected=f"its end within {SECONDS_TO_WAIT:.0f} s",
                    got=_record(self._path),
                    hint="Two trainings would save to one experiment. Wait for the other one, or cancel its flow run.",
                )
            time.sleep(_PAUSE_SECONDS)
        try:
            self._end_leftovers()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _take(self) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody may have removed the file: others would lock a new one.
                if not _is_same_file(descriptor, self._path):
                    os.close(descriptor)
                    return False
            except BaseException:
                os.close(descriptor)
                raise
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaunchError(
                "the lock that keeps two trainings apart cannot be taken",
                path=self.name,
                got=str(error),
                hint="Set XDG_STATE_HOME to a folder on a local disk.",
            ) from error
        self.descriptor = descriptor
        with contextlib.suppress(OSError):  # on a full disk nobody is told who holds the lock
            record = f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            os.pwrite(descriptor, record.encode().ljust(_RECORD_BYTES), 0)
        return True

    def _end_leftovers(self) -> None:
        if count := stop_all(partial(with_variable, VARIABLE, self.name), self._stop_seconds):
            logger.warning("ended %d processes of an earlier launch whose supervisor had been killed", count)

    def _release(self) -> None:
        # Only closed, not unlocked: a supervisor that is still at work goes on holding the lock.
        os.close(self.descriptor)
        self.descriptor = -1


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _record(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "a process that is starting"
    except OSError:
        return "an unknown process"
