"""``ckpt reconcile``: move checkpoints from the fallback folder to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.output import Column, note, print_json, print_table
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import read_config
from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.errors import ConfigError, NotAStoreError

if TYPE_CHECKING:
    from ckpt_lib.config import CheckpointConfig
    from ckpt_lib.saving.fallback import ReconcileReport


def reconcile(
    *,
    fallback: Annotated[
        str | None,
        typer.Option(
            "--fallback", envvar="CKPT_FALLBACK_DIR", metavar="URL", help="The fallback_dir that training used."
        ),
    ] = None,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    allow_missing: options.AllowMissing = False,
    as_json: options.AsJson = False,
) -> None:
    """Move checkpoints from the fallback folder to the store.

    Without --experiment, those of all experiments in the fallback folder. Each is verified in the store, which must be
    there, before it is deleted from the fallback folder. An interrupted move is continued by the next call, and
    training may run meanwhile. A damaged checkpoint stays where it is, and the exit code is 1. Exits with 2 if the
    fallback folder is empty or not there, unless --allow-missing is given.

    Example: ckpt reconcile --config run.yaml
    """
    settings = read_config(store, config, fallback_dir=fallback)
    if settings.fallback_dir is None:
        raise ConfigError("no fallback folder is given", expected="--fallback, or fallback_dir in the configuration")
    _require_store(settings.checkpoint_dir)
    reports = [_reconciled(settings, name) for name in _experiments(settings.fallback_dir, experiment, allow_missing)]
    if experiment is None:  # records of what came home before stay for a while
        reports = [report for report in reports if report.moved or report.already_home or report.failed]
    if as_json:
        print_json({"experiments": reports})
    else:
        _print_reports(reports)
    if not all(reports):
        raise typer.Exit(DAMAGE)


def _require_store(url: str) -> None:
    """Refuse a folder that is no store: a mistyped one, or the mount point of a missing disk."""
    from ckpt_lib.store import open_store
    from ckpt_lib.store.identity import read_identity

    read_identity(open_store(url))


def _experiments(fallback_dir: str, experiment: str | None, allow_missing: bool) -> list[str]:
    from ckpt_lib.experiment.listing import check_experiment_exists, list_experiments
    from ckpt_lib.store import open_store

    fallback = open_store(fallback_dir)
    entries = fallback.list("")
    if not entries and not allow_missing:
        raise NotAStoreError(
            "the fallback folder is empty or not there",
            path=fallback_dir,
            hint="With --allow-missing, this is not an error.",
        )
    try:
        if experiment is not None and entries:
            return [check_experiment_exists(fallback, experiment)]
        return list_experiments(fallback, missing_ok=True)
    except NotAStoreError:
        if all(entry.is_folder for entry in entries):  # as in a fallback folder from which everything was moved
            return []
        raise


def _reconciled(settings: CheckpointConfig, name: str) -> ReconcileReport:
    from ckpt_lib.manager import CheckpointManager

    manager = CheckpointManager(settings, name)
    total_bytes = sum(item.file_size for item in manager.list_stranded())
    with byte_progress(f"Moving {name}", total_bytes) as progress:
        return manager.reconcile(progress=progress)


def _print_reports(reports: list[ReconcileReport]) -> None:
    rows: list[tuple[str, str, Text]] = []
    for report in reports:
        name = report.experiment_name
        rows += [(name, home_id, Text("moved", style="green")) for home_id in report.moved.values()]
        rows += [(name, checkpoint_id, Text("was home already")) for checkpoint_id in report.already_home]
        rows += [
            (name, checkpoint_id, Text(f"stays: {why}", "bold red")) for checkpoint_id, why in report.failed.items()
        ]
    if rows:
        print_table((Column("experiment"), Column("id"), Column("result", wraps=True)), rows)
    moved = sum(len(report.moved) for report in reports)
    note(f"{count_of(moved, 'checkpoint')} moved, {size_text(sum(report.moved_bytes for report in reports))}.")
