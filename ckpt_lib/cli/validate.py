"""Commands that find and repair damage: ``ckpt validate``, ``scrub`` and ``repair``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import as_names, chosen_ids, is_by_condition
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.output import (
    Column,
    note,
    print_entry,
    print_facts,
    print_fix,
    print_heading,
    print_json,
    print_table,
    without_names,
)
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import check_ids_or_all, open_copies, open_each, open_manager
from ckpt_lib.core.wording import count_of, listed, size_text
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from ckpt_lib.core.damage import Damage
    from ckpt_lib.maintenance.repair import Remedy, RepairReport
    from ckpt_lib.maintenance.scrub import ScrubReport
    from ckpt_lib.maintenance.validate import ValidationReport
    from ckpt_lib.manager import CheckpointManager

_TENSORS_SHOWN = 5


def validate(
    checkpoint_ids: options.SomeCheckpointNames = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    everything: Annotated[bool, typer.Option("--all", help="Validate every checkpoint.")] = False,
    backups: options.OfBackups = False,
    allow_missing: options.AllowMissing = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Verify the digests of chunks on all processors, instead of SHA-256.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Read every byte of checkpoints and report damage.

    Reports damaged bytes and tensors by file, and exits with 1 if there are any. With --all, reads every experiment of
    the store unless one is named, and exits with 2 if there is nothing to read, unless --allow-missing is given.

    Example: ckpt validate --all --quick
    """
    check_ids_or_all([*(checkpoint_ids or ()), *(where or ()), *(tags or ())], everything=everything)
    chosen: list[tuple[CheckpointManager, list[str] | None]] = []
    if everything:
        managers = open_each(store, experiment, config, backups=backups)
        chosen.extend((manager, None) for manager in managers)
        if not allow_missing:
            _require_some(managers, backups=backups)
    else:
        manager = open_copies(store, experiment, config, backups=backups)
        ids = chosen_ids(manager, checkpoint_ids, where, tags, backups=backups, default=["latest"])
        chosen.append((manager, ids))
    total = sum(_size_bytes(manager, ids, backups=backups) for manager, ids in chosen)
    with byte_progress("Validating", total) as progress:
        read = partial(_reports, backups=backups, deep=not quick, progress=progress)
        found = [(manager, list(read(manager, ids))) for manager, ids in chosen]
    reports = [report for _, of_one in found for report in of_one]
    if as_json:
        _print_document([manager.experiment_name for manager, _ in found], reports)
    else:
        for manager, of_one in found:
            with options.about(manager.experiment_name) if len(found) > 1 else nullcontext():
                _print_reports(manager, of_one, backups=backups, with_name=len(found) > 1)
        _print_outcome(reports, backups=backups)
    if not all(reports):
        raise typer.Exit(DAMAGE)


def _size_bytes(manager: CheckpointManager, ids: Sequence[str] | None, *, backups: bool) -> int:
    held = manager.list_backups() if backups else manager.list_checkpoints()
    return sum(item.file_size for item in held if ids is None or item.checkpoint_id in ids)


def _print_document(names: Sequence[str], reports: Sequence[ValidationReport]) -> None:
    """Print one document, also of several experiments: a script is not to break when a store gets a second one."""
    print_json(
        {
            "experiment_name": names[0] if len(names) == 1 else None,
            "is_valid": all(reports),
            "reports": [{**report.model_dump(), "is_valid": report.is_valid} for report in reports],
        }
    )


def _print_outcome(reports: Sequence[ValidationReport], *, backups: bool) -> None:
    damaged = sum(not report for report in reports)
    unknown = sum(report.has_unknown_format for report in reports)
    of_unknown_format = f", {unknown} of a format that is not installed" if unknown else ""
    found = count_of(len(reports), "backup" if backups else "checkpoint")
    note(f"{found} validated, {damaged - unknown} damaged{of_unknown_format}.", warning=bool(damaged or not reports))


def _require_some(managers: Sequence[CheckpointManager], *, backups: bool = False) -> None:
    """Raise ``CheckpointNotFoundError`` if there is nothing to read in any of the experiments."""
    if any(manager.backup_ids() if backups else manager.checkpoint_ids() for manager in managers):
        return
    what, hints = "backups" if backups else "checkpoints", []
    named = listed([repr(manager.experiment_name) for manager in managers], most=5)
    if len(managers) == 1 and not backups:
        (manager,) = managers
        if held := manager.backup_ids():
            hints.append(
                f"There {'is' if len(held) == 1 else 'are'} {count_of(len(held), 'backup')}: "
                "`ckpt list --backups` lists them, `ckpt restore ID` restores a checkpoint from one."
            )
        if aside := manager.list_quarantined():
            hints.append(f"In quarantine: {count_of(len(aside), 'checkpoint')}, see `ckpt quarantine`.")
    raise CheckpointNotFoundError(
        f"{named} {'has' if len(managers) == 1 else 'have'} no {what} to read",
        hint=" ".join([*hints, "With --allow-missing, this is not an error."]),
    )


def _reports(
    manager: CheckpointManager,
    ids: Sequence[str] | None,
    *,
    backups: bool,
    deep: bool,
    progress: Callable[[int], object],
) -> Iterator[ValidationReport]:
    if ids is None:
        return (manager.validate_all_backups if backups else manager.validate_all)(deep=deep, progress=progress)
    validate_one = manager.validate_backup if backups else manager.validate_checkpoint
    return (validate_one(checkpoint_id, deep=deep, progress=progress) for checkpoint_id in ids)


