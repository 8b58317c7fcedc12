"""A shared run: other processes see it and ask it, and the training decides when, and is never harmed by that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    RunUnavailableError,
    StorageFullError,
    UnsupportedStateError,
)
from ckpt_lib.live import LiveRun, live_runs
from ckpt_lib.live.registry import runs_folder
from ckpt_lib.live.server import MOST_WAITING, _is_gone
from tests.helpers import MakeManager, ids, save
from tests.saving.failing_stores import failing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Unix sockets")
SHARED_RUN = """
import sys, time
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], save_interval=1000), "elsewhere")
with manager.share():
    print("shared", flush=True)
    for epoch in range(1, 100_000):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch % 999 + 1)
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Where requests come from: to the run, a thread that uses a socket is another process."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def only_run() -> LiveRun:
    (run,) = live_runs()
    return run


def waited_for(run: LiveRun, count: int = 1) -> None:
    """Return once so many requests wait for the training."""
    deadline = time.monotonic() + 10
    while run.status().waiting < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def attempt(manager: CheckpointManager, epoch: int, loss: float = 0.5) -> str | None:
    return manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"val_loss": loss})


def test_a_run_is_listed_while_it_is_shared(make_manager: MakeManager) -> None:
    """With its process, experiment and store; files that nobody else can read, and none afterwards."""
    manager = make_manager("mnist")
    assert live_runs() == []
    with manager.share():
        run = only_run()
        assert (run.owner.pid, run.experiment_name, run.store) == (os.getpid(), "mnist", manager.config.checkpoint_dir)
        assert live_runs("mnist", store=run.store) == [run]
        assert live_runs("other") == live_runs(store="/elsewhere") == []
        assert stat.S_IMODE(os.stat(run.socket).st_mode) == 0o600
        assert stat.S_IMODE(runs_folder().stat().st_mode) == 0o700
    assert live_runs() == []
    assert list(runs_folder().iterdir()) == []


def test_the_status_comes_at_once(make_manager: MakeManager) -> None:
    """Also while the training is in the middle of a step: it says why nothing was saved."""
    manager = make_manager(save_interval=5)
    with manager.share():
        assert only_run().status().not_saved[0].kind == "never_asked"
        saved = save(manager, 5)
        attempt(manager, 7)
        status = only_run().status()
        assert (status.latest_checkpoint, status.run_id) == (saved, manager._lineage.run_id)
        assert (status.not_saved[0].kind, status.not_saved[0].next_epoch) == ("interval", 10)
        assert status.last_call_at is not None
        assert not status.takes_loads


@pytest.mark.parametrize("in_background", [False, True])
def test_a_request_makes_the_next_save(
    make_manager: MakeManager, elsewhere: ThreadPoolExecutor, in_background: bool
) -> None:
    """A save that the policy would refuse is made, once, and all who asked get its id."""
    manager = make_manager(save_interval=5)
    save(manager, 5)
    with manager.share():
        asked = [elsewhere.submit(only_run().save, timeout_seconds=20) for _ in range(2)]
        waited_for(only_run(), 2)
        manager.serve_requests()  # has no state to save
        if in_background:
            saved = manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=6).result()
        else:
            saved = attempt(manager, 6)
        assert saved is not None
        assert [future.result(20) for future in asked] == [saved, saved]
        assert attempt(manager, 7) is None
    assert ids(manager)[-1] == saved


def test_serve_requests_saves_what_state_returns(make_manager: MakeManager, elsewhere: ThreadPoolExecutor) -> None:
    """On the thread of the training, at the call and not before; ``None`` stands for what was saved last."""
    manager, threads = make_manager(save_interval=100), []
    model: list[dict[str, Any] | None] = [{"model": nn.Linear(2, 1), "epoch": 3, "step": 70}, None]

    def state() -> dict[str, Any] | None:
        threads.append(threading.current_thread())
        return model.pop(0)

    with manager.share(state=state):
        first = elsewhere.submit(only_run().save, timeout_seconds=20)
        waited_for(only_run())
        assert ids(manager) == []
        manager.serve_requests()
        saved = first.result(20)
        assert [(item.checkpoint_id, item.step) for item in manager.list_checkpoints()] == [(saved, 70)]
        again = elsewhere.submit(only_run().save, timeout_seconds=20)
        waited_for(only_run())
        manager.serve_requests()
        assert again.result(20) == saved
    assert threads == [threading.current_thread()] * 2


