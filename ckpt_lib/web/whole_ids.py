"""``whole_id``: for what must not happen to another checkpoint than the one that was meant."""

from __future__ import annotations

from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError


def whole_id(name: str) -> str:
    """Return a checkpoint's id as it is. Raises :class:`~ckpt_lib.errors.ConfigError` for any other name."""
    if not is_checkpoint_id(name):
        raise ConfigError(
            "this needs the whole id of a checkpoint",
            expected="a checkpoint_id",
            got=shown(name),
            hint="Names such as latest may stand for another checkpoint by now; get_checkpoint tells the id.",
        )
    return name
