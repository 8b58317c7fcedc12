"""Commands that delete checkpoints: ``ckpt cleanup`` and ``delete``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import chosen_ids
from ckpt_lib.cli.errors import STORE_FAILURE, ConfirmationError
from ckpt_lib.cli.output import Column, note, print_facts, print_heading, print_json, print_table
from ckpt_lib.cli.session import open_copies
from ckpt_lib.core.wording import count_of, duration, size_text
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptManifestError,
    NotAStoreError,
    ProtectedCheckpointError,
    StoreError,
)

if TYPE_CHECKING:
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.maintenance.cleanup import CleanupReport
    from ckpt_lib.maintenance.quarantine import QuarantinedCheckpoint
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.policies.retention import Decision, RetentionPolicy

_STATUS_STYLES = {"valid": "green", "damaged": "bold red"}


def cleanup(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Keep the best and the newest, N in all. Default: max_checkpoints, or max_backups with --backups.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with a retention policy, such as {kind: newest, count: 5}."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    backups: options.OfBackups = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete old checkpoints by number or by a retention policy.

    Always keeps the newest and the best valid checkpoint, pinned ones, and damaged ones, which may still be repaired.
    With thin_after, all but the newest so many of those that stay keep only their weights: see `ckpt thin`.
    Also deletes leftovers of dead processes and, if max_backups is given, the backups beyond it. `ckpt undelete` brings
    checkpoints back for trash_seconds, a day by default; a later cleanup frees their bytes. With --backups, only
    backups are deleted, at once and for good. Exits with 3 if the checkpoints were cleaned up but the backups could not
    be.

    Example: ckpt cleanup --keep 5 --dry-run
    """
    rules = _read_policy(policy, keep)
    manager = open_copies(
        store,
        experiment,
        config,
        backups=backups,
        max_backups=keep if backups else None,
        max_checkpoints=None if backups else keep,
    )
    clean_up = manager.cleanup_backups if backups else manager.cleanup_checkpoints
    kind = "backup" if backups else "checkpoint"
    trash_seconds = 0.0 if backups else manager.config.trash_seconds
    fingerprint = None
    if not dry_run and not yes:
        refuse_to_ask(as_json=as_json)
    if dry_run or not yes:
        planned = clean_up(policy=rules, dry_run=True)
        if not as_json:
            _print_plans(planned)
            _warn_of_default(manager, rules, is_about_backups=backups)
            _warn_of_new_backups(manager, planned, is_about_backups=backups)
        if dry_run:
            _end_with_report(planned, kind, trash_seconds, as_json=as_json)
            return
        if planned.plan.deleted_ids:
            _tell_of_trash(trash_seconds)
        if planned.plan.deleted_ids or (planned.backups and planned.backups.plan.deleted_ids):
            confirm(f"Delete {_describe_deletions(planned, kind, trash_seconds)}{_describe_thinning(planned)}?")
        elif planned.plan.thinned_ids:
            confirm(f"Keep only the weights of {count_of(len(planned.plan.thinned_ids), kind)}?")
        fingerprint = planned.fingerprint  # what was confirmed is done, and nothing else
    report = clean_up(policy=rules, fingerprint=fingerprint)
    if yes and not as_json:
        _print_plans(report)
        _warn_of_new_backups(manager, report, is_about_backups=backups)
    _end_with_report(report, kind, trash_seconds, as_json=as_json)


def _end_with_report(report: CleanupReport, kind: str, trash_seconds: float, *, as_json: bool) -> None:
    _print_report(report, kind, trash_seconds, as_json=as_json)
    if report.backups_error:
        raise typer.Exit(STORE_FAILURE)


def _warn_of_default(manager: CheckpointManager, rules: RetentionPolicy | None, *, is_about_backups: bool) -> None:
    """Say that nobody chose the number to keep: that of the training is not known here."""
    option = "max_backups" if is_about_backups else "max_checkpoints"
    if rules is None and option not in manager.config.model_fields_set:
        note(f"Keeps {getattr(manager.config, option)}, the default of {option}: --keep sets the number.")


