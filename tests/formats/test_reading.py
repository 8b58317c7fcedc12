"""Reading without copying: what ``torch.load`` gives, from verified bytes only and no more than were asked for."""

from __future__ import annotations

import gc
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from ckpt_lib.errors import CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.formats.torch.reading import TorchReader, tensor_ranges
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.testing.format_contract import BOUNDED, states
from ckpt_lib.testing.payloads import assert_same
from tests.formats.torch_files import flipped, opened, read, rezipped, saved
from tests.stream.samples import entry_of


def views(payload: Any, keys: Any = None) -> Any:
    """A payload read as users read it, which is known not to need torch's own reader."""
    data = saved(payload)
    assert TorchReader(opened(data)).unusual is None
    return read(opened(data), keys=keys)


# --- the same as torch.load ---


@BOUNDED
@given(state=states)
def test_views_are_bit_for_bit_what_was_saved(state: Any) -> None:
    """Any nesting, dtype and layout, as ``torch.load`` reads it, without a byte of it being copied by torch."""
    payload = {"model_state_dict": state}
    found = views(payload)
    assert_same(found, payload)
    assert_same(found, torch.load(io.BytesIO(saved(payload)), weights_only=True))


@BOUNDED
@given(state=states)
def test_what_is_named_is_read_and_the_rest_is_not(state: Any) -> None:
    """Each payload key by itself, beside another whose tensors are damaged in every byte."""
    payload = {"other": torch.zeros(300), "wanted": state}
    data = saved(payload)
    ((start, stop),) = tensor_ranges(opened(data))["other"]
    damaged = data[:start] + bytes(byte ^ 0xFF for byte in data[start:stop]) + data[stop:]
    assert_same(read(opened(damaged, data, chunk_size_bytes=1), keys=["wanted"]), {"wanted": state})


def test_tied_tensors_and_views_stay_tied() -> None:
    """One storage for all that shared one; each tensor is written through the others, and none beside them."""
    base = torch.arange(12.0)
    tied = {"a": base, "b": base, "row": base.view(3, 4)[1], "column": base.view(3, 4)[:, 2], "beside": torch.zeros(2)}
    found = views(tied)
    found["a"][6] = 100.0
    assert found["b"][6] == found["row"][2] == found["column"][1] == 100
    assert found["a"] is found["b"]
    assert found["column"].stride() == (4,)
    assert found["row"].untyped_storage().data_ptr() == found["a"].untyped_storage().data_ptr()
    assert found["a"].untyped_storage().nbytes() == 48
    assert found["beside"].tolist() == [0, 0]


def test_what_else_a_tensor_is_stays() -> None:
    """Parameters, gradients asked for, conjugation, attributes of state dicts and values of other kinds."""
    module_state = torch.nn.BatchNorm1d(2).state_dict()
    payload = {
        "parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "leaf": torch.ones(2, requires_grad=True),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "module": module_state,
        "plain": [{1, 2}, 1j, b"\0\xff", bytearray(b"x"), torch.bfloat16, torch.Size([2]), torch.device("cpu")],
    }
    found = views(payload)
    assert isinstance(found["parameter"], torch.nn.Parameter)
    assert (found["parameter"].requires_grad, found["leaf"].requires_grad) == (False, True)
    assert found["leaf"].is_leaf
    assert found["conjugate"].is_conj()
    assert torch.equal(found["conjugate"], payload["conjugate"])  # type: ignore[arg-type]
    assert found["module"]._metadata == module_state._metadata  # type: ignore[attr-defined]
    assert_same(found["plain"], payload["plain"])


def test_deep_nesting_needs_no_deep_stack() -> None:
    """What torch could write is read, whatever depth of calls it is read from."""
    state: Any = torch.ones(1)
    for _ in range(98):
        state = [state]

    data = saved({"x": state})

    def from_depth(levels: int) -> Any:
        return from_depth(levels - 1) if levels else read(opened(data), keys=["x"])["x"]

    found = from_depth(600)
    for _ in range(98):
        (found,) = found
    assert found == torch.ones(1)


def unusual() -> dict[str, Any]:
    """Payloads that only ``torch.load`` reads."""
    attributed = torch.nn.Parameter(torch.ones(2))
    attributed.flag = True  # type: ignore[attr-defined]
    return {
        "sparse": torch.eye(3).to_sparse(),
        "negated": torch.tensor([1j]).conj().imag,
        "attribute": attributed,
        "tensor as a key": {torch.ones(1): 1},
        "storage": torch.ones(2).untyped_storage(),
    }


