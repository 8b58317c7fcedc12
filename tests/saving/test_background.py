"""Background saves: the copy is of the moment of the call, errors come out, and training waits only where it must."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError, StorageFullError, UnsupportedStateError
from ckpt_lib.experiment import commit
from ckpt_lib.maintenance.copies import Copies
from ckpt_lib.state.copy_tasks import CopyTask, copy_together
from ckpt_lib.state.overlap import unchanged_until_step
from ckpt_lib.state.staging import Snapshot, StagingBuffer
from ckpt_lib.stream.chunks import processor_count
from tests.helpers import MakeManager, build, fingerprint, ids, payload_path, run_python, save, start_python, train


class Gate:
    """Holds commits up, or makes them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self._save = commit.save
        monkeypatch.setattr(commit, "save", self._saved)

    def _saved(self, *arguments: Any, **options: Any) -> Any:
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        return self._save(*arguments, **options)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def start(manager: CheckpointManager, epoch: int, **options: Any) -> Any:
    return manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=epoch, **options)


def stored_state(manager: CheckpointManager, checkpoint_id: str | None) -> str:
    """The fingerprint of model, optimizer and scheduler as plain ``torch.load`` finds them in a checkpoint."""
    assert checkpoint_id is not None
    payload = torch.load(payload_path(manager, checkpoint_id), weights_only=True)
    return fingerprint([payload[f"{part}_state_dict"] for part in ("model", "optimizer", "scheduler")])


def state_now(parts: Any) -> str:
    return fingerprint([part.state_dict() for part in (parts.model, parts.optimizer, parts.scheduler)])


# --- what is saved ---


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
        manager = make_manager(f"run-{number}", backup_checkpoints=False)
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


