"""Small experiments on stores of every kind, for the rows that do something to each operation of the protocol."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store import Capabilities, Store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.memory import ALL, MemoryStore
from ckpt_lib.testing import FaultPlan, FaultyStore
from tests.experiment.crashes import OPERATIONS, PATHS, Place, prepare

MISSING: dict[str, tuple[str, ...]] = {
    "memory": (),
    "no delete_if_version": ("delete_if_version",),
    "no create_if_absent": ("create_if_absent",),
    "no replace_if_version": ("replace_if_version",),
    "no conditions": ("create_if_absent", "replace_if_version", "delete_if_version"),
}
"""What stores in memory lack."""
LOCAL = "local"
_numbers = itertools.count()


@dataclass(frozen=True)
class StoredPlace(Place):
    """The experiment of ``crashes`` in a store of one's own; ``plan`` makes it fail, and starts empty."""

    root: Path = Path()
    store: Store = field(default_factory=lambda: memory_store(ALL))
    single_writer: bool = False
    plan: FaultPlan = field(default_factory=FaultPlan)

    @cached_property
    def _experiments(self) -> dict[str, Experiment]:
        store = FaultyStore(self.store, self.plan)
        return {name: Experiment(store, path, "e", single_writer=self.single_writer) for name, path in PATHS.items()}

    def another(self, plan: FaultPlan | None = None) -> StoredPlace:
        """Return the same place, as another process sees it."""
        return replace(self, plan=plan or FaultPlan())


def memory_store(capabilities: Capabilities) -> MemoryStore:
    """Return a new, empty store in memory."""
    return MemoryStore(f"place{next(_numbers)}", capabilities)


def lacks_conditions(kind: str) -> bool:
    """Whether a store of this kind takes writes from a single writer alone."""
    return bool({"create_if_absent", "replace_if_version"} & set(MISSING.get(kind, ())))


def places(kind: str, folder: Path) -> Iterator[StoredPlace]:
    """Yield the same experiment again and again, each time in a store of its own and as it was at first."""
    number = itertools.count()

    def new() -> StoredPlace:
        if kind == LOCAL:
            return StoredPlace(store=LocalStore(str(folder / str(next(number)))))
        store = memory_store(replace(ALL, **dict.fromkeys(MISSING[kind], False)))
        return StoredPlace(store=store, single_writer=lacks_conditions(kind))

    while True:
        place = new()
        prepare(place)
        yield place.another()
        discard(place.store)


def steps_of(kinds: Iterable[str], folder: Path) -> list[tuple[str, str, int]]:
    """Return each operation of the store, by its number, in each of the protocol on each kind of store."""
    found = []
    for kind, name in itertools.product(kinds, OPERATIONS):
        place = next(places(kind, folder / f"steps {kind} {name}"))
        OPERATIONS[name].act(place)
        found += [(kind, name, step) for step in range(1, len(place.plan.calls) + 1)]
    return found


def discard(store: Store) -> None:
    """Free the memory of a store."""
    if isinstance(store, MemoryStore):
        MemoryStore._contents.pop(store.url.removeprefix("memory://"), None)


def content_of(store: Store) -> dict[str, bytes]:
    """Return what a store holds, by key."""
    content = {}
    for entry in store.list("", recursive=True):
        with store.open_read(entry.key) as reader:
            content[entry.key] = reader.read_at(0, reader.size_bytes)
    return content


def let_days_pass(store: Store, days: float) -> None:
    """Move the clock of a store in memory."""
    assert isinstance(store, MemoryStore)
    before: Callable[[], float] = store.clock
    store.clock = lambda: before() + days * 86_400.0
    assert store.clock() > time.time()
