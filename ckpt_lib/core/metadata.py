"""``CheckpointMetadata``, a checkpoint as people see it, and the checks of the values in it."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ckpt_lib.core import html
from ckpt_lib.core.names import MAX_TAG_LENGTH, check_description, check_tag
from ckpt_lib.core.plain import json_number
from ckpt_lib.core.wording import briefly, shown, size_text
from ckpt_lib.errors import ConfigError, InvalidMetricError, InvalidNameError

MAX_METRICS = 10_000
MAX_COUNT = 10**18
"""Epochs and steps stay below this limit: an id has room for 18 digits."""
LIMIT_64_BITS = 2**63
"""Whole numbers in a manifest stay below this limit, so that every reader can hold them."""
_METRICS_IN_REPR = 5
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Metric = float | int | str | None


def _metric_from_json(value: Any) -> Any:
    if isinstance(value, str):
        if not value.isprintable():
            raise InvalidMetricError("a metric is text with hidden characters", got=shown(value))
        return _NON_FINITE.get(value, value)
    if isinstance(value, int) and abs(value) >= LIMIT_64_BITS:
        raise InvalidMetricError("a metric is too large for a whole number", expected="one of 64 bits, or a float")
    return value


def _metric_to_json(value: Metric) -> Metric:
    return json_number(value) if isinstance(value, float) else value


StoredMetric = Annotated[
    Metric, BeforeValidator(_metric_from_json), PlainSerializer(_metric_to_json, return_type=Metric, when_used="json")
]


def check_count(name: str, value: Any, *, below: int | None = None) -> int:
    """Return ``value`` as an ``int`` if it is a whole number of at least 0 and below the limit.

    NumPy integers and integer tensors with one element are accepted too. Raises :class:`ConfigError` for other values.
    """
    count = _whole_number(value)
    if count is None or count < 0 or (below is not None and count >= below):
        bound = "" if below is None else f" to {below - 1:,}"
        raise ConfigError(f"{name} must be a whole number from 0{bound}", got=briefly(value))
    return count


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor on the meta device raises RuntimeError
        return None


def check_metrics(metrics: Mapping[str, Any] | None) -> dict[str, Metric]:
    """Return metrics as plain numbers, text or ``None``. 0-d tensors and NumPy scalars become Python numbers.

    NaN and infinities are stored as they are, though such a value is never the best. Raises
    :class:`InvalidMetricError` for any other value.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidMetricError("metrics must be a mapping", expected="{'val_loss': 0.1}", got=type(metrics).__name__)
    if len(metrics) > MAX_METRICS:
        raise InvalidMetricError("there are too many metrics", expected=f"at most {MAX_METRICS}", got=len(metrics))
    return {_metric_name(name): _plain_metric(name, value) for name, value in metrics.items()}


