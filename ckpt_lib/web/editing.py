"""Operations that edit checkpoints, delete them and bring them back."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Path, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.web import seen
from ckpt_lib.web.access import Deleter, Reader, Writer
from ckpt_lib.web.problems import refusals
from ckpt_lib.web.reading import NO_CHECKPOINT, NO_EXPERIMENT, CheckpointName, ExperimentName, manager_of
from ckpt_lib.web.whole_ids import whole_id

router = APIRouter()
_MOST_TAGS = 100
WholeId = Annotated[str, Path(description="The whole id of a checkpoint.", max_length=200)]
_CHANGES = NO_CHECKPOINT | refusals({413: "The body is larger than 1 MiB.", 507: "The store is full."})
_ADDS = _CHANGES | refusals({409: "A metric has another value already, or the record of the checkpoint is damaged."})
_DELETES = NO_CHECKPOINT | refusals(
    {409: "The checkpoint is pinned or in use, or its record is damaged.", 507: "The store is full."}
)
_UNDELETES = NO_CHECKPOINT | refusals(
    {404: "There is no such experiment, or no such checkpoint in its trash.", 507: "The store is full."}
)


class Edit(BaseModel):
    """The changes. Everything else stays as it is."""

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
    replace: bool = Field(default=False, description="Replace other values, which stay in added_metrics.")


class Deleted(BaseModel):
    """A checkpoint that was deleted."""

    checkpoint_id: str


class DeletedCheckpoint(CheckpointMetadata):
    """A deleted checkpoint that can be brought back."""

    deleted_at: AwareDatetime | None = Field(description="Null if its record does not say.")
    expires_at: AwareDatetime | None = Field(
        description="When trash_seconds of the server have passed: from then on, the next cleanup removes it for good."
    )

    @classmethod
    def of(cls, item: seen.Deleted) -> Self:
        """Return what is said of a checkpoint in the trash."""
        return cls(**dict(item.checkpoint), deleted_at=item.since, expires_at=item.goes_at)


class Trash(BaseModel):
    """The deleted checkpoints that can be brought back, oldest first."""

    items: list[DeletedCheckpoint]


@router.patch("/experiments/{experiment}/checkpoints/{name}", tags=["write"], responses=_CHANGES)
def edit_checkpoint(
    request: Request, _: Writer, experiment: ExperimentName, name: CheckpointName, edit: Edit
) -> CheckpointMetadata:
    """Change tags, description and pin of a checkpoint, all of them or none; its payload stays untouched."""
    manager = manager_of(request, experiment)
    if edit == Edit():
        return manager.get_checkpoint(name)
    return manager.edit_checkpoint(name, **edit.model_dump())


@router.post("/experiments/{experiment}/checkpoints/{name}/metrics", tags=["write"], responses=_ADDS)
def add_metrics(
    request: Request, _: Writer, experiment: ExperimentName, name: CheckpointName, added: AddedMetrics
) -> CheckpointMetadata:
    """Add metrics to a checkpoint; the best checkpoint is chosen anew."""
    manager = manager_of(request, experiment)
    return manager.add_metrics(name, added.metrics, source=added.source, replace=added.replace)


@router.delete("/experiments/{experiment}/checkpoints/{name}", tags=["delete"], responses=_DELETES)
def delete_checkpoint(request: Request, _: Deleter, experiment: ExperimentName, name: WholeId) -> Deleted:
    """Delete a checkpoint by its whole id. It can be brought back until trash_seconds have passed; its backup stays."""
    return Deleted(checkpoint_id=manager_of(request, experiment).delete_checkpoint(whole_id(name)))


@router.get("/experiments/{experiment}/trash", tags=["read"], responses=NO_EXPERIMENT)
def list_trash(request: Request, _: Reader, experiment: ExperimentName) -> Trash:
    """List the deleted checkpoints that can be brought back, and until when they stay for sure."""
    deleted = [item for item in seen.trash_of(manager_of(request, experiment)).items if not item.is_part]
    ordered = sorted(deleted, key=lambda item: item.checkpoint.sequence)
    return Trash(items=[DeletedCheckpoint.of(item) for item in ordered])


@router.post("/experiments/{experiment}/checkpoints/{name}/undelete", tags=["write"], responses=_UNDELETES)
def undelete_checkpoint(request: Request, _: Writer, experiment: ExperimentName, name: WholeId) -> CheckpointMetadata:
    """Bring a deleted checkpoint back, by its whole id."""
    return manager_of(request, experiment).undelete_checkpoint(whole_id(name))
