"""Files of torch.save of every kind: all that they hold is read back, to the bit, and no code of theirs is run."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.foreign import materialise, open_checkpoint, tensors_in
from ckpt_lib.foreign.torch_files import WHOLE
from ckpt_lib.testing.payloads import assert_same
from tests.foreign.files import LAYOUTS, Opened, read, saved
from tests.manager.states import states

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[1]}")


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained() -> dict[str, Any]:
    """A training script's checkpoint."""
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


def as_loaded(value: Any) -> Any:
    """Parameters as plain tensors: a state holds no parameters, and whoever loads one makes its own."""
    if isinstance(value, nn.Parameter):
        return value.detach()
    if isinstance(value, dict):
        return type(value)((key, as_loaded(item)) for key, item in value.items())
    return type(value)(map(as_loaded, value)) if type(value) in (list, tuple) else value


def has_negated(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_neg()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(map(has_negated, items))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(deadline=None, max_examples=60)
@given(states(), st.sampled_from(LAYOUTS))
def test_whatever_torch_saves_is_read_back(state: dict[str, Any], layout: tuple[str, int]) -> None:
    """Any state, in any protocol and both formats: the same types, structure and bits as were saved."""
    try:
        data = saved(state, layout)
    except RuntimeError:  # torch.save stores no memory under two types
        return
    if not has_negated(state):  # which is described as an object, as the tests of half a model show
        assert_same(read(data), as_loaded(state))


@layouts
def test_a_checkpoint_of_a_script_becomes_a_payload(tmp_path: Path, layout: tuple[str, int]) -> None:
    """Model and optimizer are found by their usual names, and the versions of the model's parts stay with its state."""
    state = trained()
    found = Opened(tmp_path / "last.pth", saved(state, layout))
    assert found.kind == {"zip": "torch", "legacy": "torch-legacy"}[layout[0]]
    assert (found.obstacle, found.left_out, found.facts.epoch, found.facts.writer) == ("", "", 3, "torch")
    assert_same(found.payload["model_state_dict"], state["state_dict"])
    assert_same(found.payload["optimizer_state_dict"], state["optimizer"])
    assert found.payload["model_state_dict"]._metadata == state["state_dict"]._metadata


@layouts
def test_shared_memory_is_shared_again(layout: tuple[str, int]) -> None:
    """Tied weights and views of one tensor lie in one memory after reading, and keep their strides."""
    whole = torch.arange(12.0)
    state = {"a": whole, "tied": whole, "turned": whole.view(3, 4).t(), "part": whole[5:7], "other": torch.ones(2)}
    found = read(saved(state, layout))
    places = {name: tensor.untyped_storage().data_ptr() for name, tensor in found.items()}
    assert len({places[name] for name in ("a", "tied", "turned", "part")}) == 1
    assert places["other"] != places["a"]
    assert found["turned"].stride() == (1, 4)


def test_memory_tells_which_tensors_share_it(tmp_path: Path) -> None:
    """Before a byte of them is read, it is known which tensors share memory."""
    whole = torch.arange(6.0)
    (tmp_path / "a.pt").write_bytes(saved({"a": whole, "b": whole[2:], "c": torch.ones(3)}))
    with open_checkpoint(tmp_path / "a.pt") as found:
        memory = {name: tensor.memory for name, tensor in tensors_in(found.contents)}
    assert memory["a"] == memory["b"] != memory["c"]


@layouts
def test_weights_of_a_pickled_module_are_found(tmp_path: Path, layout: tuple[str, int]) -> None:
    """Of a module that was saved whole, parameters and persistent buffers are those of its state_dict()."""
    net = small_net()
    net.register_buffer("passing", torch.ones(1), persistent=False)
    net.add_module("frozen", nn.Sequential(nn.Embedding(3, 2), nn.ReLU()))
    for name, whole in (("bare", net), ("entry", {"model": net, "ema": small_net(), "epoch": 1})):
        found = Opened(tmp_path / name, saved(whole, layout))
        assert (found.obstacle, found.left_out) == ("", "")
        assert_same(found.payload["model_state_dict"], dict(net.state_dict()))
    assert_same(found.payload["others"]["ema"], dict(small_net().state_dict()))


def test_a_bare_state_dict_is_a_model(tmp_path: Path) -> None:
    """A file of nothing but a model's state needs no names."""
    state = small_net().state_dict()
    found = Opened(tmp_path / "model.pt", saved(state))
    assert list(found.payload) == ["model_state_dict"]
    assert_same(found.payload["model_state_dict"], state)


def test_what_is_no_dict_stands_under_an_empty_name(tmp_path: Path) -> None:
    """A list of tensors is described and not taken for a model."""
    found = Opened(tmp_path / "list.pt", saved([torch.ones(2), 1]))
    assert list(found.contents) == [WHOLE]
    assert found.payload is None
    assert "no weights" in found.obstacle


@pytest.mark.parametrize("name", ["quantized", "sparse", "nested", "subclass"])
def test_half_a_model_is_never_loaded(tmp_path: Path, name: str) -> None:
    """A tensor that only torch's own code can make is named, and the rest of the model is not taken without it."""
    odd: Any = {
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "sparse": lambda: torch.eye(2).to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        "subclass": lambda: torch.ones(2).as_subclass(Odd),
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these are deprecated, or prototypes
        data = saved({"state_dict": OrderedDict({"fc.weight": torch.ones(1), "fc.odd": odd()}), "epoch": 1})
        beside = saved({"state_dict": {"weight": torch.ones(1)}, "odd": odd()})
    found = Opened(tmp_path / "model.pt", data)
    assert found.payload is None
    assert "fc.odd" in found.obstacle
    found = Opened(tmp_path / "beside.pt", beside)
    assert list(found.payload) == ["model_state_dict"]
    assert "odd" in found.left_out


class Odd(torch.Tensor):
    """A tensor with a class of its own."""


def test_script_archives_are_recognised(tmp_path: Path) -> None:
    """An archive of TorchScript holds a program, so that its own loader is named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    found = Opened(tmp_path / "again.pt", (tmp_path / "script.pt").read_bytes())
    assert (found.kind, found.payload) == ("torchscript", None)
    assert "torch.jit.load" in found.obstacle


def test_another_byte_order_is_an_obstacle(tmp_path: Path) -> None:
    """Tensors of a machine with another byte order are described, and not read as other numbers."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, buffer)
    data = buffer.getvalue().replace(b"little", b"big\0\0\0")  # as long, so that the archive stays whole
    found = Opened(tmp_path / "big.pt", data)
    assert found.payload is None
    assert "byte order" in found.obstacle
    assert found.contents["weight"].shape == (2,)


@pytest.mark.parametrize("compression", [False, True, "zstd"])
def test_our_own_payloads_are_read_without_a_manifest(tmp_path: Path, compression: Any) -> None:
    """A payload of this library, compressed or not, has the states and facts that were saved."""
    net = small_net()
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), compression=compression)
    made = CheckpointManager(config, "e").save_checkpoint(
        model=net, epoch=4, step=7, metrics={"loss": 0.5}, extra_state={"seen": [1, 2]}
    )
    assert made is not None
    (payload,) = (tmp_path / "store" / "e").glob("*.pt*")
    with open_checkpoint(payload) as found:
        assert (found.kind, found.obstacle) == ("payload", None)
        assert (found.facts.epoch, found.facts.step, found.facts.metrics) == (4, 7, {"loss": 0.5})
        assert found.payload is not None
        states_found = materialise(found.payload)
    assert_same(dict(states_found["model_state_dict"]), dict(net.state_dict()))
    assert states_found["extra_state"] == {"seen": [1, 2]}


