"""The ranks of a ``torch.distributed`` training: rank 0 acts, and the others learn what came of it.

Rank 0 never waits for another rank, so that it may also act alone, as code that says ``if rank == 0:`` does. A rank
that makes the same call waits for the outcome of rank 0 and returns or raises it. Outcomes go through the key-value
store that ``init_process_group`` has set up, and not through collective operations, which would have to be called by
all ranks, in the same order as those of training, and by one thread.

Calls of two ranks are the same when they have the same topic and are the same number of calls with that topic.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import pickle
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

from ckpt_lib.core.logs import logger
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import CheckpointError, RankError

T = TypeVar("T")
U = TypeVar("U")

_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.1
_SILENT_SECONDS = 10.0
"""After this time, a rank that waits says so in the log."""
_LONGEST_EXIT_SECONDS = 5.0
"""How long rank 0 stays at its end for ranks that still ask: its process may be the one that serves the store."""
_KEPT = 1_000
"""How many outcomes are kept for ranks that are late."""


class _Ranks(NamedTuple):
    """The process group at the moment."""

    rank: int
    size: int
    store: Any

    @property
    def deadline_seconds(self) -> float:
        """How long ranks wait for each other: as long as ``init_process_group`` was told."""
        return float(self.store.timeout.total_seconds())


def _current_ranks() -> _Ranks | None:
    """Return the ranks of this training; ``None`` unless there are several."""
    if "torch" not in sys.modules:
        return None
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    return _Ranks(distributed.get_rank(), distributed.get_world_size(), _get_default_store())


def place_of_process() -> tuple[int, int]:
    """Return the number of this process among the ranks, and how many there are: 0 and 1 without ranks."""
    return (0, 1) if (ranks := _current_ranks()) is None else (ranks.rank, ranks.size)


def follows() -> bool:
    """Tell whether this process is a rank that leaves what changes the store to rank 0."""
    return (ranks := _current_ranks()) is not None and ranks.rank > 0


class Call:
    """One call that several ranks make, of which rank 0 tells the outcome."""

    def __init__(self, ranks: _Ranks, topic: str) -> None:
        self._ranks = ranks
        self.topic = topic
        self.key = f"ckpt_lib/{topic}/{_numbers.next_of(topic, ranks.store)}"

    def tell(self, value: Any) -> None:
        """Tell the other ranks what rank 0 returns."""
        self._put(("value", value))

    def tell_error(self, error: BaseException) -> None:
        """Tell the other ranks what rank 0 raises; of an error that is not of this library, only that there is one."""
        self._put(("error", error if isinstance(error, CheckpointError) else _failed(self.topic, repr(error))))

    def _put(self, outcome: tuple[str, Any]) -> None:
        """Put an outcome where the others look for it. A failure is logged: what rank 0 has done it has done."""
        try:
            try:
                data = pickle.dumps(outcome)
            except Exception as failure:  # an error may hold what cannot be sent
                data = pickle.dumps(("error", _failed(self.topic, repr(failure))))
            self._ranks.store.set(self.key, data)
            _told_outcomes.note(self)
        except Exception as failure:
            logger.warning("the other ranks could not be told the outcome of a %s: %s", self.topic, failure)

    @property
    def is_told(self) -> bool:
        """True when rank 0 has told the outcome."""
        with _store_errors(self.topic):
            return bool(self._ranks.store.check([self.key]))

    def outcome(self, seconds: float | None = None) -> Any:
        """Return or raise what rank 0 does. Raises ``TimeoutError`` after ``seconds``, if given."""
        with _store_errors(self.topic):
            self._ranks.store.add(f"{self.key}/asked", 1)
        try:
            self._wait(seconds)
            with _store_errors(self.topic):
                kind, value = _unpickled(self._ranks.store.get(self.key))
        finally:
            with _store_errors(self.topic):
                self._ranks.store.add(f"{self.key}/answered", 1)
        if kind == "error":
            raise value
        return value

    def _wait(self, seconds: float | None) -> None:
        for waited in _pauses(self.topic, "rank 0"):
            if self.is_told:
                return
            if seconds is not None and waited > seconds:
                raise TimeoutError
            if waited > self._ranks.deadline_seconds:
                raise _late(self.topic, "rank 0", waited)

    def send(self, value: Any) -> None:
        """Give rank 0 what this rank has to add to the call. It is pickled, so it should be small."""
        with _store_errors(self.topic):
            self._ranks.store.set(f"{self.key}/of/{self._ranks.rank}", pickle.dumps(value))

    def gather(self) -> list[Any]:
        """Return what all other ranks send, in their order, and wait for it.

        Raises :class:`RankError` if one does not come in the time that ``init_process_group`` was told.
        """
        keys = [f"{self.key}/of/{rank}" for rank in range(1, self._ranks.size)]
        with _store_errors(self.topic):
            for waited in _pauses(self.topic, "other ranks"):
                missing = [rank for rank, key in enumerate(keys, start=1) if not self._ranks.store.check([key])]
                if not missing:
                    break
                if waited > self._ranks.deadline_seconds:
                    raise RankError(
                        f"rank {missing[0]} did not make the same call within {duration(waited)}: {self.topic}",
                        expected="a save with data= on all ranks, since each has a position of its own",
                        hint="Call it on all ranks, or leave out data= where rank 0 alone saves.",
                    )
            values = [_unpickled(self._ranks.store.get(key)) for key in keys]
            self.drop_sent()
        return values

    def drop_sent(self) -> None:
        """Remove from the store what other ranks have sent."""
        for rank in range(1, self._ranks.size):
            self._ranks.store.delete_key(f"{self.key}/of/{rank}")

    @property
    def is_asked_for(self) -> bool:
        """True while another rank waits for the outcome."""
        asked, answered = (self._ranks.store.add(f"{self.key}/{mark}", 0) for mark in ("asked", "answered"))
        return bool(asked > answered)

    def remove(self) -> None:
        """Remove the outcome from the store."""
        for mark in ("", "/asked", "/answered"):
            self._ranks.store.delete_key(f"{self.key}{mark}")


class _Numbers:
    """Counts the calls of each topic, for each process group anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Any = None
        self._counts: Counter[str] = Counter()

    def next_of(self, topic: str, store: Any) -> int:
        with self._lock:
            if store is not self._store:
                self._store, self._counts = store, Counter()
            self._counts[topic] += 1
            return self._counts[topic]


