"""The built-in format passes the contract, and is readable without this library."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from ckpt_lib.errors import CorruptCheckpointError, UnsupportedFormatError, UnsupportedStateError
from ckpt_lib.formats import Format, format_named
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.formats.torch.reading import TorchReader
from ckpt_lib.testing.format_contract import BOUNDED, FormatContract, states
from ckpt_lib.testing.payloads import assert_same, round_trip
from tests.formats.folder_format import FolderFormat
from tests.formats.torch_files import encoded, opened, read, saved
from tests.helpers import MakeManager


class TestTorch(FormatContract):
    """The ``torch`` format."""

    @pytest.fixture
    def payload_format(self) -> Format:
        return format_named("torch")


class TestSafetensors(FormatContract):
    """The ``safetensors`` format."""

    @pytest.fixture
    def payload_format(self) -> Format:
        return format_named("safetensors")


class TestFolder(FormatContract):
    """A format of several files: the contract asks for nothing that only one file can do."""

    @pytest.fixture
    def payload_format(self) -> Format:
        return FolderFormat()


# --- for everyone else ---


@BOUNDED
@given(state=states)
def test_plain_torch_reads_it(state: Any) -> None:
    """``torch.load(weights_only=True)`` gives exactly what was saved, and our own reader needs no help of it."""
    data = encoded({"x": state})
    assert_same(torch.load(io.BytesIO(data), weights_only=True), {"x": state})
    assert TorchReader(opened(data)).unusual is None


@pytest.mark.parametrize("size", [1, 10_000_000])
def test_what_was_saved_can_still_be_resized(size: int) -> None:
    """After a save, a tensor's storage can still be resized, as quantization observers do in training."""
    state = {"whole": torch.ones(size), "view": torch.ones(2 * size)[1:]}
    encoded(state)
    for tensor in state.values():
        assert tensor.untyped_storage().resizable()
        assert tensor.resize_(3 * size).numel() == 3 * size


