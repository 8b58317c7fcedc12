"""``ckpt import``: checkpoints of ours and of other programs, taken into an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.output import Column, note, print_facts, print_json, print_table
from ckpt_lib.cli.progress import byte_progress, count_and_byte_progress
from ckpt_lib.cli.session import open_manager, refuse_memory
from ckpt_lib.core.wording import listed, size_text
from ckpt_lib.errors import ConfigError, ExperimentNotFoundError, InvalidNameError, NotAStoreError

if TYPE_CHECKING:
    from ckpt_lib.maintenance.importing.report import ImportedItem, ImportReport
    from ckpt_lib.manager import CheckpointManager

_STYLES = {"imported": "green", "damaged": "bold red", "refused": "yellow", "not tried": "yellow"}
_PATHS_SHOWN = 3
"""How many paths are named that have a sentence in common; the table has all of them."""


def import_checkpoint(
    source: Annotated[
        str, typer.Argument(metavar="PATH", help="A file, or the folder of one checkpoint; with --tree, of any number.")
    ],
    *,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Copy nothing: write a manifest beside the files, which are the checkpoint."),
    ] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Import every checkpoint in the folder and below.")] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PART", help="What a part of the checkpoint is, such as net=model; repeatable."),
    ] = None,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Import a checkpoint of this library or of another program as the newest of an experiment.

    No code that it holds is run, and every byte is verified while it is copied. What another program wrote is saved
    anew with its model, optimizer, scheduler, epoch and step, and tagged adopted; its description says what was left
    out. With --in-place the files stay where they are, in the folder of the experiment: without --store and
    --experiment, that is the folder they lie in. They belong to the program that wrote them: nothing here changes or
    removes them, and deleting such a checkpoint removes its manifest alone. --experiment may name a new experiment.
    With --tree, the exit code is 1 if a checkpoint could not be imported.

    Example: ckpt import exported/ --experiment mnist
    """
    refuse_memory(source)
    key_map = _key_map(key)
    if in_place and store is None and experiment is None:
        store, experiment = _place_of(source, tree=tree)
    manager = _manager(store, experiment, config)
    others = [manager.experiment_name] if in_place else _experiments(manager)
    if tree:
        report = _import_tree(manager, source, key_map, in_place=in_place, as_json=as_json)
        imported = bool(report.of("imported"))
    else:
        imported = _import_one(manager, source, key_map, in_place=in_place, as_json=as_json)
    if imported and not as_json:
        _tell_what_it_becomes(manager.experiment_name, others)
    if tree and not report:
        raise typer.Exit(DAMAGE)


def _manager(store: str | None, experiment: str | None, config: Path | None) -> CheckpointManager:
    """Return the manager of the experiment that takes the import in, which may be new if it is named."""
    try:
        return open_manager(store, experiment, config, may_be_new=True)
    except (NotAStoreError, ExperimentNotFoundError) as error:
        error.hint = f"Name the experiment that is to take it in, new or not: --experiment NAME. {error.hint}"
        raise


def _tell_what_it_becomes(name: str, others: Sequence[str]) -> None:
    """Say that the experiment is new, or that a run of it resumes from the import: maybe another one was meant."""
    from ckpt_lib.core.wording import did_you_mean

    if name not in others:
        note(f"{name!r} is a new experiment. {did_you_mean(name, others)}".rstrip(), warning=True)
    else:
        note(
            f"{name} has a new latest checkpoint: the next resume goes on from it. `ckpt delete latest` takes it back."
        )


def _import_one(
    manager: CheckpointManager, source: str, key_map: dict[str, str] | None, *, in_place: bool, as_json: bool
) -> bool:
    """Import one checkpoint; tell whether it is new."""
    told: list[ImportedItem] = []
    with byte_progress("Importing", None) as progress:
        manager.import_checkpoint(source, key_map=key_map, in_place=in_place, progress=progress, told=told.append)
    (item,) = told
    checkpoint_id = str(item.checkpoint_id)
    checkpoint = manager.get_checkpoint(checkpoint_id)
    if as_json:
        facts = {**item.model_dump(mode="json", exclude={"path", "reason"}), "description": checkpoint.description}
        print_json({"experiment_name": manager.experiment_name, **facts})
    else:
        print_facts({item.result: checkpoint_id, "experiment": manager.experiment_name})
        if item.result == "imported" and "adopted" in checkpoint.tags:
            note(checkpoint.description)
    return item.result == "imported"


def _import_tree(
    manager: CheckpointManager, folder: str, key_map: dict[str, str] | None, *, in_place: bool, as_json: bool
) -> ImportReport:
    with count_and_byte_progress("Importing") as (counted, progress):
        report = manager.import_checkpoints(
            folder, key_map=key_map, in_place=in_place, progress=progress, counted=counted
        )
    if as_json:
        print_json(report)
        return report
    found = [item for item in report.items if item.result != "no checkpoint"]
    print_table(
        (
            Column("path", above=True),
            Column("result"),
            Column("size", numeric=True),
            Column("id"),
            Column("what", optional=True),
        ),
        [
            (
                item.path or ".",
                Text(item.result, style=_STYLES.get(item.result, "")),
                size_text(item.size_bytes) if item.size_bytes else "-",
                item.checkpoint_id or "",
                item.title,
            )
            for item in found
        ],
    )
    _print_reasons(found, folder)
    note(report.message)
    return report


def _print_reasons(found: Sequence[ImportedItem], folder: str) -> None:
    """Say why something was not imported, or not whole; once for all that have the same reason."""
    paths_of: dict[tuple[str, bool], list[str]] = {}
    for item in found:
        for sentence in (*filter(None, [item.reason]), *item.left_out):
            paths_of.setdefault((sentence, item.reason is not None), []).append(item.path or folder)
    for (sentence, is_failure), paths in paths_of.items():
        count = f"{len(paths)} checkpoints, " if len(paths) > 1 else ""
        note(f"{count}{listed(paths, most=_PATHS_SHOWN)}: {sentence}", warning=is_failure)


def _key_map(keys: Sequence[str] | None) -> dict[str, str] | None:
    if not keys:
        return None
    pairs = [key.rpartition("=") for key in keys]
    if wrong := [key for key, (name, _, part) in zip(keys, pairs, strict=True) if not (name and part)]:
        raise ConfigError("--key says which part a name stands for", expected="--key net=model", got=wrong[0])
    return {name: part for name, _, part in pairs}


def _place_of(source: str, *, tree: bool) -> tuple[str, str]:
    """Return the store and the experiment in whose folder a file or folder lies; a tree is such a folder itself."""
    from ckpt_lib.core.names import check_experiment_name

    folder = Path(source).absolute() if tree else Path(source).absolute().parent
    try:
        return str(folder.parent), check_experiment_name(folder.name)
    except InvalidNameError as error:
        raise ConfigError(
            f"the folder {folder} cannot be an experiment: {error.message}",
            hint="Rename it, or import a copy, without --in-place.",
        ) from error


def _experiments(manager: CheckpointManager) -> list[str]:
    from ckpt_lib.experiment.listing import list_experiments
    from ckpt_lib.store import open_store

    return list_experiments(open_store(manager.config.checkpoint_dir), missing_ok=True)