def scrub(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="SIZE", help="Read at most this much per second, such as 100MB.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again, even if an earlier scrub was interrupted.")
    ] = False,
    allow_missing: options.AllowMissing = False,
    as_json: options.AsJson = False,
) -> None:
    """Read every byte of every checkpoint and backup, on all processors.

    After an interruption, the next call continues where this one stopped. Exits with 1 if there is damage, and with 2
    if there are no checkpoints, unless --allow-missing is given.

    Example: ckpt scrub --rate 200MB
    """
    max_bytes_per_second = None if rate is None else _bytes(rate)
    manager = open_manager(store, experiment, config)
    if not allow_missing:
        _require_some([manager])
    total = sum(item.file_size for item in (*manager.list_checkpoints(), *manager.list_backups()))
    with byte_progress("Scrubbing", total) as progress:
        report = manager.scrub(max_bytes_per_second=max_bytes_per_second, restart=restart, progress=progress)
    if as_json:
        print_json({**report.model_dump(), "is_intact": report.is_intact})
    else:
        _print_scrub(manager, report)
    if not report:
        raise typer.Exit(DAMAGE)


def _print_scrub(manager: CheckpointManager, report: ScrubReport) -> None:
    files = len(report.checkpoints) + len(report.backups)
    print_facts(
        {
            "checkpoints": f"{len(report.checkpoints)}, {sum(not item for item in report.checkpoints)} damaged",
            "backups": f"{len(report.backups)}, {sum(not item for item in report.backups)} damaged",
            "read": size_text(report.bytes_read),
        }
    )
    if report.files_resumed:
        note(f"{report.files_resumed} of {files} were already read by an earlier scrub that was interrupted.")
    _print_damages(manager, report.checkpoints, report.backups)


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size_bytes = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise ConfigError("--rate is not a size", expected="such as 100MB or 1GiB", got=text) from error
    return int(size_bytes)


def repair(
    checkpoint_id: options.ACheckpointName = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    backups: Annotated[
        bool,
        typer.Option("--backups", help="Repair the backup from the checkpoint instead."),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Repair the damaged bytes of a checkpoint from its backup.

    A new file is put together from the sound chunks of both copies, and replaces the damaged one. Exits with 1 if both
    copies of a chunk are damaged.

    Example: ckpt repair latest
    """
    manager = open_copies(store, experiment, config, backups=backups)
    wanted = chosen_ids(manager, as_names(checkpoint_id), where, tags, backups=backups)
    held = manager.list_backups() if backups else manager.list_checkpoints()
    sizes = {item.checkpoint_id: item.file_size for item in held}
    repair_one = manager.repair_backup if backups else manager.repair_checkpoint
    with byte_progress("Repairing", sum(sizes.get(item, 0) for item in wanted) or None) as progress:
        reports = [repair_one(item, progress=progress) for item in wanted]
    if as_json:
        many = {"experiment_name": manager.experiment_name, "reports": reports}
        print_json(many if is_by_condition(where, tags) else reports[0])
        return
    for report in reports:
        _print_repair(report, backups=backups)


def _print_repair(report: RepairReport, *, backups: bool) -> None:
    facts = {"backup" if backups else "checkpoint": report.checkpoint_id}
    if report.damages:
        facts["rewritten"] = size_text(report.bytes_rewritten)
        facts["damage"] = "\n".join(without_names(damage.message, report.checkpoint_id) for damage in report.damages)
    else:
        facts["result"] = report.message
    print_facts(facts, prose=["damage", "result"])


def _print_reports(
    manager: CheckpointManager, reports: Sequence[ValidationReport], *, backups: bool, with_name: bool
) -> None:
    if with_name:
        print_heading(f"--- {manager.experiment_name} ---")
    print_table(
        (Column("id"), Column("result"), Column("size", numeric=True)),
        [(item.checkpoint_id, _result(item), size_text(item.size_bytes)) for item in reports],
    )
    _print_damages(manager, *((), reports) if backups else (reports, ()))


def _result(report: ValidationReport) -> Text:
    if report:
        return Text("intact", style="green")
    return Text("not loadable", style="yellow") if report.has_unknown_format else Text("damaged", style="bold red")


def _print_damages(
    manager: CheckpointManager, checkpoints: Sequence[ValidationReport], backups: Sequence[ValidationReport]
) -> None:
    damaged = [("checkpoint", item, backups) for item in checkpoints if not item]
    damaged += [("backup", item, checkpoints) for item in backups if not item]
    if not damaged:
        return
    print_heading("Damage")
    for copy, report, others in damaged:
        lines = [f"{copy}: {_described(damage, report.checkpoint_id)}" for damage in report.damages]
        other = next((item for item in others if item.checkpoint_id == report.checkpoint_id), None)
        print_entry(report.checkpoint_id, *lines)
        print_fix(_advice(manager, copy, report, other))


def _described(damage: Damage, checkpoint_id: str) -> str:
    if not damage.stop:
        return without_names(damage.message, checkpoint_id)
    tensors = listed(damage.tensors, _TENSORS_SHOWN)
    return f"{damage.kind}, bytes {damage.start}-{damage.stop}" + (f": {tensors}" if tensors else "")


def _advice(manager: CheckpointManager, copy: str, report: ValidationReport, other: ValidationReport | None) -> str:
    """Return what helps this copy, which is a command if it is damaged."""
    if report.has_unknown_format:
        return "install the package that provides its format"
    command: Remedy = "repair"
    with suppress(CheckpointError):  # the other copy cannot be read now
        command = manager.remedy(report, of_backup=copy == "backup", other=other)
    return f"ckpt {command} {'--backups ' if copy == 'backup' else ''}{report.checkpoint_id}"
