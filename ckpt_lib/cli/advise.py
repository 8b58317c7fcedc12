"""The command that says what can go: ``ckpt advise``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.output import Column, note, print_entry, print_fix, print_heading, print_json, print_table, results
from ckpt_lib.cli.progress import byte_progress, count_progress
from ckpt_lib.cli.session import open_manager, read_config, tell_of_other_backups
from ckpt_lib.core.wording import count_of, duration, size_text, visible
from ckpt_lib.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ckpt_lib.advice.results import Advice, Kind, PolicyOutcome, Suggestion
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.policies.retention import RetentionPolicy

_MAX_ROWS = 10
"""How many of each kind are shown; --json has all."""
_TEXTS = ("why", "reason", "message", "remarks")
"""The fields of an advice that may hold commands in their sentences."""
_TITLES: dict[Kind, str] = {
    "leftover": "Leftovers of what did not come to its end",
    "trash": "In the trash",
    "damaged": "Damaged",
    "duplicate": "The same as another one",
    "dominated": "Worse than a later one in every metric",
    "optimizer state": "State of optimizers that no run needs",
}


def advise(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER", help="A folder of checkpoints of any program. Default: the store."),
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    of_all: Annotated[bool, typer.Option("--all", help="All experiments of the store.")] = False,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with a retention policy, to see what it would do."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what can go, what that frees, and by which command; nothing is changed.

    Leftovers, the trash, damage, duplicates, checkpoints that are worse than a later one in every metric, and the state
    of optimizers that no run needs. The best, the newest, pinned and tagged ones stay, and the newest of each run. Of a
    FOLDER that is no store, it prints which files and folders can be removed; copies are found by their content.

    Example: ckpt advise --experiment mnist
    """
    place = (store, experiment) if folder is None else _place_of(folder, experiment)
    if place is None:
        _refuse_options(policy, of_all=of_all)
        _print_all([(_of_folder(str(folder)), {})], as_json=as_json)
        return
    rules = None if policy is None else _read_policy(policy)
    managers = _managers(*place, config, of_all=of_all or (folder is not None and place[1] is None))
    advised = [(_of_experiment(manager, rules), _to_type(place[0], manager, config)) for manager in managers]
    _print_all(advised, as_json=as_json)
    if not as_json and any(item.suggestions for item, _ in advised):
        _tell_of_trash(managers[0].config.trash_seconds)


def _place_of(folder: str, experiment: str | None) -> tuple[str, str | None] | None:
    """Return store and experiment for a folder that is one of these; ``None`` for any other folder.

    Raises ``ConfigError`` for typed options that say nothing about this folder.
    """
    typed = options.typed_names()
    if "store" in typed or "config" in typed:
        raise ConfigError("a folder, and options that name a store, cannot be combined", expected="one of them")
    place = _store_at(folder)
    if "experiment" not in typed:
        return place
    if place is None or place[1] is not None:
        raise ConfigError("--experiment needs the folder of a store", expected="a store", got=folder)
    return place[0], experiment


def _store_at(folder: str) -> tuple[str, str | None] | None:
    from ckpt_lib.experiment.listing import is_experiment, list_experiments
    from ckpt_lib.store import open_store
    from ckpt_lib.store.registry import url_text

    url = url_text(folder).rstrip("/") or "/"
    with suppress(CheckpointError):
        list_experiments(open_store(url))
        return url, None
    parent, _, name = (os.path.abspath(url) if "://" not in url else url).rpartition("/")
    with suppress(CheckpointError):
        if parent and is_experiment(open_store(parent), name):
            return parent, name
    return None


def _refuse_options(policy: Path | None, *, of_all: bool) -> None:
    """Raise ``ConfigError`` for options that say nothing about a folder of other programs."""
    for name, is_given in (("--policy", policy is not None), ("--all", of_all)):
        if is_given:
            raise ConfigError(f"{name} is for stores", expected="a folder alone", hint="--store names a store.")


def _managers(
    store: str | None, experiment: str | None, config: Path | None, *, of_all: bool
) -> list[CheckpointManager]:
    from ckpt_lib.experiment.listing import list_experiments

    if not of_all:
        return [open_manager(store, experiment, config)]
    if experiment is not None:
        raise ConfigError("--all and --experiment cannot be combined", expected="one of them", got=experiment)
    names = list_experiments(read_config(store, config).checkpoint_dir)
    return [open_manager(store, name, config) for name in names]


def _to_type(store: str | None, manager: CheckpointManager, config: Path | None) -> dict[str, object]:
    """Return the options that its commands need, whatever is in the environment."""
    return {"store": store, "experiment": manager.experiment_name, "config": config}


def _read_policy(file: Path) -> RetentionPolicy:
    from ckpt_lib.policies.retention import policy_from_yaml

    return policy_from_yaml(file)


