"""Plots of the metrics of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from ckpt_lib.analysis.statistics import checkpoint_frame
from ckpt_lib.core.metadata import CheckpointMetadata, Metric
from ckpt_lib.policies.ranking import is_rankable

_PREFIX = "metrics."
_INCHES_PER_PANEL = 2.0
MAX_PANELS = 12
_LARGEST_DRAWN = 1e100


def metrics_figure(checkpoints: Sequence[CheckpointMetadata]) -> Figure:
    """Plot each metric with finite values over the epoch, in at most 12 panels; a star marks the best checkpoint.

    Metrics that differ only in a ``train_`` or ``val_`` prefix share a panel. Names are not parsed as formulas. Values
    beyond 1e100 are left out, and the axis label says so.
    """
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        return _figure(checkpoints)


def _figure(checkpoints: Sequence[CheckpointMetadata]) -> Figure:
    panels = _panels(checkpoints)
    figure = Figure(figsize=(7.0, 0.6 + _INCHES_PER_PANEL * max(1, len(panels))), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    frame = checkpoint_frame(checkpoints)
    best = next((item for item in checkpoints if item.is_best), None)
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            values = frame[_PREFIX + name].map(lambda value: value if _can_be_drawn(value) else float("nan"))
            axis.plot(frame["epoch"], values.astype(float), marker="o", markersize=3.5, linewidth=1.3, label=name)
            if best is not None and _can_be_drawn(star := best.metrics.get(name)):
                axis.plot(
                    [best.epoch], [star], marker="*", markersize=11, color="goldenrod", linestyle="none", zorder=3
                )
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize="small")
    if not panels:
        axes[0].text(0.5, 0.5, "no metrics recorded", ha="center", va="center", transform=axes[0].transAxes)
    every = [value for item in checkpoints for value in item.metrics.values()]
    left_out = sum(is_rankable(value) and not _can_be_drawn(value) for value in every)
    axes[-1].set_xlabel(f"epoch ({left_out} values beyond 1e100 are left out)" if left_out else "epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _can_be_drawn(value: Metric) -> bool:
    """Return whether a number is finite and small enough to scale an axis to it."""
    return is_rankable(value) and abs(value) <= _LARGEST_DRAWN


def _panels(checkpoints: Sequence[CheckpointMetadata]) -> dict[str, list[str]]:
    names = {name for checkpoint in checkpoints for name, value in checkpoint.metrics.items() if _can_be_drawn(value)}
    panels: dict[str, list[str]] = {}
    for name in sorted(names):
        panels.setdefault(name.removeprefix("train_").removeprefix("val_"), []).append(name)
    return dict(list(panels.items())[:MAX_PANELS])