class _ToldOutcomes:
    """The outcomes that rank 0 told: removes old ones, and waits at the end for whoever asks for the last."""

    def __init__(self) -> None:
        self._told: deque[Call] = deque()

    def note(self, call: Call) -> None:
        _wait_at_exit()
        self._told.append(call)
        if len(self._told) > _KEPT:
            with contextlib.suppress(IndexError, _error_of_store()):  # it is only memory
                self._told.popleft().remove()

    def wait_until_answered(self) -> None:
        if not self._told:
            return
        last, deadline = self._told[-1], time.monotonic() + _LONGEST_EXIT_SECONDS
        with contextlib.suppress(_error_of_store()):  # the store has gone: nobody can ask any more
            while last.is_asked_for and time.monotonic() < deadline:
                time.sleep(_FIRST_PAUSE_SECONDS)


_numbers = _Numbers()
_told_outcomes = _ToldOutcomes()


@cache
def _wait_at_exit() -> None:
    """Have the end of this process wait for ranks that ask; one that multiprocessing started has no exit handlers."""
    atexit.register(_told_outcomes.wait_until_answered)
    multiprocessing.util.Finalize(None, _told_outcomes.wait_until_answered, exitpriority=0)


def call_with_ranks(topic: str) -> tuple[Call | None, bool]:
    """Begin a call that other ranks may make as well: ``None`` if there are none, and whether this rank follows."""
    ranks = _current_ranks()
    return (None, False) if ranks is None else (Call(ranks, topic), ranks.rank > 0)


def lead_or_follow(topic: str, lead: Callable[[], T], *, tell: Callable[[T], U], follow: Callable[[U], T]) -> T:
    """Call ``lead`` on rank 0, and on other ranks ``follow`` with what ``tell`` made of the result of rank 0.

    An error on rank 0 is raised on every rank that calls this: the same one if it is one of this library, else
    :class:`RankError`, which is also raised where rank 0 does not make this call in the time that
    ``init_process_group`` was told. Without other ranks, this is ``lead()``.
    """
    call, is_follower = call_with_ranks(topic)
    if call is None:
        return lead()
    if is_follower:
        return follow(call.outcome())
    try:
        result = lead()
        told = tell(result)
    except BaseException as error:
        call.tell_error(error)
        raise
    call.tell(told)
    return result


