"""``ckpt watch``: an experiment as it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.output import as_age, as_number, as_time, print_json_line, results
from ckpt_lib.cli.session import open_manager
from ckpt_lib.core.metadata import marks_of
from ckpt_lib.core.wording import count_of, size_text, visible
from ckpt_lib.errors import ConfigError, is_store_failure

if TYPE_CHECKING:
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.experiment.locations import Locations
    from ckpt_lib.live import LiveRun
    from ckpt_lib.maintenance.backup_status import BackupStatus
    from ckpt_lib.manager import CheckpointManager

_SHOWN_SAVES, _SHOWN_METRICS, _TREND = 5, 8, 16
_BARS = "▁▂▃▄▅▆▇█"
_STATUS_SECONDS = 30.0
"""How often the backup of the newest checkpoint is asked about: that reads a file."""


def watch(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="The experiment; optional if the store holds only one.",
            autocompletion=options.complete_experiments,
        ),
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document for each change, one a line.")] = False,
) -> None:
    """Watch an experiment until Ctrl-C: metrics with their trend, saves, sizes, backups and live runs.

    On a terminal, the view is renewed in place. Elsewhere and with --json, each change is a line of its own. The folder
    is listed only after it has changed, and no payload is read.

    Example: ckpt watch mnist --every 5
    """
    if name and experiment and name != experiment:
        raise ConfigError("two experiments are named", expected="one of them", got=f"{name} and {experiment}")
    watcher = Watcher(open_manager(store, name or experiment, config))
    try:
        if as_json or not sys.stdout.isatty():
            _print_changes(watcher, every, as_json=as_json)
        else:
            _show_live(watcher, every)
    except KeyboardInterrupt:
        return


@dataclass(frozen=True)
class Seen:
    """An experiment at one moment."""

    checkpoints: Sequence[CheckpointMetadata] = ()
    metric: str = ""
    free_bytes: int | None = None
    backup: BackupStatus | None = None
    runs: Sequence[LiveRun] = ()
    trouble: str | None = None
    """Why the store could not be asked; all else is as it was seen last."""


@dataclass
class Watcher:
    """Looks at an experiment, and lists its folder when that has changed."""

    manager: CheckpointManager
    _seen: Seen = field(default_factory=Seen)
    _version: str | None = None
    _asked_at: float = float("-inf")

    @property
    def locations(self) -> Locations:
        return self.manager._locations

    def look(self) -> Seen:
        """Return what is there now. A store that does not answer is told, and asked again the next time."""
        from dataclasses import replace

        try:
            self._seen = replace(self._look(), trouble=None)
        except Exception as error:
            if not is_store_failure(error):
                raise
            self._seen = replace(self._seen, trouble=str(error))
        return self._seen

    def _look(self) -> Seen:
        from ckpt_lib.live import live_runs
        from ckpt_lib.store import location

        home, before = self.locations.home, self._seen
        version = home.store.folder_version(home.path)
        is_changed = version is None or version != self._version or before.trouble is not None
        checkpoints = self.manager.list_checkpoints() if is_changed else before.checkpoints
        backup = before.backup
        if checkpoints and (is_changed or time.monotonic() - self._asked_at > _STATUS_SECONDS):
            backup = self.manager.backup_status(checkpoints[-1].checkpoint_id)
            self._asked_at = time.monotonic()
        self._version = version
        return Seen(
            checkpoints=checkpoints,
            metric=self.manager.monitor.metric if is_changed else before.metric,
            free_bytes=home.store.free_bytes(),
            backup=backup,
            runs=live_runs(self.manager.experiment_name, store=location(home.store)),
        )


# --- a line for each change ---


def _print_changes(watcher: Watcher, every: float, *, as_json: bool) -> None:
    before = watcher.look()
    first = {"event": "watching", "experiment_name": watcher.manager.experiment_name}
    _print_change({**first, "checkpoints": len(before.checkpoints)}, as_json=as_json)
    for run in before.runs:
        _print_change(_of_run("run_shared", run), as_json=as_json)
    while True:
        time.sleep(every)
        now = watcher.look()
        for change in changes(before, now):
            _print_change(change, as_json=as_json)
        before = now


def changes(before: Seen, now: Seen) -> Iterator[dict[str, Any]]:
    """Yield what is another than before, as plain facts."""
    earlier = {item.checkpoint_id: item for item in before.checkpoints}
    there = {item.checkpoint_id for item in now.checkpoints}
    for item in now.checkpoints:
        known = earlier.get(item.checkpoint_id)
        facts = {"checkpoint_id": item.checkpoint_id, "epoch": item.epoch, "step": item.step}
        value = {"metric": now.metric, "value": item.metrics.get(now.metric)}
        if known is None:
            yield {"event": "saved", **facts, **value, "size_bytes": item.file_size}
        elif known.is_complete and not item.is_complete:
            yield {"event": "incomplete", **facts}
        if item.is_best and not (known and known.is_best):
            yield {"event": "best", **facts, **value}
    for checkpoint_id in earlier:
        if checkpoint_id not in there:
            yield {"event": "gone", "checkpoint_id": checkpoint_id}
    pids = {run.owner.pid for run in before.runs}
    yield from (_of_run("run_shared", run) for run in now.runs if run.owner.pid not in pids)
    pids = {run.owner.pid for run in now.runs}
    yield from (_of_run("run_ended", run) for run in before.runs if run.owner.pid not in pids)
    if now.trouble != before.trouble:
        yield {"event": "no_answer", "message": now.trouble} if now.trouble else {"event": "answers_again"}


def _of_run(event: str, run: LiveRun) -> dict[str, Any]:
    return {"event": event, "pid": run.owner.pid}


def _print_change(change: dict[str, Any], *, as_json: bool) -> None:
    now = datetime.now(UTC)
    if as_json:
        print_json_line({"time": now.isoformat(), **change})
        return
    words = [
        f"{name} {_word(name, value)}" for name, value in change.items() if name not in _SPOKEN and value is not None
    ]
    if change.get("value") is not None:
        words.append(f"{change['metric']} {as_number(change['value'])}")
    named = change.get("checkpoint_id") or change.get("experiment_name") or ""
    line = "  ".join([as_time(now), change["event"].replace("_", " "), *([named] if named else []), *words])
    results().print(Text(visible(line)), soft_wrap=True)
    sys.stdout.flush()


_SPOKEN = {"event", "checkpoint_id", "experiment_name", "metric", "value"}


def _word(name: str, value: Any) -> str:
    return size_text(value) if name == "size_bytes" else str(value)


# --- a view that is renewed in place ---


def _show_live(watcher: Watcher, every: float) -> None:
    console = results()
    with_bars = (console.encoding or "").lower().startswith("utf")
    name = watcher.manager.experiment_name
    with Live(view_of(name, watcher.look(), with_bars=with_bars), console=console, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(every)
            live.update(view_of(name, watcher.look(), with_bars=with_bars))


def view_of(name: str, seen: Seen, *, with_bars: bool = True) -> Group:
    """Return the view: no line of it is wider than 80 columns, unless a name is."""
    held = seen.checkpoints
    size = size_text(sum(item.file_size for item in held))
    head = f"{name}: {count_of(len(held), 'checkpoint')}, {size}"
    if seen.free_bytes is not None:
        head += f"; {size_text(seen.free_bytes)} free"
    parts: list[Any] = [Text(visible(head), style="bold"), _facts(seen)]
    if held:
        parts += [Text(), _metrics(held, seen.metric, with_bars=with_bars), Text(), _saves(held, seen.metric)]
    if seen.trouble:
        parts += [Text(), Text(visible(f"No answer: {seen.trouble}"), style="bold red")]
    parts += [Text(), Text(f"As of {as_time(datetime.now(UTC))}. Ctrl-C ends.", style="dim")]
    return Group(*parts)


def _facts(seen: Seen) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold blue", no_wrap=True)
    table.add_column(overflow="fold")
    latest = seen.checkpoints[-1] if seen.checkpoints else None
    best = next((item for item in seen.checkpoints if item.is_best), None)
    rows = {
        "latest": f"{latest.checkpoint_id}, {as_age(latest.timestamp)} ago" if latest else "no checkpoint yet",
        "best": f"{best.checkpoint_id}, {seen.metric} {as_number(best.metrics.get(seen.metric))}" if best else "-",
        "backup": _backup(seen.backup),
        "live runs": ", ".join(f"process {run.owner.pid}" for run in seen.runs) or "none is shared",
    }
    for label, value in rows.items():
        table.add_row(label, Text(visible(value)))
    return table


def _backup(status: BackupStatus | None) -> str:
    if status is None:
        return "-"
    if status.verified_at is not None:
        return f"of the latest: read back {as_age(status.verified_at)} ago"
    never_read = {"written": "written, and not read back since", "local only": "none"}
    return f"of the latest: {never_read.get(status.state, status.state)}"


def _metrics(held: Sequence[CheckpointMetadata], monitored: str, *, with_bars: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold blue")
    table.add_column("metric", max_width=28, no_wrap=True, overflow="ellipsis")
    for header in ("last", "change"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("trend", no_wrap=True)
    from ckpt_lib.policies.ranking import is_rankable

    names = [name for name in held[-1].metrics if name != monitored][: _SHOWN_METRICS - 1]
    for metric in [monitored, *names]:
        values = [item.metrics.get(metric) for item in held[-_TREND:]]
        numbers = [float(value) for value in values if is_rankable(value)]
        last = as_number(values[-1])[:12]
        change = f"{numbers[-1] - numbers[-2]:+.3g}" if len(numbers) > 1 and is_rankable(values[-1]) else "-"
        table.add_row(Text(visible(metric)), Text(visible(last)), change, _trend(numbers, with_bars=with_bars))
    return table


def _trend(numbers: Sequence[float], *, with_bars: bool) -> str:
    """Draw the last values; where the terminal has no such characters, say whether they rise or fall."""
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    if not with_bars:
        return "level" if low == high else "rising" if numbers[-1] > numbers[0] else "falling"
    reach = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((number - low) / reach * len(_BARS)))] for number in numbers)


def _saves(held: Sequence[CheckpointMetadata], metric: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold blue")
    for header in ("epoch", "step", metric[:16], "size", "age"):
        table.add_column(Text(visible(header)), justify="right", no_wrap=True)
    table.add_column("marks", no_wrap=True, overflow="ellipsis")
    for item in reversed(held[-_SHOWN_SAVES:]):
        value = as_number(item.metrics.get(metric))[:12]
        age, marks = as_age(item.timestamp), " ".join(marks_of(item))
        table.add_row(str(item.epoch), str(item.step), Text(visible(value)), size_text(item.file_size), age, marks)
    return table
