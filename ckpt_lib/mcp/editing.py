"""Tools that change a store: edits, copies and repairs for the scope ``write``, deletion for ``delete``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from ckpt_lib.mcp.answers import DetailedCheckpoint
from ckpt_lib.mcp.reading import Experiment, Name
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.whole_ids import whole_id

Tags = Annotated[tuple[str, ...], Field(max_length=20)]
WholeId = Annotated[str, Field(max_length=200, description="The whole id of a checkpoint.")]


class DoneAnswer(BaseModel):
    """What was done with a checkpoint."""

    experiment_name: str
    checkpoint_id: str
    done: str


class WritingTools:
    """The tools that edit, copy and repair. Threads may share them."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers

    def edit_checkpoint(
        self,
        *,
        experiment: Experiment,
        name: Name,
        add_tags: Tags = (),
        remove_tags: Tags = (),
        description: Annotated[str | None, Field(description="Null leaves it; an empty text removes it.")] = None,
        pinned: Annotated[bool | None, Field(description="Whether retention keeps it; null leaves that.")] = None,
    ) -> DetailedCheckpoint:
        """Change tags, description and pin of a checkpoint, all of them or none; its payload stays untouched."""
        manager = self._managers.of(experiment)
        changed = manager.edit_checkpoint(
            name, add_tags=add_tags, remove_tags=remove_tags, description=description, pinned=pinned
        )
        return DetailedCheckpoint.about(changed)

    def backup_checkpoint(self, experiment: Experiment, name: Name) -> DoneAnswer:
        """Copy a checkpoint to the backup location, unless it is there."""
        manager = self._managers.of(experiment)
        checkpoint_id = manager.get_checkpoint(name).checkpoint_id
        is_copied = manager.backup_checkpoint(checkpoint_id)
        return _done(experiment, checkpoint_id, "copied" if is_copied else "its backup is there already")

    def repair_checkpoint(self, experiment: Experiment, checkpoint_id: WholeId) -> DoneAnswer:
        """Repair the damaged bytes of a checkpoint from its backup."""
        report = self._managers.of(experiment).repair_checkpoint(whole_id(checkpoint_id))
        return _done(experiment, checkpoint_id, report.message)

    def restore_checkpoint(self, experiment: Experiment, checkpoint_id: WholeId) -> DoneAnswer:
        """Put the backup of a damaged or lost checkpoint back in its place."""
        self._managers.of(experiment).restore_checkpoint(whole_id(checkpoint_id))
        return _done(experiment, checkpoint_id, "restored")

    def undelete_checkpoint(self, experiment: Experiment, checkpoint_id: WholeId) -> DoneAnswer:
        """Bring a deleted checkpoint back while it is in the trash."""
        self._managers.of(experiment).undelete_checkpoint(whole_id(checkpoint_id))
        return _done(experiment, checkpoint_id, "brought back")


class DeletingTools:
    """The tool that deletes. Threads may share it."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers

    def delete_checkpoint(self, experiment: Experiment, checkpoint_id: WholeId) -> DoneAnswer:
        """Delete one checkpoint by its whole id, if the user agrees. It can be undeleted for a while."""
        self._managers.of(experiment).delete_checkpoint(whole_id(checkpoint_id))
        return _done(experiment, checkpoint_id, "deleted")


def _done(experiment: str, checkpoint_id: str, done: str) -> DoneAnswer:
    return DoneAnswer(experiment_name=experiment, checkpoint_id=checkpoint_id, done=done)
