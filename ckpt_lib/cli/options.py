"""Arguments and options shared by commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from ckpt_lib.cli.completion import complete_deleted_ids, complete_experiments, complete_ids, complete_tags

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
        help="The experiment; optional if the store holds only one.",
        rich_help_panel="Which checkpoints",
        autocompletion=complete_experiments,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file with options such as monitor_metric and backup_dir. CKPT_* variables override it.",
        rich_help_panel="Which checkpoints",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, errors included.")]

_CONVERTING = "For another program"
TargetFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="torch, safetensors, hf-folder (for from_pretrained), lightning, hf-trainer or accelerate.",
        rich_help_panel=_CONVERTING,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Cast the floating tensors of the model: bf16, fp16, fp32 or fp64.",
        rich_help_panel=_CONVERTING,
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="model: the weights alone, without optimizer and the rest.",
        rich_help_panel=_CONVERTING,
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="The largest file of safetensors, such as 2GB; larger models become several. Default: 5GB.",
        rich_help_panel=_CONVERTING,
    ),
]

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help='Only checkpoints that meet this, such as "val_loss<0.3" or "epoch>=10"; repeat for more.',
    ),
]
Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        "-t",
        metavar="TAG",
        help="Only checkpoints with this tag; repeat for more.",
        autocompletion=complete_tags,
    ),
]
Search = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Only checkpoints with this text in id, tags or description; case is ignored."),
]
SortBy = Annotated[
    str, typer.Option(metavar="KEY", help="sequence, timestamp, epoch, step, checkpoint_id, file_size, or a metric.")
]
Descending = Annotated[bool, typer.Option("--descending", "-d", help="Largest first.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="Show at most N.")]

_NAME = "latest, best, a tag, or an id, whole or as short as epoch_12; latest~2 is the second before the latest."
CheckpointName = Annotated[
    str, typer.Argument(metavar="ID", help=f"A checkpoint: {_NAME}", autocompletion=complete_ids)
]
SomeCheckpointNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help=f"Checkpoints: {_NAME} Default: latest.", autocompletion=complete_ids),
]
ACheckpointName = Annotated[
    str | None,
    typer.Argument(metavar="ID", help=f"A checkpoint: {_NAME} Or use --where and --tag.", autocompletion=complete_ids),
]
AnyCheckpointNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help=f"Checkpoints: {_NAME} Or use --where and --tag.", autocompletion=complete_ids),
]
DeletedNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID",
        help="Deleted checkpoints: a tag, or an id, whole or as short as epoch_12; `ckpt trash` lists them.",
        autocompletion=complete_deleted_ids,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what is selected, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for a confirmation.")]
OfBackups = Annotated[bool, typer.Option("--backups", help="Work on the backups instead of the checkpoints.")]
Pin = Annotated[bool, typer.Option("--pin", help="Also pin, so that no save or cleanup deletes it again.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Succeed if there are no checkpoints.")]

_WHICH_STORE = ("store", "experiment", "config")
_COMMAND = re.compile(r"`(ckpt [a-z][^`]*)`")
_typed: ContextVar[str] = ContextVar("typed", default="")


@contextmanager
def typed(given: Mapping[str, Any]) -> Iterator[None]:
    """Remember the typed options that select the store, for commands printed inside the block."""
    words = [f"--{name} {shlex.quote(str(given[name]))}" for name in _WHICH_STORE if given.get(name) is not None]
    token = _typed.set("".join(f" {word}" for word in words))
    try:
        yield
    finally:
        _typed.reset(token)


@contextmanager
def about(experiment: str) -> Iterator[None]:
    """Name an experiment that was not typed in the commands printed inside the block."""
    token = _typed.set(f"{_typed.get()} --experiment {shlex.quote(experiment)}")
    try:
        yield
    finally:
        _typed.reset(token)


def typed_names() -> list[str]:
    """Return which options that select the store were typed; they may come from the environment, too."""
    return [word.removeprefix("--") for word in shlex.split(_typed.get())[::2]]


def to_type(command: str) -> str:
    """Return a command with the typed options that select the store, so that it works when copied."""
    names_files = command.startswith(("ckpt inspect", "ckpt convert")) or "--in-place" in command
    knows_none = names_files or command.startswith("ckpt init") or "--help" in command
    options = "" if knows_none else _typed.get()
    if command.startswith(("ckpt experiments", "ckpt find", "ckpt reindex")):
        options = re.sub(r" --experiment \S+", "", options)
    return command + options


def with_options(text: str) -> str:
    """Return a message with :func:`to_type` applied to each ``ckpt`` command in it."""
    return _COMMAND.sub(lambda found: f"`{to_type(found[1])}`", text)
