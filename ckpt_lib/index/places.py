"""``Place``: where a page of a list ended, so that the next one begins there, whatever was deleted meanwhile."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.ranking import is_rankable

SORTABLE = ("sequence", "timestamp", "epoch", "step", "checkpoint_id", "file_size")
_MARK = "~"
"""Begins the text of a place: neither an id nor the name of an experiment begins with it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds_of(moment: datetime) -> int:
    """Return the whole microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def value_of(checkpoint: CheckpointMetadata | Manifest, sort_by: str) -> Any:
    """Return what a checkpoint is ordered by before the order of saving is asked; ``None`` for nothing comparable."""
    if sort_by == "sequence":
        return 0  # across experiments it says nothing, and within one it is the order of saving
    if sort_by == "timestamp":
        return microseconds_of(checkpoint.timestamp)
    if sort_by in SORTABLE:
        return getattr(checkpoint, sort_by)
    metric = checkpoint.metrics.get(sort_by)
    return float(metric) if is_rankable(metric) else None


class _Text(BaseModel):
    """What the text of a place says, in short names: it is part of an address."""

    model_config = ConfigDict(extra="forbid", strict=True)

    by: str
    value: int | float | str | None
    experiment: str
    id: str
    sequence: int
    at: int


@dataclass(frozen=True)
class Place:
    """Where a checkpoint was in an order when a page ended with it."""

    sort_by: str
    value: int | float | str | None
    experiment: str
    """Empty in a list of one experiment, whose name decides nothing there."""
    checkpoint_id: str
    sequence: int
    microseconds: int

    @classmethod
    def of(cls, checkpoint: CheckpointMetadata | Manifest, sort_by: str, *, in_all: bool = False) -> Self:
        """Return the place of a checkpoint in a list of one experiment or, with ``in_all``, of all."""
        return cls(
            sort_by=sort_by,
            value=value_of(checkpoint, sort_by),
            experiment=checkpoint.experiment_name if in_all else "",
            checkpoint_id=checkpoint.checkpoint_id,
            sequence=checkpoint.sequence,
            microseconds=microseconds_of(checkpoint.timestamp),
        )

    @property
    def name(self) -> str:
        """What the checkpoint of this place is called in its list."""
        return f"{self.experiment}/{self.checkpoint_id}" if self.experiment else self.checkpoint_id

    def is_of(self, checkpoint: CheckpointMetadata | Manifest) -> bool:
        """Tell whether a checkpoint is in this place: its value may be another one by now."""
        return self == self.of(checkpoint, self.sort_by, in_all=bool(self.experiment))

    def precedes(self, checkpoint: CheckpointMetadata | Manifest, *, descending: bool) -> bool:
        """Tell whether a checkpoint comes after this place. What cannot be compared comes last either way."""
        other = Place.of(checkpoint, self.sort_by, in_all=bool(self.experiment))
        if (self.value is None) != (other.value is None):
            return other.value is None
        return other._order() < self._order() if descending else other._order() > self._order()

    def _order(self) -> tuple[Any, ...]:
        value = 0 if self.value is None else self.value
        return (value, self.experiment, self.sequence, self.microseconds)

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads, of characters that an address may hold."""
        text = _Text(
            by=self.sort_by,
            value=self.value,
            experiment=self.experiment,
            id=self.checkpoint_id,
            sequence=self.sequence,
            at=self.microseconds,
        )
        return _MARK + base64.urlsafe_b64encode(text.model_dump_json().encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, sort_by: str) -> Self:
        """Return the place of a text, in a list that is sorted by ``sort_by``.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a text that is none, or that of another order.
        """
        try:
            encoded = text.removeprefix(_MARK)
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            found = _Text.model_validate_json(data)
        except (binascii.Error, ValidationError, ValueError) as error:
            raise _no_place(text, "the `next` of the page before, as it is") from error
        if found.by != sort_by or not _fits(found.value, sort_by) or not _fits_64_bits(found.sequence, found.at):
            raise _no_place(text, "the `next` of a page of the same order")
        return cls(found.by, found.value, found.experiment, found.id, found.sequence, found.at)


def after_of(after: str | Place | None, sort_by: str) -> str | Place | None:
    """Return what a list begins after: a place for its text, and anything else as it is. Raises as ``parse``."""
    return Place.parse(after, sort_by) if isinstance(after, str) and after.startswith(_MARK) else after


def _fits(value: int | float | str | None, sort_by: str) -> bool:
    """Tell whether an order can have this value: a text could be compared with no number."""
    if sort_by not in SORTABLE:
        return value is None or (isinstance(value, float) and is_rankable(value))
    if sort_by == "checkpoint_id":
        return isinstance(value, str)
    return isinstance(value, int) and _fits_64_bits(value)


def _fits_64_bits(*numbers: int) -> bool:
    return all(abs(number) < 2**63 for number in numbers)


def _no_place(text: str, expected: str) -> ConfigError:
    return ConfigError(
        "a page cannot begin after this", expected=expected, got=shown(text), hint="Begin with the first page."
    )
