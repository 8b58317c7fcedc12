"""Runs trainings that are killed at random moments, each in a process of its own."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_lib import CheckpointManager
from tests.helpers import start_python
from tests.resuming.setups import EXPERIMENT, SETUPS, Setup, config_of

_SERVER = "from tests.resuming.server import serve; serve()"
_KILLED = (-signal.SIGPROF, -signal.SIGKILL)

Moment = tuple[int | None, float]
"""A step, or the begin, and the processor time from there on."""


@dataclass(frozen=True)
class Finished:
    """A training that came to its end."""

    digests: list[dict[str, str]]
    """Of all that each process had then."""
    cpu_seconds: float


@dataclass
class Series:
    """Trainings of one kind that are killed, and what came of it."""

    name: str
    whole: Finished
    """One that nothing killed."""
    chance: random.Random
    kills: int = 0
    resumed: list[int] = field(default_factory=list)
    """The steps from which trainings went on, whose further checkpoints the ends that were compared came from."""
    wrong: list[str] = field(default_factory=list)

    @property
    def setup(self) -> Setup:
        return SETUPS[self.name]

    @property
    def mid_epoch(self) -> int:
        """How many of ``resumed`` are in the middle of an epoch."""
        return sum(step % self.setup.batches != 0 for step in self.resumed)

    @property
    def is_proof(self) -> bool:
        """Whether a training was resumed, and in the middle of an epoch where it saves there.

        Without that, kills show nothing: whoever begins anew arrives at the same end.
        """
        return bool(self.mid_epoch if self.setup.save_every else self.resumed)

    def moment(self, saved: int | None) -> Moment | None:
        """Draw when to kill one that has saved so many steps: up to two intervals later. ``None`` is not at all.

        As long as there is no proof, it is killed after its first save and, where that is in an epoch, in the same.
        """
        setup, now = self.setup, saved or 0
        interval = setup.save_every or setup.batches
        is_first = not self.is_proof and saved is None
        last = setup.batches - 1 if is_first and setup.save_every else now + 2 * interval
        step = self.chance.randint(interval if is_first else now, last)
        seconds = self.chance.uniform(0, self.whole.cpu_seconds / setup.steps / 2)
        return None if step >= setup.steps else (None if step == now else step, seconds)

    def compare(self, number: int, found: list[dict[str, str]]) -> None:
        """Note what a training has at its end that the whole one has not."""
        for rank, (digests, expected) in enumerate(zip(found, self.whole.digests, strict=True)):
            parts = [part for part in digests | expected if digests.get(part) != expected.get(part)]
            if parts:
                self.wrong.append(f"{self.name}, training {number}, rank {rank}: {', '.join(parts)} are not the same")


@dataclass
class Trainings:
    """Trains in new processes. Loading PyTorch takes longer than each training, so it is loaded once."""

    folder: Path
    """Of their own."""

    def __post_init__(self) -> None:
        self._server = start_python(_SERVER, self.folder / "first")
        assert self._answer() == "ready\n"

    def killed(self, name: str, times: int, seed: str) -> Series:
        """Train again and again, killed at ``times`` moments in all and resumed after each; compare each end.

        More often where that is needed for a proof.
        """
        folder = self.folder / f"{name} {seed}"
        folder.mkdir()
        series, number = Series(name, self._whole(name, folder / "whole"), random.Random(seed)), 0
        while series.kills < times or not (series.is_proof or series.wrong):
            number += 1
            assert number <= 10 + 2 * times, f"after {number} trainings, {series.kills} kills, {series.resumed}"
            self._kill_until_ended(series, times, folder / str(number))
            series.compare(number, _digests(folder / str(number)))
        return series

    def _whole(self, name: str, folder: Path) -> Finished:
        """Train without an interruption."""
        is_done, cpu_seconds = self._run(name, folder, None)
        assert is_done
        return Finished(_digests(folder), cpu_seconds)

    def _kill_until_ended(self, series: Series, times: int, place: Path) -> None:
        """Train in one folder to the end, with at least one kill and no more than are left."""
        saved, resumed, is_done, kills = None, set(), False, 0
        while not is_done:
            is_enough = kills > 0 and series.kills >= times
            is_done, _ = self._run(series.name, place, None if is_enough else series.moment(saved))
            kills += not is_done
            series.kills += not is_done
            begun = list(_begun(place))
            if any(step != saved for step in begun):
                series.wrong.append(f"{series.name}: it went on from steps {begun}, and step {saved} was saved")
            if saved is not None and begun:
                resumed.add(saved)
            saved = newest_step(place)
        series.resumed += resumed

    def _run(self, name: str, folder: Path, moment: Moment | None) -> tuple[bool, float]:
        """Return whether the training came to its end, and its processor time. Fails when nothing killed it."""
        for path in folder.parent.glob(f"{folder.name}.begun.*"):
            path.unlink()
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([name, str(folder), moment]) + "\n")
        self._server.stdin.flush()
        codes, used_seconds = json.loads(self._answer())
        is_killed = moment is not None and any(code in _KILLED for code in codes)
        assert is_killed or codes == [0] * len(codes), f"{codes}{self.close()}"
        return not is_killed, used_seconds

    def _answer(self) -> str:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        assert answer, self.close()
        return answer

    def close(self) -> str:
        """End the process; return what was said on stderr."""
        return str(self._server.communicate(timeout=60)[1])


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint; ``None`` without one."""
    latest = CheckpointManager(config_of(folder), EXPERIMENT).get_latest_checkpoint()
    return None if latest is None else latest.step


def _begun(folder: Path) -> Iterator[int | None]:
    """Where each rank went on that came so far."""
    for path in folder.parent.glob(f"{folder.name}.begun.?"):
        yield json.loads(path.read_text())


def _digests(folder: Path) -> list[dict[str, str]]:
    found = sorted(folder.parent.glob(f"{folder.name}.digests.*"))
    return [json.loads(path.read_text()) for path in found]
