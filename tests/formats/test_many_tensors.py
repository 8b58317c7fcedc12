"""States of many small tensors: there is room for them, and none of them costs more than it has to."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import UnsafePayloadError
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.torch import limits
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.formats.torch.pickle_checking import PickleChecker
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.testing.payloads import assert_same
from tests.formats.torch_files import encoded, read
from tests.helpers import payload_path


def experts(count: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with this many parameters, and the state of AdamW."""
    model = nn.ParameterDict(
        {f"layers_0_experts_{n}_gate": nn.Parameter(torch.full((2,), float(n))) for n in range(count)}
    )
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones(2)
    optimizer.step()
    return model, optimizer


def test_room_grows_with_the_records(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each tensor of a model and its optimizer takes is less than each record gives, so a million fit as well."""
    monkeypatch.setattr(limits, "_STEPS_ALLOWED", 2_000)
    monkeypatch.setattr(limits, "_STRUCTURE_BYTES", 20_000)
    model, optimizer = experts(2_000)
    saved = manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    assert saved is not None
    assert manager.validate_checkpoint(saved)
    fresh = experts(2_000)
    manager.load_checkpoint(saved, *fresh)
    assert_same(fresh[0].state_dict(), model.state_dict())
    plain = torch.load(payload_path(manager, saved), weights_only=True)
    assert_same(plain["optimizer_state_dict"], optimizer.state_dict())


def test_the_room_for_tensors_is_for_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without their records, a structure of as many steps is refused; a million tensors take forty million."""
    assert limits.max_steps(10**6) > 40 * 10**6
    monkeypatch.setattr(limits, "_STEPS_ALLOWED", 1_000)
    steps = b"\x80\x02(" + b"]" * 1_500 + b"t."
    with pytest.raises(UnsafePayloadError, match="more than 1000 steps"):
        PickleChecker(steps, find_name=print, find_reference=print).load()
    assert len(PickleChecker(steps, find_name=print, find_reference=print, records=10).load()) == 1_500


def test_a_save_lays_the_state_out_once(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first save asks how large the file will be as well, which takes no second pass."""
    built = []
    original = ArchiveLayout.__init__

    def counted(self: ArchiveLayout, payload: dict[str, Any]) -> None:
        built.append(payload)
        original(self, payload)

    monkeypatch.setattr(ArchiveLayout, "__init__", counted)
    manager.save_checkpoint(model=nn.Linear(2, 2), epoch=1)
    assert len(built) == 1


@pytest.mark.parametrize("count", [0, 1, 16_383, 16_384, 16_385, 40_000])
def test_small_and_large_tensors_are_the_same_kind_of_record(count: int) -> None:
    """Small tensors come back: whole ones, non-contiguous views, and neighbours in one storage."""
    base = torch.arange(2.0 * count)
    payload = {"whole": base[:count].clone(), "gappy": base[::2], "first": base[:count], "second": base[count:]}
    data = encoded(payload)
    for found in (read(data), torch.load(io.BytesIO(data), weights_only=True)):
        assert_same(found, payload)


def test_loaded_tensors_share_no_hooks() -> None:
    """Loaded tensors have no hooks, and a hook that is registered later belongs to its tensor alone."""
    payload = {"a": torch.ones(2).requires_grad_(), "b": torch.ones(2).requires_grad_()}
    data = encoded(payload)
    for found in (read(data), torch.load(io.BytesIO(data), weights_only=True)):
        called: list[str] = []
        found["a"].register_hook(lambda _, called=called: called.append("a"))
        torch.autograd.backward((found["a"] + found["b"]).sum())
        assert called == ["a"]


def test_the_size_is_known_to_the_byte() -> None:
    """The computed size equals the written size, for records with names and padding of every length."""
    for count in (1, 11, 101, 1001):
        payload = {"x": [torch.zeros(number % 40) for number in range(count)]}
        assert TorchZipFormat().lay_out(payload).size_bytes == len(encoded(payload))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python warns of forks beside threads")
def test_a_child_that_is_forked_meanwhile_collects_garbage() -> None:
    """A worker of a data loader may be forked while a save in the background is laid out."""
    with CollectionPause():
        assert not gc.isenabled()
        child = os.fork()
        if not child:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not gc.isenabled()
    assert gc.isenabled()