def _warn_of_new_backups(manager: CheckpointManager, report: CleanupReport, *, is_about_backups: bool) -> None:
    """Warn that backups come back if the configuration asks for more than are kept."""
    if is_about_backups and report.plan.deleted_ids and manager.config.backup_checkpoints:
        note(
            "Later saves and `ckpt doctor --fix` make new backups, as backup_checkpoints and max_backups say. "
            "To keep fewer, change these options."
        )


def _describe_deletions(report: CleanupReport, kind: str, trash_seconds: float) -> str:
    """Describe what a plan deletes, such as ``2 checkpoints (3.0 MiB) and, for good, 1 backup (1.5 MiB)``."""
    text = f"{count_of(len(report.plan.deleted_ids), kind)} ({size_text(report.plan.freed_bytes)})"
    if trash_seconds <= 0 and report.plan.deleted_ids:
        text += " for good"
    if report.backups and report.backups.plan.deleted_ids:
        backups = report.backups.plan
        text += f" and, for good, {count_of(len(backups.deleted_ids), 'backup')} ({size_text(backups.freed_bytes)})"
    return text


def _describe_thinning(report: CleanupReport) -> str:
    count = len(report.plan.thinned_ids)
    return f", and keep only the weights of {count_of(count, 'checkpoint')}" if count else ""


def _print_plans(report: CleanupReport) -> None:
    _print_plan(report.plan.decisions)
    if report.backups and report.backups.plan.deleted_ids:
        print_heading("Backups")
        _print_plan(report.backups.plan.decisions)
    if report.backups_error and report.dry_run:
        note(f"The backups cannot be cleaned up: {report.backups_error}", warning=True)


def _read_policy(file: Path | None, keep: int | None) -> RetentionPolicy | None:
    if file is None:
        return None
    if keep is not None:
        raise ConfigError("--keep and --policy cannot be combined", expected="one of them", path=str(file))
    from ckpt_lib.policies.retention import policy_from_yaml

    return policy_from_yaml(file)


def _print_plan(decisions: Sequence[Decision]) -> None:
    columns = (
        Column("id"),
        Column("plan"),
        Column("reason", wraps=True),
        Column("state", optional=True),
        Column("size", numeric=True, optional=True),
    )
    rows = [
        (
            decision.checkpoint_id,
            _action(decision),
            decision.reason,
            Text(decision.status, style=_STATUS_STYLES.get(decision.status, "dim")),
            size_text(decision.size_bytes),
        )
        for decision in decisions
    ]
    print_table(columns, rows)


def _action(decision: Decision) -> Text:
    if not decision.keep:
        return Text("delete", style="bold red")
    return Text("thin", style="yellow") if decision.thin else Text("keep", style="green")


