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
from ckpt_lib.cli.output import Column, as_size, count_of, note, print_facts, print_json, print_table
from ckpt_lib.cli.session import open_manager, resolve_all
from ckpt_lib.errors import ConfigError, ProtectedCheckpointError

if TYPE_CHECKING:
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
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete old checkpoints by a number or by a retention policy.

    The newest and the best valid checkpoint, pinned ones, and damaged ones, which wait for repair, always stay.
    What dead processes left behind goes too, and backups beyond max_backups. `ckpt undelete` brings checkpoints back
    for trash_seconds, a day by default; afterwards a cleanup frees their bytes.
    """
    rules = _read_policy(policy, keep)
    manager = open_manager(store, experiment, config, max_checkpoints=keep)
    if not dry_run and not yes:
        refuse_to_ask(as_json=as_json)
    if dry_run or not yes:
        plan = manager.cleanup_checkpoints(policy=rules, dry_run=True)
        if not as_json:
            _print_plan(plan.plan.decisions)
        if dry_run:
            _print_report(plan, as_json=as_json)
            return
        confirm(
            f"Delete {count_of(len(plan.plan.deleted_ids), 'checkpoint')} ({as_size(plan.plan.freed_bytes)}), "
            f"and backups beyond {manager.config.max_backups}?"
        )
    report = manager.cleanup_checkpoints(policy=rules)
    if yes and not as_json:
        _print_plan(report.plan.decisions)
    _print_report(report, as_json=as_json)


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


def _print_report(report: CleanupReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    if report.plan.warning:
        note(report.plan.warning, warning=True)
    if report.dry_run:
        going = report.plan.deleted_ids
        note(f"{count_of(len(going), 'checkpoint')} would go and free {as_size(report.plan.freed_bytes)}.")
        return
    for checkpoint_id, reason in report.spared.items():
        note(f"Spared {checkpoint_id}: {reason}", warning=True)
    leftovers = f"; {count_of(len(report.swept), 'leftover')} removed" if report.swept else ""
    note(f"{count_of(len(report.deleted_ids), 'checkpoint')} deleted, {as_size(report.freed_bytes)} freed{leftovers}.")
    if report.trashed_bytes:
        note(f"{as_size(report.trashed_bytes)} are in the trash: see `ckpt trash` and `ckpt undelete`.")


def delete(
    checkpoint_ids: options.CheckpointNames,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Delete checkpoints by name.

    `ckpt undelete` brings them back for trash_seconds, a day by default. Their backups stay. When one of them is pinned
    or unknown, none is deleted.
    """
    manager = open_manager(store, experiment, config)
    chosen = [manager.get_checkpoint(checkpoint_id) for checkpoint_id in resolve_all(manager, checkpoint_ids)]
    _refuse_pinned(chosen)
    if not yes:
        refuse_to_ask(as_json=as_json)
        backed_up = {item.checkpoint_id for item in manager.list_backups()}
        _print_chosen(chosen, backed_up)
        confirm(f"Delete {count_of(len(chosen), 'checkpoint')}?")
    deleted = [manager.delete_checkpoint(item.checkpoint_id) for item in chosen]
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "deleted_ids": deleted})
    else:
        print_facts({"deleted": "\n".join(deleted)})


def _refuse_pinned(checkpoints: Sequence[CheckpointMetadata]) -> None:
    for item in checkpoints:
        if item.pinned:
            raise ProtectedCheckpointError(
                "the checkpoint is pinned; nothing was deleted",
                checkpoint_id=item.checkpoint_id,
                hint="Unpin it first: `ckpt pin --off`.",
            )


def _print_chosen(checkpoints: Sequence[CheckpointMetadata], backed_up: set[str]) -> None:
    print_table(
        (Column("id"), Column("size", numeric=True), Column("backup"), Column("tags", wraps=True, optional=True)),
        [
            (
                item.checkpoint_id,
                as_size(item.file_size),
                Text("yes", style="green") if item.checkpoint_id in backed_up else Text("no", style="bold red"),
                ", ".join(item.tags),
            )
            for item in checkpoints
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
