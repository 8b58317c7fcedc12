"""Preemption: real processes that real signals ask to stop."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, StorageFullError
from ckpt_lib.experiment import commit
from ckpt_lib.saving.preemption import Preemption
from tests.helpers import MakeManager, start_python
from tests.warm import Python

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals between processes are POSIX")

_TRAINING = """
import atexit, signal, sys, time
import torch
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.saving.preemption import Preemption

atexit.register(print, "exit handler", flush=True)
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], save_interval=1000), "run")
model, step = torch.nn.Linear(2, 1), 0
{before}
try:
    with manager.save_on_signal(lambda: dict(model=model, epoch=1, step=step)) as preemption:
        while step < 10**6:
            with torch.no_grad():
                model.weight.fill_(step)  # half of a step: only at its end do the weights and the number agree
                {inside}
                model.bias.fill_(step)
            step += 1
            with torch.no_grad():
                model.weight.fill_(step)
                model.bias.fill_(step)
            if step == 3:
                print("running", flush=True)
            preemption.safe_point()
            {after}
finally:
    print("finally", flush=True)
"""


def start(store: Path, *, before: str = "", inside: str = "time.sleep(0.001)", after: str = "") -> Python:
    child = start_python(_TRAINING.format(before=before, inside=inside, after=after), store)
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    return child


def saved_by(store: Path) -> tuple[int, float, float]:
    """Step, weight and bias of the one checkpoint there is."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "run")
    (checkpoint,) = manager.list_checkpoints()
    state = manager.load_checkpoint(checkpoint.checkpoint_id)["model_state_dict"]
    return checkpoint.step, float(state["weight"][0, 0]), float(state["bias"][0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_once_more_and_ends_the_process(store_path: Path, number: signal.Signals) -> None:
    """At a safe point: the state is whole. ``finally`` and exit handlers run; the exit code is 128 + the signal's."""
    child = start(store_path)
    child.send_signal(number)
    output, errors = child.communicate(timeout=60)
    step, weight, bias = saved_by(store_path)
    assert (weight, bias) == (step, step)
    assert step > 0
    assert output == "finally\nexit handler\n"
    if number == signal.SIGTERM:
        assert child.returncode == 128 + signal.SIGTERM
    else:  # Python's own handler had been there: it gets its turn
        assert child.returncode == -signal.SIGINT
        assert errors.rstrip().endswith("KeyboardInterrupt")


def test_an_earlier_handler_gets_the_signal_after_the_save(store_path: Path) -> None:
    """The handler of a framework around the training still decides how it ends."""
    handler = """
def theirs(number, frame):
    print("theirs", len(manager.list_checkpoints()), flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, theirs)
"""
    child = start(store_path, before=handler)
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output) == (7, "theirs 1\nfinally\nexit handler\n")


def test_signals_that_come_twice_save_once(store_path: Path) -> None:
    """Launchers forward a signal that the process had already."""
    child = start(store_path, inside="time.sleep(1)")
    threading.Event().wait(0.2)  # it is past the safe point, and far from the next
    child.send_signal(signal.SIGTERM)
    threading.Event().wait(0.05)  # signals that wait at once are delivered by their numbers
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert saved_by(store_path)[0] > 0


def test_a_second_ctrl_c_does_not_wait_for_a_safe_point(store_path: Path) -> None:
    """A person who means it: the step that never ends is interrupted, and nothing is saved."""
    child = start(store_path, inside="time.sleep(0.001 if step < 5 else 600)")
    threading.Event().wait(0.5)
    child.send_signal(signal.SIGINT)
    threading.Event().wait(1.2)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path)), "run").list_checkpoints() == []


