"""The operations that a job can do.

An operation has a name and takes plain values, so that a job can be stored, shown, and handed to another program. Each
may be done again: what is done already is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from ckpt_lib.converting.names import TargetFormat, TargetType
from ckpt_lib.core.monitor import Mode
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError
from ckpt_lib.maintenance.importing.report import ImportedItem
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.stream import Progress
from ckpt_lib.web.exports import Exports
from ckpt_lib.web.hints import in_words_of_the_api
from ckpt_lib.web.managers import home_of
from ckpt_lib.web.problems import Problem, problem_of
from ckpt_lib.web.results import (
    AllFixed,
    AnyResult,
    BackedUp,
    BestChosen,
    CleanedUp,
    Exported,
    ExportedFile,
    Fixed,
    Imported,
    Repaired,
    Restored,
    SetAside,
    Thinned,
    TrashEmptied,
    Validated,
)
from ckpt_lib.web.rules import MaxCheckpoints, check_rules, rules_of
from ckpt_lib.web.seen import findings_fingerprint, require_shown, trash_of
from ckpt_lib.web.tokens import Scope
from ckpt_lib.web.transfers import Transfers
from ckpt_lib.web.uploads import MOST_UPLOADS, Uploads

Name = Annotated[str, Field(max_length=200)]
Names = Annotated[list[Name], Field(min_length=1, max_length=1_000, description="Checkpoints by any name.")]
OneName = Annotated[list[Name], Field(min_length=1, max_length=1, description="A checkpoint by any name.")]
NamesOrAll = Annotated[
    Names | Literal["all"], Field(description="Checkpoints by any name, or the text all for all of the experiment.")
]

Step = Callable[[str, Callable[[], AnyResult]], AnyResult]
"""Calls the function that does one checkpoint, whose description it is given, and returns or raises what that does."""


def _directly(_description: str, call: Callable[[], AnyResult]) -> AnyResult:
    return call()


def _or_none(checkpoint_id: Any) -> Any:
    return checkpoint_id or None  # jobs of earlier versions, and tables of Prefect, have an empty text


class Outcome(BaseModel):
    """The result of an operation on a checkpoint, or the problem that prevented it."""

    checkpoint_id: Annotated[str | None, BeforeValidator(_or_none)] = Field(
        default=None, description="Null for what concerns no single checkpoint."
    )
    result: AnyResult | None = None
    problem: Problem | None = None

    def for_clients(self, experiment: str) -> Self:
        """Return the outcome with operations of the API in the place of commands."""
        update: dict[str, Any] = {}
        if self.problem is not None:
            update["problem"] = self.problem.for_clients(experiment)
        if isinstance(self.result, Imported) and self.result.reason:
            reason = in_words_of_the_api(self.result.reason, experiment, self.checkpoint_id)
            update["result"] = self.result.model_copy(update={"reason": reason})
        return self.model_copy(update=update) if update else self


class Work(BaseModel):
    """An operation of an experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def scope(self) -> Scope:
        """The scope that a token needs for it."""
        return "write"

    @property
    def needs_transfers(self) -> bool:
        """True if only the server can do it, which has the uploads and exports."""
        return False

    @property
    def may_create(self) -> bool:
        """True if it creates the experiment where there is none of its name."""
        return False

    def prepare(self, transfers: Transfers, who: str) -> None:
        """Learn where uploads and exports are, and check what can be checked at once.

        The server calls it first, for the token ``who``.
        """

    def resolve(self, manager: CheckpointManager) -> list[str]:  # noqa: ARG002
        """Return the ids of the checkpoints that it is about; none where it is about no single ones.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        return []

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

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> AnyResult:
        """Process a checkpoint and return the result. Raises :class:`~ckpt_lib.errors.CheckpointError`."""
        raise NotImplementedError


class NamedWork(Work):
    """An operation on checkpoints of an experiment."""

    names: NamesOrAll

    def resolve(self, manager: CheckpointManager) -> list[str]:
        """Return the ids that the names stand for, each once; ids stay as they are, also of deleted checkpoints."""
        if self.names == "all":
            return manager.checkpoint_ids()
        ids = (name if is_checkpoint_id(name) else manager.get_checkpoint(name).checkpoint_id for name in self.names)
        return list(dict.fromkeys(ids))


class Validate(NamedWork):
    """Read every byte of checkpoints and report damage."""

    operation: Literal["validate"] = "validate"

    @property
    def scope(self) -> Scope:
        return "read"

    def total_bytes(self, manager: CheckpointManager, checkpoint_ids: list[str]) -> int | None:
        wanted = set(checkpoint_ids)
        return sum(item.file_size for item in manager.list_checkpoints() if item.checkpoint_id in wanted)

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Validated:
        return Validated.of(manager.validate_checkpoint(checkpoint_id, progress=progress))


class Backup(NamedWork):
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
            if outcome.result == BackedUp(done="copied") and outcome.checkpoint_id not in held:
                outcome.result = BackedUp(done="deleted again")
        return outcomes

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> BackedUp:
        is_copied = manager.backup_checkpoint(checkpoint_id, progress=progress)
        return BackedUp(done="copied" if is_copied else "already there")


class Restore(NamedWork):
    """Restore damaged or deleted checkpoints from their backups."""

    operation: Literal["restore"] = "restore"
    names: Names

    def resolve(self, manager: CheckpointManager) -> list[str]:
        try:
            return super().resolve(manager)
        except CheckpointNotFoundError as error:
            held = manager.backup_ids()
            newest = f"; the newest backup is {held[-1]}" if held else ", but there is no backup"
            error.hint = f"Names stand for stored checkpoints. To restore a deleted one, give its whole id{newest}."
            raise

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Restored:
        manager.restore_checkpoint(checkpoint_id, progress=progress)
        return Restored()


class Repair(NamedWork):
    """Repair the damaged bytes of checkpoints from their backups."""

    operation: Literal["repair"] = "repair"
    names: Names

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Repaired:
        return Repaired.of(manager.repair_checkpoint(checkpoint_id, progress=progress))


class Export(NamedWork):
    """Export a checkpoint, to be downloaded: as it is, or converted for another program."""

    operation: Literal["export"] = "export"
    names: OneName
    format: TargetFormat | None = Field(
        default=None,
        description="With none of these options, the checkpoint is exported as it is, with its manifest.",
    )
    dtype: TargetType | None = Field(default=None, description="The type of the weights.")
    only: Literal["model"] | None = Field(default=None, description="model: the weights alone.")
    shard_size: str | None = Field(default=None, max_length=50, description="The largest file, such as 5GB.")
    _exports: Exports = PrivateAttr()
    _who: str = PrivateAttr()

    @property
    def scope(self) -> Scope:
        return "read"

    @property
    def needs_transfers(self) -> bool:
        return True

    def prepare(self, transfers: Transfers, who: str) -> None:
        self._exports, self._who = transfers.exports, who
        if options := self._options():
            from ckpt_lib.converting.options import conversion_options  # torch, only where it is used

            conversion_options("", **{"format": "torch", **options})

    def _options(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("format", "dtype", "only", "shard_size")}
        return {name: value for name, value in given.items() if value is not None}

    def total_bytes(self, manager: CheckpointManager, checkpoint_ids: list[str]) -> int | None:
        if self.dtype or self.only:
            return None
        wanted = set(checkpoint_ids)
        return sum(item.uncompressed_size for item in manager.list_checkpoints() if item.checkpoint_id in wanted)

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> Exported:
        home, found = home_of(manager), manager.get_checkpoint(checkpoint_id)  # none in quarantine
        export = self._exports.create(home, home.get(found.checkpoint_id), self._options(), progress, who=self._who)
        files = [ExportedFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256) for file in export.files]
        return Exported(export_id=export.export_id, files=tuple(files), left_out=export.left_out)


class Import(Work):
    """Import an uploaded checkpoint of this library or of another program, as the newest of the experiment."""

    operation: Literal["import"] = "import"
    uploads: list[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]] = Field(
        min_length=1, max_length=MOST_UPLOADS, description="The files of one checkpoint. They go once it is imported."
    )
    tree: bool = Field(
        default=False,
        description="The files are those of any number of checkpoints: import each, oldest first, with an outcome of "
        "its own. The files go then, also of those that could not be imported.",
    )
    compression: bool | None = Field(
        default=None, description="Store what other programs wrote compressed, or not; by default as the server does."
    )
    key_map: dict[str, str] | None = Field(
        default=None, max_length=100, description='What unusual names stand for, such as {"net": "model"}.'
    )
    new_experiment: bool = Field(default=False, description="Create the experiment if there is none of its name.")
    _uploads: Uploads = PrivateAttr()

    @property
    def needs_transfers(self) -> bool:
        return True

    @property
    def may_create(self) -> bool:
        return self.new_experiment

    def prepare(self, transfers: Transfers, who: str) -> None:
        self._uploads = transfers.uploads
        self._uploads.require_complete(self.uploads, who=who)

    def do(
        self,
        manager: CheckpointManager,
        checkpoint_ids: list[str],  # noqa: ARG002
        progress: Progress,
        step: Step = _directly,  # noqa: ARG002
    ) -> list[Outcome]:
        if self.compression is not None:
            config = manager.config.model_copy(update={"compression": self.compression})
            manager = CheckpointManager(config, manager.experiment_name)
        with self._uploads.assembled(self.uploads, progress) as source:
            outcomes = (self._import_tree if self.tree else self._import_one)(manager, source, progress)
        for upload_id in self.uploads:
            self._uploads.remove(upload_id)
        return outcomes

    def _import_one(self, manager: CheckpointManager, source: Path, progress: Progress) -> list[Outcome]:
        told: list[ImportedItem] = []
        manager.import_checkpoint(source, key_map=self.key_map, progress=progress, told=told.append)
        (item,) = told
        self._forget_folder(manager, str(item.checkpoint_id))
        return [Outcome(checkpoint_id=str(item.checkpoint_id), result=Imported.of(item, path="", reason=None))]

    def _import_tree(self, manager: CheckpointManager, source: Path, progress: Progress) -> list[Outcome]:
        """Import each checkpoint of a folder. The outcomes say of each thing found what it is and what became of it."""
        folder = source if source.is_dir() else source.parent
        report = manager.import_checkpoints(folder, key_map=self.key_map, progress=progress)
        outcomes = []
        for item in report.items:
            if item.result == "imported":
                self._forget_folder(manager, str(item.checkpoint_id))
            place = f"; path {folder}{f'/{item.path}' if item.path else ''}"
            reason = None if item.reason is None else self._uploads.as_named(item.reason.replace(place, ""))
            outcome = Outcome(checkpoint_id=item.checkpoint_id, result=Imported.of(item, path=item.path, reason=reason))
            if item in report.failed:
                failure = f"{item.path or 'the folder'}: {item.result}"
                outcome.problem = Problem.of("CheckpointError", 422, failure, hint=reason)
            outcomes.append(outcome)
        return outcomes

    def _forget_folder(self, manager: CheckpointManager, checkpoint_id: str) -> None:
        """Name the file in the description without the folder of the server that it was in for the import."""
        checkpoint = manager.get_checkpoint(checkpoint_id)
        description = self._uploads.as_named(checkpoint.description)
        if description != checkpoint.description:
            manager.edit_checkpoint(checkpoint_id, description=description)


class Cleanup(Work):
    """Carry out the retention plan that was shown, and nothing else."""

    operation: Literal["cleanup"] = "cleanup"
    max_checkpoints: MaxCheckpoints = None
    policy: dict[str, Any] | None = Field(
        default=None, description='A retention policy, such as {"kind": "newest", "count": 5}.'
    )
    fingerprint: str = Field(max_length=200, description="That of the plan that was shown.")

    @property
    def scope(self) -> Scope:
        return "delete"

    def prepare(self, transfers: Transfers, who: str) -> None:  # noqa: ARG002
        check_rules(self.max_checkpoints, self.policy)

    def do(
        self,
        manager: CheckpointManager,
        checkpoint_ids: list[str],  # noqa: ARG002
        progress: Progress,
        step: Step = _directly,  # noqa: ARG002
    ) -> list[Outcome]:
        progress(0)  # raises if the job is cancelled
        rules = rules_of(manager, self.max_checkpoints, self.policy)
        report = manager.cleanup_checkpoints(policy=rules, fingerprint=self.fingerprint)
        outcomes = [Outcome(result=CleanedUp.of(report))]
        if report.backups_error is not None:
            detail = "the backups were not cleaned up: the plan for them has changed, or their location failed"
            hint = "Look at the plan as it is now; the server's log says more."
            problem = Problem.of("StoreError", 503, detail, hint=hint)
            outcomes.append(Outcome(problem=problem))
        return outcomes


class Quarantine(NamedWork):
    """Set damaged checkpoints aside; one that its backup can repair is repaired instead."""

    operation: Literal["quarantine"] = "quarantine"
    names: Names

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> AnyResult:
        report = manager.quarantine_checkpoint(checkpoint_id, progress=progress)
        return SetAside(is_quarantined=report.is_quarantined, message=report.message)


class Thin(NamedWork):
    """Keep only the weights of checkpoints or, with ``undo``, bring back what they lost, while it is in the trash."""

    operation: Literal["thin"] = "thin"
    names: Names
    undo: bool = False

    @property
    def scope(self) -> Scope:
        return "write" if self.undo else "delete"

    def do_one(self, manager: CheckpointManager, checkpoint_id: str, progress: Progress) -> AnyResult:  # noqa: ARG002
        before = manager.get_checkpoint(checkpoint_id).file_size
        change = manager.unthin_checkpoint if self.undo else manager.thin_checkpoint
        after = change(checkpoint_id)
        return Thinned(is_thinned=after.is_thinned, dropped_bytes=max(0, before - after.file_size))


class EmptyTrash(Work):
    """Delete what the trash holds for good: just what was shown, if its fingerprint is given."""

    operation: Literal["empty_trash"] = "empty_trash"
    fingerprint: str | None = Field(default=None, max_length=200, description="That of the trash that was shown.")

    @property
    def scope(self) -> Scope:
        return "delete"

    def do(
        self,
        manager: CheckpointManager,
        checkpoint_ids: list[str],  # noqa: ARG002
        progress: Progress,
        step: Step = _directly,  # noqa: ARG002
    ) -> list[Outcome]:
        progress(0)  # raises if the job is cancelled
        before = trash_of(manager)
        require_shown(self.fingerprint, before.fingerprint, "the trash")
        whole_ids = [item.checkpoint.checkpoint_id for item in before.items if not item.is_part]
        part_ids = [item.checkpoint.checkpoint_id for item in before.items if item.is_part]
        deleted_ids = tuple(manager.empty_trash(deleted_ids=whole_ids, dropped_ids=part_ids))
        left = {item.key for item in trash_of(manager).items}
        freed_bytes = sum(item.size_bytes for item in before.items if item.key not in left)
        return [Outcome(result=TrashEmptied(deleted_ids=deleted_ids, freed_bytes=freed_bytes))]


class Doctor(Work):
    """Fix what a check finds and can be fixed: just what was shown, if its fingerprint is given."""

    operation: Literal["doctor"] = "doctor"
    fingerprint: str | None = Field(default=None, max_length=200, description="That of the findings that were shown.")

    @property
    def scope(self) -> Scope:
        return "delete"  # leftovers go, and what has been in the trash for long enough

    def do(
        self,
        manager: CheckpointManager,
        checkpoint_ids: list[str],  # noqa: ARG002
        progress: Progress,
        step: Step = _directly,  # noqa: ARG002
    ) -> list[Outcome]:
        if self.fingerprint is not None:
            require_shown(self.fingerprint, findings_fingerprint(manager.doctor(progress=progress)), "what is found")
        report = manager.doctor(fix=True, progress=progress)
        done = tuple(Fixed(name=item.finding.name, outcome=item.outcome) for item in report.done if item.succeeded)
        outcomes = [Outcome(result=AllFixed(done=done, problem_count=len(report.problems)))]
        for item in report.done:
            if not item.succeeded:
                problem = Problem.of("StoreError", 503, f"{item.finding.name} was not fixed: {item.outcome}")
                outcomes.append(Outcome(problem=problem))
        return outcomes


class SetMonitor(Work):
    """Choose the metric that decides which checkpoint is the best, and rewrite the manifests, which record it."""

    operation: Literal["monitor"] = "monitor"
    metric: str = Field(max_length=1_000)
    mode: Mode

    def do(
        self,
        manager: CheckpointManager,
        checkpoint_ids: list[str],  # noqa: ARG002
        progress: Progress,
        step: Step = _directly,  # noqa: ARG002
    ) -> list[Outcome]:
        progress(0)  # raises if the job is cancelled
        manager.set_monitor(self.metric, self.mode)
        best = manager.get_best_checkpoint()
        return [Outcome(result=BestChosen(best_checkpoint=best.checkpoint_id if best else None))]


AnyWork = Annotated[
    Validate
    | Backup
    | Restore
    | Repair
    | Export
    | Import
    | Cleanup
    | Quarantine
    | Thin
    | EmptyTrash
    | Doctor
    | SetMonitor,
    Field(discriminator="operation"),
]
