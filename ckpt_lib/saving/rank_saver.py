"""``RankSaver``: a saver in a training of several ranks, where rank 0 alone writes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.payload_keys import PAYLOAD_KEYS, PER_PROCESS
from ckpt_lib.errors import CheckpointError
from ckpt_lib.saving.background import SaveHandle
from ckpt_lib.saving.ranks import Call, call_with_ranks, follows, place_of_process
from ckpt_lib.saving.request import ObjectState, SavableState, SaveRequest
from ckpt_lib.saving.saver import Saver

T = TypeVar("T")

_OF_EACH_RANK = tuple(PAYLOAD_KEYS[kind] for kind in PER_PROCESS)


class StateOfRanks:
    """The state that rank 0 saves, with the generators and the position in the data of every rank."""

    def __init__(self, state: SavableState, call: Call) -> None:
        self._state = state
        self._call = call
        self._from_others: list[dict[str, Any]] = []
        self.is_gathered = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def payload(self, config: CheckpointConfig) -> dict[str, Any]:
        states = self._state.payload(config)
        if not self.is_gathered and self._state.knows_position:
            self._from_others = self._call.gather()
            self.is_gathered = True
        return states | {
            key: [*states[key], *(sent[key][0] for sent in self._from_others)]
            for key in _OF_EACH_RANK
            if states[key] is not None
        }


class RankSaver(Saver):
    """Saves on rank 0. On other ranks, the same calls return or raise what came of them there, and write nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._followed: list[FollowedSave] = []
        self._left: Call | None = None
        """A call of which what other ranks send was not wanted."""

    def save(self, request: SaveRequest) -> str | None:
        call = self._call(request)
        if call is None:
            return super().save(request)
        if follows():
            self._send(request, call)
            return self._caught_up(call.outcome())
        checkpoint_id: str | None = self._lead(request, call, super().save, call.tell)
        return checkpoint_id

    def start(self, request: SaveRequest) -> SaveHandle:
        call = self._call(request)
        if call is None:
            return super().start(request)
        if follows():
            self._raise_failure()
            self._send(request, call)
            self._followed.append(FollowedSave(call))
            return self._followed[-1]
        return self._lead(request, call, super().start, lambda handle: handle.add_done_callback(partial(_tell, call)))

    def _call(self, request: SaveRequest) -> Call | None:
        if not self._config.rank_zero_saves or place_of_process()[1] == 1:
            return None
        facts = request.facts
        topic = f"save of {self._locations.name}, epoch {facts.epoch!r}, step {facts.step!r}"
        return call_with_ranks(topic)[0]

    def _lead(
        self, request: SaveRequest, call: Call, save: Callable[[SaveRequest], T], tell: Callable[[T], object]
    ) -> T:
        """Save the state of all ranks, and tell them what came of it."""
        if self._left is not None:
            self._left.drop_sent()
        state = StateOfRanks(request.state, call)
        try:
            result = save(replace(request, state=state))
        except BaseException as error:
            call.tell_error(error)
            raise
        finally:
            self._left = call if request.state.knows_position and not state.is_gathered else None
        tell(result)
        return result

    def _send(self, request: SaveRequest, call: Call) -> None:
        if request.state.knows_position:
            payload = request.state.payload(self._config)
            call.send({key: payload[key] for key in _OF_EACH_RANK})

    def why_not_saved(self) -> tuple[NotSaved, ...]:
        if not (self._config.rank_zero_saves and follows()):
            return super().why_not_saved()
        message = f"this process is rank {place_of_process()[0]}, and rank 0 makes the saves of this training"
        return (NotSaved(kind="other_rank", message=message, hint="Ask the manager of rank 0."),)

    def prepare(self, state: ObjectState) -> None:
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
