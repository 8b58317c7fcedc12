"""Whether a training makes checkpoints, as its store tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import CheckpointError


class Progress:
    """The checkpoints that have appeared since the beginning, and when the last one was seen to.

    ``list_ids`` returns what there is now: one listing of the experiment's folder. Ids are never given twice, so what
    retention deletes meanwhile does no harm.
    """

    def __init__(self, list_ids: Callable[[], Collection[str]]) -> None:
        self._list_ids = list_ids
        self._known = set(list_ids())
        self.begin_attempt()

    def begin_attempt(self) -> None:
        """Count from here on. The store is not asked: that it does not answer must not end a launch."""
        self._new: list[str] = []
        self._seen_at = time.monotonic()

    @property
    def new_ids(self) -> tuple[str, ...]:
        """What has appeared, in the order in which it was seen."""
        return tuple(self._new)

    def look(self) -> float:
        """Ask the store, and return how many seconds ago the last checkpoint appeared, or this was begun.

        A store that does not answer proves nothing, and takes no saves either: the time counts from its next answer.
        """
        try:
            found = self._list_ids()
        except (CheckpointError, OSError) as error:
            logger.warning("the store cannot say whether there are new checkpoints: %s", error)
            self._seen_at = time.monotonic()
            return 0.0
        new = [checkpoint_id for checkpoint_id in found if checkpoint_id not in self._known]
        if new:
            self._known.update(new)
            self._new += new
            self._seen_at = time.monotonic()
        return time.monotonic() - self._seen_at