def test_an_ignored_signal_stays_ignored(store_path: Path) -> None:
    """As under ``nohup``."""
    child = start(store_path, before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    child.send_signal(signal.SIGINT)
    threading.Event().wait(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM


def test_the_end_of_the_block_is_a_safe_point(make_manager: MakeManager) -> None:
    """A loop that looks at ``requested`` and leaves is saved as well."""
    manager = make_manager(save_interval=1000)

    def leave() -> None:
        with manager.save_on_signal(lambda: {"model": nn.Linear(2, 1), "epoch": 7}) as preemption:
            assert not preemption.requested
            signal.raise_signal(signal.SIGTERM)
            assert preemption.requested

    with pytest.raises(SystemExit) as raised:
        leave()
    assert raised.value.code == 128 + signal.SIGTERM
    assert [item.epoch for item in manager.list_checkpoints()] == [7]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_background_saves_are_finished_first(make_manager: MakeManager) -> None:
    """And one that failed does not keep the last save from being made."""
    manager = make_manager(max_checkpoints=10)
    model = nn.Linear(2, 1)

    def be_preempted() -> None:
        with manager.save_on_signal(lambda: {"model": model, "epoch": 3}) as preemption:
            manager.save_checkpoint_async(model=model, epoch=1)
            signal.raise_signal(signal.SIGTERM)
            preemption.safe_point()

    with pytest.raises(SystemExit):
        be_preempted()
    assert [item.epoch for item in manager.list_checkpoints()] == [1, 3]


def test_several_failed_saves_do_not_keep_the_last_one_from_being_made(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no later call to tell of the second: what matters now is the state."""
    manager = make_manager(max_pending_saves=2)
    model, may_fail = nn.Linear(2, 1), threading.Event()

    def fail(*_arguments: object, **_options: object) -> None:
        assert may_fail.wait(30)
        raise StorageFullError("the store is full")

    def be_preempted() -> None:
        with manager.save_on_signal(lambda: {"model": model, "epoch": 3}) as preemption:
            signal.raise_signal(signal.SIGTERM)
            preemption.safe_point()

    with monkeypatch.context() as patch:
        patch.setattr(commit, "save", fail)
        handles = [manager.save_checkpoint_async(model=model, epoch=epoch) for epoch in (1, 2)]
        may_fail.set()
        wait(handles)
    with pytest.raises(SystemExit):
        be_preempted()
    assert [item.epoch for item in manager.list_checkpoints()] == [3]


def test_without_a_signal_nothing_happens(make_manager: MakeManager) -> None:
    """Nothing is saved, and the handlers are back."""
    manager, before = make_manager(), signal.getsignal(signal.SIGINT)
    with manager.save_on_signal(dict) as preemption:
        preemption.safe_point()
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
    assert manager.list_checkpoints() == []


@pytest.mark.parametrize("is_asked", [False, True])
def test_an_error_inside_saves_nothing(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture, is_asked: bool
) -> None:
    """It is raised as it is; after a signal, that counts: whoever tries again for the error would go on training."""
    manager, before = make_manager(), signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        with manager.save_on_signal(lambda: {"model": nn.Linear(2, 1), "epoch": 1}):
            if is_asked:
                signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(SystemExit if is_asked else ZeroDivisionError) as caught:
        fail()
    if is_asked:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 128 + signal.SIGTERM
        assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert ("ZeroDivisionError" in caplog.text) == is_asked
    assert manager.list_checkpoints() == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_who_took_over_afterwards_stays(make_manager: MakeManager) -> None:
    """A handler that was installed inside the block is not ours to undo."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with make_manager().save_on_signal(dict):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, 0, -1, 12345])
def test_what_cannot_be_handled_is_refused(make_manager: MakeManager, number: int) -> None:
    """At the door, before a handler was changed."""
    with pytest.raises(ConfigError, match=r"signal|SIG"):
        make_manager().save_on_signal(dict, signals=[number])


def test_what_cannot_be_saved_is_named(make_manager: MakeManager) -> None:
    """Arguments that ``save_checkpoint`` does not take; and a state that is no function is refused at once."""
    manager = make_manager()

    def be_preempted() -> None:
        with manager.save_on_signal(lambda: {"modell": 1}):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(ConfigError, match="modell"):
        be_preempted()
    with pytest.raises(ConfigError, match="function"):
        manager.save_on_signal({"model": nn.Linear(2, 1)})  # type: ignore[arg-type]


def test_another_thread_is_refused() -> None:
    """Python delivers signals to the main thread alone."""
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with Preemption(lambda: None, [signal.SIGTERM]):
                pass
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert [type(error) for error in errors] == [ConfigError]
