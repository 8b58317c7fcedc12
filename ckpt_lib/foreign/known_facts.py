"""Finds what a checkpoint says about itself: epoch, step, metrics, configuration, and who wrote it when."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ckpt_lib.foreign.base import Facts, StoredObject, StoredTensor
from ckpt_lib.foreign.plain_values import REFUSED, PlainConverter

COUNTS = ("epoch", "step")
FACTS = (*COUNTS, "metrics", "config")
# Not "epochs" and "steps", which are mostly how many are planned.
_NAMES = {
    "epoch": ("epoch", "current_epoch"),
    "step": ("step", "global_step", "iteration", "iter", "current_iter", "num_updates", "updates"),
    "metrics": ("metrics", "train_metrics", "val_metrics", "results"),
    "config": ("config", "args", "cfg", "hyper_parameters", "hparams", "train_args", "opt", "options"),
}
_MEASURE = r"loss|acc\d*|accuracy|metric|score|fitness|error|err\d*|ppl|perplexity|auc|f1|map|miou|iou|psnr|ssim|bleu"
_IS_METRIC = re.compile(rf"(?:^|[_/\-.])(?:{_MEASURE})(?:$|[_/\-.@\d])")
_LIGHTNING = "pytorch-lightning_version"
_MAX_COUNT = 2**63


class FactFinder:
    """Collects the facts of one checkpoint. Of several counts of one kind, the first in the order of names is taken."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        self._metrics: dict[str, float] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self.writer: str | None = None
        """The program that wrote the checkpoint."""
        self._saved_at: datetime | None = None

    def kind_of(self, name: Any, value: Any) -> str | None:
        """Return which fact an entry is; ``None`` if it is none, or one that is known from another entry."""
        if not isinstance(name, str):
            return None
        value = _number_in(value)
        for kind in COUNTS:
            if name in _NAMES[kind] and count_of(value) is not None:
                return kind
        if name in _NAMES["config"] and isinstance(_fields(value), dict):
            return "config"
        is_measured = _is_number(value) and _IS_METRIC.search(name.lower())
        is_metrics = (
            name in _NAMES["metrics"]
            and isinstance(value, Mapping)
            and all(_is_number(_number_in(item)) for item in value.values())
        )
        return "metrics" if is_measured or (is_metrics and value) else None

    def take(self, kind: str, name: str, value: Any, *, is_given: bool = False) -> PlainConverter:
        """Note a fact; one that was ``given`` comes before all others. Returns what is not plain in it, left out."""
        values = PlainConverter(is_config=True)
        value = _number_in(value)
        if kind in COUNTS:
            count = count_of(value)
            rank = _NAMES[kind].index(name) if name in _NAMES[kind] and not is_given else -1
            if count is None:
                values.refused.append(f"{name} (no count)")
            else:
                self._counts[kind] = min((rank, count), self._counts.get(kind, (rank + 1, 0)))
            return values
        if kind == "metrics":
            measured = value if isinstance(value, Mapping) else {name: value}
            measured = {key: _number_in(number) for key, number in measured.items()}
            self._metrics |= {str(key): number for key, number in measured.items() if _is_number(number)}
            values.refused += [
                f"{name}.{key} (no number)" for key, number in measured.items() if not _is_number(number)
            ]
            return values
        found = values.plain(value, name)
        if isinstance(found, dict):
            self._configs[name] = found
        elif not values.refused:
            values.refused.append(f"{name} (no dict)")
        return values

    def look_at(self, contents: Mapping[str, Any]) -> None:
        """Find out who wrote a checkpoint, and when."""
        version = contents.get(_LIGHTNING)
        if isinstance(version, str):
            self.writer = f"lightning {version[:40]}"
        elif any(
            isinstance(item, StoredObject) and item.class_name.startswith("ultralytics.") for item in contents.values()
        ):
            version = contents.get("version")
            self.writer = f"ultralytics {version[:40]}" if isinstance(version, str) else "ultralytics"
        for name in ("saved_at", "date", "timestamp"):
            self._saved_at = self._saved_at or _moment(contents.get(name))

    def found(self) -> Facts:
        """Return what was found."""
        configs = list(self._configs.values())
        return Facts(
            writer=self.writer,
            epoch=self._counts["epoch"][1] if "epoch" in self._counts else None,
            step=self._counts["step"][1] if "step" in self._counts else None,
            metrics=self._metrics,
            config=configs[0] if len(configs) == 1 else self._configs,
            saved_at=self._saved_at,
        )


def _fields(value: Any) -> Any:
    """Return a configuration as a dict of plain values; anything else for what is none."""
    if not isinstance(value, Mapping | StoredObject):
        return None
    found = PlainConverter(is_config=True).plain(value, "")
    return found if found is not REFUSED and (found or isinstance(value, Mapping)) else None


def count_of(value: Any) -> int | None:
    """Return a count of epochs or steps, which some programs keep as a float; ``None`` for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def _number_in(value: Any) -> Any:
    """Return the number in a tensor of one and without dimensions, as some programs keep it; else the value itself."""
    if isinstance(value, StoredTensor) and value.shape == () and not value.dtype.is_complex:
        return value.read().item()
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool | StoredTensor)


def _moment(value: Any) -> datetime | None:
    """Return a moment, of UTC where the text names no zone."""
    found = None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and 1e9 < value < 1e10:
            found = datetime.fromtimestamp(value, UTC)
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)
