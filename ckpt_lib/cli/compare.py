"""Commands about what checkpoints recorded: ``ckpt summary`` and ``compare``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import chosen_ids
from ckpt_lib.cli.output import (
    Column,
    as_number,
    as_time,
    as_value,
    note,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from ckpt_lib.cli.session import open_manager
from ckpt_lib.core.wording import size_text

_STATISTICS = ("count", "min", "max", "mean", "std", "first", "last", "not_comparable")
_ALWAYS = ("count", "min", "max")


def summary(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Summarise an experiment.

    Shows totals, the best and the latest checkpoint, and statistics of every metric.

    Example: ckpt summary --experiment mnist
    """
    manager = open_manager(store, experiment, config)
    found = manager.get_checkpoint_summary()
    if as_json:
        print_json(found)
        return
    print_facts(
        {
            "experiment": found["experiment_name"],
            "checkpoints": str(found["total_checkpoints"]),
            "size": size_text(round(found["total_size_mb"] * 2**20)),
            "backups": str(found["total_backups"]),
            "epochs": f"{found['first_epoch']} to {found['last_epoch']}" if found["total_checkpoints"] else "-",
            "latest": found["latest_checkpoint"] or "-",
            "best": found["best_checkpoint"] or "-",
            "best by": f"{found['monitor']['metric']} ({found['monitor']['mode']})",
            "pinned": "\n".join(found["pinned_checkpoints"]) or "-",
            "tags": ", ".join(found["tags"]) or "-",
        }
    )
    if warning := found["monitor_warning"]:
        note(warning, warning=True)
    if statistics := found["statistics"]:
        print_heading("Metrics")
        columns = (
            Column("metric"),
            *(Column(name.replace("_", " "), numeric=True, optional=name not in _ALWAYS) for name in _STATISTICS),
        )
        print_table(
            columns,
            [(name, *(as_number(values.get(key)) for key in _STATISTICS)) for name, values in statistics.items()],
        )


def compare(
    checkpoint_ids: options.AnyCheckpointNames = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", metavar="NAME", help="Only this metric; repeat for more."),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Load the models and compare their tensors with those of the first.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare two or more checkpoints.

    Shows metrics, differing configuration, tags and, with --tensors, tensors side by side. Names such as run-7/best may
    be of several experiments.

    Example: ckpt compare latest best
    """
    manager = open_manager(store, experiment, config)
    ids = checkpoint_ids if checkpoint_ids and not (where or tags) else chosen_ids(manager, checkpoint_ids, where, tags)
    comparison = manager.compare_checkpoints(ids, metrics=metrics or None, tensors=tensors)
    if as_json:
        print_json(comparison)
        return
    ids = comparison["checkpoint_ids"]
    labels = [f"#{number}" for number in range(1, len(ids) + 1)]
    print_facts(dict(zip(labels, ids, strict=True)))
    if len({*ids}) == 1:
        note(f"All {len(ids)} names stand for this one checkpoint.", warning=True)
    _print_metrics(labels, comparison["metrics_comparison"])
    _print_lines("Configuration that differs", labels, comparison["config_comparison"])
    _print_lines("Tags", labels, comparison["tags_comparison"])
    facts: dict[str, Any] = {**comparison["metadata_comparison"]}
    facts["timestamp"] = [as_time(datetime.fromisoformat(moment)) for moment in facts["timestamp"]]
    facts["size"] = [size_text(size_bytes) for size_bytes in facts.pop("file_size")]
    _print_lines("Facts", labels, facts)
    for other, differences in comparison.get("tensors_comparison", {}).items():
        _print_tensors(labels[ids.index(other)], differences)


def _print_metrics(labels: Sequence[str], lined_up: Mapping[str, Sequence[Any]]) -> None:
    if not lined_up:
        return
    print_heading("Metrics")
    columns = (
        Column("metric"),
        *(Column(label, numeric=True, wraps=True) for label in labels),
        Column(f"{labels[0]} to {labels[-1]}", numeric=True),
    )
    rows = [(name, *map(as_number, values), _change(values[0], values[-1])) for name, values in lined_up.items()]
    print_table(columns, rows)


def _change(first: Any, last: Any) -> str:
    both = all(isinstance(value, int | float) and math.isfinite(value) for value in (first, last))
    return f"{last - first:+.6g}" if both else "-"


def _print_lines(heading: str, labels: Sequence[str], lined_up: Mapping[str, Sequence[Any]]) -> None:
    if lined_up:
        print_heading(heading)
        columns = (Column("name"), *(Column(label, wraps=True) for label in labels))
        print_table(columns, [(name, *map(_cell, values)) for name, values in lined_up.items()])


def _cell(value: Any) -> str | Text:
    if isinstance(value, bool):
        return Text("yes", style="green") if value else Text("no", style="dim")
    return as_value(value)


def _print_tensors(label: str, differences: Mapping[str, Mapping[str, Any]]) -> None:
    print_heading(f"Tensors: {label} against #1")
    columns = (Column("tensor"), Column("largest difference", numeric=True), Column("relative L2", numeric=True))
    rows = []
    for name, difference in differences.items():
        if "shapes" in difference:
            first, other = (_shape(shape) for shape in difference["shapes"])
            rows.append((name, f"{first} / {other}", "-"))
        else:
            rows.append((name, as_number(difference["max_abs_difference"]), as_number(difference["relative_l2"])))
    print_table(columns, rows)


def _shape(shape: Sequence[int] | None) -> str:
    return "no tensor" if shape is None else "x".join(map(str, shape)) or "scalar"
