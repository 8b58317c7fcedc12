"""``ckpt doctor`` and ``ckpt quarantine``: find problems, and isolate damaged checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.output import (
    Column,
    as_age,
    as_size,
    count_of,
    note,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.retiring import confirm, refuse_to_ask
from ckpt_lib.cli.session import open_manager, resolve_all
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from ckpt_lib.findings import DoctorReport, Finding, Treatment
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.quarantine import QuarantinedCheckpoint


def doctor(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    fix: Annotated[bool, typer.Option("--fix", help="Put right what can be.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte as well, to find damage.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check an experiment for leftovers, damage, missing backups and unknown files.

    What dead processes left, damaged checkpoints, missing backups, files without their other half, and what is foreign.
    Without --fix nothing is changed. Nothing is deleted but what a save or a deletion that did not come to its end left
    behind, and nothing that a living process is at work on. Exits with 1 when a problem is left.
    """
    manager = open_manager(store, experiment, config, may_be_new=True)
    held = (*manager.list_checkpoints(), *manager.list_backups()) if deep else ()
    with byte_progress("Examining", sum(item.file_size for item in held) if deep else None) as progress:
        report = manager.doctor(fix=fix, deep=deep, progress=progress)
    if as_json:
        findings = [{**item.model_dump(), "is_problem": item.is_problem} for item in report.findings]
        print_json({**report.model_dump(), "findings": findings, "is_healthy": report.is_healthy})
    else:
        _print_report(report, fix=fix)
    if not report:
        raise typer.Exit(DAMAGE)


def _print_report(report: DoctorReport, *, fix: bool) -> None:
    if report.done:
        print_heading("Done")
        _print_done(report.done)
    for heading, findings in (
        ("Problems", report.problems),
        ("Worth knowing", [item for item in report.findings if not item.is_problem]),
    ):
        if findings:
            print_heading(heading)
            _print_findings(findings)
    fixable = sum(item.fix is not None for item in report.findings)
    hint = f" `ckpt doctor --fix` sees to {fixable}." if fixable and not fix else ""
    problems = count_of(len(report.problems), "problem")
    note(f"{report.experiment_name}: {problems if report.problems else 'healthy'}.{hint}", warning=not report)


def _print_done(done: Sequence[Treatment]) -> None:
    print_table(
        (Column("kind"), Column("name"), Column("outcome", wraps=True)),
        [
            (
                item.finding.kind,
                _name(item.finding),
                item.outcome if item.succeeded else Text(f"not done: {item.outcome}", style="bold red"),
            )
            for item in done
        ],
    )


def _print_findings(findings: Sequence[Finding]) -> None:
    print_table(
        (
            Column("kind"),
            Column("name"),
            Column("size", numeric=True, optional=True),
            Column("finding", wraps=True),
            Column("fix", wraps=True),
        ),
        [
            (
                item.kind,
                _name(item),
                as_size(item.size_bytes) if item.size_bytes else "-",
                item.message,
                item.fix or "-",
            )
            for item in findings
        ],
    )


def _name(finding: Finding) -> str:
    return f"{finding.place}/{finding.name}" if finding.place == "backups" else finding.name


def quarantine(
    checkpoint_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Checkpoint ids, latest, best, or tags. Without any: list.")
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    backups: options.OfBackups = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is left of checkpoints in quarantine, for good.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Set damaged checkpoints or, with --backups, damaged backups aside, or show those that were.

    One that its other copy can repair is repaired instead, and an intact one is refused. A quarantined checkpoint is
    not listed, not loaded and never deleted by itself; `ckpt repair` brings it back when its backup verifies, or it
    does.
    """
    manager = open_manager(store, experiment, config, may_be_new=backups)
    if delete:
        _delete(manager, checkpoint_ids or [], backups=backups, yes=yes, as_json=as_json)
    elif checkpoint_ids:
        _set_aside(manager, resolve_all(manager, checkpoint_ids), backups=backups, as_json=as_json)
    else:
        _list(manager, as_json=as_json)


def _set_aside(manager: CheckpointManager, ids: Sequence[str], *, backups: bool, as_json: bool) -> None:
    set_one_aside = manager.quarantine_backup if backups else manager.quarantine_checkpoint
    reports = [set_one_aside(checkpoint_id) for checkpoint_id in ids]
    if as_json:
        outcomes = [{**item.model_dump(), "is_quarantined": item.is_quarantined} for item in reports]
        print_json({"experiment_name": manager.experiment_name, "reports": outcomes})
        return
    for report in reports:
        print_facts({"backup" if backups else "checkpoint": report.checkpoint_id, "result": report.message})


def _list(manager: CheckpointManager, *, as_json: bool) -> None:
    found = manager.list_quarantined()
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "quarantined": found})
        return
    _print_quarantined(found)
    backups = sum(item.is_backup for item in found)
    counts = count_of(len(found) - backups, "checkpoint") + (f" and {count_of(backups, 'backup')}" if backups else "")
    note(f"{counts} in quarantine, {as_size(sum(item.size_bytes for item in found))}.")
    if found:
        note("`ckpt repair ID` brings one back, `ckpt quarantine --delete ID` removes it for good.")
    if backups:
        note("Of a backup: `ckpt repair --backup ID`, `ckpt delete --backups ID`.")


def _print_quarantined(found: Sequence[QuarantinedCheckpoint]) -> None:
    columns = (
        Column("id"),
        Column("since", numeric=True, optional=True),
        Column("size", numeric=True),
        Column("reason", wraps=True),
    )
    rows = [
        (
            f"backups/{item.checkpoint_id}" if item.is_backup else item.checkpoint_id,
            f"{as_age(item.quarantined_at)} ago" if item.quarantined_at else "-",
            as_size(item.size_bytes),
            item.report.message,
        )
        for item in found
    ]
    print_table(columns, rows)


def _delete(manager: CheckpointManager, ids: Sequence[str], *, backups: bool, yes: bool, as_json: bool) -> None:
    if not ids:
        raise ConfigError("--delete needs to be told what", expected="ids as `ckpt quarantine` shows them")
    found = {item.checkpoint_id: item for item in manager.list_quarantined() if item.is_backup == backups}
    for checkpoint_id in ids:
        if checkpoint_id not in found:
            raise CheckpointNotFoundError(
                f"{checkpoint_id} is not in quarantine; nothing was deleted",
                hint="`ckpt quarantine` shows what is; with --backups, backups are deleted.",
            )
    if not yes:
        refuse_to_ask(as_json=as_json)
        _print_quarantined([found[checkpoint_id] for checkpoint_id in ids])
        confirm(f"Delete {count_of(len(ids), 'backup' if backups else 'checkpoint')} for good?")
    delete_one = manager.delete_backup if backups else manager.delete_quarantined
    freed_bytes = sum(delete_one(checkpoint_id) for checkpoint_id in dict.fromkeys(ids))
    if as_json:
        deleted = list(dict.fromkeys(ids))
        print_json({"experiment_name": manager.experiment_name, "deleted_ids": deleted, "freed_bytes": freed_bytes})
    else:
        print_facts({"deleted": "\n".join(dict.fromkeys(ids)), "freed": as_size(freed_bytes)})