def _of_experiment(manager: CheckpointManager, rules: RetentionPolicy | None) -> Advice:
    tell_of_other_backups(manager)
    with count_progress("Looking at optimizers") as step:
        return manager.advise(policy=rules, progress=step)


def _of_folder(folder: str) -> Advice:
    from ckpt_lib.advice import advise as advise_on

    with byte_progress("Comparing", None) as progress:
        return advise_on(folder, progress=progress)


# --- printing ---


def _print_all(advised: Sequence[tuple[Advice, dict[str, object]]], *, as_json: bool) -> None:
    if as_json:
        print_json({"advice": [_as_json(item, given) for item, given in advised]})
        return
    for advice, given in advised:
        with options.typed(given):
            if len(advised) > 1:
                print_heading(f"--- {advice.place} ---")
            _print(advice)


def _as_json(advice: Advice, given: dict[str, object]) -> dict[str, object]:
    sums = {"freed_bytes": advice.freed_bytes, "kept_bytes": advice.kept_bytes, "commands": advice.commands}
    with options.typed(given):
        return {name: _to_copy(name, value) for name, value in {**advice.model_dump(), **sums}.items()}


def _to_copy(name: str, value: Any) -> Any:
    """Return a field of an advice with its commands as they are to be typed."""
    if isinstance(value, dict):
        return {key: _to_copy(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_copy(name, item) for item in value]
    if isinstance(value, str) and name in ("command", "commands"):
        return options.to_type(value)
    return options.with_options(value) if name in _TEXTS else value


def _print(advice: Advice) -> None:
    for kind, title in _TITLES.items():
        if found := advice.of_kind(kind):
            frees = size_text(sum(item.freed_bytes for item in found))
            print_heading(f"{title}: {frees} ({found[0].certainty})")
            _print_suggestions(found)
    if advice.kept:
        print_heading(f"What stays: {size_text(advice.kept_bytes)}")
        _print_kept(advice)
    if any(item.deleted_count for item in advice.policies):
        print_heading("What a policy would do instead")
        _print_policies(advice)
    for best in advice.best:
        note(best.message, warning=best.is_saved is False)
    for remark in advice.remarks:
        note(remark)
    percent = 100 * advice.freed_bytes / advice.total_bytes if advice.total_bytes else 0.0
    note(
        f"{advice.place}: {size_text(advice.freed_bytes)} of {size_text(advice.total_bytes)} can go ({percent:.0f} %), "
        f"{size_text(advice.kept_bytes)} stay."
    )
    if advice.backup_bytes:
        note(f"The backups hold another {size_text(advice.backup_bytes)}, which is not counted here.")


def _print_suggestions(found: Sequence[Suggestion]) -> None:
    for item in found[:_MAX_ROWS]:
        print_entry(item.name, options.with_options(f"{size_text(item.freed_bytes)}: {item.why}"))
    if len(found) > _MAX_ROWS:
        note(f"{len(found) - _MAX_ROWS:,} more: --json has all of them, and their commands.")
        return
    from ckpt_lib.advice.results import joined

    for command in joined(found):
        print_fix(command)
    if paths := [path for item in found for path in item.paths]:
        results().print(Text(f"  remove: {visible(shlex.join(paths))}"), soft_wrap=True)


def _print_kept(advice: Advice) -> None:
    columns = (
        Column("checkpoint"),
        Column("size", numeric=True),
        Column("share", numeric=True, optional=True),
        Column("why", wraps=True),
    )
    print_table(
        columns,
        [
            (item.name, size_text(item.size_bytes), f"{100 * item.share:.0f} %", options.with_options(item.reason))
            for item in advice.kept[:_MAX_ROWS]
        ],
    )
    if len(advice.kept) > _MAX_ROWS:
        note(f"{count_of(len(advice.kept) - _MAX_ROWS, 'older one')}: --json has all of them.")


def _print_policies(advice: Advice) -> None:
    columns = (
        Column("policy", wraps=True),
        Column("keeps", numeric=True),
        Column("deletes", numeric=True),
        Column("frees", numeric=True),
        Column("command", optional=True),
    )
    print_table(
        columns,
        [
            (item.policy, str(item.kept_count), str(item.deleted_count), size_text(item.freed_bytes), _command(item))
            for item in advice.policies
        ],
    )


def _command(outcome: PolicyOutcome) -> str:
    return options.to_type(outcome.command) if outcome.command else ""


def _tell_of_trash(trash_seconds: float) -> None:
    if trash_seconds > 0:
        note(
            f"Deletions and thinning can be undone for {duration(trash_seconds)}, and free bytes after that: "
            "`ckpt trash --empty` frees them at once."
        )
