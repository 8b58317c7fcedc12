"""Trains in forks of a process that has loaded everything, which takes longer than each training.

A request is a line of JSON, ``[name, folder, moment]``; so is the answer, ``[exit codes, seconds of processor time]``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from tests.resuming.setups import SETUPS, train

HUNG_SECONDS = 100
"""After that, a training tells where each of its threads stands, and ends."""
_LEAST_SECONDS = 1e-6
_IMPORTED_LATE = ("ckpt_lib.manager", "ckpt_lib.formats.torch.format", "torchdata.stateful_dataloader")


class Killed:
    """Ends its process at a moment: some processor time after its begin, or after a step."""

    def __init__(self, moment: tuple[int | None, float] | None, begun: Path) -> None:
        self._moment, self._begun = moment, begun
        if moment is not None and moment[0] is None:
            self._set_timer(moment[1])

    def begins(self, resumed_step: int | None) -> None:
        part = self._begun.with_name(f"{self._begun.name}.part")
        part.write_text(json.dumps(resumed_step))
        part.rename(self._begun)

    def takes(self, step: int) -> None:
        if self._moment is not None and self._moment[0] == step:
            self._set_timer(self._moment[1])

    @staticmethod
    def _set_timer(cpu_seconds: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, max(cpu_seconds, _LEAST_SECONDS))  # SIGPROF ends it, as SIGKILL would


def serve() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)  # a forked process has no threads, and would wait for them
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    train(SETUPS["averaged weights"], Path(sys.argv[1]))  # loads what is loaded at first use
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        name, folder, moment = json.loads(line)
        count = 2 if SETUPS[name].distributed else 1
        struck = number % count
        children = {_begun(number, name, folder, moment if rank == struck else None, rank) for rank in range(count)}
        print(json.dumps(_ended(children)), flush=True)


def _begun(number: int, name: str, folder: str, moment: tuple[int | None, float] | None, rank: int) -> int:
    """Fork a rank of a training; return its process id."""
    if child := os.fork():
        return child
    try:
        os.setpgid(0, 0)
        faulthandler.register(signal.SIGALRM, file=sys.stderr, chain=True)
        signal.alarm(HUNG_SECONDS)
        watcher = Killed(moment, Path(f"{folder}.begun.{rank}"))
        if SETUPS[name].distributed:
            rendezvous = f"file://{folder}.rendezvous.{number}"
            torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
        Path(f"{folder}.digests.{rank}").write_text(json.dumps(train(SETUPS[name], Path(folder), watcher)))
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _ended(children: set[int]) -> tuple[list[int], float]:
    """Wait for all; when one of them does not come to its end, none does. Return exit codes and processor time."""
    codes, cpu_seconds = [], 0.0
    while children:
        child, status, usage = os.wait4(-1, 0)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        children.discard(child)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what its loader has started
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] != 0:
            for other in children:
                os.kill(other, signal.SIGKILL)
    return codes, cpu_seconds