def test_a_request_to_load_is_carried_out(make_manager: MakeManager, elsewhere: ThreadPoolExecutor) -> None:
    """By the function of the training, with the id that the name stands for; a wrong name reaches who asked."""
    manager, model = make_manager(), nn.Linear(2, 1)
    first = manager.save_checkpoint(model=model, epoch=1)
    stored = model.weight.detach().clone()
    torch.nn.init.zeros_(model.weight)
    with manager.share(load=lambda checkpoint_id: manager.load_checkpoint(checkpoint_id, model)):
        for name, outcome in (("nosuch", CheckpointNotFoundError), ("latest", None)):
            asked = elsewhere.submit(only_run().load, name, timeout_seconds=20)
            waited_for(only_run())
            manager.serve_requests()
            if outcome:
                with pytest.raises(outcome, match="nosuch"):
                    asked.result(20)
            else:
                assert asked.result(20) == first
        assert torch.equal(model.weight, stored)


def test_loads_are_refused_where_nothing_carries_them_out(make_manager: MakeManager) -> None:
    """At once, by an error that says what to do."""
    with make_manager().share(), pytest.raises(ConfigError, match=r"share\(load="):
        only_run().load("latest")


def failing_state() -> dict[str, Any]:
    raise ZeroDivisionError("a bug in state()")


@pytest.mark.parametrize("in_background", [False, True])
def test_a_failure_reaches_who_asked_and_not_the_training(
    make_manager: MakeManager, elsewhere: ThreadPoolExecutor, in_background: bool
) -> None:
    """A full disk fails the extra save alone: the call of the training returns as if nobody had asked."""
    manager = make_manager(save_interval=5)
    save(manager, 5)
    full = StorageFullError("the disk is full", hint="buy another")
    with manager.share():
        asked = elsewhere.submit(only_run().save, timeout_seconds=20)
        waited_for(only_run())
        with failing(manager, full, "open_write"):
            if in_background:
                assert manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=6).result() is None
                manager.flush()
            else:
                assert attempt(manager, 6) is None
        with pytest.raises(StorageFullError, match=r"the disk is full\. buy another"):
            asked.result(20)
        assert attempt(manager, 10) is not None


def test_a_failure_that_the_training_would_have_met_is_raised(
    make_manager: MakeManager, elsewhere: ThreadPoolExecutor
) -> None:
    """A save that the policy wants fails as ever; who asked learns the same."""
    manager = make_manager()
    with manager.share():
        asked = elsewhere.submit(only_run().save, timeout_seconds=20)
        waited_for(only_run())
        with pytest.raises(UnsupportedStateError):
            manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1, extra_state={"x": object()})
        with pytest.raises(UnsupportedStateError):
            asked.result(20)


def test_a_bug_in_state_harms_nobody(make_manager: MakeManager, elsewhere: ThreadPoolExecutor) -> None:
    """What ``state`` and ``load`` raise is logged and told, and the loop goes on."""
    manager = make_manager()
    save(manager, 1)
    with manager.share(state=failing_state, load=lambda _: failing_state()):
        for ask in (only_run().save, lambda **options: only_run().load("latest", **options)):
            asked: Future[str] = elsewhere.submit(ask, timeout_seconds=20)
            waited_for(only_run())
            manager.serve_requests()
            with pytest.raises(Exception, match=r"a bug in state\(\)"):
                asked.result(20)


def test_a_request_is_withdrawn_when_nobody_waits(make_manager: MakeManager) -> None:
    """After its deadline, a request makes no save any more; at the end of the run, what waits is told."""
    manager = make_manager(save_interval=5)
    save(manager, 5)
    with manager.share():
        with pytest.raises(RunUnavailableError, match="did not answer within"):
            only_run().save(timeout_seconds=0.1)
        deadline = time.monotonic() + 10
        while only_run().status().waiting:
            assert time.monotonic() < deadline
        assert attempt(manager, 6) is None
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(only_run().save, timeout_seconds=20)
            waited_for(only_run())
            run = only_run()
            manager._sharing._end()
            with pytest.raises(RunUnavailableError, match="ended before"):
                asked.result(20)
    with pytest.raises(RunUnavailableError):
        run.status()


