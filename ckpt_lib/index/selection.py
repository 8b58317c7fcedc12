"""Which of the checkpoints that are there, in what order, and how many of them at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

from ckpt_lib.core.metadata import CheckpointMetadata, check_count
from ckpt_lib.core.names import check_tags
from ckpt_lib.core.wording import did_you_mean, shown
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, UnknownMetricError
from ckpt_lib.index.conditions import Condition, conditions_of
from ckpt_lib.policies.ranking import HasMetrics, is_rankable

SORTABLE = ("sequence", "timestamp", "epoch", "step", "checkpoint_id", "file_size")


def select(
    checkpoints: Sequence[CheckpointMetadata],
    *,
    where: Collection[str | Condition] = (),
    tags: Collection[str] = (),
    search: str = "",
    min_epoch: int | None = None,
    max_epoch: int | None = None,
    sort_by: str = "sequence",
    descending: bool = False,
    limit: int | None = None,
    after: str | None = None,
) -> list[CheckpointMetadata]:
    """Return those that meet all conditions of ``where`` and the other options.

    ``where`` holds :class:`~ckpt_lib.index.conditions.Condition` or text such as ``"val_loss<0.3"``. Those that
    are meant carry all ``tags``, hold ``search`` in id, tags or description, and lie in the epoch range. ``sort_by`` is
    one of ``SORTABLE`` or the name of a metric; values that cannot be compared come last either way. ``after`` is an
    id: only what follows it in this order is returned, so that the last id of one page begins the next.

    Raises :class:`~ckpt_lib.errors.ConfigError` for what is no condition, :class:`~ckpt_lib.errors.UnknownMetricError`
    for a metric that none has recorded, and :class:`~ckpt_lib.errors.CheckpointNotFoundError` for an ``after`` that is
    not there.
    """
    for name, value in (("min_epoch", min_epoch), ("max_epoch", max_epoch), ("limit", limit)):
        if value is not None:
            check_count(name, value)
    if not isinstance(search, str):
        raise ConfigError("search must be text", got=type(search).__name__)
    conditions = conditions_of(where)
    for condition in conditions:
        if condition.metric is not None:
            check_metric_is_known(condition.metric, checkpoints)
    wanted = set(check_tags(tags))
    text = unicodedata.normalize("NFC", search).casefold()
    found = [
        checkpoint
        for checkpoint in checkpoints
        if all(condition.holds(checkpoint) for condition in conditions)
        and wanted <= set(checkpoint.tags)
        and text in _searched(checkpoint)
        and (min_epoch is None or checkpoint.epoch >= min_epoch)
        and (max_epoch is None or checkpoint.epoch <= max_epoch)
    ]
    ordered = _sorted(found, checkpoints, sort_by, descending)
    if after is not None:
        ordered = _following(ordered, after)
    return ordered if limit is None else ordered[:limit]


def _following(ordered: list[CheckpointMetadata], after: str) -> list[CheckpointMetadata]:
    """Return what follows a checkpoint; by its place, for several may have one value."""
    for position, checkpoint in enumerate(ordered):
        if checkpoint.checkpoint_id == after:
            return ordered[position + 1 :]
    raise CheckpointNotFoundError(
        f"the page cannot begin after {shown(after)}: it is not among what was asked for",
        hint="It may have been deleted meanwhile: begin with the first page.",
    )


def _searched(checkpoint: CheckpointMetadata) -> str:
    text = "\n".join((checkpoint.checkpoint_id, checkpoint.description, *checkpoint.tags))
    return unicodedata.normalize("NFC", text).casefold()


def _sorted(
    found: list[CheckpointMetadata], known: Sequence[CheckpointMetadata], sort_by: str, descending: bool
) -> list[CheckpointMetadata]:
    if sort_by in SORTABLE:
        return sorted(found, key=lambda item: (getattr(item, sort_by), item.sequence), reverse=descending)
    check_metric_is_known(sort_by, known)
    comparable = [item for item in found if is_rankable(item.metrics.get(sort_by))]
    others = [item for item in found if not is_rankable(item.metrics.get(sort_by))]
    return sorted(comparable, key=lambda item: item.metrics[sort_by], reverse=descending) + others  # type: ignore[arg-type, return-value]


def check_metric_is_known(metric: str, known: Sequence[HasMetrics]) -> None:
    """Raise :class:`UnknownMetricError` when there are checkpoints and none of them has recorded ``metric``."""
    if not isinstance(metric, str):
        raise ConfigError("a metric's name must be text", got=type(metric).__name__)
    names = {name for checkpoint in known for name in checkpoint.metrics}
    if known and metric not in names:
        raise UnknownMetricError(
            f"no checkpoint has recorded a metric {metric!r}",
            expected=", ".join(sorted(names)) or "none was recorded",
            hint=did_you_mean(metric, names) or None,
        )
