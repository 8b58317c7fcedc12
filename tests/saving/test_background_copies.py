"""What a background save saves: the copy is of the moment of the call, whatever training does next."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.saving.background import SaveHandle
from ckpt_lib.state.copy_tasks import CopyTask, copy_together
from ckpt_lib.state.overlap import unchanged_until_step
from ckpt_lib.state.staging import Snapshot, StagingBuffer
from ckpt_lib.stream.chunks import processor_count
from tests.helpers import MakeManager, build, fingerprint, ids, payload_path, train
from tests.saving.under_way import Gate, raising, start, state_now, stored_state


@pytest.mark.parametrize("overlap", [True, False])
def test_what_training_does_next_never_reaches_the_file(make_manager: MakeManager, overlap: bool) -> None:
    """Every save of a run that goes on at once holds the state of the moment of the call, bit for bit."""
    manager, parts = make_manager(overlap_copy=overlap, backup_checkpoints=False, max_checkpoints=100), build()
    expected: dict[Any, str] = {}
    for epoch in range(12):
        train(parts, [epoch])
        expected[manager.save_checkpoint_async(**parts.kwargs(), epoch=epoch)] = state_now(parts)
    train(parts, [12])
    assert {handle.result(): state for handle, state in expected.items()} == {
        checkpoint_id: stored_state(manager, checkpoint_id) for checkpoint_id in ids(manager)
    }


def test_a_buffer_may_come_back_while_one_is_looked_for(make_manager: MakeManager) -> None:
    """At whichever moment: the save takes it."""
    saves = make_manager(max_pending_saves=1)._saver.background

    class Releasing:
        """A save under way that gives its buffer back once it was asked for it twice."""

        def __init__(self, buffer: StagingBuffer) -> None:
            self._answers = [buffer, buffer]

        @property
        def buffer(self) -> StagingBuffer | None:
            return self._answers.pop() if self._answers else None

        def wait_for_buffer(self) -> None:
            """Return at once: the buffer may be back."""

    buffer, handle = StagingBuffer(), SaveHandle()
    saves._buffers, saves._handles, saves._limit = [buffer], [Releasing(buffer)], 1  # type: ignore[list-item]
    saves._begin(handle)
    assert handle.buffer is buffer


def test_the_step_waits_for_what_is_left_to_copy(make_manager: MakeManager) -> None:
    """With the copying thread held up, the optimizer's step copies the rest itself before it changes anything."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    before = state_now(parts)
    assert len(manager._saver.background.under_way) == 1
    train(parts, [1])
    assert state_now(parts) != before
    held.set()
    assert stored_state(manager, handle.result()) == before


def test_buffers_are_copied_before_the_call_returns(make_manager: MakeManager) -> None:
    """The next forward pass changes the statistics of batch normalisation; no step would wait for that."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    before = state_now(parts)
    parts.model(torch.randn(16, 4))
    assert state_now(parts) != before
    parts.scheduler.step()
    held.set()
    assert stored_state(manager, handle.result()) == before


def test_whoever_else_changes_parameters_can_wait(make_manager: MakeManager) -> None:
    """``wait_until_copied`` is for averaging, clipping and the like, which no optimizer announces."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    before = state_now(parts)
    handle.wait_until_copied()
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.zero_()
    held.set()
    assert stored_state(manager, handle.result()) == before


