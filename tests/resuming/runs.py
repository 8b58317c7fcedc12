"""Runs trainings that are killed at random moments, each in a process of its own."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import start_python

_SERVER = """
import contextlib, json, os, signal, sys
import torch, torchdata.stateful_dataloader, ckpt_lib.manager, ckpt_lib.formats.torch.format
from pathlib import Path
from tests.resuming.setups import SETUPS, train


def run(name, folder, delay_seconds, rank):
    if delay_seconds is not None:
        signal.setitimer(signal.ITIMER_PROF, delay_seconds)  # SIGPROF ends the process at once, as SIGKILL would
    setup = SETUPS[name]
    if setup.distributed:
        rendezvous = f"file://{folder}.rendezvous.{os.getppid()}.{number}"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    Path(f"{folder}.digests.{rank}").write_text(json.dumps(train(setup, Path(folder))))


torch.set_num_threads(1)  # a forked process has no threads, and would wait for them
train(SETUPS["averaged weights"], Path(sys.argv[1]))  # loads what is loaded at first use

print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    name, folder, delay_seconds = json.loads(line)
    ranks = range(2 if SETUPS[name].distributed else 1)
    children = {}
    for rank in ranks:
        child = os.fork()  # of a process that has loaded everything, and has no threads
        if child == 0:
            os.setpgid(0, 0)
            try:
                run(name, folder, delay_seconds if rank == number % len(ranks) else None, rank)
                sys.stderr.flush()
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        children[child] = rank
    codes, cpu_seconds = [], 0.0
    while children:
        child, status, usage = os.wait4(-1, 0)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        del children[child]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what its loader has started
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] != 0:
            for other in children:
                os.kill(other, signal.SIGKILL)
    print(json.dumps([codes, cpu_seconds]), flush=True)
"""
_KILLED = (-signal.SIGPROF, -signal.SIGKILL)


@dataclass(frozen=True)
class Finished:
    """A training that came to its end."""

    digests: list[dict[str, str]]
    """Of all that each process had then."""
    cpu_seconds: float


@dataclass
class Trainings:
    """Trains in new processes. Loading PyTorch takes longer than each training, so it is loaded once."""

    folder: Path
    kills: int = 0

    def __post_init__(self) -> None:
        self._server = start_python(_SERVER, self.folder)
        assert self._answer() == "ready\n"

    def to_the_end(self, name: str, folder: Path) -> Finished:
        """Train without an interruption."""
        is_done, cpu_seconds = self._run(name, folder, None)
        assert is_done
        return Finished(self._digests(folder), cpu_seconds)

    def killed(self, name: str, folder: Path, times: int, whole: Finished, chance: random.Random) -> None:
        """Train again and again, killed at ``times`` moments in all and resumed after each; compare with ``whole``."""
        left, number = times, 0
        while left:
            number += 1
            assert number <= 10 * times, "trainings end before they can be killed"
            place = folder / str(number)
            while left and not self._run(name, place, chance.uniform(0.05, 0.7) * whole.cpu_seconds)[0]:
                left -= 1
                self.kills += 1
            if left == 0:
                assert self._run(name, place, None)[0]
            assert self._digests(place) == whole.digests

    def _run(self, name: str, folder: Path, cpu_seconds: float | None) -> tuple[bool, float]:
        """Return whether the training came to its end, and its processor time. Fails when nothing killed it."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([name, str(folder), cpu_seconds]) + "\n")
        self._server.stdin.flush()
        codes, used_seconds = json.loads(self._answer())
        is_killed = any(code in _KILLED for code in codes)
        assert is_killed or codes == [0] * len(codes), f"{codes}{self.close()}"
        return not is_killed, used_seconds

    def _answer(self) -> str:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        assert answer, self.close()
        return answer

    def _digests(self, folder: Path) -> list[dict[str, str]]:
        found = sorted(folder.parent.glob(f"{folder.name}.digests.*"))
        return [json.loads(path.read_text()) for path in found]

    def close(self) -> str:
        return str(self._server.communicate(timeout=60)[1])
