"""``ckpt validate``: whether the stored bytes are the bytes that were saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.output import Column, as_size, count_of, note, print_heading, print_json, print_table
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import check_ids_or_all, open_manager, resolve_all

if TYPE_CHECKING:
    from ckpt_lib.integrity import ValidationReport
    from ckpt_lib.manager import CheckpointManager


def validate(
    checkpoint_ids: options.SomeCheckpointNames = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    everything: Annotated[bool, typer.Option("--all", help="Every checkpoint of the experiment.")] = False,
    backups: options.OfBackups = False,
    as_json: options.AsJson = False,
) -> None:
    """Read every byte of checkpoints and report damage.

    Says which bytes of which file differ from what was saved, and exits with 1 when some do.
    """
    check_ids_or_all(checkpoint_ids, everything=everything)
    manager = open_manager(store, experiment, config)
    ids = None if everything else resolve_all(manager, checkpoint_ids or ["latest"])
    held = manager.list_backups() if backups else manager.list_checkpoints()
    total = sum(item.file_size for item in held if ids is None or item.checkpoint_id in ids)
    with byte_progress("Validating", total) as progress:
        reports = list(_reports(manager, ids, backups=backups, progress=progress))
    damaged = [report for report in reports if not report]
    if as_json:
        print_json(
            {
                "experiment_name": manager.experiment_name,
                "is_valid": not damaged,
                "reports": [{**report.model_dump(), "is_valid": report.is_valid} for report in reports],
            }
        )
    else:
        _print_reports(reports)
        kind = "backup" if backups else "checkpoint"
        note(f"{count_of(len(reports), kind)} validated, {len(damaged)} damaged.", warning=bool(damaged or not reports))
    if damaged:
        raise typer.Exit(DAMAGE)


def _reports(
    manager: CheckpointManager, ids: Sequence[str] | None, *, backups: bool, progress: Callable[[int], object]
) -> Iterator[ValidationReport]:
    if ids is None:
        return (manager.validate_all_backups if backups else manager.validate_all)(progress=progress)
    validate_one = manager.validate_backup if backups else manager.validate_checkpoint
    return (validate_one(checkpoint_id, progress=progress) for checkpoint_id in ids)


def _print_reports(reports: Sequence[ValidationReport]) -> None:
    intact, damaged = Text("intact", style="green"), Text("damaged", style="bold red")
    print_table(
        (Column("id"), Column("result"), Column("size", numeric=True)),
        [(item.checkpoint_id, intact if item else damaged, as_size(item.size_bytes)) for item in reports],
    )
    damages = [damage for report in reports for damage in report.damages]
    if damages:
        print_heading("Damage")
        print_table(
            (Column("file"), Column("kind"), Column("bytes", numeric=True), Column("detail", wraps=True)),
            [
                (damage.file, damage.kind, f"{damage.start}-{damage.stop}", "")
                if damage.stop
                else (damage.file, damage.kind, "-", damage.message)
                for damage in damages
            ],
        )
        note("`ckpt restore ID` brings back a backup; `ckpt backup ID --verify` replaces a damaged one.")
