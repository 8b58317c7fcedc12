"""Results on disk: ``results.json``, the tables of RESULTS.md between two markers, and a plot of the ratios."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.harness import Row

RESULTS_NAME, PAGE_NAME, PLOT_NAME = "results.json", "RESULTS.md", "ratios.svg"
BEGIN, END = "<!-- begin: python -m benchmarks -->", "<!-- end: python -m benchmarks -->"

_PACKAGES = ("torch", "lightning", "safetensors", "torchsnapshot", "torch_checkpointing")


def merged(folder: Path, new: Iterable[Row]) -> list[Row]:
    """The rows of ``results.json`` in ``folder``, with ``new`` ones in place of those they measure anew."""
    path = folder / RESULTS_NAME
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    by_key = {row.key: row for row in (Row(**item) for item in earlier)}
    by_key |= {row.key: row for row in new}
    return list(by_key.values())


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write all three files; a page without the markers gets them at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([row.as_dict() for row in rows], indent=1)
    (folder / RESULTS_NAME).write_text(f"{text}\n", encoding="utf-8")
    page = folder / PAGE_NAME
    found = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    if BEGIN not in found:
        found += f"\n{BEGIN}\n{END}\n"
    before, rest = found.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{section(rows)}\n{END}{after}", encoding="utf-8")
    plot(rows, folder / PLOT_NAME)


def section(rows: Sequence[Row]) -> str:
    """Machine, plot, verdict and tables as Markdown."""
    judged = [row for row in rows if row.target is not None]
    parts = [
        f"Measured on {machine()}.\n",
        "Ratios are ours / peer: below 1 we are faster. Times are medians, with the fastest and the slowest in "
        "brackets.\n",
    ]
    if judged:
        parts.append(f"Of {len(judged)} targets, {sum(bool(row.met) for row in judged)} are met.\n")
        parts.append(f"![Ratios of all comparisons with a target]({PLOT_NAME})\n")
    for name in dict.fromkeys(row.name for row in rows):
        group = [row for row in rows if row.name == name]
        parts.append(f"### {name[0].upper()}{name[1:]}\n\n{table(group)}\n")
    return "\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Rows of one name as a Markdown table."""
    lines = ["| state | against | ours | peer | ratio | target | |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.state}, {size_text(row.size_bytes)}{_note(row)} | {row.peer} "
        f"| {_side(row, 'ours')} | {_side(row, 'peer')} | {_number(row.ratio)} | {target_text(row)} | {_verdict(row)} |"
        for row in rows
    ]
    return "\n".join(lines)


def size_text(size_bytes: int) -> str:
    """A size as people write it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            size = size_bytes / factor
            return f"{size:.3g} {unit}" if size < 99.5 else f"{size:.0f} {unit}"
    return f"{size_bytes} B"


def seconds_text(seconds: float) -> str:
    """Seconds with three digits that count, or milliseconds."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.2g} ms"


def _side(row: Row, side: str) -> str:
    if row.ours_bytes is not None:
        size_bytes = row.ours_bytes if side == "ours" else row.peer_bytes
        return "" if size_bytes is None else f"{size_bytes / 2**20:.0f} MiB"
    seconds = row.ours_seconds if side == "ours" else row.peer_seconds
    if seconds is None:
        return ""
    fastest, slowest = row.spread[side]
    return f"{seconds_text(seconds)} ({seconds_text(fastest)} to {seconds_text(slowest)})"


def _note(row: Row) -> str:
    return f", {row.note}" if row.note else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def target_text(row: Row) -> str:
    """The target in the unit of what it limits."""
    if row.target is None:
        return ""
    return f"{row.target / 2**20:.0f} MiB" if row.ours_bytes is not None else f"{row.target:g}"


def _verdict(row: Row) -> str:
    return "" if row.met is None else "met" if row.met else "**missed**"


def machine() -> str:
    """The facts without which the numbers say nothing."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory_gib:.0f} GiB of memory, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, {packages}, "
        f"{torch.get_num_threads()} threads in PyTorch"
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the ratios that have a target, with a mark at each target, on a logarithmic axis."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    judged = [row for row in rows if row.target is not None and row.ratio is not None]
    figure = Figure(figsize=(9, 1.2 + 0.5 * max(1, len(judged))), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(judged))
    ratios = [row.ratio or 0.0 for row in judged]
    left = min([_LEFT, *(ratio / 2 for ratio in ratios)])  # a logarithmic axis has no zero for bars to begin at
    colours = ["#2a7f62" if row.met else "#c0392b" for row in judged]
    axes.barh(places, [ratio - left for ratio in ratios], left=left, color=colours, height=0.55)
    for place, row, ratio in zip(places, judged, ratios, strict=True):
        axes.plot([row.target or 0.0] * 2, [place - 0.38, place + 0.38], color="black", linewidth=2)
        axes.annotate(f" {ratio:.2f}", (max(ratio, row.target or 0.0), place), va="center", fontsize=9)
    axes.axvline(1, color="grey", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(left, 2 ** math.ceil(math.log2(max([2.0, *ratios, *(row.target or 0.0 for row in judged)]) * 1.2)))
    ticks = [tick for tick in _TICKS if tick >= left]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [_label(row) for row in judged], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ours / peer: left of 1 we are faster; the black mark is the target")
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasSVG(figure)
    figure.savefig(path, metadata={"Date": None})


_LEFT = 0.03
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


def _label(row: Row) -> str:
    return f"{row.name}, {size_text(row.size_bytes)}\nagainst {row.peer}"