class CommonStop:
    """Lets all ranks of a training stop at the same safe point, whichever of them was asked to, and when.

    Ranks that train together cannot be apart by a whole step: the next gradients need all of them. That is so once each
    waits for its device at every safe point, as they do when they have learned that a stop is asked for, and said so.
    Then rank 0 names the safe point after its own, which no other has passed.
    """

    def __init__(self) -> None:
        self._count = 0
        self._key = ""
        self._stop_at: int | None = None
        self._is_asked = False
        self.is_over = False

    def begin(self) -> None:
        """Say that this rank takes part. Rank 0 may do so alone."""
        if (ranks := _current_ranks()) is not None:
            with _store_errors("stop"):
                self._take_part(ranks)

    def leave(self) -> None:
        """Say that this rank asks for nothing any more, since an error has ended its training."""
        if self._key and (ranks := _current_ranks()) is not None:
            with contextlib.suppress(_error_of_store()):  # the error that is on its way says more
                ranks.store.add(f"{self._key}/ended", 1)

    def is_here(self, *, is_asked: bool) -> bool:
        """Count a safe point, and tell whether to stop at it. Without other ranks, that is ``is_asked``."""
        ranks = _current_ranks()
        if ranks is None or self.is_over:
            return is_asked
        self._count += 1
        with _store_errors("stop"):
            self._ask(ranks, is_asked=is_asked)
            if self._is_asked and self._stop_at is None:
                _wait_for_device()
                self._name_safe_point(ranks)
        return self._stop_at is not None and self._count >= self._stop_at

    def is_at_end(self, *, is_asked: bool) -> bool:
        """Tell whether a stop is asked for at the end of the block, which all ranks reach."""
        ranks = _current_ranks()
        if ranks is None or self.is_over:
            return is_asked
        with _store_errors("stop"):
            self._ask(ranks, is_asked=is_asked)
            ranks.store.add(f"{self._key}/ended", 1)
        return lead_or_follow("stop at the end", lambda: self._is_asked_of_any(ranks), tell=bool, follow=bool)

    def _is_asked_of_any(self, ranks: _Ranks) -> bool:
        """Tell whether any rank was asked to stop, once all that take part have come to the end."""
        with _store_errors("stop at the end"):
            for waited in _pauses("stop at the end", "other ranks"):
                if ranks.store.add(f"{self._key}/ended", 0) >= ranks.store.add(f"{self._key}/begun", 0):
                    break
                if waited > ranks.deadline_seconds:
                    raise _late("stop at the end", "another rank", waited)
            return bool(ranks.store.check([f"{self._key}/asked"]))

    def _take_part(self, ranks: _Ranks) -> None:
        if not self._key:
            self._key = Call(ranks, "stop").key
            ranks.store.add(f"{self._key}/begun", 1)

    def _ask(self, ranks: _Ranks, *, is_asked: bool) -> None:
        """Tell the others that this rank was asked to stop, or learn that another one was."""
        self._take_part(ranks)
        if self._is_asked:
            return
        self._is_asked = is_asked or bool(ranks.store.check([f"{self._key}/asked"]))
        if self._is_asked:
            ranks.store.set(f"{self._key}/asked", "")
            _wait_for_device()  # before rank 0 may name the next safe point, which this rank could be past
            ranks.store.add(f"{self._key}/known", 1)

    def _name_safe_point(self, ranks: _Ranks) -> None:
        if ranks.rank > 0:
            if ranks.store.check([f"{self._key}/at"]):
                self._stop_at = int(ranks.store.get(f"{self._key}/at"))
        elif ranks.store.add(f"{self._key}/known", 0) == ranks.store.add(f"{self._key}/begun", 0):
            self._stop_at = self._count + 1
            ranks.store.set(f"{self._key}/at", str(self._stop_at))


def _wait_for_device() -> None:
    """Wait until the work that was given to a GPU is done: until then, Python may be steps ahead of the training."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _unpickled(data: bytes) -> Any:
    """Return what another rank of this training has sent, by the way on which torch.distributed sends objects too."""
    return pickle.loads(data)  # noqa: S301


def _pauses(topic: str, awaited: str) -> Iterator[float]:
    """Yield how many seconds were waited, at longer and longer intervals; tell once that it takes long."""
    begin, pause, has_told = time.monotonic(), _FIRST_PAUSE_SECONDS, False
    while True:
        waited = time.monotonic() - begin
        yield waited
        if waited > _SILENT_SECONDS and not has_told:
            has_told = True
            logger.warning("waiting for %s to make the same call: %s", awaited, topic)
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)


@contextlib.contextmanager
def _store_errors(topic: str) -> Iterator[None]:
    """Raise :class:`RankError` where the store of the process group fails, as it does when rank 0 has ended.

    Other errors come through: the death of a worker of a ``DataLoader`` is raised wherever this process waits.
    """
    try:
        yield
    except _error_of_store() as error:
        reason, _, _ = str(error).partition("\n")
        raise _failed(topic, f"the ranks cannot reach each other: {reason}") from error


def _error_of_store() -> type[Exception]:
    """Return what the stores of process groups raise when they fail."""
    from torch.distributed import DistError

    return DistError


def _failed(topic: str, reason: str) -> RankError:
    return RankError(f"rank 0 has failed: {topic}", got=reason, hint="See the log of rank 0.")


def _late(topic: str, awaited: str, waited_seconds: float) -> RankError:
    return RankError(
        f"{awaited} did not make the same call within {duration(waited_seconds)}: {topic}",
        expected="the call on rank 0, or on all ranks",
        hint="Ranks other than 0 get the outcome of rank 0; see docs/how-to/data-parallel.md. Ranks with experiments "
        "of their own need rank_zero_saves=False.",
    )