def _print_report(report: CleanupReport, kind: str, trash_seconds: float, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    if report.plan.warning:
        note(report.plan.warning, warning=True)
    if report.dry_run:
        note(f"Would delete {_describe_deletions(report, kind, trash_seconds)}{_describe_thinning(report)}.")
        return
    for checkpoint_id, reason in report.spared.items():
        note(f"Spared {checkpoint_id}: {reason}", warning=True)
    leftovers = f"; {count_of(len(report.swept), 'leftover')} removed" if report.swept else ""
    more = f", {len(report.thinned_ids)} thinned" if report.thinned_ids else ""
    deleted = f"{count_of(len(report.deleted_ids), kind)} deleted{more}"
    note(f"{deleted}, {size_text(report.freed_bytes)} freed{leftovers}.")
    if report.expired_ids:
        expired = count_of(len(report.expired_ids), kind)
        note(f"{expired} from the trash deleted for good, {size_text(report.expired_bytes)} freed.")
    elif report.expired_bytes:
        note(f"{size_text(report.expired_bytes)} that checkpoints had been thinned of freed.")
    if report.backups and report.backups.deleted_ids:
        backups = report.backups
        note(f"{count_of(len(backups.deleted_ids), 'backup')} deleted, {size_text(backups.freed_bytes)} freed.")
    if report.trashed_bytes:
        undo = " and `ckpt thin --undo ID`" if report.thinned_ids else ""
        note(f"{size_text(report.trashed_bytes)} moved to the trash: see `ckpt trash` and `ckpt undelete ID`{undo}.")
    if report.backups_error:
        note(f"The backups were not cleaned up: {report.backups_error}", warning=True)


def delete(
    checkpoint_ids: options.AnyCheckpointNames = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    dry_run: options.DryRun = False,
    backups: options.OfBackups = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete checkpoints by name or by condition.

    `ckpt undelete` brings them back for trash_seconds, a day by default; those in quarantine are deleted for good.
    Backups stay. If one of the checkpoints is pinned or unknown, none is deleted. With --backups, only the backups of
    these ids are deleted, for good.

    Example: ckpt delete --where "epoch<10" --dry-run
    """
    manager = open_copies(store, experiment, config, backups=backups)
    ids = chosen_ids(manager, checkpoint_ids, where, tags, backups=backups)
    how = Consent(dry_run, yes, as_json)
    if backups:
        _delete_backups(manager, ids, how)
    else:
        _delete_checkpoints(manager, ids, how)


class Consent(NamedTuple):
    """How a command that deletes was called."""

    dry_run: bool
    yes: bool
    as_json: bool


def _end_dry_run(manager: CheckpointManager, chosen: Sequence[_Chosen], other_copy: str, *, as_json: bool) -> None:
    """Print what is selected, and no more."""
    if as_json:
        selected = [item._asdict() for item in chosen]
        print_json({"experiment_name": manager.experiment_name, "dry_run": True, "selected": selected})
        return
    _print_chosen(chosen, other_copy)
    size = size_text(sum(item.size_bytes for item in chosen))
    note(f"{len(chosen)} selected, {size}. Nothing was deleted.")


def _delete_checkpoints(manager: CheckpointManager, ids: Sequence[str], how: Consent) -> None:
    quarantined = {item.checkpoint_id: item for item in manager.list_quarantined()}
    chosen = [manager.get_checkpoint(checkpoint_id) for checkpoint_id in ids if checkpoint_id not in quarantined]
    isolated = [quarantined[checkpoint_id] for checkpoint_id in ids if checkpoint_id in quarantined]
    described = [*chosen, *(item.checkpoint for item in isolated)]
    _refuse_pinned(described)
    for item in described:
        if item.original:
            note(f"{item.checkpoint_id}:{_of_original(item)}")
    if how.dry_run:
        _end_dry_run(manager, _described(manager, chosen, isolated), "backup", as_json=how.as_json)
        return
    if not how.yes:
        refuse_to_ask(as_json=how.as_json)
        _print_chosen(_described(manager, chosen, isolated), "backup")
        _confirm_deletion(len(chosen), len(isolated), manager.config.trash_seconds)
    deleted = [manager.delete_checkpoint(item.checkpoint_id) for item in chosen]
    freed_bytes = sum(manager.delete_quarantined(item.checkpoint_id) for item in isolated)
    deleted += [item.checkpoint_id for item in isolated]
    if how.as_json:
        print_json({"experiment_name": manager.experiment_name, "deleted_ids": deleted, "freed_bytes": freed_bytes})
        return
    freed = {"freed": size_text(freed_bytes)} if isolated else {}
    print_facts({"deleted": "\n".join(deleted), **freed})
    if chosen and how.yes:  # whoever was asked has read it
        _tell_of_trash(manager.config.trash_seconds)


def _described(
    manager: CheckpointManager, chosen: Sequence[CheckpointMetadata], isolated: Sequence[QuarantinedCheckpoint]
) -> list[_Chosen]:
    backed_up = _backed_up(manager)
    facts = [(item.checkpoint_id, 0 if item.original else item.file_size, ", ".join(item.tags)) for item in chosen]
    facts += [
        (item.checkpoint_id, 0 if item.checkpoint.original else item.size_bytes, "(in quarantine)") for item in isolated
    ]
    return [
        _Chosen(name, size_bytes, None if backed_up is None else name in backed_up, tags)
        for name, size_bytes, tags in facts
    ]


def _backed_up(manager: CheckpointManager) -> set[str] | None:
    """Return the ids that have a backup, or ``None`` if the backup location cannot be read."""
    try:
        return {item.checkpoint_id for item in manager.list_backups()}
    except (StoreError, NotAStoreError) as error:
        note(f"The backups cannot be listed: {error}", warning=True)
        return None


def _tell_of_trash(trash_seconds: float) -> None:
    if trash_seconds > 0:
        note(
            f"Deleted checkpoints stay in the trash for {duration(trash_seconds)}: `ckpt undelete ID` brings them back."
        )


def _confirm_deletion(trashed: int, isolated: int, trash_seconds: float) -> None:
    """Ask whether to delete checkpoints, and those in quarantine, which do not go to the trash."""
    parts = []
    if trashed:
        _tell_of_trash(trash_seconds)
        parts.append(f"{count_of(trashed, 'checkpoint')}{'' if trash_seconds > 0 else ' for good'}")
    if isolated:
        parts.append(f"{count_of(isolated, 'checkpoint')} in quarantine for good")
    confirm(f"Delete {' and '.join(parts)}?")


def _delete_backups(manager: CheckpointManager, ids: Sequence[str], how: Consent) -> None:
    sizes = {item.checkpoint_id: item.file_size for item in manager.list_backups()}
    sizes |= {item.checkpoint_id: item.size_bytes for item in manager.list_quarantined_backups()}
    unreadable = {item.checkpoint_id for item in manager.list_unreadable_backups()}
    for checkpoint_id in ids:
        if checkpoint_id in unreadable:
            raise CorruptManifestError(
                f"the manifest of the backup of {checkpoint_id} is damaged; nothing was deleted",
                hint=f"Repair it first: `ckpt repair --backups {checkpoint_id}`.",
            )
        if checkpoint_id not in sizes:
            raise CheckpointNotFoundError(
                f"there is no backup of {checkpoint_id}; nothing was deleted",
                hint="`ckpt list --backups` and `ckpt quarantine --backups` list the backups.",
            )
    there = set(manager.checkpoint_ids())
    chosen = [_Chosen(name, sizes[name], name in there) for name in ids]
    if how.dry_run:
        _end_dry_run(manager, chosen, "checkpoint", as_json=how.as_json)
        return
    if not how.yes:
        refuse_to_ask(as_json=how.as_json)
        _print_chosen(chosen, "checkpoint")
        confirm(f"Delete {count_of(len(ids), 'backup')} for good?")
    freed_bytes = sum(manager.delete_backup(checkpoint_id) for checkpoint_id in ids)
    if how.as_json:
        print_json({"experiment_name": manager.experiment_name, "deleted_ids": ids, "freed_bytes": freed_bytes})
    else:
        print_facts({"deleted": "\n".join(ids), "freed": size_text(freed_bytes)})


def _refuse_pinned(checkpoints: Sequence[CheckpointMetadata]) -> None:
    for item in checkpoints:
        if item.pinned:
            raise ProtectedCheckpointError(
                "the checkpoint is pinned; nothing was deleted",
                checkpoint_id=item.checkpoint_id,
                hint=f"Unpin it first: `ckpt pin {item.checkpoint_id} --off`.{_of_original(item)}",
            )


def _of_original(item: CheckpointMetadata) -> str:
    return f" It was imported in place: {item.original} stays where it is." if item.original else ""


class _Chosen(NamedTuple):
    """The facts of a checkpoint or backup that the confirmation of a deletion shows."""

    checkpoint_id: str
    size_bytes: int
    has_other_copy: bool | None
    tags: str = ""


_ANSWERS = {True: Text("yes", style="green"), False: Text("no", style="bold red"), None: Text("?", style="yellow")}


def _print_chosen(chosen: Sequence[_Chosen], other_copy: str) -> None:
    """Print what is to be deleted; the column named ``other_copy`` says whether another copy exists."""
    print_table(
        (Column("id"), Column("size", numeric=True), Column(other_copy), Column("tags", wraps=True, optional=True)),
        [(item.checkpoint_id, size_text(item.size_bytes), _ANSWERS[item.has_other_copy], item.tags) for item in chosen],
    )


def refuse_to_ask(*, as_json: bool) -> None:
    """Raise ``ConfirmationError`` where nobody can answer, before any work is done."""
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfirmationError(
            "this needs a confirmation, and there is no terminal to ask on", hint="Add --yes to confirm."
        )


def confirm(question: str) -> None:
    try:
        is_confirmed = typer.confirm(question, err=True)
    except typer.Abort as error:
        if not isinstance(error.__context__, EOFError):  # Ctrl-C
            raise
        is_confirmed = False
    if not is_confirmed:
        raise ConfirmationError("not confirmed; nothing was changed")
