"""The operations that a job can do.

An operation has a name and takes plain values, so that a job can be stored, shown, and handed to another program. Each
may be done again: what is done already is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.stream import Progress
from ckpt_lib.web.problems import Problem, problem_of
from ckpt_lib.web.tokens import Scope

Names = Annotated[
    list[Annotated[str, Field(max_length=200)]], Field(max_length=1_000, description="Checkpoints by any name.")
]


Step = Callable[[str, Callable[[], Any]], Any]
"""Calls the function that does one checkpoint, whose description it is given, and returns or raises what that does."""


def _directly(_description: str, call: Callable[[], Any]) -> Any:
    return call()


class Outcome(BaseModel):
    """The result of an operation on a checkpoint, or the problem that prevented it."""

    checkpoint_id: str
    result: Any = None
    problem: Problem | None = None


class Work(BaseModel):
    """An operation on checkpoints of an experiment; without names, on all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Names = []

    @property
    def scope(self) -> Scope:
        """The scope that a token needs for it."""
        return "write"

    def resolve(self, manager: CheckpointManager) -> list[str]:
        """Return the ids that the names stand for, each once; ids stay as they are, also of deleted checkpoints.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        if not self.names:
            return manager.checkpoint_ids()
        ids = (name if is_checkpoint_id(name) else manager.get_checkpoint(name).checkpoint_id for name in self.names)
        return list(dict.fromkeys(ids))

    def total_bytes(self, manager: CheckpointManager, checkpoint_ids: list[str]) -> int | None:  # noqa: ARG002
        """Return how many bytes progress counts up to; ``None`` if it is not known."""
        return None

    def do(
        self, manager: CheckpointManager, checkpoint_ids: list[str], progress: Progress, step: Step = _directly
    ) -> list[Outcome]:
        """Process each checkpoint by a ``step``, and return its outcome. A failure does not prevent the others."""
        outcomes = []
        for checkpoint_id in checkpoint_ids:
            progress(0)  # raises if the job is cancelled
            try:
                result = step(checkpoint_id, partial(self.do_one, manager, checkpoint_id, progress))
                outcome = Outcome(checkpoint_id=checkpoint_id, result=result)
            except CheckpointError as error:
                outcome = Outcome(checkpoint_id=checkpoint_id, problem=problem_of(error))
            outcomes.append(outcome)
        return outcomes

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Any:
        """Process a checkpoint and return the result as JSON. Raises :class:`~ckpt_lib.errors.CheckpointError`."""
        raise NotImplementedError


class Validate(Work):
    """Read every byte of checkpoints and report damage."""

    operation: Literal["validate"] = "validate"

    @property
    def scope(self) -> Scope:
        return "read"

    def total_bytes(self, manager: CheckpointManager, checkpoint_ids: list[str]) -> int | None:
        wanted = set(checkpoint_ids)
        return sum(item.file_size for item in manager.list_checkpoints() if item.checkpoint_id in wanted)

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Any:
        report = manager.validate_checkpoint(checkpoint_id, progress=progress)
        return {**report.model_dump(mode="json"), "is_valid": report.is_valid}


COPIED, DELETED_AGAIN = "copied", "deleted again"
"""The second one where max_backups has retired a copy that was just made."""


class Backup(Work):
    """Copy checkpoints to the backup location."""

    operation: Literal["backup"] = "backup"

    def do(
        self, manager: CheckpointManager, checkpoint_ids: list[str], progress: Progress, step: Step = _directly
    ) -> list[Outcome]:
        outcomes = super().do(manager, checkpoint_ids, progress, step)
        try:
            held = set(manager.backup_ids())
        except CheckpointError:  # each outcome tells of its own
            return outcomes
        for outcome in outcomes:
            if outcome.result == COPIED and outcome.checkpoint_id not in held:
                outcome.result = DELETED_AGAIN
        return outcomes

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Any:
        return COPIED if manager.backup_checkpoint(checkpoint_id, progress=progress) else "already there"


class Restore(Work):
    """Restore damaged or deleted checkpoints from their backups."""

    operation: Literal["restore"] = "restore"
    names: Names = Field(min_length=1)

    def resolve(self, manager: CheckpointManager) -> list[str]:
        try:
            return super().resolve(manager)
        except CheckpointNotFoundError as error:
            held = manager.backup_ids()
            newest = f"; the newest backup is {held[-1]}" if held else ", but there is no backup"
            error.hint = f"Names stand for stored checkpoints. To restore a deleted one, give its whole id{newest}."
            raise

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Any:
        manager.restore_checkpoint(checkpoint_id, progress=progress)
        return "restored"


class Repair(Work):
    """Repair the damaged bytes of checkpoints from their backups."""

    operation: Literal["repair"] = "repair"
    names: Names = Field(min_length=1)

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Any:
        return manager.repair_checkpoint(checkpoint_id, progress=progress).model_dump(mode="json")


AnyWork = Annotated[Validate | Backup | Restore | Repair, Field(discriminator="operation")]
