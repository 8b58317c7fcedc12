"""``Condition``: what a fact or a metric of a checkpoint must be, such as ``val_loss<0.3`` or ``epoch>=10``."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Self

from pydantic import ByteSize, TypeAdapter

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import briefly
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.ranking import is_rankable

Operator = Literal["<", "<=", "==", "!=", ">=", ">"]
Value = float | datetime | bool | str

OPERATORS: dict[Operator, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
_SIGNS: dict[str, Operator] = {**{sign: sign for sign in OPERATORS}, "=": "=="}
_METRIC_PREFIX = "metrics."
_SPELLED = re.compile(r"\s*([^<>=!]*[^<>=!\s])\s*(<=|>=|==|!=|<|>|=)\s*(.*\S)\s*", re.DOTALL)
_AGE = re.compile(r"(\d+(?:\.\d+)?)(min|[hdw])")
_SECONDS = {"min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_EXAMPLES = "a comparison such as val_loss<0.3, epoch>=10, file_size>1GB, timestamp>=7d or pinned=true"


def _number(text: str) -> float:
    return float(text)


def _size_bytes(text: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(text))


def _moment(text: str) -> datetime:
    if age := _AGE.fullmatch(text):
        return _before_now(float(age[1]) * _SECONDS[age[2]])
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _before_now(seconds: float) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError("nothing is so old") from error


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.casefold()]


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


class _Kind(NamedTuple):
    """What something is compared with."""

    read: Callable[[str], Value]
    is_right: Callable[[Value], bool]
    expected: str


def _is_number(value: Value) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # which is false for NaN, and no conversion fails


def _is_moment(value: Value) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _is_truth(value: Value) -> bool:
    return isinstance(value, bool)


def _is_text(value: Value) -> bool:
    return isinstance(value, str)


_COUNT = _Kind(_number, _is_number, "a number")
_SIZE = _Kind(_size_bytes, _is_number, "a size, such as 500MB or 1GiB")
_MOMENT = _Kind(_moment, _is_moment, "a date or time, such as 2026-11-01 or 2026-11-01T12:30, or an age, such as 7d")
_TRUTH = _Kind(_truth, _is_truth, "true or false")
_TEXT = _Kind(str, _is_text, "a text")
_METRIC = _Kind(_number_or_text, lambda value: _is_number(value) or _is_text(value), "a finite number or a text")
_FACTS = {
    "epoch": _COUNT,
    "step": _COUNT,
    "sequence": _COUNT,
    "file_size": _SIZE,
    "timestamp": _MOMENT,
    "pinned": _TRUTH,
    "healthy": _TRUTH,
    "model_name": _TEXT,
    "run_id": _TEXT,
}


@dataclass(frozen=True)
class Condition:
    """What one fact or metric must be.

    ``name`` is ``epoch``, ``step``, ``sequence``, ``file_size``, ``timestamp``, ``pinned``, ``healthy``,
    ``model_name``, ``run_id``, or a metric, which ``metrics.`` may precede. Truth and text are equal or not, and no
    more. A checkpoint that did not record the metric, or whose value is NaN, infinite or of another type, meets no
    condition on it. Metrics are compared as floats of 64 bits. Raises :class:`~ckpt_lib.errors.ConfigError`.
    """

    name: str
    operator: Operator
    value: Value

    def __post_init__(self) -> None:
        kind = _FACTS.get(self.name, _METRIC)
        if self.operator not in OPERATORS:
            raise ConfigError("this is no comparison", expected=" ".join(OPERATORS), got=briefly(self.operator))
        if not kind.is_right(self.value):
            raise ConfigError(f"{self.name} cannot be compared with {briefly(self.value)}", expected=kind.expected)
        if self.operator not in ("==", "!=") and isinstance(self.value, str | bool):
            expected = "a number; or = or != before a text" if kind is _METRIC else "= or !="
            what = f"{self.operator} cannot compare {briefly(self.value)}: texts and truth values have no order"
            raise ConfigError(what, expected=expected)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one that is spelled as ``val_loss<0.3``. Raises :class:`~ckpt_lib.errors.ConfigError`."""
        spelled = _SPELLED.fullmatch(text) if isinstance(text, str) else None
        if spelled is None:
            raise ConfigError("this is no condition", expected=_EXAMPLES, got=briefly(text))
        name, sign, value = spelled.groups()
        kind = _FACTS.get(name, _METRIC)
        try:
            read = kind.read(value)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{name} cannot be compared with {briefly(value)}", expected=kind.expected) from error
        return cls(name, _SIGNS[sign], read)

    @property
    def metric(self) -> str | None:
        """The metric that is asked about; ``None`` where it is another fact."""
        return None if self.name in _FACTS else self.name.removeprefix(_METRIC_PREFIX)

    def holds(self, checkpoint: CheckpointMetadata | Manifest) -> bool:
        """Tell whether a checkpoint meets it."""
        found = getattr(checkpoint, self.name) if self.metric is None else checkpoint.metrics.get(self.metric)
        if isinstance(self.value, str):
            return isinstance(found, str) and OPERATORS[self.operator](found, self.value)
        if self.metric is not None:
            return is_rankable(found) and OPERATORS[self.operator](float(found), float(self.value))  # type: ignore[arg-type]
        return OPERATORS[self.operator](found, self.value)


def conditions_of(where: object) -> list[Condition]:
    """Return conditions, those given as text parsed. Raises :class:`~ckpt_lib.errors.ConfigError`."""
    if isinstance(where, str | Condition) or not hasattr(where, "__iter__"):
        raise ConfigError("where is a list of conditions", expected='["val_loss<0.3"]', got=briefly(where))
    return [item if isinstance(item, Condition) else Condition.parse(item) for item in where]
