"""``RankSaver``: a saver in a training of several ranks, where rank 0 alone writes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from ckpt_lib.errors import CheckpointError
from ckpt_lib.saving.background import SaveHandle
from ckpt_lib.saving.ranks import Call, call_with_ranks, follows, lead_or_follow
from ckpt_lib.saving.request import SaveRequest, TrainingObjects
from ckpt_lib.saving.saver import Saver


class RankSaver(Saver):
    """Saves on rank 0. On other ranks, the same calls return or raise what came of them there, and write nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._followed: list[FollowedSave] = []

    def save(self, request: SaveRequest) -> str | None:
        if not self._config.rank_zero_saves:
            return super().save(request)
        return lead_or_follow(self._topic(request), partial(super().save, request), tell=_same, follow=self._caught_up)

    def start(self, request: SaveRequest) -> SaveHandle:
        call, is_follower = call_with_ranks(self._topic(request)) if self._config.rank_zero_saves else (None, False)
        if call is None:
            return super().start(request)
        if is_follower:
            self._raise_failure()
            self._followed.append(FollowedSave(call))
            return self._followed[-1]
        try:
            handle = super().start(request)
        except BaseException as error:
            call.tell_error(error)
            raise
        handle.add_done_callback(partial(_tell, call))
        return handle

    def prepare(self, state: TrainingObjects) -> None:
        if not (self._config.rank_zero_saves and follows()):
            super().prepare(state)

    def flush(self) -> None:
        self._settle()
        super().flush()

    def close(self) -> None:
        try:
            self._settle()
        finally:
            super().close()

    def _topic(self, request: SaveRequest) -> str:
        facts = request.facts
        return f"save of {self._locations.name}, epoch {facts.epoch!r}, step {facts.step!r}"

    def _caught_up(self, checkpoint_id: str | None) -> str | None:
        """Return the outcome of a save, before which rank 0 has waited for those in the background."""
        self._followed.clear()
        return checkpoint_id

    def _raise_failure(self) -> None:
        """Raise the oldest error of a background save that no one has seen, once, and forget saves that have ended."""
        while self._followed and self._followed[0].done():
            self._followed.pop(0).raise_unseen()

    def _settle(self) -> None:
        """Wait for the background saves of rank 0, and raise an error of theirs that no one has seen."""
        while self._followed:
            self._followed.pop(0).raise_unseen()


class FollowedSave(SaveHandle):
    """The handle of a background save that rank 0 makes."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def done(self) -> bool:
        if not self.has_ended and self._call.is_told:
            self._wait(None)
        return super().done()

    def raise_unseen(self) -> None:
        """Wait for the end, and raise the error of the save unless someone has seen it."""
        self._wait(None)
        if not self.error_was_seen:
            self.result()

    def _wait(self, timeout: float | None) -> None:
        self._check_process()
        if self.has_ended:
            return
        try:
            found = self._call.outcome(timeout)
        except CheckpointError as error:
            settle: Callable[[], None] = partial(self.set_exception, error)
        else:
            settle = partial(self.set_result, found)
        if self.claim():
            self.end(settle)
        else:  # another thread has asked as well
            super()._wait(timeout)


def _tell(call: Call, handle: Any) -> None:
    """Tell the other ranks what became of a background save of rank 0."""
    error = Future.exception(handle)  # which does not take it for seen
    if error is None:
        call.tell(Future.result(handle))
    else:
        call.tell_error(error)


def _same(value: str | None) -> str | None:
    return value
