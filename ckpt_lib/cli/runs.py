"""``ckpt runs``: the live runs of this machine, and what they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.output import Column, as_age, note, print_facts, print_json, print_table
from ckpt_lib.core.wording import listed
from ckpt_lib.errors import CheckpointError, ConfigError, RunUnavailableError

if TYPE_CHECKING:
    from ckpt_lib.live import LiveRun


def runs(
    pid: Annotated[
        int | None, typer.Argument(metavar="PID", help="The process of the run; optional if there is only one.")
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    save: Annotated[bool, typer.Option("--save", help="Have the run save at its next safe point.")] = False,
    load: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Have the run load this checkpoint at its next safe point."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long to wait for the training loop.")
    ] = 600.0,
    as_json: options.AsJson = False,
) -> None:
    """List the live runs of this machine, or have one save or load.

    A run is listed while its `with manager.share():` lasts. It saves at the next save of its loop, whatever the save
    policy says, or where it calls `serve_requests`, which alone loads.

    Example: ckpt runs --save
    """
    found = [run for run in runs_of(store, experiment) if pid in (None, run.owner.pid)]
    if not (save or load):
        _list([ask_status(run) for run in found], as_json=as_json)
        return
    if save and load:
        raise ConfigError("--save and --load cannot be combined", expected="one of them")
    run = _only(found, pid)
    checkpoint_id = run.save(timeout_seconds=timeout) if save else run.load(load or "", timeout_seconds=timeout)
    if as_json:
        print_json({"pid": run.owner.pid, "experiment_name": run.experiment_name, "checkpoint_id": checkpoint_id})
    else:
        print_facts({"saved" if save else "loaded": checkpoint_id, "by": str(run.owner)})


def runs_of(store: str | None, experiment: str | None) -> list[LiveRun]:
    """Return the live runs of a store and an experiment, where these are given."""
    from ckpt_lib.live import live_runs
    from ckpt_lib.store import location, open_store

    return live_runs(experiment, store=None if store is None else location(open_store(store)))


def ask_status(run: LiveRun) -> dict[str, Any]:
    """Return the registration of a run with its ``status``, or ``None`` and the ``error``, and the reasons in it."""
    facts: dict[str, Any] = {**run.model_dump(mode="json"), "status": None, "error": None}
    try:
        status = run.status()
    except CheckpointError as error:
        return {**facts, "error": str(error)}
    return {**facts, "status": status.model_dump(mode="json")}


def _only(found: list[LiveRun], pid: int | None) -> LiveRun:
    if not found:
        raise RunUnavailableError(
            "there is no such live run on this machine" if pid else "there is no live run on this machine",
            hint="A run is registered while its `with manager.share():` lasts; `ckpt runs` lists them.",
        )
    if len(found) > 1:
        pids = listed([str(run.owner.pid) for run in found], most=10)
        raise ConfigError("there are several live runs", expected=f"one of the processes {pids}")
    return found[0]


def _list(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json({"runs": found})
        return
    if not found:
        note("No live run has registered; `with manager.share():` registers one.")
        return
    columns = (
        Column("pid", numeric=True),
        Column("experiment", wraps=True),
        Column("shared", numeric=True),
        Column("last call", numeric=True),
        Column("latest", optional=True),
        Column("loads", optional=True),
        Column("store", wraps=True, optional=True),
    )
    print_table(columns, [_row(item) for item in found])


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    status: dict[str, Any] = item["status"] or {}
    return (
        str(item["owner"]["pid"]),
        item["experiment_name"],
        _age(item["shared_at"]),
        "no answer" if item["error"] else _age(status.get("last_call_at")),
        status.get("latest_checkpoint") or "-",
        "yes" if status.get("takes_loads") else "no",
        item["store"],
    )


def _age(moment: str | None) -> str:
    from datetime import datetime

    return "-" if moment is None else f"{as_age(datetime.fromisoformat(moment))} ago"
