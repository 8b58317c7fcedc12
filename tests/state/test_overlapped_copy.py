"""Overlapped background saves: a write to what is not copied yet fails the save, and nothing else does."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError, StateChangedError
from ckpt_lib.state.watching import CallingThread
from tests.helpers import MakeManager, fingerprint, ids, payload_path

WIDTH = 512


class Run:
    """A model whose parameters are large enough to be copied later, and a copying thread that can be held up."""

    def __init__(self, manager: CheckpointManager) -> None:
        torch.manual_seed(0)
        self.manager = manager
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters())
        self.go_on = threading.Event()
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(self.model(torch.randn(4, WIDTH)).square().mean())
        self.optimizer.step()

    def save(self, epoch: int = 1, *, held: bool = True) -> Any:
        if held:
            self.manager._saver.background._copying.put(lambda: self.go_on.wait(30))
            self.manager._saver.background._committing.put(lambda: self.go_on.wait(30))
        return self.manager.save_checkpoint_async(model=self.model, optimizer=self.optimizer, epoch=epoch)

    def state(self) -> str:
        return fingerprint([self.model.state_dict(), self.optimizer.state_dict()])

    def stored(self, checkpoint_id: str) -> str:
        payload = torch.load(payload_path(self.manager, checkpoint_id), weights_only=True)
        return fingerprint([payload["model_state_dict"], payload["optimizer_state_dict"]])


@pytest.fixture
def run(make_manager: MakeManager) -> Run:
    return Run(make_manager(overlap_copy=True, backup_checkpoints=False))


def weight(run: Run) -> nn.Parameter:
    found = run.model[0].weight
    assert isinstance(found, nn.Parameter)
    return found


@torch.no_grad()
def add(run: Run) -> None:
    weight(run).add_(1)


@torch.no_grad()
def write_to_a_part(run: Run) -> None:
    weight(run)[3, 5] = 7


@torch.no_grad()
def swap_all(run: Run) -> None:
    torch._foreach_mul_(list(run.model.parameters()), 0.5)


def write_in_inference_mode(run: Run) -> None:
    with torch.inference_mode():
        weight(run).zero_()


def load(run: Run) -> None:
    run.model.load_state_dict({name: torch.zeros_like(value) for name, value in run.model.state_dict().items()})


def compiled(run: Run) -> None:
    @torch.compile(backend="aot_eager")
    def shrink(parameter: torch.Tensor) -> None:
        with torch.no_grad():
            parameter.mul_(0.5)

    shrink(weight(run))


def write_to_the_optimizer(run: Run) -> None:
    run.optimizer.state[weight(run)]["exp_avg"].zero_()


def initialise(run: Run) -> None:
    nn.init.orthogonal_(weight(run))


def move(run: Run) -> None:
    run.model.share_memory()


CHANGES = [add, write_to_a_part, swap_all, write_in_inference_mode, load, compiled, write_to_the_optimizer, initialise]


@pytest.mark.parametrize("change", [*CHANGES, move], ids=lambda change: change.__name__)
def test_a_write_before_the_copy_fails_the_save(run: Run, change: Callable[[Run], None]) -> None:
    """It is never acknowledged, the newest stays the newest, and the next save is made at once and is exact."""
    first = run.save(0, held=False).result()
    handle = run.save()
    change(run)
    run.go_on.set()
    with pytest.raises(StateChangedError, match=r"state_dict\.") as raised:
        handle.result(timeout=30)
    assert isinstance(raised.value, CheckpointError)
    assert ids(run.manager) == [first]
    run.go_on.clear()
    handle, before = run.save(2), run.state()
    load(run)
    run.go_on.set()
    assert run.stored(handle.result(timeout=30)) == before


def test_the_error_names_the_tensors(run: Run) -> None:
    """The error names the first three changed tensors by their path in the state."""
    handle = run.save()
    swap_all(run)
    handle.wait_until_copied()
    run.go_on.set()
    with pytest.raises(StateChangedError, match=r"^model_state_dict\.[01]\.weight changed before"):
        handle.result(timeout=30)


def test_a_step_goes_on_whatever_became_of_the_save(run: Run) -> None:
    """The error belongs to the save: it comes out of its handle, or of the next call of the manager."""
    run.save()
    add(run)
    run.step()
    run.go_on.set()
    with pytest.raises(StateChangedError):
        run.manager.flush()


def test_the_step_is_no_change(run: Run) -> None:
    """What the optimizer writes after the copy is complete is of no interest, nor what anything else does then."""
    handle, before = run.save(), run.state()
    run.step()
    swap_all(run)
    run.go_on.set()
    assert run.stored(handle.result(timeout=30)) == before


def test_after_the_wait_anything_may_change(run: Run) -> None:
    """After ``wait_until_copied``, later writes do not fail the save."""
    handle, before = run.save(), run.state()
    handle.wait_until_copied()
    swap_all(run)
    move(run)
    run.go_on.set()
    assert run.stored(handle.result(timeout=30)) == before


def test_a_parameter_with_new_memory_is_no_change(run: Run) -> None:
    """``parameter.data = ...`` leaves the memory alone that is being copied."""
    handle, before = run.save(), run.state()
    weight(run).data = torch.zeros(WIDTH, WIDTH)
    run.go_on.set()
    assert run.stored(handle.result(timeout=30)) == before


def test_a_write_through_other_memory_is_a_change(make_manager: MakeManager) -> None:
    """Parameters that are views of one flat tensor share its counter."""
    run = Run(make_manager(overlap_copy=True))
    flat = torch.zeros(2 * WIDTH * WIDTH)
    for layer, part in zip(run.model, flat.view(2, WIDTH, WIDTH), strict=True):
        layer.weight = nn.Parameter(part)
    run.optimizer = torch.optim.SGD(run.model.parameters())
    handle = run.save()
    flat[7] = 1
    run.go_on.set()
    assert isinstance(handle.exception(timeout=30), StateChangedError)


def test_memory_that_was_given_back_is_not_read(run: Run) -> None:
    """A storage that was resized to nothing and back counts as changed."""
    handle = run.save()
    storage = weight(run).untyped_storage()
    size_bytes = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size_bytes)
    storage.resize_(0)
    run.go_on.set()
    assert isinstance(handle.exception(timeout=30), StateChangedError)


def test_tensors_without_a_counter_are_copied_at_once(make_manager: MakeManager) -> None:
    """PyTorch counts no writes to tensors that were made in inference mode."""
    manager = make_manager(overlap_copy=True)
    with torch.inference_mode():
        state = torch.ones(WIDTH, WIDTH)
    model = nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight]["momentum_buffer"] = state
    go_on = threading.Event()
    manager._saver.background._copying.put(lambda: go_on.wait(30))
    handle = manager.save_checkpoint_async(model=model, optimizer=optimizer, epoch=0)
    with torch.inference_mode():
        state.zero_()
    go_on.set()
    stored = manager.load_checkpoint(str(handle.result(timeout=30)))["optimizer_state_dict"]
    assert bool((stored["state"][0]["momentum_buffer"] == 1).all())


def test_an_operation_under_way_is_waited_for(run: Run) -> None:
    """A write is counted when it ends, which may be long after the copy that it spoils is complete."""
    run.model = nn.Sequential(nn.Embedding(100_000, 16, max_norm=1.0))
    run.optimizer = torch.optim.SGD(run.model.parameters())
    handle, before = run.save(), run.state()
    threading.Timer(0.05, run.go_on.set).start()
    run.model(torch.arange(100_000).flip(0))  # takes several times as long, from the last row to the first
    error = handle.exception(timeout=60)
    assert isinstance(error, StateChangedError) or run.stored(handle.result()) == before


def test_a_caller_that_polls_is_not_waited_for(run: Run) -> None:
    """A caller that asks for the outcome is known not to be writing to a tensor."""
    begun = time.monotonic()
    handle = run.save(held=False)
    while not handle.done():
        time.sleep(0.01)
    assert time.monotonic() - begun < 15
    assert handle.result() in ids(run.manager)


@pytest.mark.parametrize("wait", ["flush", "close", "a blocking save", "prepare"])
def test_a_caller_that_waits_is_not_waited_for(run: Run, wait: str) -> None:
    """A caller that waits for saves is recognised at once, instead of after the half minute for a sleeping thread."""
    begun = time.monotonic()
    handle = run.save(held=False)
    if wait == "a blocking save":
        run.manager.save_checkpoint(model=run.model, optimizer=run.optimizer, epoch=99)
    elif wait == "prepare":
        run.manager.prepare(model=run.model, optimizer=run.optimizer)
    else:
        getattr(run.manager, wait)()
    assert handle.result() in ids(run.manager)
    assert time.monotonic() - begun < 15


def test_where_a_caller_is(tmp_path: Path) -> None:
    """A thread in an operation is waited for until it moves on; a thread that waits or has ended is not."""
    callers: list[CallingThread] = []
    begin, end = threading.Event(), threading.Event()
    matrix = torch.eye(700, device="cpu")

    def work() -> None:
        callers.append(CallingThread())
        begin.set()
        matrix.matrix_power(2**40 + 1)
        end.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    assert begin.wait(30)
    callers[0].wait_until_moved_on()
    assert not end.is_set()
    callers[0].wait_until_moved_on()
    end.set()
    thread.join()
    callers[0].wait_until_moved_on()
    CallingThread().wait_until_moved_on()


# --- without it ---


def test_nothing_keeps_the_state_of_a_default_save(make_manager: MakeManager) -> None:
    """Once the call has returned, the model's memory may go, though the save is far from durable."""
    run = Run(make_manager())
    memory = np.ones((WIDTH, WIDTH), dtype=np.float32)
    run.model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    weight(run).data = torch.from_numpy(memory)
    handle, before, is_there = run.save(), run.state(), weakref.ref(memory)
    del memory, run.model
    gc.collect()
    assert is_there() is None
    run.go_on.set()
    assert run.stored(handle.result(timeout=30)) == before


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_by_default_a_write_after_the_call_is_no_change(
    make_manager: MakeManager, change: Callable[[Run], None]
) -> None:
    """The state is copied before the call returns."""
    run = Run(make_manager())
    handle, before = run.save(), run.state()
    change(run)
    for parameter in run.model.parameters():
        parameter.data.zero_()
    run.go_on.set()
    assert run.stored(handle.result(timeout=30)) == before