def test_plain_torch_reads_it_with_none_of_our_code(tmp_path: Path) -> None:
    """In a process that cannot import this library, memory-mapped too."""
    path = tmp_path / "x.pt"
    path.write_bytes(encoded({"w": torch.arange(3.0), "m": torch.nn.Linear(1, 1).state_dict()}))
    script = (
        "import sys; sys.modules['ckpt_lib'] = None; import torch\n"
        f"for mmap in (False, True): print(torch.load({str(path)!r}, weights_only=True, mmap=mmap)['w'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "[0.0, 1.0, 2.0]\n" * 2, done.stderr


def _has_mkldnn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def test_every_kind_of_tensor_comes_back_or_is_refused() -> None:
    """Sparse, quantized, nested, meta and opaque layouts: never written and then unreadable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {
            "coo": torch.eye(3).to_sparse(),
            "csr": torch.eye(3).to_sparse_csr(),
            "meta": torch.ones(2, device="meta"),
            "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
            "mkldnn": torch.ones(3).to_mkldnn() if _has_mkldnn() else torch.ones(3),
            "conjugate": torch.tensor([1 + 2j]).conj(),
            "not a leaf": torch.ones(2, requires_grad=True) * 2,
        }
        refused = set()
        for name, tensor in kinds.items():
            try:
                found = round_trip(TorchZipFormat(), {"t": tensor})["t"]
            except UnsupportedStateError:
                refused.add(name)
                continue
            assert (found.dtype, found.layout) == (tensor.dtype, tensor.layout), name
            if name in {"coo", "csr", "quantized", "conjugate", "not a leaf"}:
                dense = [t.dequantize() if t.is_quantized else t.to_dense() for t in (found.detach(), tensor.detach())]
                assert torch.equal(*dense), name
    assert {"meta"} <= refused <= {"meta", "mkldnn", "jagged"}  # a meta tensor has no data to write


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("mode", ["blocking", "background", "overlapped"])
@pytest.mark.parametrize("zero_points", [torch.tensor([0, 3, 5]), torch.tensor([0.0, 0.5, 1.5])], ids=["int", "float"])
def test_a_tensor_quantized_by_channel_comes_back(
    make_manager: MakeManager, mode: str, zero_points: torch.Tensor
) -> None:
    """A quantized tensor with one scale for each channel comes back as it was."""
    scales = torch.tensor([0.1, 0.2, 0.3])
    tensor = torch.quantize_per_channel(torch.randn(4, 3), scales, zero_points, 1, torch.quint8)
    manager = make_manager(overlap_copy=mode == "overlapped", backup_checkpoints=False)
    state: dict[str, Any] = {"model": torch.nn.Linear(2, 2), "epoch": 1, "extra_state": {"tensor": tensor}}
    if mode == "blocking":
        manager.save_checkpoint(**state)
    else:
        manager.save_checkpoint_async(**state).result()
    assert manager.validate_checkpoint("latest")
    found = manager.load_checkpoint()["extra_state"]["tensor"]
    assert torch.equal(found.int_repr(), tensor.int_repr())
    assert torch.equal(found.q_per_channel_scales(), tensor.q_per_channel_scales())
    assert torch.equal(found.q_per_channel_zero_points(), tensor.q_per_channel_zero_points())
    assert (found.q_per_channel_axis(), found.qscheme()) == (1, tensor.qscheme())


@pytest.mark.parametrize("kind", [">f8", ">i4", ">c8", "<f8", ">u2"])
def test_an_array_of_any_byte_order_comes_back(kind: str) -> None:
    """Arrays of another byte order become tensors of this machine's byte order."""
    array = np.arange(6).astype(kind).reshape(2, 3)
    assert round_trip(TorchZipFormat(), {"array": array})["array"].tolist() == array.tolist()


class Odd(torch.Tensor):
    """A tensor subclass that plain ``torch.load`` has never heard of."""


def test_a_tensor_subclass_is_refused_without_copying_it() -> None:
    """Checking whether a tensor subclass can be read back does not copy its memory."""
    huge = torch.empty(1).expand(2**40).as_subclass(Odd)
    with pytest.raises(UnsupportedStateError, match=r"x\['w'\]"):
        TorchZipFormat().prepare({"x": {"w": huge}})


def test_an_attribute_that_can_be_read_back_may_hang_on_a_tensor() -> None:
    """Frameworks mark parameters with flags; those survive."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.is_expert = True  # type: ignore[attr-defined]
    assert round_trip(TorchZipFormat(), {"p": parameter})["p"].is_expert


@pytest.mark.parametrize("stored", [[1], torch.ones(1), 1, None, "text", ({},)], ids=repr)
def test_a_payload_is_a_dict(stored: object) -> None:
    """A torch file that does not hold a dict is refused."""
    with pytest.raises(CorruptCheckpointError, match="not a dict"):
        read(saved(stored))


# --- the registry ---


def test_a_format_is_found_by_the_name_in_a_manifest() -> None:
    """A format is found by its name, as the same object each time."""
    assert format_named("torch").name == "torch"
    assert format_named("torch") is format_named("torch")


def test_an_unknown_format_names_those_there_are() -> None:
    """The error for an unknown format lists the formats that are installed."""
    with pytest.raises(UnsupportedFormatError) as raised:
        format_named("sefatensors")
    assert "torch" in str(raised.value.expected)
    assert "ckpt_lib.formats" in str(raised.value)


def test_a_format_of_a_third_party_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package provides one by entry point; it is loaded when it is asked for."""
    (tmp_path / "plugin_format.py").write_text("class Plugin:\n    name = 'plugin'\n    suffix = '.plug'\n")
    info = tmp_path / "plugin_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckpt_lib.formats]\nplugin = plugin_format:Plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "plugin_format" not in sys.modules
    assert format_named("plugin").suffix == ".plug"
    format_named.cache_clear()
    sys.modules.pop("plugin_format")
