"""``ckpt inspect``: what a checkpoint holds, ours or another program's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.output import (
    Column,
    as_number,
    as_value,
    note,
    print_entry,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import open_manager
from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    ExperimentNotFoundError,
    NotACheckpointError,
    NotAStoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckpt_lib.inspecting.results import InspectedTensor, Inspection

_CONFIG_SHOWN = 20
_CLASSES_SHOWN = 10
_STATISTICS = ("norm", "mean", "min", "max")
_COUNTS = {"nan_count": "NaN", "infinite_count": "infinite", "zero_count": "zeros"}


def inspect(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|URL|ID", help="Any checkpoint; or an id, latest, best or a tag of the store."
        ),
    ],
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List each tensor, in the order of storage.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the tensors, and tell norm, mean, min, max, NaN and zeros of each.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Tell what a checkpoint holds, whoever wrote it.

    No code of it runs, and without --stats no tensor is read. An existing path, and whatever holds a slash, is looked
    up on disk; anything else is the name of a checkpoint in the store.

    Example: ckpt inspect model.safetensors --tensors
    """
    look = _looker(checkpoint, store, experiment, config)
    found = look()
    if stats and found:
        with byte_progress("Reading tensors", found.tensor_bytes) as progress:
            found = look(stats=True, progress=progress)
    if as_json:
        print_json(found)
    else:
        _print_inspection(found)
        if tensors or stats:
            _print_tensors(found.tensors)
    if not found:
        raise typer.Exit(DAMAGE)


def _looker(name: str, store: str | None, experiment: str | None, config: Any) -> Callable[..., Inspection]:
    """Return the function that inspects what ``name`` stands for: a path or URL, or a checkpoint of the store."""
    from functools import partial

    from ckpt_lib.inspecting.inspection import inspect_checkpoint

    if os.path.lexists(name) or "/" in name or os.sep in name:
        return partial(inspect_checkpoint, name)
    from ckpt_lib.experiment.locations import Locations

    try:
        manager = open_manager(store, experiment, config)
        place, manifest = Locations(manager.config, manager.experiment_name).find(name)
    except NotAStoreError as error:
        raise NotACheckpointError(
            f"there is no file or folder {name} in this folder, and no store to look it up in",
            expected="a path, or the name of a checkpoint and its --store",
            got=f"no store at {error.path}",
        ) from error
    except (CheckpointNotFoundError, ExperimentNotFoundError, ConfigError) as error:
        error.message = f"there is no file or folder {name} in this folder, and {error.message}"
        raise
    from ckpt_lib.inspecting.stored import inspect_stored

    return partial(inspect_stored, place, manifest)


def _print_inspection(found: Inspection) -> None:
    from ckpt_lib.inspecting.facts import facts_of

    print_facts(facts_of(found))
    if found.metrics:
        print_heading("Metrics")
        print_facts({f"  {name}": as_number(value) for name, value in found.metrics.items()})
    if found.config:
        print_heading("Configuration")
        shown = list(found.config.items())[:_CONFIG_SHOWN]
        print_facts({f"  {name}": as_value(value) for name, value in shown})
        if (more := len(found.config) - len(shown)) > 0:
            note(f"{count_of(more, 'further option')} with --json.")
    _print_sentences("Classes of its pickle", found.classes[:_CLASSES_SHOWN])
    _print_sentences("Left out", found.left_out)
    _print_sentences("Findings", found.findings)


def _print_sentences(heading: str, sentences: tuple[str, ...]) -> None:
    if sentences:
        print_heading(heading)
        for sentence in sentences:
            print_entry(sentence)


def _print_tensors(tensors: tuple[InspectedTensor, ...]) -> None:
    read = [tensor.statistics for tensor in tensors if tensor.statistics]
    counts = [name for name in _COUNTS if any(getattr(item, name) for item in read)]
    statistics = [*_STATISTICS, *counts] if read else []
    columns = (
        Column("tensor"),
        Column("type"),
        Column("shape"),
        Column("size", numeric=True, optional=bool(read)),
        *(Column(_COUNTS.get(name, name), numeric=True, optional=name not in counts) for name in statistics),
        Column("in the memory of", optional=True),
    )
    rows = [
        (
            tensor.name,
            tensor.dtype,
            "x".join(map(str, tensor.shape)) or "scalar",
            size_text(tensor.size_bytes),
            *(as_number(getattr(tensor.statistics, name, None)) for name in statistics),
            tensor.shares_memory_with or "",
        )
        for tensor in tensors
    ]
    print_heading("Tensors")
    print_table(columns, rows)
