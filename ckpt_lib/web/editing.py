"""Operations that change what is recorded of a checkpoint, and those that delete it and bring it back."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.web.access import Deleter, Reader, Writer
from ckpt_lib.web.reading import CheckpointName, ExperimentName, manager_of

router = APIRouter()
_MOST_TAGS = 100


class Edit(BaseModel):
    """What is to change. What is not given stays."""

    model_config = ConfigDict(extra="forbid")

    add_tags: list[str] = Field(default=[], max_length=_MOST_TAGS)
    remove_tags: list[str] = Field(default=[], max_length=_MOST_TAGS)
    description: str | None = Field(default=None, description="An empty text removes it.")
    pinned: bool | None = Field(default=None, description="Whether retention keeps it.")


class AddedMetrics(BaseModel):
    """Metrics that were measured after the save."""

    model_config = ConfigDict(extra="forbid")

    metrics: dict[str, float | int] = Field(min_length=1, max_length=1_000)
    source: str = Field(description="What measured them, such as eval/mnist-test.")
    replace: bool = Field(default=False, description="Take the place of other values, which stay on record.")


class Deleted(BaseModel):
    """A checkpoint that was deleted."""

    checkpoint_id: str


class Trash(BaseModel):
    """The deleted checkpoints that can be brought back."""

    items: list[CheckpointMetadata]


@router.patch("/experiments/{experiment}/checkpoints/{name}", tags=["write"])
def edit_checkpoint(
    request: Request, _: Writer, experiment: ExperimentName, name: CheckpointName, edit: Edit
) -> CheckpointMetadata:
    """Change tags, description and pin of a checkpoint; its payload stays untouched."""
    manager = manager_of(request, experiment)
    checkpoint = manager.get_checkpoint(name)  # by name once: an edit may move the tag that it was found by
    if edit.add_tags or edit.remove_tags or edit.description is not None:
        checkpoint = manager.edit_checkpoint(
            checkpoint.checkpoint_id,
            add_tags=edit.add_tags,
            remove_tags=edit.remove_tags,
            description=edit.description,
        )
    if edit.pinned is None:
        return checkpoint
    change = manager.pin_checkpoint if edit.pinned else manager.unpin_checkpoint
    return change(checkpoint.checkpoint_id)


@router.post("/experiments/{experiment}/checkpoints/{name}/metrics", tags=["write"])
def add_metrics(
    request: Request, _: Writer, experiment: ExperimentName, name: CheckpointName, added: AddedMetrics
) -> CheckpointMetadata:
    """Add metrics to a checkpoint; they count for what is the best."""
    manager = manager_of(request, experiment)
    return manager.add_metrics(name, added.metrics, source=added.source, replace=added.replace)


@router.delete("/experiments/{experiment}/checkpoints/{name}", tags=["delete"])
def delete_checkpoint(request: Request, _: Deleter, experiment: ExperimentName, name: CheckpointName) -> Deleted:
    """Delete a checkpoint. It can be brought back as long as the store's configuration says; its backup stays."""
    return Deleted(checkpoint_id=manager_of(request, experiment).delete_checkpoint(name))


@router.get("/experiments/{experiment}/trash", tags=["read"])
def list_trash(request: Request, _: Reader, experiment: ExperimentName) -> Trash:
    """List the deleted checkpoints that can be brought back."""
    return Trash(items=manager_of(request, experiment).list_deleted())


@router.post("/experiments/{experiment}/checkpoints/{name}/undelete", tags=["write"])
def undelete_checkpoint(
    request: Request, _: Writer, experiment: ExperimentName, name: CheckpointName
) -> CheckpointMetadata:
    """Bring a deleted checkpoint back, by its id."""
    return manager_of(request, experiment).undelete_checkpoint(name)
