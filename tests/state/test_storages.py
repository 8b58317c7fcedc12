"""Tensors whose storage was freed or cut short, as sharding and offloading do: refused by name, nothing beyond read.

PyTorch itself would read whatever lies behind the storage, or end the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import StateChangedError, UnsupportedStateError
from ckpt_lib.formats import Payload, format_named
from ckpt_lib.formats.tensor_bytes import blocks_of
from ckpt_lib.state.memory import byte_view
from ckpt_lib.state.overlap import address_key
from ckpt_lib.state.staging import Snapshot, StagingBuffer
from ckpt_lib.testing.payloads import MemorySink
from tests.helpers import MakeManager

MODES = ("blocking", "background", "overlapped")


def save(make_manager: MakeManager, mode: str, **state: Any) -> CheckpointManager:
    manager = make_manager(overlap_copy=mode == "overlapped", backup_checkpoints=False)
    if mode == "blocking":
        manager.save_checkpoint(epoch=1, **state)
    else:
        manager.save_checkpoint_async(epoch=1, **state).result()
    return manager


def cut(tensor: torch.Tensor, size_bytes: int) -> torch.Tensor:
    tensor.untyped_storage().resize_(size_bytes)
    return tensor


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("elements", "left"), [(1000, 0), (1000, 400), (3_000_000, 0), (3_000_000, 400_000)])
def test_lost_memory_is_refused_by_name(make_manager: MakeManager, mode: str, elements: int, left: int) -> None:
    """A tensor that lost its memory is refused by every kind of save: nothing is written, and no storage grows."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(elements))
    storage = cut(model.weight, left).untyped_storage()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UnsupportedStateError, match=r"model_state_dict\['weight'\] has lost its memory.*got"):
        save(make_manager, mode, model=model, optimizer=optimizer)
    assert storage.nbytes() == left
    manager = make_manager()
    assert manager.list_checkpoints() == []
    assert not list(Path(manager.config.checkpoint_dir).rglob("*.pt"))


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_tensor_has_lost_nothing(make_manager: MakeManager, mode: str) -> None:
    """What has no elements needs no memory; what uses only the part that is left has all of its."""
    storage = torch.arange(1000.0)
    state = {"none": cut(torch.ones(8), 0)[8:], "start": cut(storage, 400)[:100]}
    loaded = save(make_manager, mode, model=nn.Linear(2, 2), extra_state=state).load_checkpoint()["extra_state"]
    assert loaded["none"].shape == (0,)
    assert torch.equal(loaded["start"], torch.arange(100.0))


STRANGE: dict[str, tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "coo": (lambda: torch.eye(100).to_sparse(), torch.Tensor._values),
    "csr": (lambda: torch.eye(100).to_sparse_csr(), torch.Tensor.values),
    "csc": (lambda: torch.eye(100).to_sparse_csc(), torch.Tensor.row_indices),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(1000), 0.1, 0, torch.qint8), torch.Tensor.detach),
    "by channel": (
        lambda: torch.quantize_per_channel(torch.ones(10, 100), torch.ones(10), torch.zeros(10), 0, torch.qint8),
        torch.Tensor.detach,
    ),
    "column": (lambda: torch.ones(100, 100)[:, 3], torch.Tensor.detach),
    "conjugate": (lambda: torch.ones(100, dtype=torch.complex64).conj(), torch.Tensor.detach),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(200), torch.ones(300)], layout=torch.jagged),
        torch.Tensor.values,
    ),
}
"""Tensors of every layout, and what of them loses its memory."""


