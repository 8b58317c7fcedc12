"""A model checker that runs the real code: every interleaving of a few actors, with crashes, lost answers and days.

An actor is a function of an :class:`Experiment`. Its store replays recorded answers and stops the run at the first
operation that has none, so a run is a pure function of its answers. The search keeps the store's content and
tries each way in which the open operations may go on. Two states are one if stores and histories are equal.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

from ckpt_lib.core.manifest import Claim, Manifest, parse_record
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import CheckpointError, StorageFullError, StoreUnavailableError, VersionConflictError
from ckpt_lib.experiment import claims, copies, experiment, index, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import CLOCK_NAME
from ckpt_lib.store.base import ABSENT, Capabilities, Condition, Delete, Entry, Put
from ckpt_lib.store.one_by_one import delete_one_by_one, put_one_by_one
from ckpt_lib.stream.digests import Buffer

MOMENT = datetime(2023, 12, 1, 14, 30, 22, tzinfo=UTC)
DAY_SECONDS = 86_400.0
ALL = Capabilities(
    create_if_absent=True, replace_if_version=True, delete_if_version=True, memory_map=False, free_space=False
)
NOBODY = -1
"""In the place of an actor's number: before the first step, and when a day passes."""
Content = tuple[tuple[str, tuple[bytes | None, int, int]], ...]
"""Key to bytes, version and day of writing. A deleted key keeps its version: none is given twice."""
Actor = Callable[[Experiment], Any]
parsed = lru_cache(maxsize=None)(lambda data: parse_record(data, path=""))


class Unanswered(BaseException):
    """The run has come to an operation without an answer."""


