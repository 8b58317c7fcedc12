"""Metrics and sizes over a training, with what sets checkpoints apart marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup, escape

from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import size_text
from ckpt_lib.page.markup import empty, joined, toggle
from ckpt_lib.policies.ranking import is_rankable

LARGEST_DRAWN = 1e100
_MOST_DOTS = 200
_COLORS = ("#3b7dd8", "#c2701c", "#2a9d6f", "#a24bb5", "#b8433f", "#6f7d8c")
_MARKED: tuple[tuple[str, str, str, Callable[[CheckpointMetadata], bool]], ...] = (
    ("damaged", "x", "#d03a4b", lambda item: not item.is_complete),
    ("unhealthy", "x-open", "#d03a4b", lambda item: not item.healthy),
    ("weights only", "square-open", "#a07400", lambda item: item.is_thinned),
    ("latest", "circle-open", "#128a94", lambda item: item.is_latest),
    ("best", "star", "#d69a00", lambda item: item.is_best),
)
_AXES = {"epoch": "Epoch", "step": "Step", "timestamp": "Time"}


def metric_names(checkpoints: Sequence[CheckpointMetadata], monitored: str) -> list[str]:
    """Return the metrics that can be drawn, the monitored one first."""
    names = dict.fromkeys(name for item in checkpoints for name, value in item.metrics.items() if _is_drawn(value))
    return sorted(names, key=lambda name: name != monitored)


def metric_figure(checkpoints: Sequence[CheckpointMetadata], names: Sequence[str], axis: str) -> go.Figure:
    """Draw metrics over epochs, steps or time."""
    figure = go.Figure()
    for number, name in enumerate(names):
        drawn = [item for item in checkpoints if _is_drawn(item.metrics.get(name))]
        values = [item.metrics[name] for item in drawn]
        _add_line(figure, drawn, values, axis, name=_plain(name), color=_COLORS[number % len(_COLORS)])
        _add_marks(figure, drawn, values, axis, in_legend=number == 0)
    return _laid_out(figure, axis, _plain(names[0]) if len(names) == 1 else "Value")


def size_figure(checkpoints: Sequence[CheckpointMetadata], axis: str) -> go.Figure:
    """Draw the sizes of the payloads over epochs, steps or time."""
    unit, power = _unit_of(max(item.file_size for item in checkpoints))
    sizes = [item.file_size / 1024**power for item in checkpoints]
    figure = go.Figure()
    _add_line(figure, checkpoints, sizes, axis, name="Size", color=_COLORS[0])
    _add_marks(figure, checkpoints, sizes, axis, in_legend=True)
    figure = _laid_out(figure, axis, f"Size ({unit})")
    return figure.update_yaxes(rangemode="tozero")


def choices_html(names: Sequence[str], drawn: Sequence[str], axis: str) -> Markup:
    """Return the buttons that choose what is drawn."""
    if not names:
        return empty("No metric with a finite value was recorded.")
    chosen = {"metric": (dict(zip(names, names, strict=True)), set(drawn)), "axis": (_AXES, {axis})}
    bars = []
    for act, (choices, on) in chosen.items():
        chips = [toggle(act, name, label, is_on=name in on) for name, label in choices.items()]
        title = "Metrics" if act == "metric" else "Over"
        bars.append(
            Markup('<div class="ck-bar" role="group" aria-label="{}">{} {}</div>').format(
                title, title, joined(chips, " ")
            )
        )
    return joined(bars)


def _unit_of(size_bytes: int) -> tuple[str, int]:
    """Return the largest unit that a size fills, and its power of 1024."""
    unit = size_text(size_bytes).rpartition(" ")[2]
    return unit, ("B", "KiB", "MiB", "GiB", "TiB", "PiB").index(unit)


def _is_drawn(value: Any) -> bool:
    return is_rankable(value) and abs(value) <= LARGEST_DRAWN


def _plain(text: str) -> str:
    """Return a name as text: Plotly takes some tags for markup."""
    return str(escape(text))


def _places(drawn: Sequence[CheckpointMetadata], axis: str) -> list[Any]:
    return [getattr(item, axis) for item in drawn]


def _add_line(
    figure: go.Figure, drawn: Sequence[CheckpointMetadata], values: Sequence[Any], axis: str, *, name: str, color: str
) -> None:
    figure.add_scatter(
        x=_places(drawn, axis),
        y=values,
        name=name,
        mode="lines+markers" if len(drawn) <= _MOST_DOTS else "lines",
        line={"color": color, "width": 2},
        marker={"size": 5},
        text=[item.checkpoint_id for item in drawn],
        hovertemplate="%{y:.6g}<br>%{text}<extra></extra>",
    )


def _add_marks(
    figure: go.Figure, drawn: Sequence[CheckpointMetadata], values: Sequence[Any], axis: str, *, in_legend: bool
) -> None:
    for word, symbol, color, applies in _MARKED:
        found = [(item, value) for item, value in zip(drawn, values, strict=True) if applies(item)]
        if found:
            figure.add_scatter(
                x=_places([item for item, _ in found], axis),
                y=[value for _, value in found],
                name=word,
                legendgroup=word,
                showlegend=in_legend,
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 18 if symbol.endswith("open") else 12,
                    "color": color,
                    "line": {"width": 1.5, "color": color},
                },
                text=[item.checkpoint_id for item, _ in found],
                hovertemplate=f"{word}: %{{y:.6g}}<br>%{{text}}<extra></extra>",
            )


def _laid_out(figure: go.Figure, axis: str, title: str) -> go.Figure:
    grid = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
    return figure.update_layout(
        height=340,
        margin={"l": 60, "r": 12, "t": 12, "b": 44},
        font={"color": "#7a8494"},  # readable on light and on dark
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": _AXES[axis], **grid},
        yaxis={"title": title, **grid},
    )
