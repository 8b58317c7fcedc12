"""What jobs have done with a checkpoint: a model for each operation, by whose name ``kind`` tells them apart."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib.core.damage import Damage
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.maintenance.importing.report import ImportedItem, Result
from ckpt_lib.maintenance.repair import RepairReport
from ckpt_lib.maintenance.validate import ValidationReport


class _Done(BaseModel):
    """What was done with one checkpoint, whose id is beside it."""

    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class Validated(_Done):
    """Whether a checkpoint is the one that was saved, and can be loaded."""

    kind: Literal["validate"] = "validate"
    is_valid: bool
    size_bytes: int = Field(description="How many bytes were read.")
    sha256: str
    damages: tuple[Damage, ...] = ()

    @classmethod
    def of(cls, report: ValidationReport) -> Validated:
        """Return what is said of a validation."""
        return cls(is_valid=report.is_valid, **_shared(cls, report))


class BackedUp(_Done):
    """What became of a backup."""

    kind: Literal["backup"] = "backup"
    done: Literal["copied", "already there", "deleted again"] = Field(
        description="`deleted again` where max_backups has retired a copy that was just made."
    )


class Restored(_Done):
    """A checkpoint that was put back from its backup."""

    kind: Literal["restore"] = "restore"
    done: Literal["restored"] = "restored"


class Repaired(_Done):
    """What was repaired of a checkpoint; without damages there was nothing to do."""

    kind: Literal["repair"] = "repair"
    damages: tuple[Damage, ...] = ()
    method: Literal["none", "chunks", "file"] = "none"
    chunks_rewritten: int = Field(default=0, description="Chunks that came from the other copy.")
    bytes_rewritten: int = Field(default=0, description="Bytes that came from the other copy.")

    @classmethod
    def of(cls, report: RepairReport) -> Repaired:
        """Return what is said of a repair."""
        return cls(**_shared(cls, report))


class ExportedFile(BaseModel):
    """A file of an export."""

    model_config = ConfigDict(frozen=True)

    name: str
    size_bytes: int
    sha256: str


class Exported(_Done):
    """An export, whose files can be downloaded."""

    kind: Literal["export"] = "export"
    export_id: str
    files: tuple[ExportedFile, ...]
    left_out: tuple[str, ...] = Field(description="What is not in it, or not as it was: one sentence each.")


class Imported(_Done):
    """What an import has made of uploaded files."""

    kind: Literal["import"] = "import"
    path: str = Field(default="", description="Where it was among the files of a tree.")
    title: str = Field(description="What it was, for a person.")
    result: Result
    epoch: int | None = None
    step: int | None = None
    size_bytes: int = 0
    reason: str | None = Field(default=None, description="Why it was not imported, and what to do.")
    left_out: tuple[str, ...] = Field(
        default=(), description="What was not imported, and what the files do not say: one sentence each."
    )

    @classmethod
    def of(cls, item: ImportedItem, *, path: str, reason: str | None) -> Imported:
        """Return what is said of an import, with a path and a reason that name no folder of the server."""
        return cls(**{**_shared(cls, item), "path": path, "reason": reason})


class Removed(BaseModel):
    """What a cleanup has removed of the checkpoints, or of the backups."""

    model_config = _Done.model_config

    deleted_ids: tuple[str, ...] = ()
    thinned_ids: tuple[str, ...] = Field(default=(), description="The checkpoints that lost all but their weights.")
    freed_bytes: int = 0
    trashed_bytes: int = Field(default=0, description="The bytes to be freed later: until then, all can be undeleted.")
    expired_ids: tuple[str, ...] = Field(default=(), description="Deleted earlier, and removed for good now.")
    expired_bytes: int = 0
    spared: dict[str, str] = Field(default={}, description="Ids that were left as they are after all, and why.")
    swept: tuple[str, ...] = Field(default=(), description="Leftovers of dead processes that were removed.")


class CleanedUp(Removed):
    """What a cleanup has removed."""

    kind: Literal["cleanup"] = "cleanup"
    backups: Removed | None = Field(default=None, description="The same of the backups, if they were cleaned up.")

    @classmethod
    def of(cls, report: CleanupReport) -> CleanedUp:
        """Return what is said of a cleanup; its errors name paths of the server, and are left out."""
        backups = None if report.backups is None else Removed(**_shared(Removed, report.backups))
        return cls(**_shared(Removed, report), backups=backups)


class SetAside(_Done):
    """A damaged checkpoint that was set aside, or repaired instead."""

    kind: Literal["quarantine"] = "quarantine"
    is_quarantined: bool
    message: str


class Thinned(_Done):
    """A checkpoint that keeps only its weights, or has all of its state again."""

    kind: Literal["thin"] = "thin"
    is_thinned: bool
    dropped_bytes: int = Field(description="What waits in the trash.")


class TrashEmptied(_Done):
    """What was in the trash."""

    kind: Literal["empty_trash"] = "empty_trash"
    deleted_ids: tuple[str, ...] = Field(description="The checkpoints that are gone for good.")
    freed_bytes: int


class Fixed(BaseModel):
    """A finding that was fixed."""

    model_config = _Done.model_config

    name: str = Field(description="An id, or the name of a file.")
    outcome: str


class AllFixed(_Done):
    """What was fixed, and how many problems are left."""

    kind: Literal["doctor"] = "doctor"
    done: tuple[Fixed, ...]
    problem_count: int


class BestChosen(_Done):
    """The best checkpoint by the monitor that was chosen."""

    kind: Literal["monitor"] = "monitor"
    best_checkpoint: str | None


def _shared(kind: type[BaseModel], report: BaseModel) -> dict[str, Any]:
    """Return the facts of a report that a result has as well."""
    return {name: getattr(report, name) for name in kind.model_fields if name in type(report).model_fields}


AnyResult = Annotated[
    Validated
    | BackedUp
    | Restored
    | Repaired
    | Exported
    | Imported
    | CleanedUp
    | SetAside
    | Thinned
    | TrashEmptied
    | AllFixed
    | BestChosen,
    Field(discriminator="kind"),
]
