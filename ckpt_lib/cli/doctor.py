"""Commands that find and isolate problems: ``ckpt doctor`` and ``quarantine``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import chosen_ids
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.options import with_options
from ckpt_lib.cli.output import (
    as_age,
    note,
    print_entry,
    print_facts,
    print_fix,
    print_heading,
    print_json,
    without_names,
)
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import open_copies, open_manager, tell_of_other_backups
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.wording import count_of, size_text, visible
from ckpt_lib.errors import NotAStoreError, StoreError

if TYPE_CHECKING:
    from ckpt_lib.maintenance.findings import DoctorReport, Finding, Treatment
    from ckpt_lib.maintenance.quarantine import QuarantinedCheckpoint
    from ckpt_lib.manager import CheckpointManager


def doctor(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    fix: Annotated[bool, typer.Option("--fix", help="Fix the problems that can be fixed.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also read every byte, to find damage.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check an experiment for leftovers, damage, missing backups and unknown files.

    Without --fix, nothing is changed. --fix does what the printed commands do: it repairs or quarantines damage, makes
    missing backups, and deletes the leftovers of unfinished saves and deletions, but nothing that a running process
    uses. Exits with 1 if a problem is left.

    Example: ckpt doctor --deep
    """
    manager = open_manager(store, experiment, config, may_be_new=True)
    tell_of_other_backups(manager)
    held = (*manager.list_checkpoints(), *manager.list_backups()) if deep else ()
    with byte_progress("Examining", sum(item.file_size for item in held) if deep else None) as progress:
        report = manager.doctor(fix=fix, deep=deep, progress=progress)
    if as_json:
        findings = [{**item.model_dump(), "is_problem": item.is_problem} for item in report.findings]
        print_json({**report.model_dump(), "findings": findings, "is_healthy": report.is_healthy})
    else:
        _print_report(report, fix=fix)
        if report and not deep:
            note("Only names and sizes were compared: --deep reads every byte.")
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
    fixable = sum(item.fix is not None for item in report.problems)
    hint = f" `ckpt doctor --fix` fixes {fixable}." if fixable and not fix else ""
    if any(item.kind == "quarantined" for item in report.findings):
        note("`ckpt quarantine` says how to bring back or delete what is in quarantine.")
    problems = count_of(len(report.problems), "problem")
    note(f"{report.experiment_name}: {problems if report.problems else 'healthy'}.{hint}", warning=not report)


def _print_done(done: Sequence[Treatment]) -> None:
    for item in done:
        outcome = without_names(item.outcome, item.finding.name)
        print_entry(
            item.finding.name,
            _summary(item.finding),
            outcome if item.succeeded else Text(f"not done: {visible(outcome)}", style="bold red"),
        )


def _print_findings(findings: Sequence[Finding]) -> None:
    for item in findings:
        print_entry(
            item.name,
            _summary(item),
            with_options(without_names(item.message, item.name)),
        )
        if item.fix:
            print_fix(item.fix)


def _summary(finding: Finding) -> str:
    """Describe a finding by kind, copy and size, such as ``damaged (backup, 1.5 MiB)``."""
    copy = "backup" if finding.place == "backups" else "checkpoint"
    facts = [copy if is_checkpoint_id(finding.name) else f"among the {finding.place}"]
    facts += [size_text(finding.size_bytes)] if finding.size_bytes else []
    return f"{finding.kind} ({', '.join(facts)})"


def quarantine(
    checkpoint_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Checkpoints, as elsewhere. Omit them to list the quarantine."),
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    backups: options.OfBackups = False,
    as_json: options.AsJson = False,
) -> None:
    """Quarantine damaged checkpoints, or list the quarantine.

    With --backups, quarantine damaged backups, or list only those. A copy that the other copy can repair is repaired
    instead; an intact one is refused. A checkpoint in quarantine is not listed elsewhere, not loaded, and not deleted
    by any cleanup. `ckpt repair` brings it back once its other copy or the file itself verifies; `ckpt delete` deletes
    it.

    Example: ckpt quarantine epoch_12
    """
    manager = open_copies(store, experiment, config, backups=backups)
    if checkpoint_ids or where or tags:
        ids = chosen_ids(manager, checkpoint_ids, where, tags, backups=backups)
        _set_aside(manager, ids, backups=backups, as_json=as_json)
    else:
        _list(manager, backups=backups, as_json=as_json)


def _set_aside(manager: CheckpointManager, ids: Sequence[str], *, backups: bool, as_json: bool) -> None:
    set_one_aside = manager.quarantine_backup if backups else manager.quarantine_checkpoint
    reports = [set_one_aside(checkpoint_id) for checkpoint_id in ids]
    if as_json:
        outcomes = [{**item.model_dump(), "is_quarantined": item.is_quarantined} for item in reports]
        print_json({"experiment_name": manager.experiment_name, "reports": outcomes})
        return
    for report in reports:
        result = without_names(report.message, report.checkpoint_id)
        print_facts({"backup" if backups else "checkpoint": report.checkpoint_id, "result": result})


def _list(manager: CheckpointManager, *, backups: bool, as_json: bool) -> None:
    found = [] if backups else manager.list_quarantined()
    try:
        found += manager.list_quarantined_backups()
    except (StoreError, NotAStoreError) as error:
        if backups:
            raise
        note(f"The backups cannot be listed: {error}", warning=True)
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "quarantined": found})
        return
    _print_quarantined(found)
    of_backups = sum(item.is_backup for item in found)
    counts = [] if backups else [count_of(len(found) - of_backups, "checkpoint")]
    counts += [count_of(of_backups, "backup")] if backups or of_backups else []
    note(f"{' and '.join(counts)} in quarantine, {size_text(sum(item.size_bytes for item in found))}.")
    if len(found) > of_backups:
        note("`ckpt repair ID` brings a checkpoint back, `ckpt delete ID` deletes it for good.")
    if of_backups:
        note("`ckpt repair --backups ID` brings a backup back, `ckpt delete --backups ID` deletes it for good.")


def _print_quarantined(found: Sequence[QuarantinedCheckpoint]) -> None:
    for item in found:
        kind = "backup" if item.is_backup else "checkpoint"
        print_entry(
            item.checkpoint_id,
            f"{kind}, {size_text(item.size_bytes)}, {as_age(item.quarantined_at)} ago",
            without_names(item.report.message, item.checkpoint_id),
        )
