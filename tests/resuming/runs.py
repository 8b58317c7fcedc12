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
_MOST_STEPS = 2.0
"""The longest time from the step at which a kill is due to the kill, in the time that a step takes."""


@dataclass(frozen=True)
class Finished:
    """A training that came to its end."""

    digests: list[dict[str, str]]
    """Of all that each process had then."""
    cpu_seconds: float


@dataclass
class Series:
    """What came of killing trainings of one kind."""

    setup: Setup
    kills: int = 0
    resumed: list[int] = field(default_factory=list)
    """The steps from which trainings went on, whose further checkpoints the ends that were compared came from."""
    wrong: list[str] = field(default_factory=list)

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


@dataclass
class Trainings:
    """Trains in new processes. Loading PyTorch takes longer than each training, so it is loaded once."""

    folder: Path

    def __post_init__(self) -> None:
        self._server = start_python(_SERVER, self.folder)
        assert self._answer() == "ready\n"

    def to_the_end(self, name: str, folder: Path) -> Finished:
        """Train without an interruption."""
        is_done, cpu_seconds = self._run(name, folder, None)
        assert is_done
        return Finished(_digests(folder), cpu_seconds)

    def killed(self, name: str, folder: Path, times: int, whole: Finished, chance: random.Random) -> Series:
        """Train again and again, killed at ``times`` moments in all and resumed after each; compare with ``whole``.

        More often where that is needed for a proof.
        """
        series, number = Series(SETUPS[name]), 0
        while series.kills < times or not (series.is_proof or series.wrong):
            number += 1
            assert number <= 10 + 2 * times, f"after {number} trainings, {series.kills} kills, {series.resumed}"
            place = folder / str(number)
            self._kill_until_ended(name, place, times, whole, chance, series)
            for rank, (found, expected) in enumerate(zip(_digests(place), whole.digests, strict=True)):
                parts = [part for part in expected if found.get(part) != expected[part]]
                if parts or found.keys() != expected.keys():
                    series.wrong.append(f"{name}, training {number}, rank {rank}: {', '.join(parts)} are others")
        return series

    def _kill_until_ended(
        self, name: str, place: Path, times: int, whole: Finished, chance: random.Random, series: Series
    ) -> None:
        """Train in one folder to the end."""
        saved, resumed, is_done, own_kills = None, set(), False, 0
        while not is_done:
            is_enough = own_kills > 0 and series.kills >= times
            moment = None if is_enough else _moment(series, saved, whole, chance)
            is_done, _ = self._run(name, place, moment)
            own_kills += not is_done
            series.kills += not is_done
            begun = list(_begun(place))
            if any(step != saved for step in begun):
                series.wrong.append(f"{name}: ranks went on from steps {begun}, and saved was {saved}")
            if saved is not None and begun:
                resumed.add(saved)
            saved = newest_step(place)
        series.resumed += resumed

    def _run(
        self, name: str, folder: Path, moment: tuple[int | None, float] | None
    ) -> tuple[bool, float]:
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
        return str(self._server.communicate(timeout=60)[1])


def _moment(
    series: Series, saved: int | None, whole: Finished, chance: random.Random
) -> tuple[int | None, float]:
    """Draw when to kill: at a step to come, or before any. As long as nothing was resumed, not before the first save.
    """
    setup, lowest = series.setup, saved or 0
    if not series.is_proof and saved is None:
        lowest = setup.save_every or setup.batches
    step = chance.randint(lowest, max(lowest, setup.steps - 1))
    seconds = chance.uniform(0, _MOST_STEPS * whole.cpu_seconds / setup.steps)
    return (None if step == (saved or 0) else step), seconds


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
