"""``JobFolder``: the stored jobs of a server, one file each. One server at a time uses a folder."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.errors import AlreadyRunningError, ConfigError
from ckpt_lib.web.job import Job


class JobFolder:
    """A folder of jobs. A crash leaves each file as it was before the write, or as it is after it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: IO[str] | None = None

    @property
    def is_open(self) -> bool:
        return self._held is not None

    def open(self) -> None:
        """Take the folder. The kernel releases it when the server ends, also by a kill.

        Raises :class:`~ckpt_lib.errors.AlreadyRunningError` if another server has it, and
        :class:`~ckpt_lib.errors.ConfigError` if it cannot be written to.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            held = (self._path / ".lock").open("a", encoding="utf-8")
            self._lock(held)
            self._remove_leftovers()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"jobs cannot be stored in this folder: {error.strerror or error}",
                path=str(self._path),
                expected="a folder that the server may create and write to",
                hint="`ckpt serve --jobs-folder FOLDER` names another one.",
            ) from error

    def _lock(self, held: IO[str]) -> None:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held.close()
            raise AlreadyRunningError(
                "another server stores its jobs in this folder",
                path=str(self._path),
                hint="End that server, or give this one another folder by --jobs-folder.",
            ) from error
        except OSError:
            held.close()
            raise
        self._held = held

    def _remove_leftovers(self) -> None:
        """Remove files that a kill has left, by which the folder also turns out to be writable."""
        descriptor, _ = tempfile.mkstemp(dir=self._path, prefix=".job-")
        os.close(descriptor)
        for leftover in self._path.glob(".job-*"):
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the folder."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def read(self) -> list[Job]:
        """Return the stored jobs, the oldest first. A file that cannot be read is kept aside, with a warning."""
        found = []
        for path in sorted(self._path.glob("*.json")):
            try:
                found.append(Job.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError) as error:
                logger.warning("the job file %s cannot be read, and is kept as %s.unreadable: %s", path, path, error)
                with failures_logged(f"renaming {path}"):
                    path.rename(f"{path}.unreadable")
        return found

    def write(self, job: Job) -> None:
        """Store a job whole or not at all. A failure is logged: the work itself is not lost by it."""
        with failures_logged(f"storing the job {job.job_id}"):
            descriptor, name = tempfile.mkstemp(dir=self._path, prefix=".job-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(job.model_dump_json())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._file(job.job_id))

    def remove(self, job_id: str) -> None:
        """Forget a job. A failure is logged."""
        with failures_logged(f"forgetting the job {job_id}"):
            self._file(job_id).unlink(missing_ok=True)

    def _file(self, job_id: str) -> Path:
        return self._path / f"{job_id}.json"