def test_a_load_waits_for_the_copy(make_manager: MakeManager) -> None:
    """Loading writes into the parameters as a step does."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    first = manager.save_checkpoint(**parts.kwargs(), epoch=0)
    assert first is not None
    train(parts, [1])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=1)
    before = state_now(parts)
    manager.load_checkpoint(first, **parts.kwargs())
    held.set()
    assert stored_state(manager, handle.result()) == before


def test_everything_is_copied_at_once_by_default(make_manager: MakeManager) -> None:
    """Whatever writes to parameters after the call, nothing is left to wait for."""
    manager, parts, held = make_manager(), build(width=20_000), threading.Event()
    train(parts, [0])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    before = state_now(parts)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.zero_()
    assert stored_state(manager, handle.result(timeout=30)) == before
    held.set()


def test_the_same_file_comes_out_either_way(make_manager: MakeManager) -> None:
    """A background save writes what a blocking one does: shared tensors once, of views only what is seen."""
    model = nn.Module()
    model.whole = nn.Parameter(torch.arange(100_000.0))
    model.tied = model.whole
    model.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    large = torch.arange(1_000_000.0)
    extra = {"row": large[10:20], "column": large.view(1000, 1000)[:, 3], "overlap": large[15:25], "none": large[:0]}
    sizes = []
    for name in ("one", "two"):
        manager = make_manager(name, backup_checkpoints=False)
        options: Any = {"model": model, "epoch": 0, "extra_state": {**extra, "alone": torch.zeros(1000, 1000)[:, 3]}}
        if name == "one":
            checkpoint_id = manager.save_checkpoint(**options)
        else:
            checkpoint_id = manager.save_checkpoint_async(**options).result()
        assert checkpoint_id is not None
        path = payload_path(manager, checkpoint_id)
        payload = torch.load(path, weights_only=True)
        # As one tensor, whose bytes are in the file once.
        assert payload["model_state_dict"]["tied"].data_ptr() == payload["model_state_dict"]["whole"].data_ptr()
        assert fingerprint({key: payload["extra_state"][key] for key in extra}) == fingerprint(extra)
        row, overlap = payload["extra_state"]["row"], payload["extra_state"]["overlap"]
        row[5] = -1.0
        assert overlap[0] == -1.0
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1]
    assert sizes[0] < 4 * (100_000 + 1_000_000) + 20_000


def test_a_tensor_on_its_own_takes_what_it_shows(make_manager: MakeManager) -> None:
    """A view of a small part of a large tensor does not blow up the file, in one piece or with gaps."""
    large = torch.arange(1_000_000.0)
    for number, view in enumerate((large[500:510], large.view(1000, 1000)[:, 3], large.view(1000, 1000)[3])):
        manager = make_manager(f"run-{number}", backup_checkpoints=False, save_rng=False)
        handle = manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0, extra_state={"view": view})
        path = payload_path(manager, str(handle.result()))
        assert path.stat().st_size < 10_000
        assert torch.equal(torch.load(path)["extra_state"]["view"], view)


def test_plain_values_are_copied_too(make_manager: MakeManager, gate: Gate) -> None:
    """A list that the loop goes on filling is saved as it was."""
    manager, history = make_manager(), [1, 2]
    gate.open.clear()
    handle = start(manager, 0, extra_state={"history": history, "nested": {"history": history}})
    history.append(3)
    gate.open.set()
    payload = manager.load_checkpoint(str(handle.result()))
    assert payload["extra_state"] == {"history": [1, 2], "nested": {"history": [1, 2]}}


def test_any_optimizer_s_step_waits(make_manager: MakeManager) -> None:
    """Parameters may have a second optimizer, or get a new one, before the next step."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    before = state_now(parts)
    torch.optim.SGD(parts.model.parameters(), lr=1.0).step()
    held.set()
    assert stored_state(manager, handle.result()) == before


