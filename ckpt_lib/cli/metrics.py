"""``ckpt metrics``, which shows the metrics of a checkpoint and adds to them, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import as_names, chosen_ids, is_by_condition
from ckpt_lib.cli.output import as_time, as_value, print_facts, print_heading, print_json
from ckpt_lib.cli.session import open_manager
from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from ckpt_lib.core.metadata import AddedMetric, CheckpointMetadata


def metrics(
    checkpoint_id: options.ACheckpointName = None,
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Add this metric, such as accuracy=0.91. Without any, show them."),
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="What measured them, such as eval/mnist-test.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other values; the earlier ones stay on record.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the metrics of a checkpoint, or add some that were measured after its save.

    They count in lists, conditions and retention, and for what is the best. The payload stays untouched. With --where
    or --tag, all arguments are metrics.

    Example: ckpt metrics best f1=0.91 --source eval/test
    """
    by_condition = is_by_condition(where, tags)
    words = [*as_names(checkpoint_id), *(values or ())]
    given = _numbers(words if by_condition else values or ())
    if given and source is None:
        raise ConfigError("--source is missing: it names what measured the metrics", expected="--source NAME")
    if not given and (source is not None or replace):
        raise ConfigError("there are no metrics to add", expected="ckpt metrics ID accuracy=0.91 --source NAME")
    manager = open_manager(store, experiment, config)
    ids = chosen_ids(manager, [] if by_condition else as_names(checkpoint_id), where, tags)
    if source is None:
        found = [manager.get_checkpoint(name) for name in ids]
    else:
        found = [manager.add_metrics(name, given, source=source, replace=replace) for name in ids]
    if as_json:
        many = {"experiment_name": manager.experiment_name, "checkpoints": found}
        print_json(many if by_condition else found[0])
        return
    for checkpoint in found:
        print_facts({"id": checkpoint.checkpoint_id})
        print_metrics(checkpoint)


def _numbers(values: Sequence[str]) -> dict[str, float]:
    """Read ``NAME=VALUE``; the last ``=`` separates, since a name may hold one."""
    found: dict[str, float] = {}
    for value in values:
        name, sign, text = value.rpartition("=")
        number = _number(text) if sign and name else None
        if number is None:
            raise ConfigError(f"{value!r} is no metric", expected="a name and a number, such as accuracy=0.91")
        if name in found:
            raise ConfigError(f"the metric {name!r} is given twice")
        found[name] = number
    return found


def _number(text: str) -> float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def print_metrics(checkpoint: CheckpointMetadata) -> None:
    """Print each metric, with source and time where it was added after the save, and what it has replaced."""
    if not checkpoint.metrics:
        return
    print_heading("Metrics")
    added: dict[str, list[AddedMetric]] = {}
    for item in checkpoint.added_metrics:
        added.setdefault(item.name, []).append(item)
    print_facts(
        {f"  {name}": as_value(value) + _origin(added.get(name, [])) for name, value in checkpoint.metrics.items()}
    )


def _origin(additions: Sequence[AddedMetric]) -> str:
    if not additions:
        return ""
    *earlier, last = additions
    text = f"  (by {last.source}, {as_time(last.at)}"
    if earlier:
        replaced = (f"{as_value(item.value)} by {item.source or 'the save'}" for item in reversed(earlier))
        text += f"; before: {', '.join(replaced)}"
    return f"{text})"
