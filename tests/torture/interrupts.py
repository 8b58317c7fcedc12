"""Row 41: Ctrl-C and SIGTERM at random moments of each kind of wait, in processes that really end."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.folder_lock import FolderLock, open_lock
from ckpt_lib.store.local.system import System
from tests.torture.concurrency import leftovers
from tests.torture.interrupted import EXIT_CODE, EXPERIMENT, KINDS, SIGNALS
from tests.torture.rows import Outcome, Row
from tests.torture.runner import ROOT

MOST_SECONDS = 5.0
"""From the signal until the wait is over, or the process, as the program answers."""
_PATIENCE_SECONDS = 60.0
_SOONER, _LATER = 0.8, 1.1
"""How the duration of a wait is corrected by each signal that came too late, and by each that did not."""
_ENDINGS = {
    "Ctrl-C, and it goes on": 0,
    "Ctrl-C, and it ends": -signal.SIGINT,
    "SIGTERM, and it dies": -signal.SIGTERM,
    "SIGTERM raises SystemExit": EXIT_CODE,
    "SIGTERM, and it saves": 128 + signal.SIGTERM,
}


class HungError(Exception):
    """A program did not say or do for a minute what it had to."""


class Server:
    """A process in which everything is loaded, and which forks one more for each signal. To be used as a context."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.torture.interrupted"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        for name in ("said", "heard"):
            os.mkfifo(folder / name)
        # Both ends of each are kept open here, so that neither side waits for the other to open its own.
        self._said = os.open(folder / "said", os.O_RDWR)
        self._heard = os.open(folder / "heard", os.O_RDWR)
        self._answer = ""
        self.pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._said)
        os.close(self._heard)

    @property
    def errors(self) -> str:
        """The last line that the program printed as an error."""
        path = self._folder / "errors"
        return (path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]

    @contextmanager
    def program(self, folder: Path, kind: str, answer: str) -> Iterator[None]:
        """A program that begins now; it is killed if it has not ended when the context does."""
        assert self._process.stdin is not None
        (self._folder / "errors").write_text("", encoding="utf-8")
        while select.select([self._said], [], [], 0)[0]:
            os.read(self._said, 2**16)
        job = {name: str(self._folder / name) for name in ("said", "heard", "errors")}
        print(json.dumps({**job, "folder": str(folder), "kind": kind, "answer": answer}), file=self._process.stdin)
        self.pid, self._answer = int(self._line()), ""
        try:
            yield
        except BaseException:
            if self.pid:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self.status()
            raise

    def _line(self) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE_SECONDS)[0]:
            raise HungError("the process did not end")
        return self._process.stdout.readline()

    def wait_until(self, word: str) -> float:
        """Until the program says a word; when that was."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not (found := self.said(word)):
            if time.monotonic() > until or (self._is_over() and not self.said(word)):
                raise HungError(f"it never said {word!r}; {self.errors}")
        return found

    def _is_over(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def said(self, word: str) -> float:
        """When the program said a word; 0 if it did not."""
        if select.select([self._said], [], [], 0.0005)[0]:
            self._answer += os.read(self._said, 2**16).decode()
        return next((float(line.split()[1]) for line in self._answer.splitlines() if line.startswith(word)), 0.0)

    def let_go_on(self) -> None:
        """What a program that has been interrupted waits for."""
        os.write(self._heard, b".")

    def status(self) -> int:
        """Wait for the end of the program; its exit code, or the negative number of a signal."""
        status, self.pid = int(self._line()), 0
        return status


@dataclass
class Campaign:
    """Signals for one program after the other, and what came of them."""

    server: Server
    folder: Path
    chance: random.Random
    outcome: Outcome = field(default_factory=Outcome)
    usual: dict[str, float] = field(default_factory=dict)
    """How long each wait takes that nothing interrupts."""
    landed: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)

    def strike(self, kind: str, answer: str) -> None:
        """Send one signal, and note whatever must not have happened."""
        if kind not in self.usual:
            self.usual[kind] = self._duration(kind)
        delay = self.chance.uniform(0, self.usual[kind])
        label = f"{kind}, {answer}, after {delay * 1000:.2f} of {self.usual[kind] * 1000:.1f} ms"
        place = self._place()
        try:
            with self.server.program(place, kind, answer):
                self.server.wait_until("waiting")
                time.sleep(delay)
                sent = time.monotonic()
                os.kill(self.server.pid, SIGNALS[answer])
                problems = [*self._end(place, answer, sent)]
                self._learn(kind, is_late=0 < self.server.said("left") < sent)
            problems += _check_store(place, kind, is_saved=answer == "SIGTERM, and it saves")
        except HungError as error:
            problems = [f"hung: {error}"]
        self.outcome.injected += 1
        self.outcome.violations += [f"{label}: {problem}" for problem in problems]

    def _learn(self, kind: str, *, is_late: bool) -> None:
        self.landed[kind] += not is_late
        self.usual[kind] *= _SOONER if is_late else _LATER

    def _place(self) -> Path:
        shutil.rmtree(self.folder / "place", ignore_errors=True)
        (self.folder / "place").mkdir()
        return self.folder / "place"

    def _duration(self, kind: str) -> float:
        with self.server.program(self._place(), kind, "SIGTERM, and it dies"):
            seconds = -self.server.wait_until("waiting") + self.server.wait_until("left")
            os.kill(self.server.pid, signal.SIGTERM)
            self.server.status()
        return seconds

    def _end(self, place: Path, answer: str, sent: float) -> Iterator[str]:
        """Wait until it has answered the signal."""
        if answer == "Ctrl-C, and it goes on":
            taken = self.server.wait_until("interrupted") - sent
            yield from _check_lock(place)
            self.server.let_go_on()
            status = self.server.status()
        else:
            status = self.server.status()
            taken = time.monotonic() - sent
        self.longest[answer] = max(taken, self.longest.get(answer, 0.0))
        if taken > MOST_SECONDS:
            yield f"it took {taken:.1f} s"
        if status != _ENDINGS[answer]:
            yield f"it ended with {status}, not {_ENDINGS[answer]}; {self.server.errors}"


def _check_lock(place: Path) -> Iterator[str]:
    """While the interrupted process lives and does nothing more, others get the lock."""
    own, system = place / "store" / EXPERIMENT / OWN_FOLDER, System()
    try:
        with open_lock(own, system) as file, FolderLock(file, system, MOST_SECONDS):
            pass
    except CheckpointError as error:
        yield f"the lock is held: {error}"


def _check_store(place: Path, kind: str, *, is_saved: bool) -> Iterator[str]:
    """Whoever comes next finds whole checkpoints, saves one more and its backup, and nothing stays behind."""
    began = time.monotonic()
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(place / "store")), EXPERIMENT)
    try:
        there = manager.list_checkpoints()
        if not there:
            yield "the first checkpoint is gone"
        elif kind == "repair":
            manager.repair_checkpoint(there[0].checkpoint_id)  # what was begun is ended
        if there and is_saved and there[-1].epoch != 5:
            yield f"the newest is of epoch {there[-1].epoch}, not the one that the signal asked for"
        manager.save_checkpoint(model=torch.nn.Linear(2, 2), epoch=9)
        yield from (str(report) for report in (*manager.validate_all(), *manager.validate_all_backups()) if not report)
        yield from (f"{left} was left behind" for left in _leftovers(place / "store" / EXPERIMENT))
    except CheckpointError as error:
        yield f"{type(error).__name__}: {error}"
    if (taken := time.monotonic() - began) > MOST_SECONDS:
        yield f"the next ones took {taken:.1f} s"


def _leftovers(folder: Path) -> list[str]:
    """What is left behind for good: another process may be at work for a moment yet."""
    until = time.monotonic() + MOST_SECONDS
    while (found := leftovers(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def interrupt(count: int, seed: str, folder: Path, kinds: Sequence[str] = tuple(KINDS)) -> Outcome:
    """``count`` signals, as many of each of the two for each kind of wait."""
    chance = random.Random(seed)
    answers = {number: [name for name, sent in SIGNALS.items() if sent == number] for number in set(SIGNALS.values())}
    pairs = [(kind, number) for kind in kinds for number in sorted(answers)]
    if count < len(pairs):
        pairs = chance.sample(pairs, count)
    with Server(folder) as server:
        campaign = Campaign(server, folder, chance)
        for number in range(count):
            kind, sent = pairs[number % len(pairs)]
            campaign.strike(kind, chance.choice(answers[sent]))
    outcome = campaign.outcome
    longest = ", ".join(f"{seconds:.2f} s ({answer})" for answer, seconds in sorted(campaign.longest.items()))
    outcome.detail = (
        f"{len(kinds)} kinds of wait, both signals; {sum(campaign.landed.values())} landed in the wait; "
        f"longest from signal to end: {longest}"
    )
    return outcome


_SIGNALS_FOR_EACH = 50

ROWS = [
    Row(
        number=41,
        fault="Ctrl-C or SIGTERM in every kind of wait",
        must_hold="within 5 s it goes on or ends as it should; no lock stays held, all is whole, everything works",
        unit="signals",
        count=_SIGNALS_FOR_EACH * len(KINDS) * len(set(SIGNALS.values())),
        sample=12,
        run=interrupt,
    )
]
