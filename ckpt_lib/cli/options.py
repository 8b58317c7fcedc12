"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        envvar="CKPT_CHECKPOINT_DIR",
        metavar="URL",
        help="Root of the store: a path or file:// URL. Default: checkpoints.",
        rich_help_panel="Which checkpoints",
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        "-e",
        envvar="CKPT_EXPERIMENT",
        metavar="NAME",
        help="The experiment; may be left out where the store holds just one.",
        rich_help_panel="Which checkpoints",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file of options such as monitor_metric and backup_dir. CKPT_* variables override it.",
        rich_help_panel="Which checkpoints",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, errors included.")]

CheckpointName = Annotated[str, typer.Argument(metavar="ID", help="A checkpoint id, latest, best, or a tag.")]
CheckpointNames = Annotated[list[str], typer.Argument(metavar="ID", help="Checkpoint ids, latest, best, or tags.")]
SomeCheckpointNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Checkpoint ids, latest, best, or tags. Without any: latest."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting.")]
OfBackups = Annotated[bool, typer.Option("--backups", "--backup", help="The backups instead of the checkpoints.")]
