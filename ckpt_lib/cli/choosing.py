"""The checkpoints that a command is about: by name, or by ``--where`` and ``--tag``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_lib.cli.session import resolve_all
from ckpt_lib.core.wording import did_you_mean
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.manager import CheckpointManager


def chosen_ids(
    manager: CheckpointManager,
    names: Sequence[str] | None,
    where: Sequence[str] | None,
    tags: Sequence[str] | None,
    *,
    backups: bool = False,
    default: Sequence[str] = (),
) -> list[str]:
    """Return the ids of the checkpoints, or backups, that a command line selects, oldest first for conditions.

    ``default`` names those of a command line that selects none. Raises :class:`~ckpt_lib.errors.ConfigError` for names
    beside conditions and for a selection of nothing at all, and :class:`~ckpt_lib.errors.CheckpointNotFoundError` if
    no checkpoint meets the conditions.
    """
    if not (where or tags):
        if not (names or default):
            raise ConfigError("no checkpoint is named", expected="an ID, --where or --tag")
        return resolve_all(manager, names or default, backups=backups)
    held = manager.list_backups() if backups else manager.list_checkpoints()
    return [item.checkpoint_id for item in meeting(held, names, where, tags)]


def meeting(
    held: Sequence[CheckpointMetadata],
    names: Sequence[str] | None,
    where: Sequence[str] | None,
    tags: Sequence[str] | None,
) -> list[CheckpointMetadata]:
    """Return which of some checkpoints meet the conditions and carry the tags; raises as :func:`chosen_ids`."""
    from ckpt_lib.index.selection import select

    options = " ".join([*(f"--where {item!r}" for item in where or ()), *(f"--tag {item!r}" for item in tags or ())])
    if names:
        raise ConfigError(
            "checkpoints are selected by name or by conditions",
            expected="ids, or --where and --tag",
            got=" ".join(names),
        )
    found = select(held, where=where or (), tags=tags or ())
    if not found:
        known = {tag for item in held for tag in item.tags}
        unknown = next((tag for tag in tags or () if tag not in known), None)
        hint = did_you_mean(unknown, known) if unknown else ""
        raise CheckpointNotFoundError(
            f"none of the {len(held)} checkpoints meets {options}", hint=hint or "`ckpt list` takes the same options."
        )
    return found


def is_by_condition(where: Sequence[str] | None, tags: Sequence[str] | None) -> bool:
    """Tell whether checkpoints are selected by conditions: then any number of them, and JSON holds a list."""
    return bool(where or tags)


def as_names(name: str | None) -> list[str]:
    """Return the names in an argument that takes one at most."""
    return [] if name is None else [name]
