"""What the logs of trainings say of their metrics: the files that trainers of several programs write."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.core.metadata import LIMIT_64_BITS, MAX_COUNT, Metric

TRAINER_STATE = "trainer_state.json"
NAMES = (TRAINER_STATE, "metrics.csv", "results.csv", "progress.csv", "metrics.jsonl", "log.jsonl", "log.txt")
"""Hugging Face's trainer, Lightning's CSVLogger, Ultralytics, and those that write a line of JSON for each epoch."""
MAX_LOG_BYTES = 64 * 2**20
_POSITIONS = {"epoch": ("epoch", "epochs"), "step": ("step", "global_step", "steps", "iteration", "iter")}
_POSITION_NAMES = frozenset(name for names in _POSITIONS.values() for name in names)


@dataclass(frozen=True)
class Moment:
    """What a log says of one moment of a training."""

    epoch: int | None
    step: int | None
    metrics: Mapping[str, Metric]


@dataclass
class TrainingLog:
    """One log, its moments in order."""

    name: str
    moments: list[Moment] = field(default_factory=list)
    best_checkpoint: str | None = None
    """The name of the checkpoint that the trainer took for the best."""


def parse_log(name: str, data: bytes) -> TrainingLog | None:
    """Read a log by its name; ``None`` for a file that is none, is cut off in its structure, or is too long."""
    if len(data) > MAX_LOG_BYTES:
        return None
    base = name.rpartition("/")[2]
    text = data.decode("utf-8", errors="replace")
    try:
        if base == TRAINER_STATE:
            return _of_trainer(name, json.loads(text))
        rows = _rows_of_csv(text) if base.endswith(".csv") else _rows_of_lines(text)
        moments = _merged(rows)
    except (ValueError, RecursionError, csv.Error):
        return None
    return TrainingLog(name, moments) if moments else None


def _of_trainer(name: str, state: Any) -> TrainingLog | None:
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        return None
    best = state.get("best_model_checkpoint")
    best_name = best.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(best, str) else None
    return TrainingLog(name, _merged(row for row in history if isinstance(row, dict)), best_name)


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text))
    header = [cell.strip() for cell in next(reader, [])]
    return [dict(zip(header, (_value(cell) for cell in row), strict=False)) for row in reader]


def _rows_of_lines(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                rows.append(json.loads(line))
            except ValueError:  # the last line of a training that was killed
                continue
    return [row for row in rows if isinstance(row, dict)]


def _value(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return None


def _merged(rows: Iterable[Mapping[str, Any]]) -> list[Moment]:
    """Return a moment for each epoch and step: a training logs its losses and its validation in rows of their own."""
    found: dict[tuple[int | None, int | None], dict[str, Metric]] = {}
    for row in rows:
        position = _position(row, "epoch"), _position(row, "step")
        if position == (None, None):
            continue
        metrics = {str(name): value for name, value in row.items() if _is_number(value) and name not in _POSITION_NAMES}
        found.setdefault(position, {}).update(metrics)
    return [Moment(epoch, step, metrics) for (epoch, step), metrics in found.items()]


def _position(row: Mapping[str, Any], kind: str) -> int | None:
    for name in _POSITIONS[kind]:
        value = row.get(name)
        if value is not None and _is_number(value) and value == int(value) and 0 <= value < MAX_COUNT:
            return int(value)
    return None


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, as metrics are stored."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < LIMIT_64_BITS)
