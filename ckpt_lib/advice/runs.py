"""The checkpoints of one folder, which are taken for those of one run, with what the log of that run says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_lib.advice.best import Seen, best_value
from ckpt_lib.advice.described import Described
from ckpt_lib.advice.directions import Directions, deciding, is_of_validation
from ckpt_lib.advice.results import BestValue
from ckpt_lib.advice.training_logs import MAX_LOG_BYTES, NAMES, TRAINER_STATE, TrainingLog, parse_log
from ckpt_lib.advice.trees import Tree
from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.foreign.trees import Folder

_MAX_MONITORS = 3
_SAID = {
    "best": "the best",
    "last": "the last",
    "latest": "the latest",
    "final": "the final one",
    "release": "a release",
}
_COUNT = re.compile(r"(?i)(?<!\d)(?<!\d\.)(?<!\de)(?<!\de-)\d{1,17}(?!\d|\.\d)")
"""A whole number that is no part of another one, such as 0.25 or 1e-4."""
_NAMES_A_SERIES = re.compile(
    r"(?i)(fold|seed|rank|split|cv|run|trial|version|v|stage|phase|worker|shard|part|gpu|rep|repeat)[-_=.]?"
)
_WORD = re.compile(r"[A-Za-z]+")


@dataclass
class Run:
    """Checkpoints, oldest first, and the metrics of each: its own, or those that the log has of its moment."""

    folder: str
    items: list[Described]
    log: TrainingLog | None
    metrics: dict[str, Mapping[str, Metric]] = field(default_factory=dict)
    directions: Directions = field(default_factory=Directions)
    monitors: list[Monitor] = field(default_factory=list)
    """The metrics of which the best checkpoint stays."""

    def __post_init__(self) -> None:
        moments = _Moments(self.log)
        for item in self.items:
            self.metrics[item.path] = item.metrics or moments.at(item)
        logged = self.log.moments if self.log else ()
        names = dict.fromkeys(
            name for found in (*self.metrics.values(), *(m.metrics for m in logged)) for name in found
        )
        known = [Monitor(metric=name, mode=mode) for name in names if (mode := self.directions.mode(name))]
        self.monitors = [item for item in known if is_of_validation(item.metric)] or known

    def groups(self) -> dict[str, list[Described]]:
        """Return the checkpoints of each series: a folder may hold those of several models, folds or seeds."""
        found: dict[str, list[Described]] = {}
        for item in self.items:
            if (series := series_of(item)) is not None:
                found.setdefault(series, []).append(item)
        return found

    def compared_metrics(self, item: Described) -> Mapping[str, Metric]:
        """Return the metrics by which a checkpoint may be compared with others of its series; empty for none."""
        metrics = self.metrics[item.path]
        if self.log and self.log.best_checkpoint:  # the trainer says itself of which checkpoint this value is
            metrics = {name: value for name, value in metrics.items() if name != "best_metric"}
        return deciding(metrics)

    def said_of(self, item: Described) -> str | None:
        """Return what the name of a checkpoint says, or the trainer, that is a reason to keep it."""
        name = item.path.rpartition("/")[2]
        if self.log and self.log.best_checkpoint == name:
            return "the trainer took it for the best"
        words = {word.lower() for word in _WORD.findall(name)}
        said = [text for word, text in _SAID.items() if word in words]
        return f"its name says that it is {said[0]}" if said else None

    def best_values(self) -> list[BestValue]:
        """Say of each metric whether the best value that is known is that of a checkpoint."""
        saved = [Seen(self.metrics[item.path], item.epoch, item.step, item.path) for item in self.items]
        has_log = self.log is not None
        elsewhere = [Seen(m.metrics, m.epoch, m.step, self.log.name) for m in self.log.moments] if self.log else []
        found = [best_value(monitor, saved, elsewhere, has_log=has_log) for monitor in self.monitors[:_MAX_MONITORS]]
        return [self._doubted(item) for item in found if item is not None]

    def _doubted(self, found: BestValue) -> BestValue:
        """Say that it cannot be told where a checkpoint of unknown age may be the best."""
        unknown = [item.path for item in self.items if not self.metrics[item.path] and self.said_of(item)]
        if found.is_saved is not False or not unknown:
            return found
        message = f"{found.message[:-1]}, unless it is {unknown[0]}, which does not say of when it is."
        return found.model_copy(update={"is_saved": None, "message": message})


def series_of(item: Described) -> str | None:
    """Return the name of a checkpoint with marks in the place of its step and epoch; ``None`` where it says neither.

    A number stands for a step or epoch when it is what the checkpoint says inside, or one more or less; the marks tell
    which. All others belong to the name: folds, seeds and ranks are series of their own.
    """
    if item.said_epoch is None and item.said_step is None:
        return None
    name = item.path.rpartition("/")[2]
    counts = [found for found in _COUNT.finditer(name) if not _is_of_series(name[: found.start()])]
    marks: dict[re.Match[str], str] = {}
    for kind, said in (("step", item.said_step), ("epoch", item.said_epoch)):
        alike = [it for it in counts if said is not None and it not in marks and abs(int(it[0]) - said) <= 1]
        if alike and said is not None:
            marks[alike[-1]] = f"\0{kind}{int(alike[-1][0]) - said:+d}"
    for found in sorted(marks, key=lambda found: found.start(), reverse=True):
        name = name[: found.start()] + marks[found] + name[found.end() :]
    return name


def _is_of_series(before: str) -> bool:
    """Tell whether the word before a number says that it names a series."""
    words = re.split(r"[^A-Za-z]+|\d", before.rstrip("-_=."))
    return bool(_NAMES_A_SERIES.fullmatch(words[-1]))


class _Moments:
    """What a log says of a checkpoint: at its step or, where the log has none of that, at the end of its epoch."""

    def __init__(self, log: TrainingLog | None) -> None:
        self._by_step: dict[int, dict[str, Metric]] = {}
        self._by_epoch: dict[int, dict[str, Metric]] = {}
        for moment in log.moments if log else ():
            if moment.step is not None:
                self._by_step.setdefault(moment.step, {}).update(moment.metrics)
            if moment.epoch is not None:
                self._by_epoch.setdefault(moment.epoch, {}).update(moment.metrics)

    def at(self, item: Described) -> Mapping[str, Metric]:
        if item.step is not None and (found := self._by_step.get(item.step)):
            return found
        return self._by_epoch.get(item.epoch, {}) if item.epoch is not None else {}


def runs_of(tree: Tree, items: Iterable[Described]) -> list[Run]:
    """Group checkpoints by the folder that they lie in, each with the log of that folder or of the next one above."""
    groups: dict[str, list[Described]] = {}
    for item in items:
        groups.setdefault(item.folder if item.path else "", []).append(item)
    return [Run(folder, sorted(found, key=_age), _log_of(tree, folder, found)) for folder, found in groups.items()]


def _age(item: Described) -> tuple[int, int, float]:
    step, epoch = item.step, item.epoch
    return (-1 if step is None else step, -1 if epoch is None else epoch, item.found.modified_seconds)


def _log_of(tree: Tree, folder: str, items: Sequence[Described]) -> TrainingLog | None:
    """Return the log in the newest checkpoint that has one, in the folder itself, or in one above."""
    of_trainer = [path for item in items for path in item.found.files if path.rpartition("/")[2] == TRAINER_STATE]
    newest = sorted(items, key=_age)[::-1]
    inside = [f"{item.path}/{TRAINER_STATE}" for item in newest if f"{item.path}/{TRAINER_STATE}" in of_trainer]
    above = [path for part in _upwards(folder) for path in _logs_in(tree, part)]
    for path in (*inside[:1], *above):
        if (log := _read(tree, path)) is not None and log.moments:
            return log
    return None


def _upwards(folder: str) -> Iterable[str]:
    """Yield a folder and the one above it."""
    yield folder
    if folder:
        yield folder.rpartition("/")[0]


def _logs_in(tree: Tree, folder: str) -> list[str]:
    found: Folder | None = tree.top
    for name in folder.split("/") if folder else ():
        found = found.folders.get(name) if found else None
    return [found.below(name) for name in NAMES if name in found.files] if found else []


def _read(tree: Tree, path: str) -> TrainingLog | None:
    try:
        with open(tree.full(path), "rb") as file:
            return parse_log(path, file.read(MAX_LOG_BYTES + 1))
    except OSError:
        return None
