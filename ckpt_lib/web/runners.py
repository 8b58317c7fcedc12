"""What does the jobs of a server: its own threads or, by an entry point, another program.

A package announces a runner by the entry point group ``ckpt_lib.jobs``: the name is what ``ckpt serve --runner`` takes,
the value a class or function that is called with a :class:`RunnerHost` and returns a :class:`JobRunner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.job import Job, JobUpdate

ENTRY_POINT_GROUP = "ckpt_lib.jobs"
DEFAULT_RUNNER = "threads"

_BUILT_IN = {DEFAULT_RUNNER: "ckpt_lib.web.threads:ThreadRunner"}


@dataclass(frozen=True)
class RunnerHost:
    """What a runner is told about its server, and how it tells the server about jobs."""

    config: CheckpointConfig
    """The store of the server."""
    manager_of: Callable[[Job], CheckpointManager]
    """Returns the manager of a job's experiment, or raises :class:`~ckpt_lib.errors.ExperimentNotFoundError`."""
    update: Callable[[str, JobUpdate], None]
    """Notes what has become of a job; any thread may call it. What follows the end of a job is ignored."""


class JobRunner(Protocol):
    """Does jobs. No method waits for a job to end, but :meth:`close` may.

    A runner does what ``job.work`` says, by its ``do``, and tells the state, the bytes and the end of the job to its
    host. It may be killed at any moment: a job may be done again from the beginning.
    """

    def start(self, job: Job) -> None:
        """Take on a new job, which is stored already."""
        ...

    def resume(self, job: Job) -> bool:
        """Go on with a job of an earlier server that had not ended; ``False`` if it was interrupted."""
        ...

    def cancel(self, job: Job) -> None:
        """Ask a job to end. It may still succeed."""
        ...

    def close(self) -> None:
        """Stop telling. Jobs that depend on the server end now, and others go on."""
        ...


RunnerFactory = Callable[[RunnerHost], JobRunner]


def runner_factory(name: str) -> RunnerFactory:
    """Return what makes the runner of this name. Raises :class:`~ckpt_lib.errors.ConfigError` if there is none."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: Any = getattr(import_module(module), attribute)
        return cast(RunnerFactory, found)
    installed = _installed()
    if name not in installed:
        names = ", ".join(sorted({*_BUILT_IN, *installed}))
        raise ConfigError(f"no runner of jobs is called {shown(name)}", expected=f"one of {names}")
    try:
        return cast(RunnerFactory, installed[name].load())
    except Exception as error:
        raise ConfigError(
            f"the runner {name} cannot be loaded: {error}",
            got=f"{installed[name].value}, of the entry points {ENTRY_POINT_GROUP}",
            hint="Install what it needs, or choose another runner.",
        ) from error


def _installed() -> dict[str, EntryPoint]:
    """Return the runners of other packages, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