def _metric_name(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > MAX_TAG_LENGTH or not name.isprintable():
        raise InvalidMetricError(
            "a metric's name cannot be stored", expected=f"1 to {MAX_TAG_LENGTH} visible characters", got=shown(name)
        )
    return name


def _plain_metric(name: str, value: Any) -> Metric:
    if value is None:
        return None
    if isinstance(value, bool):
        return int(value)
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:
            raise InvalidMetricError(f"metric {name!r} is not a single number: {error}") from error
    if isinstance(value, str):
        if not value.isprintable():
            raise InvalidMetricError(f"metric {name!r} is text with hidden characters", got=shown(value))
        return _NON_FINITE.get(value, str.__str__(value))  # subclasses, such as enumerations, become plain text
    if isinstance(value, numbers.Real):
        if isinstance(value, numbers.Integral):
            if abs(int(value)) >= LIMIT_64_BITS:
                raise InvalidMetricError(
                    f"metric {name!r} is too large for a whole number", expected="one of 64 bits, or a float"
                )
            return int(value)
        try:
            return float(value)
        except OverflowError as error:
            raise InvalidMetricError(f"metric {name!r} is too large", expected="a number up to 1.8e308") from error
    raise InvalidMetricError(
        f"metric {name!r} cannot be stored", expected="a number, a text or None", got=type(value).__name__
    )


def _in_utc_range(moment: datetime) -> datetime:
    """Refuse a moment whose UTC date falls in the year 0 or 10000, which ``datetime`` cannot hold."""
    try:
        moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("it lies outside of the years 1 to 9999 of UTC") from error
    return moment


def check_source(source: Any) -> str:
    """Return the name of what measured a metric if it can be stored, else raise :class:`InvalidNameError`."""
    if (
        not isinstance(source, str)
        or not source
        or source != source.strip()
        or len(source) > MAX_TAG_LENGTH
        or not source.isprintable()
    ):
        raise InvalidNameError(
            f"{shown(source)} cannot be the source of a metric",
            expected=f"1 to {MAX_TAG_LENGTH} visible characters without blanks at either end, as in 'eval/mnist-test'",
        )
    return source


class AddedMetric(BaseModel):
    """One value of a metric that was added after the save, or that of the save which it replaced."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, BeforeValidator(_metric_name)]
    value: StoredMetric
    at: Annotated[AwareDatetime, AfterValidator(_in_utc_range)]
    source: Annotated[str, BeforeValidator(check_source)] | None = Field(
        description="What measured it, such as an evaluation on a data set; None for the save."
    )


class CheckpointFields(BaseModel):
    """The fields that metadata and manifest share."""

    checkpoint_id: str
    timestamp: Annotated[AwareDatetime, AfterValidator(_in_utc_range)]
    epoch: int = Field(ge=0, lt=MAX_COUNT)
    step: int = Field(ge=0, lt=MAX_COUNT)
    model_name: str
    experiment_name: str
    metrics: dict[Annotated[str, BeforeValidator(_metric_name)], StoredMetric] = {}
    added_metrics: tuple[AddedMetric, ...] = Field(
        default=(), description="What was added to the metrics after the save, oldest first."
    )
    config: dict[str, Any] = {}
    tags: tuple[Annotated[str, BeforeValidator(check_tag)], ...] = ()
    description: Annotated[str, BeforeValidator(check_description)] = ""
    sequence: int = Field(ge=1, lt=LIMIT_64_BITS, description="Order in the experiment: later saves have larger ones.")
    parent_id: str | None = Field(default=None, description="The checkpoint this one was trained on from.")
    epoch_finished: bool = Field(default=True, description="Whether the epoch was trained to its end.")
    run_id: str | None = Field(default=None, description="Random; the checkpoints of one run of a training share it.")
    pinned: bool = Field(default=False, description="Retention never removes a pinned checkpoint.")
    unhealthy: str | None = Field(
        default=None, description="What a health check found wrong with the numbers; None when nothing, or not asked."
    )

    @property
    def healthy(self) -> bool:
        """True when this checkpoint may be the best, and training may resume from it."""
        return self.unhealthy is None


class CheckpointMetadata(CheckpointFields):
    """One checkpoint as people see it. ``is_best``, ``is_latest`` and ``is_complete`` are computed for each query."""

    model_config = ConfigDict(frozen=True)

    file_size: int = Field(ge=0, description="Bytes of all payload files.")
    uncompressed_size: int = Field(ge=0, description="Bytes of all payload files before compression.")
    checksum: str = Field(
        description="SHA-256 of the payload: what `sha256sum` prints. Of a folder, that of the lines which it prints "
        "for the files in the order of their names."
    )
    is_best: bool = False
    is_latest: bool = False
    is_complete: bool = Field(default=True, description="Whether each payload file is there with its size.")
    is_thinned: bool = Field(default=False, description="Whether only the weights are left: no run can go on from it.")
    original: str | None = Field(
        default=None, description="The file or folder that was imported in place: it belongs to its program, and stays."
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "checkpoint_id", self.checkpoint_id
        yield "experiment_name", self.experiment_name
        yield from (("epoch", self.epoch), ("step", self.step))
        yield "metrics", dict(list(self.metrics.items())[:_METRICS_IN_REPR])
        yield "file_size", self.file_size
        if marks := marks_of(self):
            yield "marks", marks

    def _repr_html_(self) -> str:
        found = {
            "epoch": self.epoch,
            "step": self.step,
            "saved": self.timestamp,
            "size": size_text(self.file_size),
            "model": self.model_name,
            "tags": self.tags,
            "description": self.description,
            "trained on from": self.parent_id,
            "unhealthy": self.unhealthy,
            "SHA-256": self.checksum,
        }
        return html.block(
            self.checkpoint_id,
            html.facts(found),
            html.table(("metric", "value"), list(self.metrics.items()), numeric=("value",)),
            detail=", ".join((self.experiment_name, *marks_of(self))),
        )


def marks_of(checkpoint: CheckpointMetadata) -> list[str]:
    """Return the words that lists show for what sets a checkpoint apart."""
    marks = {
        "best": checkpoint.is_best,
        "latest": checkpoint.is_latest,
        "pinned": checkpoint.pinned,
        "unhealthy": not checkpoint.healthy,
        "incomplete": not checkpoint.is_complete,
        "weights only": checkpoint.is_thinned,
    }
    return [mark for mark, applies in marks.items() if applies]
