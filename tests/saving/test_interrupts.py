"""Forks, signals and interrupts: no process hangs, no lock stays held, and nothing outlives the last reference.

Signals at random moments of every kind of wait are row 41 of the fault matrix; tests/test_torture.py runs a sample.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.policies.saving import EverySteps
from tests.helpers import MakeManager

SECONDS = 60
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_fork(action: Callable[[], object]) -> int:
    """Run an action in a forked child that an alarm ends if it hangs; return the child's wait status."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(3)
    return os.waitpid(child, 0)[1]


@posix
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_saves_with_a_manager_of_its_own(make_manager: MakeManager) -> None:
    """While the parent saves in the background, a child does so too, and cannot wait for the parent's save."""
    model = nn.Sequential(*[nn.Linear(700, 700) for _ in range(3)])
    parent = make_manager(backup_checkpoints=False)
    handle = parent.save_checkpoint_async(model=model, epoch=1)

    def child() -> None:
        own = make_manager(backup_checkpoints=False)
        assert own.save_checkpoint_async(model=model, epoch=2).result() is not None
        for ask in (handle.wait_until_copied, handle.result, handle.exception):
            with pytest.raises(ConfigError, match="belongs to the process"):
                ask()

    assert in_fork(child) == 0
    assert handle.result() is not None
    assert {item.epoch for item in parent.list_checkpoints()} == {1, 2}


SIGNALLED = """
import multiprocessing as mp, sys, time, torch
from ckpt_lib import CheckpointConfig, CheckpointManager
def work():
    while True: time.sleep(0.1)
if __name__ == "__main__":
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run")
    model = torch.nn.Linear(2, 2)
    with manager.save_on_signal(lambda: dict(model=model, epoch=1)) as preemption:
        children = [mp.get_context("fork").Process(target=work, daemon=True) for _ in range(2)]
        [child.start() for child in children]
        print(*[child.pid for child in children], flush=True)
        while True:
            time.sleep(0.05); preemption.safe_point()
"""


@posix
@pytest.mark.parametrize("target", ["parent", "group", "child"])
def test_children_answer_signals_as_if_nothing_waited(tmp_path: Path, target: str) -> None:
    """Forked inside the block, children end at once; the parent saves, ends them, and ends with the signal's code."""
    command = [sys.executable, "-W", "ignore", "-c", SIGNALLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        children = [int(pid) for pid in run.stdout.readline().split()]
        try:
            if target == "child":
                os.kill(children[0], signal.SIGTERM)
                os.kill(run.pid, signal.SIGTERM)
            elif target == "group":
                os.killpg(run.pid, signal.SIGTERM)
            else:
                os.kill(run.pid, signal.SIGTERM)
            assert run.wait(SECONDS) == 128 + signal.SIGTERM
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    assert [item.epoch for item in manager.list_checkpoints()] == [1]


@pytest.mark.parametrize(
    ("action", "nth"),  # the later threads of a background save are its own, where no interrupt arrives
    [*((action, nth) for action in ("save", "load", "quick check") for nth in (1, 2)), ("save_async", 1)],
)
def test_an_interrupt_arrives_as_itself(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, action: str, nth: int
) -> None:
    """Ctrl-C at the start of one of our threads is KeyboardInterrupt, not an error of the thread that never began."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    model = nn.Linear(3000, 3000)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=model, epoch=0)
    start, started = threading.Thread.start, [0]

    def interrupted(thread: threading.Thread) -> None:
        started[0] += 1
        if started[0] == nth:
            raise KeyboardInterrupt
        start(thread)

    calls: dict[str, Callable[[], object]] = {
        "save": lambda: manager.save_checkpoint(model=model, epoch=1),
        "load": manager.load_checkpoint,
        "quick check": lambda: manager.validate_checkpoint(deep=False),
        "save_async": lambda: manager.save_checkpoint_async(model=model, epoch=1).result(),
    }
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        try:
            calls[action]()
        except KeyboardInterrupt:
            pass
        else:
            pytest.fail("nothing was interrupted")
    manager.save_checkpoint_async(model=model, epoch=2).result()
    assert manager.load_checkpoint()["epoch"] == 2


@pytest.mark.parametrize("use", ["nothing", "save", "save_async", "load", "prepare", "close"])
def test_a_manager_goes_with_its_last_reference(make_manager: MakeManager, use: str) -> None:
    """Without the cyclic collector, the manager and its copies of the state are gone when nothing refers to it."""
    model = nn.Linear(100, 100)
    gc.collect()
    gc.disable()
    try:
        manager: CheckpointManager | None = make_manager()
        assert manager is not None
        if use in ("save", "load"):
            manager.save_checkpoint(model=model, epoch=1)
        if use == "load":
            manager.load_checkpoint(model=model)
        if use in ("save_async", "close"):
            manager.save_checkpoint_async(model=model, epoch=1).result()
            manager.flush()
        if use == "prepare":
            manager.prepare(model=model)
        if use == "close":
            manager.close()
        gone, copies = weakref.ref(manager), weakref.ref(manager._saver.background)
        manager = None
        assert gone() is None
        assert copies() is None
    finally:
        gc.enable()


def test_a_save_outlives_its_manager(make_manager: MakeManager) -> None:
    """A manager that is dropped at once still commits and backs up what it was given to save."""
    handle = make_manager().save_checkpoint_async(model=nn.Linear(500, 500), epoch=1)
    checkpoint_id = handle.result()
    again = make_manager()
    for _ in range(200):
        if again.backup_ids():
            break
        threading.Event().wait(0.05)
    assert again.backup_ids() == [checkpoint_id]


def test_a_callback_may_ask_its_own_handle(make_manager: MakeManager) -> None:
    """In a done callback the outcome is there: asking for it waits for nothing, after success and after failure."""
    manager = make_manager(backup_checkpoints=False)
    seen: list[Any] = []
    handle = manager.save_checkpoint_async(model=nn.Linear(300, 300), epoch=1)
    handle.add_done_callback(lambda future: seen.append((future.done(), future.result(), future.exception())))
    saved = handle.result(timeout=SECONDS)
    manager.flush()
    assert seen == [(True, saved, None)]
    assert wait([handle], timeout=SECONDS).done == {handle}


def _saved_by_a_worker(manager: CheckpointManager) -> Any:
    return manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, step=10), repr(manager)


def test_a_manager_travels_to_a_spawned_worker(make_manager: MakeManager) -> None:
    """Pickled, it works on the same experiment with the same policies, also while a save is under way here."""
    config = make_manager(backup_checkpoints=False).config
    policies: dict[str, Any] = {"save_policy": EverySteps(10), "retention_policy": KeepNewest(count=2)}
    manager = CheckpointManager(config, "run", **policies)
    handle = manager.save_checkpoint_async(model=nn.Linear(500, 500), epoch=1, step=10)
    copied = pickle.loads(pickle.dumps(manager))
    assert (copied.save_policy, copied.retention_policy) == (manager.save_policy, manager.retention_policy)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        saved, shown = pool.apply(_saved_by_a_worker, (manager,))
    assert shown == repr(manager)
    assert {handle.result(), saved} == {item.checkpoint_id for item in manager.list_checkpoints()}
    with pytest.raises(ConfigError, match="another process"):
        pickle.dumps(handle)
