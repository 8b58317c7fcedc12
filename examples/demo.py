"""``make demo``: train a real model under Prefect and take its checkpoints through their whole life.

Run it again and the training resumes where it stopped. Everything it makes lies in ``checkpoints/``, ``exports/`` and
``.prefect/``.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.wording import count_of
from ckpt_lib.reports import CleanupReport
from prefect_checkpoints.flows import TrainingParameters, checkpoint_lifecycle, train

EXPERIMENT = "digits"
EPOCHS_PER_RUN = 8
KEPT_BY_TRAINING, KEPT_BY_LIFECYCLE = 5, 3
WIDTH_OUTSIDE_A_TERMINAL = 120


def main() -> None:
    """Train, run the lifecycle, and show what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint-dir", default="checkpoints")
    parser.add_argument("--export-dir", default="exports")
    parser.add_argument("--picture", type=Path, help="also write what the terminal shows into this SVG file")
    arguments = parser.parse_args()
    console = Console(record=arguments.picture is not None)
    if not console.is_terminal:
        console.width = WIDTH_OUTSIDE_A_TERMINAL

    config = CheckpointConfig(
        checkpoint_dir=arguments.checkpoint_dir,
        max_checkpoints=KEPT_BY_TRAINING,
        max_backups=KEPT_BY_TRAINING + EPOCHS_PER_RUN,  # among them that of the one which the training went on from
    )
    manager = CheckpointManager(config, EXPERIMENT)
    latest = manager.get_latest_checkpoint()
    first = latest.epoch + 1 if latest else 1
    last = first + EPOCHS_PER_RUN - 1
    beginning = f"resuming from epoch {latest.epoch}" if latest else "from the beginning"

    _say(console, f"[bold]Training a CNN on 1,797 handwritten digits[/bold]: epochs {first} to {last}, {beginning}")
    started = time.monotonic()
    train(config, EXPERIMENT, TrainingParameters(epochs=last))
    _say(console, f"Trained and saved {EPOCHS_PER_RUN} epochs in {time.monotonic() - started:.1f} seconds.\n")

    _say(console, "[bold]The lifecycle[/bold]: validate, back up, compare, export the best, clean up")
    # Fewer are kept than the training kept, so that the plan has something to say.
    fewer = config.model_copy(update={"max_checkpoints": KEPT_BY_LIFECYCLE})
    lifecycle = checkpoint_lifecycle(fewer, EXPERIMENT, arguments.export_dir)
    _show(console, manager, lifecycle)
    if arguments.picture:
        console.save_svg(str(arguments.picture), title="make demo")


def _show(console: Console, manager: CheckpointManager, lifecycle: dict[str, Any]) -> None:
    for table in (
        _checkpoint_table(manager),
        _validation_table(manager),
        _comparison_table(lifecycle["comparison"]),
        _retention_table(lifecycle["cleanup"]),
    ):
        console.print()
        console.print(table)
    exported = os.path.relpath(lifecycle["exported"])
    epoch = torch.load(exported, weights_only=True)["epoch"]
    _say(
        console,
        f"\n{count_of(lifecycle['total_checkpoints'], 'checkpoint')} are left in the store, "
        f"{lifecycle['total_size_mb']:.1f} MiB together, and {count_of(lifecycle['total_backups'], 'backup')}. "
        "What was deleted can be\nbrought back for a day. The best checkpoint was exported; plain PyTorch reads it:\n"
        f'  torch.load("{exported}", weights_only=True)["epoch"] -> {epoch}\n\n'
        "[bold]Where to look[/bold]: `make serve` opens the Prefect page with these runs, their tasks and their "
        "artifacts\n  (tables and a plot); `.venv/bin/ckpt list` shows the checkpoints here. `make demo` once more "
        "resumes the training.",
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _table(title: str, explanation: str, *columns: str) -> Table:
    # Ids are neither cut nor broken: they are what one copies.
    heads = [Column(name, no_wrap=name == "checkpoint", overflow="fold") for name in columns]
    return Table(*heads, title=f"[bold]{title}[/bold]\n{explanation}", title_justify="left", title_style="", box=SIMPLE)


def _checkpoint_table(manager: CheckpointManager) -> Table:
    table = _table(
        "Checkpoints in the store",
        "Loss and accuracy (1 is perfect) on images that the training has not seen.",
        "checkpoint",
        "loss",
        "accuracy",
        "",
    )
    for item in manager.list_checkpoints():
        marks = [mark for mark, is_set in (("best", item.is_best), ("latest", item.is_latest)) if is_set]
        metrics = (f"{item.metrics[name]:.4f}" for name in ("val_loss", "val_accuracy"))
        table.add_row(item.checkpoint_id, *metrics, " ".join(marks))
    return table


def _validation_table(manager: CheckpointManager) -> Table:
    table = _table(
        "Validation",
        "Every byte was read again and compared with the SHA-256 of what was saved.",
        "checkpoint",
        "result",
        "backup",
    )
    backups = {item.checkpoint_id for item in manager.list_backups()}
    for report in manager.validate_all():
        backup = manager.validate_backup(report.checkpoint_id).message if report.checkpoint_id in backups else "none"
        table.add_row(report.checkpoint_id, report.message, backup)
    return table


def _comparison_table(comparison: dict[str, Any]) -> Table:
    epochs = comparison["metadata_comparison"]["epoch"]
    table = _table(
        "Comparison",
        "The metrics of the newest checkpoints side by side; train_ is measured on images trained on, val_ on others.",
        "metric",
        *(f"epoch {epoch}" for epoch in epochs),
    )
    for metric, values in comparison["metrics_comparison"].items():
        table.add_row(metric, *(f"{value:.4f}" for value in values))
    return table


def _retention_table(report: CleanupReport) -> Table:
    table = _table(
        "Retention",
        f"What the cleanup decided: the training kept {KEPT_BY_TRAINING} checkpoints, the lifecycle keeps "
        f"{KEPT_BY_LIFECYCLE}.",
        "checkpoint",
        "decision",
        "reason",
    )
    for decision in report.plan.decisions:
        action = "[green]keep[/green]" if decision.keep else "[red]delete[/red]"
        table.add_row(decision.checkpoint_id, action, decision.reason)
    return table


if __name__ == "__main__":
    main()
