"""Checkpoints side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ckpt_lib.analysis.results import CheckpointComparison
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import briefly, size_text, visible
from ckpt_lib.errors import ConfigError
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import DASH, NOTHING, Column, button, empty, joined, number, section, table
from ckpt_lib.page.view import MOST_COMPARED


def comparison_html(manager: CheckpointManager, names: Sequence[str]) -> Markup:
    """Set 2 to 6 checkpoints side by side.

    Raises :class:`~ckpt_lib.errors.ConfigError` for another number, and
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` for a name.
    """
    if not names:
        return empty("Nothing to compare yet.", "Select checkpoints in the list, or name them above: best, latest~2.")
    if not 1 < len(names) <= MOST_COMPARED:
        raise ConfigError(
            "this number of checkpoints cannot be compared", expected=f"2 to {MOST_COMPARED}", got=len(names)
        )
    compared = manager.compare_checkpoints(names)
    ids = compared["checkpoint_ids"]
    columns = (Column("", is_head=True), *(Column(checkpoint_id, numeric=True) for checkpoint_id in ids))
    heads = [_head(checkpoint_id) for checkpoint_id in ids]
    parts = {
        "Checkpoints": [("", *heads), *_facts(compared)],
        "Metrics": _metrics(compared, manager.monitor),
        "Configuration that differs": [
            (visible(name), *(briefly(value) for value in values))
            for name, values in compared["config_comparison"].items()
        ],
        "Tags": [
            (visible(name), *("yes" if has else DASH for has in values))
            for name, values in compared["tags_comparison"].items()
        ],
    }
    return joined(
        [
            section(title, table(columns, rows, caption=title, kind="ck-compare")) if rows else NOTHING
            for title, rows in parts.items()
        ]
    )


def _head(checkpoint_id: str) -> Markup:
    """Return a button that opens the checkpoint, also one of another experiment, whose name stands before the id."""
    act = "found" if "/" in checkpoint_id else "open"
    return button(act, checkpoint_id, "Open", spoken=f"Open {checkpoint_id}")


def _facts(compared: CheckpointComparison) -> list[tuple[Any, ...]]:
    given = compared["metadata_comparison"]
    words = [
        " ".join(word for word, applies in (("best", best), ("latest", latest)) if applies) or DASH
        for best, latest in zip(given["is_best"], given["is_latest"], strict=True)
    ]
    return [
        ("Epoch", *(f"{value:,}" for value in given["epoch"])),
        ("Step", *(f"{value:,}" for value in given["step"])),
        ("Saved", *(value[:19].replace("T", " ") for value in given["timestamp"])),
        ("Size", *(size_text(value) for value in given["file_size"])),
        ("Model", *given["model_name"]),
        ("Marks", *words),
    ]


def _metrics(compared: CheckpointComparison, monitor: Monitor) -> list[tuple[Any, ...]]:
    """Return a row for each metric, with the difference from the first checkpoint, and the best value set apart."""
    rows: Mapping[str, Sequence[Any]] = compared["metrics_comparison"]
    found = []
    for name in sorted(rows, key=lambda name: name != monitor.metric):
        values = rows[name]
        finite = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
        best = (min if monitor.mode == "min" else max)(finite, default=None) if name == monitor.metric else None
        found.append((visible(name), *(_cell(value, values[0], is_best=value == best) for value in values)))
    return found


def _cell(value: Any, first: Any, *, is_best: bool) -> Markup | str:
    shown = Markup("<strong>{} ★</strong>").format(number(value)) if is_best and value is not None else number(value)
    if value is first or not all(isinstance(item, int | float) for item in (value, first)):
        return shown
    return Markup('{} <span class="ck-soft">{:+.3g}</span>').format(shown, value - first)
