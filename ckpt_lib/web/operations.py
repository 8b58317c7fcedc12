"""Long work that a job does: which there is, what each needs, and what it returns.

An operation is named and takes plain values, so that a job can be written down, shown, and handed to another program
that does it, such as a flow of Prefect. Each may be done again: what is done already is found done.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib.manager import CheckpointManager
from ckpt_lib.stream import Progress
from ckpt_lib.web.tokens import Scope

Names = Annotated[
    list[Annotated[str, Field(max_length=200)]], Field(max_length=1_000, description="Checkpoints by any name.")
]


class Work(BaseModel):
    """What a job is to do with an experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Names = []

    @property
    def scope(self) -> Scope:
        """What a token has to allow for it."""
        return "write"

    def total_bytes(self, manager: CheckpointManager) -> int | None:  # noqa: ARG002
        """Return how many bytes progress counts up to; ``None`` where nobody knows."""
        return None

    def do(self, manager: CheckpointManager, progress: Progress) -> Any:
        """Do it, and return what it has found, as JSON takes it."""
        raise NotImplementedError


class Validate(Work):
    """Read every byte of checkpoints, all of them without names, and report damage."""

    operation: Literal["validate"] = "validate"

    @property
    def scope(self) -> Scope:
        return "read"

    def total_bytes(self, manager: CheckpointManager) -> int | None:
        chosen = map(manager.get_checkpoint, self.names) if self.names else manager.list_checkpoints()
        return sum(checkpoint.file_size for checkpoint in chosen)

    def do(self, manager: CheckpointManager, progress: Progress) -> Any:
        if self.names:
            reports = [manager.validate_checkpoint(name, progress=progress) for name in self.names]
        else:
            reports = list(manager.validate_all(progress=progress))
        told = [{**report.model_dump(mode="json"), "is_valid": report.is_valid} for report in reports]
        return {"is_valid": all(reports), "reports": told}


class Backup(Work):
    """Copy checkpoints, all of them without names, to the backup location."""

    operation: Literal["backup"] = "backup"

    def do(self, manager: CheckpointManager, progress: Progress) -> Any:
        ids = [manager.get_checkpoint(name).checkpoint_id for name in self.names] or manager.checkpoint_ids()
        return {"new_ids": [item for item in ids if manager.backup_checkpoint(item, progress=progress)]}


class Restore(Work):
    """Restore damaged or deleted checkpoints from their backups."""

    operation: Literal["restore"] = "restore"
    names: Names = Field(min_length=1)

    def do(self, manager: CheckpointManager, progress: Progress) -> Any:
        restored = [manager.restore_checkpoint(name, progress=progress) for name in self.names]
        return {"restored_ids": [checkpoint.checkpoint_id for checkpoint in restored]}


class Repair(Work):
    """Repair the damaged bytes of checkpoints from their backups."""

    operation: Literal["repair"] = "repair"
    names: Names = Field(min_length=1)

    def do(self, manager: CheckpointManager, progress: Progress) -> Any:
        reports = [manager.repair_checkpoint(name, progress=progress) for name in self.names]
        return {"reports": [report.model_dump(mode="json") for report in reports]}


AnyWork = Annotated[Validate | Backup | Restore | Repair, Field(discriminator="operation")]
