"""A program that is interrupted while it waits for the library: what row 41 runs, in a process for each signal.

A server forks, for each job, a process that goes on from here as any program does, to the real end of an interpreter.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait as wait_for_futures
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.experiment import claims, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store import open_store
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.folder_lock import FolderLock, open_lock
from ckpt_lib.store.local.system import System

EXPERIMENT = "run"
LATE_SECONDS = 20.0
"""For how long a signal that comes after the wait is expected."""
HELD_SECONDS = 0.3
IDEMPOTENCY_KEY = "the same save"
SLOW_BYTES_PER_SECOND = 40e6
EXIT_CODE = 7
"""Of a program that answers SIGTERM by ``SystemExit``, as servers and launchers do."""

SIGNALS = {
    "Ctrl-C, and it goes on": signal.SIGINT,
    "Ctrl-C, and it ends": signal.SIGINT,
    "SIGTERM, and it dies": signal.SIGTERM,
    "SIGTERM raises SystemExit": signal.SIGTERM,
    "SIGTERM, and it saves": signal.SIGTERM,
}
"""How a program may answer each of the two signals."""


class Program:
    """A training program with one checkpoint, its backup and an export, and something to wait for."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.manager: CheckpointManager = CheckpointManager(
            CheckpointConfig(
                checkpoint_dir=str(folder / "store"),
                backup_checkpoints=kind in _BACKED_UP,
                overlap_copy=kind == "handle.wait_until_copied",
                max_checkpoints=2,
                max_pending_saves=1,
                trash_seconds=0,
            ),
            EXPERIMENT,
        )
        self.model: torch.nn.Module = torch.nn.Sequential(*(torch.nn.Linear(500, 500) for _ in range(8)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def save(self, epoch: int, idempotency_key: str | None = None) -> None:
        self.manager.save_checkpoint(model=self.model, epoch=epoch, idempotency_key=idempotency_key)

    def begin_save(self, epoch: int = 1) -> Any:
        return self.manager.save_checkpoint_async(model=self.model, optimizer=self.optimizer, epoch=epoch)

    @property
    def payload(self) -> Path:
        return next((self.folder / "store" / EXPERIMENT).glob("*.pt"))


def _flush(program: Program) -> Callable[[], object]:
    program.begin_save()
    return program.manager.flush


def _close(program: Program) -> Callable[[], object]:
    program.begin_save()
    return program.manager.close


def _leave_block(program: Program) -> Callable[[], object]:
    def block() -> None:
        with program.manager:
            program.begin_save()

    return block


def _result_in_time(program: Program) -> Callable[[], object]:
    handle = program.begin_save()
    return lambda: handle.result(30)


def _another(program: Program) -> Callable[[], object]:
    program.begin_save()
    return lambda: program.begin_save(2)


def _futures(program: Program) -> Callable[[], object]:
    handle = program.begin_save()
    return lambda: wait_for_futures([handle])


def _repair(program: Program) -> Callable[[], object]:
    with program.payload.open("r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    return program.manager.repair_checkpoint


def _restore(program: Program) -> Callable[[], object]:
    checkpoint_id = program.payload.stem
    program.save(1)
    program.manager.delete_checkpoint(checkpoint_id)
    return lambda: program.manager.restore_checkpoint(checkpoint_id)


def _back_up(program: Program) -> Callable[[], object]:
    program.manager.delete_backup(program.payload.stem)
    return lambda: program.manager.backup_checkpoint("latest")


def _import(program: Program) -> Callable[[], object]:
    path = program.manager.export_checkpoint("latest", program.folder / "exported")
    other = CheckpointManager(program.manager.config, "other")
    return lambda: other.import_checkpoint(path)


def _clean_up(program: Program) -> Callable[[], object]:
    for epoch in (1, 2):
        program.save(epoch)
    return program.manager.cleanup_checkpoints


def _wait_for_lock(program: Program) -> Callable[[], object]:
    """Another process has the lock of the folder, and gives it up after a while."""
    own, system = program.folder / "store" / EXPERIMENT / OWN_FOLDER, System()
    _in_another_process(lambda: FolderLock(open_lock(own, system), system, HELD_SECONDS).__enter__())
    return lambda: program.save(1)


def _wait_for_key(program: Program) -> Callable[[], object]:
    """Another process is at the same save, and dies after a while."""
    experiment = Experiment(open_store(str(program.folder / "store")), EXPERIMENT, EXPERIMENT)
    wanted = CheckpointId(1, 0, datetime.now(UTC).replace(microsecond=0))

    def begin() -> object:
        held = claims.claim_new(experiment, wanted, "a" * 32, ".pt")
        return held, keys.take(held, IDEMPOTENCY_KEY)

    _in_another_process(begin)
    return lambda: program.save(1, IDEMPOTENCY_KEY)


def _in_another_process(begin: Callable[[], object]) -> None:
    """Fork a process that begins something, and ends after a while without an end of it."""
    reading, writing = os.pipe()
    if not os.fork():
        os.setpgid(0, 0)
        held = begin()
        os.write(writing, b"begun")
        time.sleep(HELD_SECONDS)
        os._exit(held is None)
    os.close(writing)
    os.read(reading, 5)
    os.close(reading)


KINDS: dict[str, Callable[[Program], Callable[[], object]]] = {
    "flush": _flush,
    "close": _close,
    "the end of a with block": _leave_block,
    "handle.result": lambda program: program.begin_save().result,
    "handle.result with a limit": _result_in_time,
    "handle.wait_until_copied": lambda program: program.begin_save().wait_until_copied,
    "futures.wait": _futures,
    "another background save": _another,
    "save": lambda program: lambda: program.save(1),
    "save and back up": lambda program: lambda: program.save(1),
    "load": lambda program: program.manager.load_checkpoint,
    "resume": lambda program: lambda: program.manager.resume(program.model),
    "validate": lambda program: program.manager.validate_checkpoint,
    "scrub": lambda program: lambda: program.manager.scrub(max_bytes_per_second=SLOW_BYTES_PER_SECOND),
    "doctor": lambda program: lambda: program.manager.doctor(fix=True, deep=True),
    "clean up": _clean_up,
    "back up": _back_up,
    "restore": _restore,
    "repair": _repair,
    "export": lambda program: lambda: program.manager.export_checkpoint("latest", program.folder / "exported"),
    "import": _import,
    "the folder's lock": _wait_for_lock,
    "another process at the same save": _wait_for_key,
}
"""What is waited for. Each function prepares it, and returns the call that waits."""
_BACKED_UP = {"save and back up", "scrub", "back up", "restore", "repair"}


def run(folder: Path, kind: str, answer: str, tell: Callable[[str], object], be_told: Callable[[], object]) -> None:
    """Wait, be interrupted, and go on or end by the signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    program = Program(folder, kind)
    program.save(0)
    wait = KINDS[kind](program)
    if answer == "Ctrl-C, and it goes on":
        _interrupted(wait, tell)
        be_told()  # meanwhile others find the lock free
        _go_on(program)
        return
    if answer == "SIGTERM, and it saves":
        state = {"model": program.model, "epoch": 5}
        with program.manager.save_on_signal(lambda: state, signals=[signal.SIGTERM]) as preemption:
            _wait_and_be_late(wait, tell, lambda: preemption.requested)
            preemption.safe_point()
    if answer == "SIGTERM raises SystemExit":
        signal.signal(signal.SIGTERM, _exit)
    _wait_and_be_late(wait, tell, lambda: False)


def _exit(*_: object) -> NoReturn:
    raise SystemExit(EXIT_CODE)


def _interrupted(wait: Callable[[], object], tell: Callable[[str], object]) -> None:
    try:
        _wait_and_be_late(wait, tell, lambda: False)
    except KeyboardInterrupt:
        tell("interrupted")
        return
    raise RuntimeError("no signal came")


def _wait_and_be_late(wait: Callable[[], object], tell: Callable[[str], object], is_enough: Callable[[], bool]) -> None:
    tell("waiting")
    wait()
    tell("left")
    until = time.monotonic() + LATE_SECONDS
    while not is_enough() and time.monotonic() < until:
        time.sleep(0.001)


def _go_on(program: Program) -> None:
    """Everything works as if nothing had been: saves in the background and at once, loads and validations."""
    program.manager.flush()
    program.begin_save(3).result()
    program.save(4)
    program.manager.flush()
    found, is_valid = program.manager.load_checkpoint()["epoch"], bool(program.manager.validate_checkpoint())
    if (found, is_valid) != (4, True):
        raise RuntimeError(f"the newest is of epoch {found}, valid: {is_valid}")


def serve(jobs: IO[str], answers: IO[str]) -> dict[str, Any] | None:
    """Fork for each line of ``jobs``, and answer with the process and, when it has ended, its status.

    Returns in the forked process, with its job.
    """
    for line in jobs:
        job: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if not pid:
            return job
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    return None


def _load_all() -> None:
    """Load what a program needs, so that a forked one begins and ends quickly."""
    for name in (
        "ckpt_lib.formats.torch.format",
        "ckpt_lib.store.local",
        "ckpt_lib.state.staging",
        "ckpt_lib.maintenance.doctor",
    ):
        importlib.import_module(name)
    Program(Path(os.devnull), "save")  # an optimizer loads a third of PyTorch
    gc.freeze()


def main() -> None:
    torch.set_num_threads(1)
    _load_all()
    job = serve(sys.stdin, sys.stdout)
    if job is None:
        return
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # what comes next is the server's
    said = os.open(job["said"], os.O_WRONLY)
    heard = os.open(job["heard"], os.O_RDONLY)
    with open(job["errors"], "w", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 2)
    run(
        Path(job["folder"]),
        job["kind"],
        job["answer"],
        lambda word: os.write(said, f"{word} {time.monotonic()}\n".encode()),
        lambda: os.read(heard, 1),
    )


if __name__ == "__main__":
    main()