@pytest.mark.parametrize("layout", [("zip", 2), ("legacy", 2), ("legacy", 4)])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, layout: tuple[str, int]) -> None:
    """Whatever is missing at its end, the file is not opened, and the error is ours."""
    data = saved({"state_dict": {"weight": torch.arange(3.0)}, "epoch": 1}, layout)
    for size in range(len(data)):
        with pytest.raises(CheckpointError):
            Opened(tmp_path / "cut.pt", data[:size])


@pytest.mark.parametrize("layout", [("zip", 2), ("zip", 4), ("legacy", 2)])
def test_no_flipped_bit_escapes_as_another_error(tmp_path: Path, layout: tuple[str, int]) -> None:
    """Any bit of the file may be wrong: it is opened and read all the same, or refused by an error of ours."""
    data = saved({"state_dict": {"weight": torch.arange(3.0)}, "epoch": 1, "args": {"lr": 0.1}}, layout)
    refused = 0
    for at in range(0, len(data), 3):
        try:
            Opened(tmp_path / "flipped.pt", data[:at] + bytes([data[at] ^ 1 << at % 7]) + data[at + 1 :])
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_counts_that_lie_are_refused() -> None:
    """A storage of the legacy format that claims more or fewer elements than its tensors have, or than follow."""
    data = saved({"weight": torch.arange(3.0)}, ("legacy", 2))
    start = len(data) - 3 * 4 - 8
    assert int.from_bytes(data[start : start + 8], "little") == 3
    for count in (0, 2, 4, 2**40, 2**63):
        with pytest.raises(CorruptCheckpointError, match="size"):
            read(data[:start] + count.to_bytes(8, "little") + data[start + 8 :])


def test_what_follows_a_legacy_file_is_reported(tmp_path: Path) -> None:
    """Bytes behind the last tensor do not belong to the checkpoint."""
    found = Opened(tmp_path / "a.pt", saved({"weight": torch.ones(2)}, ("legacy", 2)) + b"more")
    assert "4 B follow" in found.findings