@pytest.mark.parametrize("name", unusual())
def test_what_is_unusual_is_read_by_torch_itself(name: str) -> None:
    """From the same verified file, with the same selection, and without running more than torch would."""
    data = saved({"x": unusual()[name], "y": torch.ones(3)})
    assert TorchReader(opened(data)).unusual is not None
    found = read(opened(data), keys=["x"])
    assert list(found) == ["x"]
    assert type(found["x"]) is type(torch.load(io.BytesIO(data), weights_only=True)["x"])
    with pytest.raises(CorruptCheckpointError):  # torch reads all of it, so all of it is verified
        read(opened(flipped(data, len(data) // 2), data), keys=["x"])


def test_archives_of_other_programs_are_read() -> None:
    """Unaligned archives are copied, those of another byte order are read by torch, compressed ones are refused."""
    payload = {"w": torch.arange(5.0), "b": torch.ones(3, dtype=torch.complex128)}
    data = saved(payload)
    assert_same(read(opened(rezipped(data, lambda name, record: record))), payload)
    swapped = rezipped(data, lambda name, record: b"big" if name.endswith("byteorder") else record)
    assert TorchReader(opened(swapped)).unusual == "another byte order"
    assert set(read(opened(swapped))) == {"w", "b"}
    with pytest.raises(CorruptCheckpointError):
        read(opened(rezipped(data, lambda name, record: record, zipfile.ZIP_DEFLATED)))
    legacy = saved(payload, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafePayloadError, match="bare pickle"):
        read(opened(legacy))
    assert set(read(opened(legacy), trust_pickle=True)) == {"w", "b"}


def test_tensors_go_where_they_are_asked_to() -> None:
    """To another device, sharing what they shared; by a function, as torch takes it; or where they were."""
    base = torch.arange(4.0)
    data = saved({"a": base, "b": base[1:]})
    meta = read(opened(data), map_location="meta")
    assert {tensor.device.type for tensor in meta.values()} == {"meta"}
    for location in (None, {"cpu": "cpu"}, lambda storage, _: storage, torch.device("cpu")):
        found = read(opened(data), map_location=location)
        found["a"][1] = 7
        assert found["b"].tolist() == [7, 2, 3]


# --- damage ---


def test_damage_of_anything_keeps_everything_back() -> None:
    """A payload of which every part is wanted is refused for a flipped bit anywhere, with all there is."""
    data = saved({"a": torch.arange(200.0), "b": torch.arange(200.0)})
    for at in range(0, len(data), 61):
        other = (at + len(data) // 2) % len(data)
        with pytest.raises(CorruptCheckpointError) as refused:
            read(opened(flipped(flipped(data, at), other), data))
        found = refused.value.damages
        assert all(any(damage.start <= place < damage.stop for damage in found) for place in (at, other))


def test_damage_of_what_is_wanted_is_told_before_a_tensor_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged part is refused as a whole, before any tensor is made of its bytes."""
    data = saved({"a": torch.arange(200.0), "b": torch.arange(200.0), "c": torch.ones(1)})
    ranges = tensor_ranges(opened(data))
    damaged = flipped(flipped(data, ranges["b"][0][1] - 1), ranges["a"][0][0])
    assert read(opened(damaged, data, 8), keys=["c"])["c"] == 1
    monkeypatch.delattr(torch, "frombuffer")
    with pytest.raises(CorruptCheckpointError) as refused:
        read(opened(damaged, data, 8), keys=["a", "b"])
    assert len(refused.value.damages) == 2


def test_damaged_tensors_can_be_named() -> None:
    """The byte ranges are those of the elements, by dotted names, even of a record whose head is damaged."""
    base = torch.arange(6, dtype=torch.int16)
    data = saved({"model_state_dict": {"layer.weight": base, "rows": [base[2:4], torch.empty(0)]}})
    ranges = tensor_ranges(opened(data))
    ((start, stop),) = ranges["model_state_dict.layer.weight"]
    assert data[start:stop] == base.numpy().tobytes()
    assert ranges["model_state_dict.rows.0"] == [(start + 4, start + 8)]
    ((empty_start, empty_stop),) = ranges["model_state_dict.rows.1"]
    assert empty_start == empty_stop
    head = data.rindex(b"PK\3\4", 0, start)
    wide = tensor_ranges(opened(flipped(data, head + 5), data, 8))["model_state_dict.layer.weight"]
    assert wide[0][0] == head
    assert wide[0][1] >= stop
    assert tensor_ranges(opened(saved({"x": torch.eye(2).to_sparse()}))) == {}


# --- memory ---


def test_the_memory_goes_with_the_last_tensor(tmp_path: Path) -> None:
    """The mapping ends with its last tensor, so that a deleted file frees its space; tensors outlive the file."""
    path = tmp_path / "file.pt"
    path.write_bytes(saved({"a": torch.arange(50_000.0), "b": torch.ones(50_000)}))
    data = path.read_bytes()
    gc.disable()
    try:
        with VerifiedFile(open(path, "rb", buffering=0), entry_of(data, 4096)) as file:
            found = read(file, keys=["a"])
        del file
        path.unlink()
        assert torch.equal(found["a"], torch.arange(50_000.0))
        if sys.platform == "linux":
            assert str(path) in Path("/proc/self/maps").read_text()
            found.clear()
            assert str(path) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()


def test_writing_to_a_tensor_changes_no_file(tmp_path: Path) -> None:
    """Writing to a loaded tensor changes neither the file nor a later load."""
    path = tmp_path / "file.pt"
    path.write_bytes(saved({"a": torch.arange(5000.0)}))
    data = path.read_bytes()

    def load() -> torch.Tensor:
        with VerifiedFile(open(path, "rb", buffering=0), entry_of(data, 64)) as file:
            tensor: torch.Tensor = read(file)["a"]
        return tensor

    load().mul_(2)
    assert path.read_bytes() == data
    assert torch.equal(load(), torch.arange(5000.0))