class ReplayStore:
    """Answers from a history, then stops."""

    url = "replay://"

    def __init__(self, actor: int, history: tuple[Any, ...], capabilities: Capabilities, *, split_reads: bool) -> None:
        self.capabilities = capabilities
        self.actor = actor
        self.open_operation: tuple[Any, ...] | None = None
        self.tokens = 0
        self._answers = iter(history)
        self._split_reads = split_reads
        self._read: tuple[str, bytes] | None = None

    def ask(self, *operation: Any) -> Any:
        if self.open_operation is None:
            with contextlib.suppress(StopIteration):
                return next(self._answers)
            self.open_operation = operation
        raise Unanswered

    def stat(self, key: str) -> Entry | None:
        answer = self.ask("get", key)
        self._read = None if answer is None else (key, answer[0])
        return None if answer is None else _entry(key, *answer)

    def open_read(self, key: str) -> Reader:
        if not self._split_reads and self._read and self._read[0] == key:
            return Reader(self._read[1])
        answer = self.ask("get", key)
        if answer is None:
            raise FileNotFoundError(key)
        return Reader(answer[0])

    def list(self, prefix: str, *, recursive: bool = False) -> list[Entry]:
        found = [_entry(key, *answer) for key, *answer in self.ask("list", prefix.rstrip("/") + "/")]
        start = len(prefix.rstrip("/")) + 1
        shown = {e.key[: start + e.key[start:].find("/") + 1] if "/" in e.key[start:] else e.key: e for e in found}
        return found if recursive else [e if not k.endswith("/") else Entry(k) for k, e in sorted(shown.items())]

    def open_write(self, key: str) -> ReplayUpload:
        return ReplayUpload(self, key)

    def put(self, key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        if key.endswith(CLOCK_NAME):
            return _entry(key, b"", 0, self.ask("day"))
        kind, version, day = self.ask("put", key, data, if_version)
        if kind == "full":
            raise StorageFullError("full", path=key)
        if kind == "lost":
            raise StoreUnavailableError("no answer", path=key)
        if kind == "conflict":
            raise VersionConflictError("conflict", path=key)
        return _entry(key, data, version, day)

    def delete(self, key: str, *, if_version: str | None = None) -> None:
        kind, _, _ = self.ask("put", key, None, if_version)
        if kind == "lost":
            raise StoreUnavailableError("no answer", path=key)
        if kind == "conflict":
            raise VersionConflictError("conflict", path=key)

    def folder_version(self, prefix: str) -> None:
        return None

    def put_many(self, puts: Sequence[Put]) -> Sequence[Entry | VersionConflictError]:
        return put_one_by_one(self, puts)

    def delete_many(self, deletes: Sequence[Delete]) -> Sequence[VersionConflictError | None]:
        return delete_one_by_one(self, deletes)

    def free_bytes(self) -> None:
        return None


class Reader:
    """Bytes that are read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = len(data)

    def read_at(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ReplayUpload:
    """Bytes that are one operation when they are committed."""

    def __init__(self, store: ReplayStore, key: str) -> None:
        self._store, self._key, self._data = store, key, b""

    def write(self, data: Buffer) -> int:
        self._data += bytes(data)
        return len(data)

    def commit(self) -> Entry:
        return self._store.put(self._key, self._data)

    def abort(self) -> None:
        pass


def _entry(key: str, data: bytes, version: int, day: int) -> Entry:
    return Entry(key, len(data), str(version), MOMENT.timestamp() + day * DAY_SECONDS)


@dataclass
class Verdict:
    """What a search has found."""

    states: int
    ends: int
    seconds: float
    violation: str = ""
    trace: str = ""
    is_complete: bool = True


Check = Callable[[dict[str, bytes], Sequence[Any]], str | None]
"""Given what the store holds and each actor's result (``None``: not yet, ``"crashed"``), says what is wrong."""


@dataclass
class World:
    """Actors by name, what is stored at first, and what may happen."""

    actors: Sequence[tuple[str, Actor]]
    content: dict[str, bytes] = field(default_factory=dict)
    always: Check = lambda *_: None
    final: Check = lambda *_: None
    crash: Sequence[int] = ()
    full: Sequence[int] = ()
    """The actors whose writes may find the store full."""
    days: int = 1
    lost: int = 0
    capabilities: Capabilities = ALL
    split_reads: bool = False

    def run(self, *, max_states: int, max_seconds: float = 3_600.0) -> Verdict:
        """Search until something is violated, all is seen, or a bound is reached.

        What interrupts actors less often comes first: few interruptions are enough for most mistakes.
        """
        with _deterministic(self):
            return self._search(max_states, time.monotonic() + max_seconds)

    def _search(self, max_states: int, deadline: float) -> Verdict:
        began = time.monotonic()
        self._known: dict[tuple[int, tuple[Any, ...]], tuple[Any, ...]] = {}
        content = tuple(sorted((key, (data, 1, 0)) for key, data in self.content.items()))
        first = (content, tuple(("run", ()) for _ in self.actors), 0, self.lost)
        seen: dict[Any, tuple[Any, str] | None] = {first: None}
        queue, ends = deque([(first, NOBODY)]), 0

        def verdict(violation: str = "", state: Any = None, *, is_complete: bool = True) -> Verdict:
            steps = []
            while state is not None and (step := seen[state]) is not None:
                state, label = step
                steps.append(label)
            return Verdict(
                len(seen), ends, time.monotonic() - began, violation, " > ".join(reversed(steps)), is_complete
            )

        while queue:
            state, last = queue.popleft()
            now = {key: value[0] for key, value in state[0] if value[0] is not None}
            results = [self._result(number, *actor) for number, actor in enumerate(state[1])]
            if problem := self.always(now, results):
                return verdict(problem, state)
            if all(status != "run" for status, _ in state[1]):
                ends += 1
                if problem := self.final(now, results):
                    return verdict(f"at the end: {problem}", state)
            for follower, number, label in self._steps(state):
                if follower not in seen:
                    seen[follower] = (state, label)
                    is_change = last not in (number, NOBODY) and state[1][last][0] == "run"
                    (queue.append if is_change else queue.appendleft)((follower, number))
            if len(seen) > max_states or time.monotonic() > deadline:
                return verdict(is_complete=False)
        return verdict()

    def _result(self, number: int, status: str, history: tuple[Any, ...]) -> Any:
        return self.operation(number, history)[1] if status == "done" else "crashed" if status == "crashed" else None

    def operation(self, number: int, history: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what an actor does next after these answers: an operation, or ``("done", its result)``."""
        if (number, history) not in self._known:
            self._known[number, history] = self._replay(number, history)
        return self._known[number, history]

    def _replay(self, number: int, history: tuple[Any, ...]) -> tuple[Any, ...]:
        self.store = store = ReplayStore(number, history, self.capabilities, split_reads=self.split_reads)
        try:
            result: Any = self.actors[number][1](Experiment(store, "e", "e"))
        except Unanswered:
            pass
        except CheckpointError as error:
            result = ("error", type(error).__name__)
        # A cleanup under way may have swallowed the stop.
        return store.open_operation or ("done", result)

    def _steps(self, state: Any) -> Iterator[tuple[Any, int, str]]:
        content, actors, day, lost = state
        if day < self.days:
            yield (content, actors, day + 1, lost), NOBODY, "[a day]"
        for number, (status, history) in enumerate(actors):
            if status != "run":
                continue
            name, operation = self.actors[number][0], self.operation(number, history)

            def moved(status: str, *answer: Any, after: Content = content, left: int = lost) -> Any:
                new = (status, history + answer)  # noqa: B023  # called at once
                return after, (*actors[:number], new, *actors[number + 1 :]), day, left  # noqa: B023

            if operation[0] == "done":
                yield moved("done"), number, f"{name} returns {operation[1]}"
                continue
            if number in self.crash:
                yield moved("crashed"), number, f"{name} CRASHES"
            for answer, after, left, label in self._answers(operation, state, number):
                yield moved("run", answer, after=after, left=left), number, f"{name}: {label}"

    def _answers(self, operation: tuple[Any, ...], state: Any, number: int) -> Iterator[tuple[Any, Content, int, str]]:
        content, actors, day, lost = state
        stored = dict(content)
        kind = operation[0]
        if kind == "day":
            yield day, content, lost, "clock"
        elif kind == "dead":
            is_crashed = actors[operation[1]][0] == "crashed"
            yield is_crashed, content, lost, f"{self.actors[operation[1]][0]} dead: {is_crashed}"
        elif kind == "pause":
            seen = hash((content, day, tuple(status for status, _ in actors)))
            if ("paused", seen) not in actors[number][1]:  # until something else has happened
                yield ("paused", seen), content, lost, "waits"
        elif kind == "get":
            value = stored.get(operation[1])
            answer = value if value and value[0] is not None else None
            yield answer, content, lost, f"reads {operation[1]}{_state(answer)}"
        elif kind == "list":
            found = tuple((k, *v) for k, v in content if v[0] is not None and k.startswith(operation[1]))
            yield found, content, lost, "lists"
        else:
            if number in self.full and operation[2] is not None:
                yield ("full", 0, 0), content, lost, f"writes {operation[1]}: the store is full"
            yield from self._puts(*operation[1:], state=state)

    def _puts(
        self, key: str, data: bytes | None, condition: Condition, *, state: Any
    ) -> Iterator[tuple[Any, Content, int, str]]:
        content, _, day, lost = state
        stored = dict(content)
        old, version, _ = stored.get(key, (None, 0, 0))
        holds = condition is None or (
            old is None if condition is ABSENT else old is not None and str(version) == condition
        )
        if data is None and old is None:
            holds = True
        what = f"{'deletes' if data is None else 'writes'} {key}{_state((data,))}"
        after, new = content, version
        if holds and not (data is None and old is None):
            new = version + 1
            after = tuple(sorted({**stored, key: (data, new, day)}.items()))
        yield (
            (("ok", new, day), after, lost, what) if holds else (("conflict", 0, 0), content, lost, f"{what}: refused")
        )
        if lost:
            yield ("lost", 0, 0), content, lost - 1, f"{what}: not done, no answer"
            if after is not content:
                yield ("lost", 0, 0), after, lost - 1, f"{what}: done, no answer"


def _state(answer: Any) -> str:
    if not answer or not answer[0] or not answer[0].startswith(b"{"):
        return ""
    with contextlib.suppress(CheckpointError):
        return f"={parsed(answer[0]).state}"
    return ""


@contextlib.contextmanager
def _deterministic(world: World) -> Iterator[None]:
    """Take chance, processes and sleep from the world."""

    def token(_: int) -> str:
        world.store.tokens += 1
        return f"{world.store.actor:04x}{world.store.tokens:012x}"

    def current() -> Owner:
        return Owner(host="h", system="s", pid=world.store.actor + 1, started="1")

    def is_dead(owner: Owner) -> bool:
        # An owner that is none of the actors left what was stored at first.
        return owner.pid > len(world.actors) or bool(world.store.ask("dead", owner.pid - 1))

    clock = SimpleNamespace(sleep=lambda _: world.store.ask("pause"), monotonic=lambda: 0.0)
    with (
        patch.object(secrets, "token_hex", token),
        patch.object(Owner, "current", current),
        patch.object(claims, "is_proven_dead", is_dead),
        patch.object(experiment, "parse_record", lambda data, path: parsed(data)),  # parsed once
        patch.object(keys, "time", clock),
        patch.object(copies, "time", clock),
        patch.object(index, "_LISTING_SHARE", float("inf")),  # each question lists, however long the last one took
    ):
        yield


def records(content: dict[str, bytes], folder: str = "e/") -> dict[str, Manifest | Claim]:
    """Return the record of each id in a folder."""
    names = [key for key in content if key.startswith(folder + "checkpoint") and key.endswith(".json")]
    return {name.removeprefix(folder).removesuffix(".json"): parsed(content[name]) for name in names}


def never(reason: str) -> NoReturn:
    """Fail a run that came to where none may come."""
    raise AssertionError(reason)