def test_another_manager_s_load_waits(make_manager: MakeManager) -> None:
    """It writes into the same parameters."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    first = manager.save_checkpoint(**parts.kwargs(), epoch=0)
    train(parts, [1])
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(**parts.kwargs(), epoch=1)
    before = state_now(parts)
    make_manager().load_checkpoint(str(first), **parts.kwargs())
    held.set()
    assert stored_state(manager, handle.result()) == before


def test_a_buffer_beside_a_parameter_is_copied_at_once(make_manager: MakeManager) -> None:
    """In flat memory, a parameter that only the step changes may lie beside what the next forward pass changes."""
    flat = torch.zeros(200_000)
    model = nn.Module()
    model.weight = nn.Parameter(flat[:100_000])
    model.register_buffer("statistics", flat[100_000:])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager, held = make_manager(overlap_copy=True), threading.Event()
    manager._saver.background._copying.put(held.wait)
    handle = manager.save_checkpoint_async(model=model, optimizer=optimizer, epoch=0)
    flat[100_000:] += 1
    held.set()
    payload = manager.load_checkpoint(str(handle.result()))
    assert not payload["model_state_dict"]["statistics"].any()


@pytest.mark.skipif(os.name != "posix", reason="a process cannot send itself Ctrl-C here")
def test_an_interrupted_flush_waits_again_and_takes_no_processor(make_manager: MakeManager, gate: Gate) -> None:
    """After Ctrl-C in one flush the next one waits for the save, and does not ask for it over and over."""
    manager = make_manager(backup_checkpoints=False)
    gate.open.clear()
    start(manager, 1)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        manager.flush()
    threading.Timer(1.0, gate.open.set).start()
    began = time.thread_time()
    manager.flush()
    assert time.thread_time() - began < 0.5
    assert [item.epoch for item in manager.list_checkpoints()] == [1]


@pytest.mark.skipif(os.name != "posix" or processor_count() < 2, reason="nobody helps, or there is no Ctrl-C")
def test_an_interrupt_does_not_part_the_copy_from_its_helpers() -> None:
    """Ctrl-C while a helper still writes to the buffer comes out when it does no longer."""
    helping, done = threading.Event(), list[str]()

    def copy() -> None:
        if threading.current_thread() is threading.main_thread():
            helping.wait(10)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            helping.set()
            time.sleep(1)
            done.append("helper")

    with pytest.raises(KeyboardInterrupt):
        copy_together([CopyTask(copy), CopyTask(copy)])
    assert done == ["helper"]


@pytest.mark.parametrize("error", [RuntimeError("the device is lost"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_copy_that_fails_is_not_taken_for_done(error: BaseException) -> None:
    """Whoever comes next copies the piece, or fails as well; it never passes for copied."""
    parameter = nn.Parameter(torch.ones(100_000))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    snapshot = Snapshot({"a": parameter.detach()}, StagingBuffer(), unchanged_until_step(optimizer))
    assert not snapshot.is_complete
    (piece,) = snapshot._tasks
    action = piece._action
    piece._action = raising(error)
    for call in (snapshot.finish_in_background, snapshot.finish, snapshot.payload):
        with pytest.raises(type(error)):
            call()
    assert not snapshot.is_complete
    piece._action = action
    assert torch.equal(snapshot.payload()["a"], parameter)


@pytest.mark.parametrize("how", ["blocking", "in the background"])
def test_empty_views_are_saved(make_manager: MakeManager, how: str) -> None:
    """An empty view of a tensor of which another part is saved needs none of its bytes."""
    large = torch.arange(1000.0)
    extra = {"none": large[0:0], "some": large[500:600], "end": large[1000:], "zero": torch.empty(0, 3)}
    manager = make_manager()
    options: Any = {"model": nn.Linear(2, 1), "epoch": 0, "extra_state": extra}
    saved = (
        manager.save_checkpoint(**options) if how == "blocking" else manager.save_checkpoint_async(**options).result()
    )
    found = manager.load_checkpoint(str(saved))["extra_state"]
    assert {key: found[key].shape for key in extra} == {key: extra[key].shape for key in extra}
    assert torch.equal(found["some"], extra["some"])


@pytest.mark.filterwarnings("ignore:Sparse C")  # says how young it is
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_tensors_without_a_storage_are_copied(make_manager: MakeManager, layout: torch.layout) -> None:
    """What a blocking save takes, a background save takes too."""
    manager = make_manager()
    dense = torch.eye(3)
    sparse = dense.to_sparse(layout=layout)
    saved = start(manager, 1, extra_state={"sparse": sparse})
    (sparse._values() if layout is torch.sparse_coo else sparse.values()).zero_()
    loaded = manager.load_checkpoint(saved.result())["extra_state"]["sparse"]
    assert loaded.layout is layout
    assert torch.equal(loaded.to_dense(), dense)


def test_a_tensor_keeps_what_hangs_on_it(make_manager: MakeManager) -> None:
    """A parameter with an attribute is one afterwards, whichever way it was saved."""
    manager = make_manager()
    parameter = nn.Parameter(torch.ones(2))
    parameter.flag = "frozen"  # type: ignore[attr-defined]
    options: Any = {"model": nn.Linear(2, 1), "extra_state": {"a": parameter}}
    for saved in (
        manager.save_checkpoint(epoch=0, **options),
        start(manager, 1, extra_state={"a": parameter}).result(),
    ):
        found = manager.load_checkpoint(str(saved))["extra_state"]["a"]
        assert (type(found), found.requires_grad, found.flag) == (nn.Parameter, True, "frozen")


def test_what_torch_could_not_read_back_is_refused(make_manager: MakeManager) -> None:
    """PyTorch cannot rebuild a leaf whose memory is seen as two types: said before there is a file."""
    leaf = torch.zeros(4, requires_grad=True)
    manager = make_manager()
    extra = {"a": leaf, "bits": leaf.detach().view(torch.int32)}
    with pytest.raises(UnsupportedStateError, match="requires grad"):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=0, extra_state=extra)
    assert isinstance(start(manager, 0, extra_state=extra).exception(), UnsupportedStateError)
    assert ids(manager) == []


class Unusual(torch.optim.Optimizer):
    """One that leaves out what optimizers do at first, as wrappers of others are known to."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()


def test_an_optimizer_without_hooks_is_copied_at_once(make_manager: MakeManager) -> None:
    """Nothing would wait for the copy: so it is made before the call returns."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    manager._saver.background._copying.put(held.wait)
    options = {**parts.kwargs(), "optimizer": Unusual(parts.optimizer)}
    handle = manager.save_checkpoint_async(**options, epoch=0)
    before = state_now(parts)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.zero_()
    assert stored_state(manager, handle.result(timeout=30)) == before
    held.set()
