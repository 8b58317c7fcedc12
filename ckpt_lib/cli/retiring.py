"""``ckpt cleanup`` and ``delete``: what takes checkpoints away."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import ConfirmationError
from ckpt_lib.cli.output import Column, as_size, count_of, note, print_facts, print_heading, print_json, print_table
from ckpt_lib.cli.session import open_manager, resolve_all
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, CorruptManifestError, ProtectedCheckpointError

if TYPE_CHECKING:
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.metadata import CheckpointMetadata
    from ckpt_lib.policies.retention import Decision, RetentionPolicy
    from ckpt_lib.retirement import CleanupReport

_STATUS_STYLES = {"valid": "green", "damaged": "bold red"}


def cleanup(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    keep: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="How many stay: the best and the newest. Default: max_checkpoints."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of a retention policy, such as {kind: newest, count: 5}."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    backups: options.OfBackups = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete old checkpoints by a number or by a retention policy.

    The newest and the best valid checkpoint, pinned ones, and damaged ones, which wait for repair, always stay.
    What dead processes left behind goes too, and backups beyond max_backups. `ckpt undelete` brings checkpoints back
    for trash_seconds, a day by default; afterwards a cleanup frees their bytes. With --backups, only backups go, at
    once and for good.
    """
    rules = _read_policy(policy, keep)
    manager = open_manager(
        store,
        experiment,
        config,
        max_backups=keep if backups else None,
        max_checkpoints=None if backups else keep,
    )
    clean_up = manager.cleanup_backups if backups else manager.cleanup_checkpoints
    kind = "backup" if backups else "checkpoint"
    if not dry_run and not yes:
        refuse_to_ask(as_json=as_json)
    if dry_run or not yes:
        planned = clean_up(policy=rules, dry_run=True)
        if not as_json:
            _print_plans(planned)
        if dry_run:
            _print_report(planned, kind, as_json=as_json)
            return
        confirm(f"Delete {_going(planned, kind)}?")
    report = clean_up(policy=rules)
    if yes and not as_json:
        _print_plans(report)
    _print_report(report, kind, as_json=as_json)


def _going(report: CleanupReport, kind: str) -> str:
    """What a plan deletes, such as ``2 checkpoints (3.0 MiB) and 1 backup (1.5 MiB)``."""
    plans = [(kind, report.plan)] + ([("backup", report.backups.plan)] if report.backups else [])
    parts = [
        f"{count_of(len(plan.deleted_ids), what)} ({as_size(plan.freed_bytes)})"
        for what, plan in plans
        if plan.deleted_ids or what == kind
    ]
    return " and ".join(parts)


def _print_plans(report: CleanupReport) -> None:
    _print_plan(report.plan.decisions)
    if report.backups and report.backups.plan.deleted_ids:
        print_heading("Backups")
        _print_plan(report.backups.plan.decisions)


def _read_policy(file: Path | None, keep: int | None) -> RetentionPolicy | None:
    if file is None:
        return None
    if keep is not None:
        raise ConfigError("either --keep or --policy says what stays, not both", path=str(file))
    from ckpt_lib.policies.retention import policy_from_yaml

    return policy_from_yaml(file)


def _print_plan(decisions: Sequence[Decision]) -> None:
    columns = (
        Column("id"),
        Column("plan"),
        Column("reason", wraps=True),
        Column("bytes", optional=True),
        Column("size", numeric=True, optional=True),
    )
    rows = [
        (
            decision.checkpoint_id,
            Text("keep", style="green") if decision.keep else Text("delete", style="bold red"),
            decision.reason,
            Text(decision.status, style=_STATUS_STYLES.get(decision.status, "dim")),
            as_size(decision.size_bytes),
        )
        for decision in decisions
    ]
    print_table(columns, rows)