@pytest.mark.filterwarnings(
    "ignore:Sparse CS. tensor support", "ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested tensors"
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", STRANGE)
def test_every_kind_of_tensor_can_lose_its_memory(make_manager: MakeManager, mode: str, kind: str) -> None:
    """A tensor that consists of several tensors is refused if any of them lost its memory."""
    make, part_of = STRANGE[kind]
    tensor = make()
    cut(part_of(tensor), 8)
    with pytest.raises(UnsupportedStateError, match=rf"extra_state\['{kind}'\] has lost its memory"):
        save(make_manager, mode, model=nn.Linear(2, 2), extra_state={kind: tensor})


def test_a_tensor_with_an_attribute_can_lose_its_memory(make_manager: MakeManager) -> None:
    """Frameworks mark parameters with flags, and free them."""
    tensor = cut(torch.ones(100), 0)
    tensor.mark = 3  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedStateError, match="lost its memory"):
        save(make_manager, "blocking", model=nn.Linear(2, 2), extra_state={"marked": tensor})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_can_lose_its_memory(make_manager: MakeManager) -> None:
    """A nested tensor that lost its memory is refused."""
    nested = torch.nested.nested_tensor([torch.ones(200), torch.ones(300)])
    with pytest.raises(UnsupportedStateError, match="nested"):
        save(make_manager, "blocking", model=nn.Linear(2, 2), extra_state={"nested": cut(nested, 8)})


def test_check_tells_of_it_before_training(manager: CheckpointManager) -> None:
    """``check`` refuses a state that lost its memory, without a save."""
    with pytest.raises(UnsupportedStateError, match=r"\['freed'\]"):
        manager.check(model=nn.Linear(2, 2), extra_state={"freed": cut(torch.ones(10), 0)})


@pytest.mark.parametrize("elements", [1000, 3_000_000])
@pytest.mark.parametrize("column", [False, True])
def test_what_is_freed_before_it_is_written_is_not_read(elements: int, column: bool) -> None:
    """Memory that another thread frees while the file is written is not read."""
    tensor = torch.ones(elements, 2)
    payload: Payload = {"tensor": tensor[:, 0] if column else tensor}
    layout = format_named("torch").lay_out(payload)
    cut(tensor, 16)
    with pytest.raises(UnsupportedStateError, match="lost its memory"):
        layout.write(MemorySink())
    assert tensor.untyped_storage().nbytes() == 16


def test_what_is_freed_while_it_is_written_is_not_read() -> None:
    """The memory is checked again before each block is read."""
    tensor = torch.ones(3_000_000)
    blocks = blocks_of(byte_view(tensor.untyped_storage(), 0, tensor.nbytes))
    next(blocks)
    cut(tensor, 400)
    with pytest.raises(UnsupportedStateError, match="lost its memory"):
        next(blocks)


@pytest.mark.parametrize("left", [0, 400])
def test_what_is_freed_before_it_is_copied_is_not_read(make_manager: MakeManager, left: int) -> None:
    """With overlap_copy, between the call and the copy: the save fails, and names the tensor."""
    manager = make_manager(overlap_copy=True, backup_checkpoints=False)
    model = nn.Linear(3000, 3000)
    go_on = threading.Event()
    manager._saver.background._copying.put(lambda: go_on.wait(30))
    manager._saver.background._committing.put(lambda: go_on.wait(30))
    handle = manager.save_checkpoint_async(model=model, optimizer=torch.optim.SGD(model.parameters()), epoch=1)
    storage = cut(model.weight, left).untyped_storage()
    handle.wait_until_copied()
    go_on.set()
    with pytest.raises(StateChangedError, match=r"model_state_dict.weight"):
        handle.result(timeout=30)
    assert storage.nbytes() == left


@pytest.mark.parametrize("begin", [lambda piece: piece.copy(), lambda piece: piece.copy() or piece.copy()])
def test_a_copy_of_a_piece_looks_for_itself(begin: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy checks the memory itself, even if it is freed right after the watch was asked."""
    tensor = torch.ones(3_000_000)
    snapshot = Snapshot({"tensor": tensor}, StagingBuffer(), {address_key(tensor)})
    monkeypatch.setattr("ckpt_lib.state.watching.RangeWatch.has_changed", False)
    cut(tensor, 400)
    with pytest.raises(UnsupportedStateError, match="lost its memory"):
        begin(snapshot._tasks[0])


def test_a_view_never_makes_a_storage_larger() -> None:
    """A view beyond the end of a storage is refused, where set_() would enlarge the storage."""
    storage = torch.ones(4).untyped_storage()
    assert byte_view(storage, 4, 16).tolist() == [0, 0, 128, 63] * 3
    with pytest.raises(UnsupportedStateError, match="at least 17 bytes; got 16 bytes"):
        byte_view(storage, 4, 17)
    assert storage.nbytes() == 16
