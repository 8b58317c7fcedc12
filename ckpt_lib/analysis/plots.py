"""Plots of the metrics and sizes of checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ckpt_lib.analysis.statistics import checkpoint_frame
from ckpt_lib.core.metadata import CheckpointMetadata, Metric
from ckpt_lib.policies.ranking import is_rankable

_PREFIX = "metrics."
_INCHES_PER_PANEL = 2.0
MAX_PANELS = 12
_LARGEST_DRAWN = 1e100
_WITHOUT_PARSING: Any = {"text.parse_math": False, "text.usetex": False}

# By shape and not only by colour, so that they can be told apart in print and by everyone.
_MARKS: dict[str, dict[str, Any]] = {
    "latest": {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black"},
    "best": {"marker": "*", "markersize": 11, "color": "goldenrod", "zorder": 3},
    "weights only": {
        "marker": "o",
        "markersize": 4,
        "markerfacecolor": "white",
        "markeredgecolor": "black",
        "zorder": 4,
    },
    "damaged": {"marker": "X", "markersize": 8, "markerfacecolor": "black", "markeredgecolor": "white", "zorder": 5},
}


class NotebookFigure(Figure):
    """A figure that notebooks show without ``%matplotlib inline``, which knows only those of pyplot."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=100)
        return picture.getvalue()


def metrics_figure(
    checkpoints: Sequence[CheckpointMetadata], *, names: Collection[str] | None = None, damaged: Collection[str] = ()
) -> Figure:
    """Plot each metric, or those of ``names``, with finite values over the epoch, in at most 12 panels.

    A star marks the best checkpoint, a ring the latest, hollow points those with weights only, and crosses ``damaged``
    ids and those whose files are missing or cut off. Metrics that differ only in a ``train_`` or ``val_`` prefix share
    a panel. Names are not parsed as formulas. Values beyond 1e100 are left out, and the axis label says so.
    """
    with rc_context(_WITHOUT_PARSING):
        return _metrics_figure(checkpoints, names, set(damaged))


def sizes_figure(checkpoints: Sequence[CheckpointMetadata], *, damaged: Collection[str] = ()) -> Figure:
    """Plot the size of each checkpoint over the epoch, with the marks of :func:`metrics_figure`."""
    with rc_context(_WITHOUT_PARSING):
        figure = NotebookFigure(figsize=(7.0, 0.6 + _INCHES_PER_PANEL), layout="constrained")
        axis = figure.subplots()
        unit, name = _unit(max((item.file_size for item in checkpoints), default=0))
        sizes = {item.checkpoint_id: item.file_size / unit for item in checkpoints}
        axis.plot([item.epoch for item in checkpoints], list(sizes.values()), **_LINE)
        shown = _draw_marks(axis, checkpoints, sizes, set(damaged))
        axis.set_ylabel(f"size ({name})")
        axis.set_ylim(0, 1.2 * max(sizes.values(), default=1.0) or 1.0)
        axis.grid(alpha=0.25)
        if not checkpoints:
            _say_nothing(axis, "no checkpoints")
        _label_epochs(axis, "epoch")
        _explain(figure, shown)
        return figure


_LINE: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.3}


def _metrics_figure(
    checkpoints: Sequence[CheckpointMetadata], names: Collection[str] | None, damaged: set[str]
) -> Figure:
    panels = _panels(checkpoints, names)
    figure = NotebookFigure(figsize=(7.0, 0.6 + _INCHES_PER_PANEL * max(1, len(panels))), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    frame = checkpoint_frame(checkpoints)
    shown: set[str] = set()
    for axis, (title, in_panel) in zip(axes, panels.items(), strict=False):
        for name in in_panel:
            values = frame[_PREFIX + name].map(lambda value: value if _can_be_drawn(value) else float("nan"))
            axis.plot(frame["epoch"], values.astype(float), label=name, **_LINE)
            shown |= _draw_marks(axis, checkpoints, dict(values), damaged)
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)
        if len(in_panel) > 1:
            axis.legend(frameon=False, fontsize="small")
    if not panels:
        _say_nothing(axes[0], "no metrics recorded")
    every = [value for item in checkpoints for value in item.metrics.values()]
    left_out = sum(is_rankable(value) and not _can_be_drawn(value) for value in every)
    _label_epochs(axes[-1], f"epoch ({left_out} values beyond 1e100 are left out)" if left_out else "epoch")
    _explain(figure, shown)
    return figure


def _draw_marks(axis: Any, checkpoints: Sequence[CheckpointMetadata], heights: Any, damaged: set[str]) -> set[str]:
    """Draw the marks of each checkpoint at its height; return which kinds were drawn."""
    points: dict[str, list[tuple[int, float]]] = {}
    for item in checkpoints:
        height = heights[item.checkpoint_id]
        if not math.isnan(height):
            for mark in _marks(item, damaged):
                points.setdefault(mark, []).append((item.epoch, height))
    for mark, found in points.items():
        axis.plot(*zip(*found, strict=True), linestyle="none", **_MARKS[mark])
    return set(points)


def _marks(item: CheckpointMetadata, damaged: set[str]) -> Iterator[str]:
    applies = {
        "best": item.is_best,
        "latest": item.is_latest,
        "weights only": item.is_thinned,
        "damaged": not item.is_complete or item.checkpoint_id in damaged,
    }
    return (mark for mark, does in applies.items() if does)


def _explain(figure: Figure, shown: set[str]) -> None:
    handles = [Line2D([], [], linestyle="none", label=mark, **style) for mark, style in _MARKS.items() if mark in shown]
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize="small")


def _label_epochs(axis: Any, text: str) -> None:
    axis.set_xlabel(text)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _say_nothing(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def _unit(largest_bytes: int) -> tuple[int, str]:
    """Return the unit in which the largest size is written, as in tables, and its name."""
    power = min(int(math.log2(largest_bytes) // 10), 5) if largest_bytes >= 1024 else 0
    return 1024**power, ("B", "KiB", "MiB", "GiB", "TiB", "PiB")[power]


def _can_be_drawn(value: Metric) -> bool:
    """Return whether a number is finite and small enough to scale an axis to it."""
    return is_rankable(value) and abs(value) <= _LARGEST_DRAWN


def _panels(checkpoints: Sequence[CheckpointMetadata], wanted: Collection[str] | None) -> dict[str, list[str]]:
    names = {name for checkpoint in checkpoints for name, value in checkpoint.metrics.items() if _can_be_drawn(value)}
    panels: dict[str, list[str]] = {}
    for name in sorted(names if wanted is None else names.intersection(wanted)):
        panels.setdefault(name.removeprefix("train_").removeprefix("val_"), []).append(name)
    return dict(list(panels.items())[:MAX_PANELS])