def _print_report(report: CleanupReport, kind: str, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    if report.plan.warning:
        note(report.plan.warning, warning=True)
    if report.dry_run:
        note(f"Would delete {_going(report, kind)}.")
        return
    for checkpoint_id, reason in report.spared.items():
        note(f"Spared {checkpoint_id}: {reason}", warning=True)
    leftovers = f"; {count_of(len(report.swept), 'leftover')} removed" if report.swept else ""
    note(f"{count_of(len(report.deleted_ids), kind)} deleted, {as_size(report.freed_bytes)} freed{leftovers}.")
    if report.backups and report.backups.deleted_ids:
        backups = report.backups
        note(f"{count_of(len(backups.deleted_ids), 'backup')} deleted, {as_size(backups.freed_bytes)} freed.")
    if report.trashed_bytes:
        note(f"{as_size(report.trashed_bytes)} are in the trash: see `ckpt trash` and `ckpt undelete`.")


def delete(
    checkpoint_ids: options.CheckpointNames,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    backups: options.OfBackups = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete checkpoints by name.

    `ckpt undelete` brings them back for trash_seconds, a day by default. Their backups stay. When one of them is pinned
    or unknown, none is deleted. With --backups, the backups of these ids go, for good, and the checkpoints stay.
    """
    manager = open_manager(store, experiment, config, may_be_new=backups)
    if backups:
        _delete_backups(manager, resolve_all(manager, checkpoint_ids), yes=yes, as_json=as_json)
        return
    chosen = [manager.get_checkpoint(checkpoint_id) for checkpoint_id in resolve_all(manager, checkpoint_ids)]
    _refuse_pinned(chosen)
    if not yes:
        refuse_to_ask(as_json=as_json)
        backed_up = {item.checkpoint_id for item in manager.list_backups()}
        rows = [
            (item.checkpoint_id, item.file_size, item.checkpoint_id in backed_up, ", ".join(item.tags))
            for item in chosen
        ]
        _print_chosen(rows, "backup")
        confirm(f"Delete {count_of(len(chosen), 'checkpoint')}?")
    deleted = [manager.delete_checkpoint(item.checkpoint_id) for item in chosen]
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "deleted_ids": deleted})
    else:
        print_facts({"deleted": "\n".join(deleted)})


def _delete_backups(manager: CheckpointManager, ids: Sequence[str], *, yes: bool, as_json: bool) -> None:
    sizes = {item.checkpoint_id: item.file_size for item in manager.list_backups()}
    sizes |= {item.checkpoint_id: item.size_bytes for item in manager.list_quarantined_backups()}
    unreadable = {item.checkpoint_id for item in manager.list_unreadable_backups()}
    for checkpoint_id in ids:
        if checkpoint_id in unreadable:
            raise CorruptManifestError(
                f"the manifest of the backup of {checkpoint_id} is damaged; nothing was deleted",
                hint=f"Set it aside first: `ckpt quarantine --backups {checkpoint_id}`.",
            )
        if checkpoint_id not in sizes:
            raise CheckpointNotFoundError(
                f"there is no backup of {checkpoint_id}; nothing was deleted",
                hint="`ckpt list --backups` and `ckpt quarantine` show what is there.",
            )
    if not yes:
        refuse_to_ask(as_json=as_json)
        there = set(manager.checkpoint_ids())
        _print_chosen([(name, sizes[name], name in there, "") for name in ids], "checkpoint")
        confirm(f"Delete {count_of(len(ids), 'backup')} for good?")
    freed_bytes = sum(manager.delete_backup(checkpoint_id) for checkpoint_id in ids)
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "deleted_ids": ids, "freed_bytes": freed_bytes})
    else:
        print_facts({"deleted": "\n".join(ids), "freed": as_size(freed_bytes)})


def _refuse_pinned(checkpoints: Sequence[CheckpointMetadata]) -> None:
    for item in checkpoints:
        if item.pinned:
            raise ProtectedCheckpointError(
                "the checkpoint is pinned; nothing was deleted",
                checkpoint_id=item.checkpoint_id,
                hint="Unpin it first: `ckpt pin --off`.",
            )


def _print_chosen(chosen: Sequence[tuple[str, int, bool, str]], other_copy: str) -> None:
    """Show ids with sizes, whether there is another copy, and tags."""
    print_table(
        (Column("id"), Column("size", numeric=True), Column(other_copy), Column("tags", wraps=True, optional=True)),
        [
            (
                checkpoint_id,
                as_size(size_bytes),
                Text("yes", style="green") if has_other else Text("no", style="bold red"),
                tags,
            )
            for checkpoint_id, size_bytes, has_other, tags in chosen
        ],
    )


def refuse_to_ask(*, as_json: bool) -> None:
    """Where nobody can answer, say so before any work is done."""
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfirmationError(
            "deleting needs a confirmation, and nobody can be asked here", hint="Add --yes if you are sure."
        )


def confirm(question: str) -> None:
    if not typer.confirm(question, err=True):
        raise ConfirmationError("not confirmed; nothing was deleted")
