"""``Remembered``: what was computed of all checkpoints of an experiment, while its folder stays as it is."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.managers import home_of

T = TypeVar("T")

_KEPT = 4
"""Of how many experiments; what is known of 5,000 checkpoints takes some 20 MB."""
_SECONDS = 60.0
"""A file that was altered in place leaves the version of its folder as it was: all is read again after this time."""


@dataclass
class _Facts:
    version: str
    until: float
    known: dict[str, Any] = field(default_factory=dict)

    def holds(self, version: str) -> bool:
        return self.version == version and time.monotonic() < self.until


class Remembered:
    """Answers about whole experiments, which take seconds where there are thousands of checkpoints.

    Threads may share it. Where a store cannot tell whether a folder has changed, nothing is remembered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts: OrderedDict[str, _Facts] = OrderedDict()

    def of(self, manager: CheckpointManager, what: str, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns, or what it did when the experiment was as it is now; others may hold it."""
        home = home_of(manager)
        version = home.store.folder_version(home.path)
        if version is None:
            return compute()
        with self._lock:
            facts = self._facts.get(manager.experiment_name)
            if facts is not None and facts.holds(version) and what in facts.known:
                self._facts.move_to_end(manager.experiment_name)
                return cast("T", facts.known[what])
        answer = compute()
        self._note(manager.experiment_name, version, what, answer)
        return answer

    def _note(self, name: str, version: str, what: str, answer: object) -> None:
        with self._lock:
            facts = self._facts.pop(name, None)
            if facts is None or not facts.holds(version):
                facts = _Facts(version, time.monotonic() + _SECONDS)
            facts.known[what] = answer
            self._facts[name] = facts
            while len(self._facts) > _KEPT:
                self._facts.popitem(last=False)
