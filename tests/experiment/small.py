"""Tiny checkpoints in an experiment in memory, whose clock tests set."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import Any

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store.base import Capabilities
from ckpt_lib.store.memory import ALL, MemoryStore

MOMENT = datetime(2023, 12, 1, 14, 30, 22, tzinfo=UTC)
DATA = b"weights"
CHECKPOINT_ID = "checkpoint_epoch_0001_step_000100_20231201_143022"
_numbers = count()


def new_store(clock: Clock, capabilities: Capabilities = ALL) -> MemoryStore:
    """Return an empty store whose clock tests set."""
    store = MemoryStore(f"test-{next(_numbers)}", capabilities)
    store.clock = clock
    return store


class Clock:
    """The store's clock, set by tests."""

    def __init__(self) -> None:
        self.now = MOMENT

    def __call__(self) -> float:
        return self.now.timestamp()


def draft(epoch: int = 1, **facts: Any) -> CheckpointFacts:
    return CheckpointFacts(epoch, 100, "Net", "e", **({"timestamp": MOMENT} | facts))


def write(payload: commit.Payload) -> None:
    with payload.open() as stream:
        stream.write(DATA)


def save(experiment: Experiment, epoch: int = 1, *, verify: bool = False, **facts: Any) -> Manifest:
    """Commit a tiny checkpoint, in the same second each time."""
    return commit.save(experiment, draft(epoch, **facts), write, format_name="torch", suffix=".pt", verify=verify)


def names(experiment: Experiment) -> list[str]:
    """Every file but the clock's."""
    found = [entry.key for entry in experiment.store.list("", recursive=True)]
    return [key for key in found if not key.endswith(".ckpt-clock")]


def read(experiment: Experiment, name: str) -> bytes:
    found = experiment.read_small(name, 10**6)
    assert found is not None
    return found[0]


def state_of(experiment: Experiment, checkpoint_id: str) -> str | None:
    record = experiment.read(checkpoint_id).record
    return record.state if record else None
