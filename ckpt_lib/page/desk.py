"""``Desk``: what the screens work with. It checks what a browser may do, and notes what it changes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

import gradio as gr

from ckpt_lib.analysis.results import ExperimentSummary
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import duration
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.conversions import Conversions
from ckpt_lib.page.remembered import Remembered
from ckpt_lib.page.run_requests import RunRequests
from ckpt_lib.page.view import View
from ckpt_lib.web.job import ENDED, Job
from ckpt_lib.web.jobs import Jobs
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.operations import AnyWork
from ckpt_lib.web.sessions import Sessions
from ckpt_lib.web.settings import ServerSettings
from ckpt_lib.web.tokens import Scope
from ckpt_lib.web.transfers import Transfers

audit = logging.getLogger("ckpt_lib.audit")


@dataclass(frozen=True)
class Desk:
    """The store, the jobs, the conversions and the sessions of a server, and what it has asked live runs here for."""

    settings: ServerSettings
    managers: Managers
    jobs: Jobs
    sessions: Sessions
    transfers: Transfers
    requests: RunRequests
    conversions: Conversions
    remembered: Remembered = field(default_factory=Remembered)

    def check(self, request: gr.Request, scope: Scope) -> str:
        """Return the name of a browser's token. Raises ``PermissionError`` if it may not do this."""
        return self.sessions.check(request.cookies, request.headers.get("host", ""), scope)

    def allows(self, request: gr.Request, scope: Scope) -> bool:
        """Tell whether a browser may do this."""
        try:
            self.check(request, scope)
        except PermissionError:
            return False
        return True

    def manager(self, experiment: str) -> CheckpointManager:
        """Return the manager of an experiment. Raises :class:`~ckpt_lib.errors.ExperimentNotFoundError`."""
        return self.managers.of(experiment)

    def checkpoints(self, manager: CheckpointManager) -> list[CheckpointMetadata]:
        """Return all checkpoints of an experiment, oldest first."""
        return self.remembered.of(manager, "checkpoints", manager.list_checkpoints)

    def summary(self, manager: CheckpointManager) -> ExperimentSummary:
        """Return an experiment in numbers."""
        found = self.remembered.of(manager, "summary", manager.get_checkpoint_summary)
        return {**found, "total_backups": len(manager.backup_ids())}  # those lie elsewhere

    def start(self, request: gr.Request, experiment: str, work: AnyWork) -> Job:
        """Start a job. Raises ``PermissionError``, and as :meth:`ckpt_lib.web.jobs.Jobs.start`."""
        who = self.check(request, work.scope)
        work.prepare(self.transfers, who)
        job = self.jobs.start(experiment, work, who)
        self.note(who, f"start {work.operation}", experiment, ", ".join(job.checkpoint_ids[:20]))
        return job

    def has_work(self, view: View) -> bool:
        """Tell whether a job waits or runs, a file of this browser is converted, or a live run is to answer."""
        if self.conversions.is_running(view.files.conversion):
            return True
        return self.requests.are_waiting() or any(job.state not in ENDED for job in self.jobs.all())

    def note(self, who: str, action: str, experiment: str, checkpoint_id: str = "") -> None:
        """Write a line of the audit log about a change that was made."""
        facts = {"who": who, "page": action, "experiment": experiment, "checkpoint_id": checkpoint_id}
        audit.info(json.dumps(facts))

    @property
    def trash_time(self) -> str:
        """How long what is deleted can be brought back."""
        return duration(self.managers.config.trash_seconds)