def raising(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


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


# --- order, limits, memory ---


def test_latest_moves_when_the_save_is_durable(make_manager: MakeManager, gate: Gate) -> None:
    """Until then whoever asks is told of the one before."""
    manager = make_manager()
    first = save(manager, 0)
    gate.open.clear()
    handle = start(manager, 1)
    assert not handle.done()
    assert ids(manager) == [first]
    gate.open.set()
    second = handle.result()
    assert ids(manager) == [first, second]


def test_saves_keep_their_order(make_manager: MakeManager) -> None:
    """Background and blocking ones alike are committed as they were called, each the child of the one before."""
    manager = make_manager(max_pending_saves=3, max_checkpoints=100)
    handles = [start(manager, epoch) for epoch in range(5)]
    last = save(manager, 5)
    assert ids(manager) == [*(handle.result() for handle in handles), last]
    manager.flush()
    parents = [manager._locations.home.get(checkpoint_id).parent_id for checkpoint_id in ids(manager)]
    assert parents == [None, *ids(manager)[:-1]]


@pytest.mark.parametrize("limit", [1, 3])
def test_one_more_than_the_limit_waits(make_manager: MakeManager, gate: Gate, limit: int) -> None:
    """A store that is slower than training holds training up instead of filling the memory."""
    manager = make_manager(max_pending_saves=limit)
    gate.open.clear()
    for epoch in range(limit):
        start(manager, epoch)
    late = threading.Thread(target=start, args=(manager, limit))
    late.start()
    late.join(timeout=0.3)
    assert late.is_alive()
    gate.open.set()
    late.join(timeout=30)
    manager.flush()
    assert len(ids(manager)) == limit + 1


def test_staging_memory_is_reported_and_used_again(make_manager: MakeManager, gate: Gate) -> None:
    """As much as the state for each save under way, no more after many, none after closing."""
    manager, parts = make_manager(max_pending_saves=2), build(width=1000)
    train(parts, [0])
    size_bytes = sum(parameter.nbytes for parameter in parts.model.parameters()) * 3
    assert manager.staging_bytes == 0
    manager.prepare(**parts.kwargs())
    prepared = manager.staging_bytes
    assert 2 * size_bytes <= prepared < 2 * size_bytes + 20_000
    for epoch in range(6):
        manager.save_checkpoint_async(**parts.kwargs(), epoch=epoch)
    assert manager.staging_bytes == prepared
    manager.close()
    assert manager.staging_bytes == 0
    assert manager.save_checkpoint_async(**parts.kwargs(), epoch=6).result() in ids(manager)


def test_backups_are_not_in_the_way_of_the_next_save(make_manager: MakeManager, monkeypatch: Any) -> None:
    """A backup location that hangs holds up neither the handle nor a further save; ``flush`` waits for it."""
    manager, gate = make_manager(), threading.Event()
    original = Copies.back_up

    def slow(*arguments: Any, **options: Any) -> bool:
        assert gate.wait(30)
        return original(*arguments, **options)

    monkeypatch.setattr(Copies, "back_up", slow)
    handles = [start(manager, epoch) for epoch in range(3)]
    assert [handle.result(timeout=30) for handle in handles] == ids(manager)
    assert manager.backup_ids() == []
    gate.set()
    manager.flush()
    assert manager.backup_ids() == ids(manager)


def test_the_policy_counts_saves_under_way(make_manager: MakeManager, gate: Gate) -> None:
    """Only improvements are saved, also over one that is not on disk yet."""
    manager = make_manager(save_best_only=True, max_pending_saves=3)
    gate.open.clear()
    handles = [start(manager, epoch, metrics={"val_loss": loss}) for epoch, loss in enumerate((0.5, 0.6, 0.4))]
    gate.open.set()
    assert [handle.result() for handle in handles] == [ids(manager)[0], None, ids(manager)[1]]


def test_a_key_is_saved_once(make_manager: MakeManager, gate: Gate) -> None:
    """Repeating a save that is under way returns its handle; afterwards, its id."""
    manager = make_manager()
    gate.open.clear()
    first = start(manager, 0, idempotency_key="a")
    assert start(manager, 0, idempotency_key="a") is first
    gate.open.set()
    assert start(manager, 0, idempotency_key="a").result() == first.result()
    assert ids(manager) == [first.result()]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has priorities of threads")
def test_saving_steps_back_behind_training(saves_step_back: None, make_manager: MakeManager, gate: Gate) -> None:
    """The thread that hashes and writes takes little of the processor time that training wants."""
    manager = make_manager()
    gate.open.clear()
    handle = start(manager, 0)
    thread = next(thread for thread in threading.enumerate() if thread.name == "ckpt-save")
    assert thread.native_id is not None
    while os.getpriority(os.PRIO_PROCESS, thread.native_id) == 0:  # it is just starting
        time.sleep(0.001)
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == 10
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0
    gate.open.set()
    handle.result()


# --- errors ---


@pytest.mark.parametrize("call", ["save", "save in the background", "flush"])
def test_an_error_comes_out_at_the_next_call(
    make_manager: MakeManager, gate: Gate, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """Once, before anything else is done; it is in the log at once; what was there stays the latest."""
    manager = make_manager()
    first = save(manager, 0)
    gate.error = StorageFullError("the store is full")
    with caplog.at_level(logging.ERROR):
        handle = start(manager, 1)
        while not handle.done():
            time.sleep(0.001)
    gate.error = None
    assert "the store is full" in caplog.text
    assert ids(manager) == [first]
    calls: dict[str, Any] = {"save": lambda: save(manager, 2), "save in the background": lambda: start(manager, 2)}
    with pytest.raises(StorageFullError):
        calls.get(call, manager.flush)()
    manager.flush()
    assert ids(manager) == [first]
    save(manager, 3)


def test_an_error_that_was_seen_is_not_raised_again(make_manager: MakeManager, gate: Gate) -> None:
    """Whoever asked the handle knows."""
    manager = make_manager()
    gate.error = StorageFullError("the store is full")
    handles = [start(manager, 0)]
    with pytest.raises(StorageFullError):
        handles[0].result()
    gate.error = None
    manager.flush()
    assert start(manager, 1).exception() is None


def test_each_of_several_errors_is_raised(make_manager: MakeManager, gate: Gate) -> None:
    """One at a time, oldest first."""
    manager = make_manager(max_pending_saves=3)
    gate.open.clear()
    gate.error = StorageFullError("the store is full")
    for epoch in range(3):
        start(manager, epoch)
    gate.open.set()
    for _ in range(3):
        with pytest.raises(StorageFullError):
            manager.flush()
    manager.flush()


def test_an_error_that_comes_while_others_are_raised_is_kept(make_manager: MakeManager, gate: Gate) -> None:
    """A save may end between two looks at it."""
    manager = make_manager()
    gate.open.clear()
    gate.error = StorageFullError("the store is full")
    handle = start(manager, 0)
    is_done = handle.done

    def ends_after_the_look() -> bool:
        found = is_done()
        gate.open.set()
        handle._condition.acquire()
        handle._condition.wait_for(is_done, timeout=30)
        handle._condition.release()
        return bool(found)

    handle.done = ends_after_the_look
    manager._saver.background.raise_failure()
    del handle.done
    with pytest.raises(StorageFullError):
        manager.flush()


def test_the_context_ends_with_everything_saved(make_manager: MakeManager, gate: Gate) -> None:
    """Leaving it waits, and raises what went wrong."""
    with make_manager() as manager:
        handle = start(manager, 0)
    assert handle.done()
    assert manager.backup_ids() == ids(manager)
    gate.error = StorageFullError("the store is full")
    with pytest.raises(StorageFullError), make_manager("other") as manager:
        start(manager, 0)


def test_a_refused_save_leaves_nothing_behind(make_manager: MakeManager) -> None:
    """Bad input is refused before a buffer is taken: the next save finds one free."""
    manager = make_manager()
    for options in ({"epoch": -1}, {"epoch": 0, "tags": "x y" * 100}, {"epoch": 0, "extra_state": {"a": object()}}):
        with pytest.raises(CheckpointError):
            manager.save_checkpoint_async(model=nn.Linear(2, 1), **options)
    assert start(manager, 0).result(timeout=30) in ids(manager)


def test_a_lack_of_memory_for_the_copy_is_an_error(make_manager: MakeManager, monkeypatch: Any) -> None:
    """The call says so, with a way out, and the next save works."""
    manager, empty = make_manager(), torch.empty

    def refuse(*arguments: Any, **options: Any) -> Any:
        if "pin_memory" in options:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return empty(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", refuse)
        with pytest.raises(MemoryError, match="blocking"):
            start(manager, 0)
    assert start(manager, 0).result(timeout=30) in ids(manager)


def test_a_wait_that_timed_out_has_not_seen_the_error(make_manager: MakeManager, gate: Gate) -> None:
    """What fails after it is still raised."""
    manager = make_manager()
    gate.open.clear()
    gate.error = StorageFullError("the store is full")
    handle = start(manager, 0)
    for ask in (handle.result, handle.exception):
        with pytest.raises(TimeoutError):
            ask(timeout=0.001)
    gate.open.set()
    with pytest.raises(StorageFullError):
        manager.flush()


def test_the_context_keeps_the_error_of_its_body(make_manager: MakeManager, gate: Gate) -> None:
    """A failed save is noted on it, and does not take its place."""
    gate.error = StorageFullError("the store is full")

    def body() -> None:
        with make_manager() as manager:
            start(manager, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        body()
    assert "the store is full" in raised.value.__notes__[0]


def test_closing_lets_those_go_on_who_wait(make_manager: MakeManager, gate: Gate) -> None:
    """A save that waits for its turn in another thread gets it, and no more saves are under way than may be."""
    manager = make_manager()
    gate.open.clear()
    start(manager, 0)
    waiting = [threading.Thread(target=start, args=(manager, epoch)) for epoch in (1, 2, 3)]
    for thread in waiting:
        thread.start()
    closing = threading.Thread(target=manager.close)
    closing.start()
    time.sleep(0.05)
    gate.open.set()
    for thread in (*waiting, closing):
        thread.join(timeout=30)
        assert not thread.is_alive()
    manager.flush()
    assert len(ids(manager)) == 4
    assert len(manager._saver.background._buffers) <= 1


def test_a_callback_may_save(make_manager: MakeManager) -> None:
    """Handles are futures: what is done with their outcome may be another save, but must not wait for itself."""
    manager, seen = make_manager(), []

    def again(_handle: Any) -> None:
        seen.append(start(manager, 1))
        with pytest.raises(RuntimeError, match="waits for the thread"):
            manager.flush()
        seen.append("refused")

    start(manager, 0).add_done_callback(again)
    while len(seen) < 2:
        time.sleep(0.001)
    assert seen[0].result(timeout=30) in ids(manager)


def test_a_callback_does_not_wait_for_a_later_save(make_manager: MakeManager) -> None:
    """Which has the only buffer, and is to be committed by the thread that calls back: an error, and no deadlock."""
    manager, begun, taken, errors = make_manager(), threading.Event(), threading.Event(), []

    def again(_handle: Any) -> None:
        begun.set()
        assert taken.wait(30)
        with pytest.raises(RuntimeError, match="would wait for a later save") as raised:
            start(manager, 2)
        errors.append(raised.value)

    first = start(manager, 0)
    first.add_done_callback(again)
    assert begun.wait(30)
    later = start(manager, 1)
    taken.set()
    assert later.result(timeout=30) in ids(manager)
    assert len(errors) == 1


@pytest.mark.parametrize("error", [SystemExit(1), ValueError("odd")], ids=["exit", "error"])
def test_what_follows_a_save_may_fail_in_any_way(make_manager: MakeManager, monkeypatch: Any, error: Any) -> None:
    """Nobody hangs, and the save stands."""
    manager = make_manager()
    monkeypatch.setattr(Copies, "back_up", lambda *_arguments, **_options: raising(error)())
    handle = start(manager, 0)
    manager.flush()
    assert ids(manager) == [handle.result()]


def test_threads_that_cannot_be_started_are_an_error(make_manager: MakeManager, monkeypatch: Any) -> None:
    """The call says so, and the next one works."""
    manager = make_manager()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _self: raising(RuntimeError("can't start new thread"))())
        with pytest.raises(RuntimeError, match="can't start"):
            start(manager, 0)
    assert start(manager, 1).result(timeout=30) in ids(manager)


def test_a_save_that_cannot_begin_stops_its_copy(make_manager: MakeManager, monkeypatch: Any) -> None:
    """Nothing writes to the buffer any more once it may be used for the next save."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    background, begin = manager._saver.background, threading.Thread.start
    background._copying.put(held.wait)

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ckpt-save":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    (buffer,) = background._buffers
    before = buffer.part(0, buffer.size_bytes).clone()
    held.set()
    background._copying.wait()
    assert torch.equal(buffer.part(0, buffer.size_bytes), before)


# --- the end of the process ---

_ENDING = """
import os, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

folder, how = sys.argv[1:]
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder, max_pending_saves=4), "run")
for epoch in range(3):
    manager.save_checkpoint_async(model=nn.Linear(500, 500), epoch=epoch)
if how == "forgotten":
    del manager
if how == "error":
    raise SystemExit("training failed")
if how == "killed":
    os.kill(os.getpid(), 9)
if how == "forked":
    child = os.fork()
    if child == 0:
        manager.flush()
        assert manager._saver.background.under_way == []
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(("how", "count"), [("end", 3), ("forgotten", 3), ("error", 3), ("forked", 3)])
def test_the_interpreter_waits_for_saves_under_way(
    make_manager: MakeManager, store_path: Path, how: str, count: int
) -> None:
    """However the script ends short of a kill, each save is there and backed up; a forked child repeats none."""
    child = start_python(_ENDING, store_path, how)
    _, errors = child.communicate(timeout=120)
    assert (child.returncode == 0) == (how != "error"), errors
    manager = make_manager()
    assert len(ids(manager)) == count
    assert all(manager.validate_all())
    assert set(manager.backup_ids()) == set(ids(manager))


def test_a_kill_loses_what_is_not_durable_and_nothing_else(make_manager: MakeManager, store_path: Path) -> None:
    """Whole or not at all, and the next save goes on."""
    child = start_python(_ENDING, store_path, "killed")
    child.communicate(timeout=120)
    assert child.returncode == -9
    manager = make_manager()
    assert all(manager.validate_all())
    manager.cleanup_checkpoints()
    assert save(manager, 9) in ids(manager)


_FAILING = """
import logging, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import commit
from ckpt_lib.maintenance.copies import Copies
from ckpt_lib.errors import StorageFullError

def full(*arguments, **options):
    raise StorageFullError("the store is full")

logging.basicConfig()
commit.save = full
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run")
manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0)
"""


def test_an_error_at_the_end_is_in_the_log(tmp_path: Path) -> None:
    """Nothing is left that could catch it; the script's own exit code stays."""
    child = start_python(_FAILING, tmp_path)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert "a background save failed: the store is full" in errors


def test_managers_do_not_pile_up(tmp_path: Path) -> None:
    """Threads end with their work, and memory with the manager."""
    output = run_python(
        """
import gc, sys, threading, weakref
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

def run(number):
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), f"run-{number}")
    manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0)
    manager.flush()
    return weakref.ref(manager._saver.background)

left = [run(number) for number in range(5)]
gc.collect()
threads = [thread.name for thread in threading.enumerate()]
print(sum(reference() is not None for reference in left), *threads)
""",
        tmp_path,
    )
    assert output == "0 MainThread\n"


_FORKED = """
import os, sys
import torch
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

torch.set_num_threads(1)  # those of OpenMP do not survive a fork

def save(name, value):
    config = CheckpointConfig(checkpoint_dir=sys.argv[1], backup_checkpoints=False)
    model = nn.Linear(4096, 2048, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    manager = CheckpointManager(config, name)
    for epoch in range(3):
        manager.save_checkpoint(model=model, epoch=epoch)
        weight = manager.load_checkpoint()["model_state_dict"]["weight"]
        assert bool((weight == value).all()), name

save("before", 0.0)
child = os.fork()
if child == 0:
    status = 1
    try:
        save("child", 1.0)
        status = 0
    finally:
        os._exit(status)
save("parent", 2.0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_shares_no_memory_with_a_save(tmp_path: Path) -> None:
    """Parent and child save at once after a save of the parent's: each file holds its own state."""
    run_python(_FORKED, tmp_path)


_MULTIPROCESSING = """
import multiprocessing, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

def work(folder):
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder), "run")
    for epoch in range(2):
        manager.save_checkpoint_async(model=nn.Linear(500, 500), epoch=epoch)

process = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],))
process.start()
process.join()
assert process.exitcode == 0
"""


def test_a_process_of_multiprocessing_waits_for_its_saves(make_manager: MakeManager, store_path: Path) -> None:
    """It calls no exit handlers; its end waits all the same."""
    run_python(_MULTIPROCESSING, store_path)
    manager = make_manager()
    assert len(ids(manager)) == 2
    assert manager.backup_ids() == ids(manager)


_NICE = """
import _strptime, os, tempfile, threading  # the first, loaded when a date is parsed, may be closed to another user
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import commit
from ckpt_lib.maintenance.copies import Copies

found = []
save = commit.save

def noting(*arguments, **options):
    found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    return save(*arguments, **options)

commit.save = noting
os.nice(15)
if os.getuid() == 0:
    os.setuid(65534)
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    with CheckpointManager(CheckpointConfig(checkpoint_dir=folder), "run") as manager:
        manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0).result(timeout=60)
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has priorities of threads")
def test_a_nicer_process_stays_as_it_is() -> None:
    """Asking for a higher priority is forbidden to most, and rude."""
    assert run_python(_NICE) == "15\n"