def test_many_who_wait_do_not_hide_the_status(make_manager: MakeManager) -> None:
    """Of more saves than the run lets wait, the rest are refused at once, and the status comes all the while."""
    manager = make_manager(save_interval=5)
    save(manager, 5)
    with manager.share(), ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(only_run().save, timeout_seconds=20) for _ in range(20)]
        waited_for(only_run(), MOST_WAITING)
        while sum(future.done() for future in asked) < 20 - MOST_WAITING:
            assert only_run().status().waiting == MOST_WAITING
        saved = attempt(manager, 6)
        assert saved is not None
        outcomes = [future.exception(20) or future.result() for future in asked]
        assert outcomes.count(saved) == MOST_WAITING
        assert all(outcome == saved or isinstance(outcome, RunUnavailableError) for outcome in outcomes)


@pytest.mark.parametrize(
    "sent", [b"", b"no json\n", b'{"ask": "rm -rf"}\n', b'{"ask": "load"}\n', b"x" * 2**21, b'{"ask": "sta']
)
def test_nonsense_is_answered_or_dropped(make_manager: MakeManager, sent: bytes) -> None:
    """Whatever comes over the socket, the run goes on to answer."""
    with make_manager().share():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(only_run().socket)
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(2**16)
            except (BrokenPipeError, ConnectionResetError):  # it stopped reading what has no end
                answer = b""
        assert answer == b"" or b"failure" in answer
        assert only_run().status().waiting == 0


def test_what_a_killed_run_leaves_is_removed(tmp_path: Path) -> None:
    """Another process is asked to save and does; killed, the next list removes what it left."""
    command = [sys.executable, "-c", SHARED_RUN, str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"shared\n"
        run = only_run()
        assert run.owner.pid == process.pid
        saved = run.save(timeout_seconds=30)
        process.send_signal(signal.SIGKILL)
    assert Path(run.socket).exists()
    assert live_runs() == []
    assert list(runs_folder().iterdir()) == []
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "store")), "elsewhere")
    assert saved in ids(manager)


def test_a_long_path_needs_no_socket_in_it(
    make_manager: MakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes short paths only: the socket is elsewhere then, in a folder of the user alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("long" * 30)))
    with make_manager().share():
        path = Path(only_run().socket)
        assert only_run().status().waiting == 0
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def _leave(manager: CheckpointManager, leave: Callable[[], object]) -> None:
    manager.serve_requests()
    leave()


def test_a_forked_child_is_not_the_run(make_manager: MakeManager) -> None:
    """As a worker of a data loader: what it calls answers nobody, and its end leaves the run registered."""
    manager = make_manager()
    with manager.share():
        context = manager._sharing._shared_here
        child = multiprocessing.get_context("fork").Process(target=_leave, args=(manager, context))
        with (
            pytest.warns(DeprecationWarning, match="fork")
            if sys.version_info >= (3, 12)
            else pytest.MonkeyPatch.context()
        ):
            child.start()
        child.join(30)
        assert child.exitcode == 0
        assert only_run().status().waiting == 0


def test_sharing_twice_is_refused(make_manager: MakeManager) -> None:
    """And what is no function; the first context stays as it is."""
    manager = make_manager()
    with manager.share():
        with pytest.raises(ConfigError, match="shared already"), manager.share():
            pass
        assert only_run().status().waiting == 0
    with pytest.raises(ConfigError, match="load must be a function"), manager.share(load="latest"):  # type: ignore[arg-type]
        pass


def test_looking_for_who_asked_does_not_wait() -> None:
    """Else an answer that is ready would wait for the connection's own timeout."""
    here, there = socket.socketpair()
    with here:
        here.settimeout(30)
        began = time.monotonic()
        assert not _is_gone(here)
        there.close()
        assert _is_gone(here)
        assert time.monotonic() - began < 10
        assert here.gettimeout() == 30
