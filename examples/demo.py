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
from rich.console import Console
from rich.table import Column, Table

from ckpt_lib import CheckpointConfig, CheckpointManager, CleanupReport
from prefect_checkpoints.flows import TrainingParameters, checkpoint_lifecycle, train

EXPERIMENT = "digits"
EPOCHS_PER_RUN = 8
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

    config = CheckpointConfig(checkpoint_dir=arguments.checkpoint_dir, max_checkpoints=5, max_backups=5)
    manager = CheckpointManager(config, EXPERIMENT)
    latest = manager.get_latest_checkpoint()
    first = latest.epoch + 1 if latest else 1
    last = first + EPOCHS_PER_RUN - 1
    beginning = f"resuming from epoch {latest.epoch}" if latest else "from the beginning"

    _say(console, f"[bold]Training a CNN on 1,797 handwritten digits[/bold]: epochs {first} to {last}, {beginning}")
    started = time.monotonic()
    train(EXPERIMENT, config, TrainingParameters(epochs=last))
    _say(console, f"Trained in {time.monotonic() - started:.1f} s.\n")

    _say(console, "[bold]The lifecycle[/bold]: validate, back up, compare, export the best, clean up")
    # Fewer are kept than the training kept, so that the plan has something to say.
    lifecycle = checkpoint_lifecycle(EXPERIMENT, config.model_copy(update={"max_checkpoints": 3}), arguments.export_dir)
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
        f"\n{lifecycle['total_checkpoints']} checkpoints ({lifecycle['total_size_mb']:.1f} MiB) and "
        f"{lifecycle['total_backups']} backups. The best one was exported; plain PyTorch reads it:\n"
        f'  torch.load("{exported}", weights_only=True)["epoch"] -> {epoch}\n\n'
        "[bold]Where to look[/bold]: `make serve` opens the Prefect page with these runs, their tasks and their "
        "artifacts\n  (tables and a plot); `.venv/bin/ckpt list` shows the checkpoints here. `make demo` once more "
        "resumes the training.",
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    # Ids are never cut: they are what one copies.
    heads = [Column(name, overflow="fold", min_width=min(len(name), 10)) for name in columns]
    return Table(*heads, title=title, title_justify="left", title_style="bold")


def _checkpoint_table(manager: CheckpointManager) -> Table:
    table = _table("Checkpoints", "checkpoint", "epoch", "val_loss", "val_accuracy", "")
    for item in manager.list_checkpoints():
        marks = [mark for mark, is_set in (("best", item.is_best), ("latest", item.is_latest)) if is_set]
        metrics = (f"{item.metrics[name]:.4f}" for name in ("val_loss", "val_accuracy"))
        table.add_row(item.checkpoint_id, str(item.epoch), *metrics, " ".join(marks))
    return table


def _validation_table(manager: CheckpointManager) -> Table:
    table = _table("Validation and backups", "checkpoint", "result", "SHA-256", "backup")
    backups = {item.checkpoint_id for item in manager.list_backups()}
    for report in manager.validate_all():
        backup = manager.validate_backup(report.checkpoint_id).message if report.checkpoint_id in backups else "none"
        table.add_row(report.checkpoint_id, report.message, f"{report.sha256[:16]}…", backup)
    return table


def _comparison_table(comparison: dict[str, Any]) -> Table:
    epochs = comparison["metadata_comparison"]["epoch"]
    table = _table("Comparison", "metric", *(f"epoch {epoch}" for epoch in epochs))
    for metric, values in comparison["metrics_comparison"].items():
        table.add_row(metric, *(f"{value:.4f}" for value in values))
    return table


def _retention_table(report: CleanupReport) -> Table:
    table = _table("Retention", "decision", "checkpoint", "reason")
    for decision in report.plan.decisions:
        action = "[green]keep[/green]" if decision.keep else "[red]delete[/red]"
        table.add_row(action, decision.checkpoint_id, decision.reason)
    return table


if __name__ == "__main__":
    main()
