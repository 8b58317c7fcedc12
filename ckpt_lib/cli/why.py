"""``ckpt why``: why there is no newer checkpoint, and why one cannot be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.errors import DAMAGE
from ckpt_lib.cli.options import to_type, with_options
from ckpt_lib.cli.output import note, print_entry, print_facts, print_json
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.runs import ask_status, runs_of
from ckpt_lib.cli.session import open_manager
from ckpt_lib.core.not_saved import NotSaved

if TYPE_CHECKING:
    from ckpt_lib.manager import CheckpointManager


def why(
    checkpoint_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="The checkpoint that cannot be loaded. Omit it to ask why there is no newer checkpoint.",
            autocompletion=options.complete_ids,
        ),
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Say why there is no newer checkpoint, or why one cannot be loaded, and what helps.

    Without an ID, asks the live runs of the experiment on this machine that `manager.share()` has registered, and then
    the store: its space, saves that were cut off, and the usual interval. With an ID, looks for the checkpoint in the
    store, the trash, the quarantine and the backups, reads all of it, and exits with 1 if it cannot be loaded.

    Example: ckpt why latest
    """
    if checkpoint_id is None:
        _why_not_saved(open_manager(store, experiment, config), as_json=as_json)
    else:
        _why_not_loaded(open_manager(store, experiment, config, may_be_new=True), checkpoint_id, as_json=as_json)


def _why_not_loaded(manager: CheckpointManager, name: str, *, as_json: bool) -> None:
    sizes = {item.checkpoint_id: item.file_size for item in manager.list_checkpoints()}
    with byte_progress("Reading", sizes.get(name)) as progress:
        found = manager.why_not_loaded(name, progress=progress)
    if as_json:
        print_json({"experiment_name": manager.experiment_name, **found.model_dump(mode="json")})
    else:
        facts = {"checkpoint": found.checkpoint_id or name, "state": found.state, "why": with_options(found.message)}
        print_facts({**facts, "next": "\n".join(map(to_type, found.commands))}, prose=["why"])
    if not found.is_loadable:
        raise typer.Exit(DAMAGE)


def _why_not_saved(manager: CheckpointManager, *, as_json: bool) -> None:
    from ckpt_lib.advice.unsaved import reasons_stored
    from ckpt_lib.experiment.locations import Locations

    locations = Locations(manager.config, manager.experiment_name)
    asked = [ask_status(run) for run in runs_of(manager.config.checkpoint_dir, manager.experiment_name)]
    stored = reasons_stored(locations)
    if as_json:
        facts: dict[str, Any] = {"experiment_name": manager.experiment_name, "live_runs": asked, "store": stored}
        print_json(facts)
        return
    for item in asked:
        status = item["status"]
        name = f"process {item['owner']['pid']}, a live run"
        if status is None:
            print_entry(name, f"It did not answer: {item['error']}")
        elif status["not_saved"]:
            print_entry(name, *_texts([NotSaved(**reason) for reason in status["not_saved"]]))
        else:
            print_entry(name, "Its last save made a checkpoint.")
    if not asked:
        note("No live run of the experiment has registered on this machine; `with manager.share():` registers one.")
    print_entry(f"the store, {locations.home.location()}", *_texts(stored))


def _texts(reasons: Sequence[NotSaved]) -> list[str]:
    return [with_options(str(reason)) for reason in reasons]
