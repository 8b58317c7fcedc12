"""Which of the checkpoints that are there, in what order, and how many of them at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata, check_count
from ckpt_lib.core.names import check_tags
from ckpt_lib.core.wording import did_you_mean, shown
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, UnknownMetricError
from ckpt_lib.index.conditions import Condition, conditions_of
from ckpt_lib.index.places import SORTABLE, Place, after_of, value_of
from ckpt_lib.policies.ranking import HasMetrics

C = TypeVar("C", bound=CheckpointMetadata | Manifest)


@dataclass(frozen=True)
class Selection:
    """What a list is asked for, checked. Equals in the order are in the order of saving, or all in reverse."""

    where: tuple[Condition, ...] = ()
    tags: frozenset[str] = frozenset()
    search: str = ""
    """Normalised by :func:`searched_text`."""
    sort_by: str = "sequence"
    descending: bool = False
    limit: int | None = None
    after: str | Place | None = None

    @classmethod
    def of(
        cls,
        *,
        where: Collection[str | Condition] = (),
        tags: Collection[str] = (),
        search: str = "",
        min_epoch: int | None = None,
        max_epoch: int | None = None,
        sort_by: str = "sequence",
        descending: bool = False,
        limit: int | None = None,
        after: str | Place | None = None,
    ) -> Self:
        """Check what was asked for; see :func:`select`. Raises :class:`~ckpt_lib.errors.ConfigError`."""
        counts = {"min_epoch": min_epoch, "max_epoch": max_epoch, "limit": limit}
        given = {name: check_count(name, value) for name, value in counts.items() if value is not None}
        if not isinstance(search, str):
            raise ConfigError("search must be text", got=type(search).__name__)
        if not isinstance(sort_by, str):
            raise ConfigError("sort_by must be text", got=type(sort_by).__name__)
        conditions = conditions_of(where)
        if "min_epoch" in given:
            conditions.append(Condition("epoch", ">=", given["min_epoch"]))
        if "max_epoch" in given:
            conditions.append(Condition("epoch", "<=", given["max_epoch"]))
        return cls(
            where=tuple(conditions),
            tags=frozenset(check_tags(tags)),
            search=searched_text([search]),
            sort_by=sort_by,
            descending=bool(descending),
            limit=given.get("limit"),
            after=after_of(after, sort_by),
        )

    @property
    def metrics(self) -> list[str]:
        """The metrics that conditions or the order ask about."""
        asked = [condition.metric for condition in self.where if condition.metric is not None]
        return asked if self.sort_by in SORTABLE else [*asked, self.sort_by]


def select(checkpoints: Sequence[CheckpointMetadata], **asked: Any) -> list[CheckpointMetadata]:
    """Return those that meet all conditions of ``where`` and the other options.

    ``where`` holds :class:`~ckpt_lib.index.conditions.Condition` or text such as ``"val_loss<0.3"``. Those that are
    meant carry all ``tags``, hold ``search`` in id, tags or description, and lie in the epoch range. ``sort_by`` is one
    of ``SORTABLE`` or the name of a metric; values that cannot be compared come last either way. ``after`` is an id:
    only what follows it in this order is returned, so that the last id of one page begins the next. A
    :class:`~ckpt_lib.index.places.Place`, or the text of one, also says where the checkpoint was, and the list goes on
    there if it has been deleted, or has another value by now.

    Raises :class:`~ckpt_lib.errors.ConfigError` for what is no condition, :class:`~ckpt_lib.errors.UnknownMetricError`
    for a metric that none has recorded, and :class:`~ckpt_lib.errors.CheckpointNotFoundError` for an ``after`` that is
    not there.
    """
    return select_from(checkpoints, Selection.of(**asked))


def select_from(checkpoints: Sequence[C], selection: Selection) -> list[C]:
    """Return what :func:`select` does; ``checkpoints`` are in the order of saving."""
    return part_of(ordered_from(checkpoints, selection), selection)


def ordered_from(checkpoints: Sequence[C], selection: Selection) -> list[C]:
    """Return the checkpoints that are meant, in their order: all of the pages."""
    for metric in selection.metrics:
        check_metric_is_known(metric, checkpoints)
    found = [
        checkpoint
        for checkpoint in checkpoints
        if all(condition.holds(checkpoint) for condition in selection.where)
        and selection.tags <= set(checkpoint.tags)
        and (not selection.search or selection.search in searched_text(_texts_of(checkpoint)))
    ]
    return _sorted(found, selection)


def part_of(ordered: list[C], selection: Selection) -> list[C]:
    """Return the page that is meant."""
    if selection.after is not None:
        ordered = _following(ordered, selection.after, descending=selection.descending)
    return ordered if selection.limit is None else ordered[: selection.limit]


def _texts_of(checkpoint: CheckpointMetadata | Manifest) -> tuple[str, ...]:
    return checkpoint.checkpoint_id, checkpoint.description, *checkpoint.tags


def searched_text(texts: Sequence[str]) -> str:
    """Return what a search for text looks in: without regard to case, and to how an accent is spelled."""
    return unicodedata.normalize("NFC", "\n".join(texts)).casefold()


def _sorted(found: list[C], selection: Selection) -> list[C]:
    values = [value_of(item, selection.sort_by) for item in found]
    positions = range(len(found))
    comparable = [at for at in positions if values[at] is not None]
    others = sorted(set(positions) - set(comparable), reverse=selection.descending)
    ordered = sorted(comparable, key=lambda at: (values[at], at), reverse=selection.descending)
    return [found[at] for at in (*ordered, *others)]


def _following(ordered: list[C], after: str | Place, *, descending: bool) -> list[C]:
    """Return what follows a checkpoint; by its place, for several may have one value.

    One that has another value by now would skip, or repeat, all that lies between: the list goes on where it was.
    """
    experiment, _, checkpoint_id = (after.name if isinstance(after, Place) else after).rpartition("/")
    for position, checkpoint in enumerate(ordered):
        if checkpoint.checkpoint_id != checkpoint_id or experiment not in ("", checkpoint.experiment_name):
            continue
        if not isinstance(after, Place) or after.is_of(checkpoint):
            return ordered[position + 1 :]
    if isinstance(after, Place):
        return [checkpoint for checkpoint in ordered if after.precedes(checkpoint, descending=descending)]
    raise not_there(after)


def not_there(after: str) -> CheckpointNotFoundError:
    """Return the error for a page that would begin after what is not there."""
    return CheckpointNotFoundError(
        f"the page cannot begin after {shown(after)}: it is not among what was asked for",
        hint="It may have been deleted meanwhile: begin with the first page.",
    )


def check_metric_is_known(metric: str, known: Sequence[HasMetrics]) -> None:
    """Raise :class:`UnknownMetricError` when there are checkpoints and none of them has recorded ``metric``."""
    if not isinstance(metric, str):
        raise ConfigError("a metric's name must be text", got=type(metric).__name__)
    names = {name for checkpoint in known for name in checkpoint.metrics}
    if known and metric not in names:
        raise unknown_metric(metric, names)


_TO_ADD_METRICS = "`ckpt metrics ID loss=0.1 --source NAME` adds one to a checkpoint that is there."


def unknown_metric(metric: str, names: Collection[str]) -> UnknownMetricError:
    """Return the error for a metric that none of the checkpoints has recorded."""
    return UnknownMetricError(
        f"no checkpoint has recorded a metric {metric!r}",
        expected=", ".join(sorted(names)) or "a metric that a checkpoint has; none has any",
        hint=did_you_mean(metric, names) or (None if names else _TO_ADD_METRICS),
    )
