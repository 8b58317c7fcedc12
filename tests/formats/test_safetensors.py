"""The ``safetensors`` format, beside the library of that name: each opens what the other has written."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import ConfigError, CorruptCheckpointError, UnsupportedStateError
from ckpt_lib.formats import format_named, tensor_bytes
from ckpt_lib.formats.safetensors import writing
from ckpt_lib.formats.safetensors.header import read_header
from ckpt_lib.formats.structure import decoding
from ckpt_lib.formats.structure.dtypes import DTYPES, NAMES
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.testing.format_contract import BOUNDED, states
from ckpt_lib.testing.payloads import Files, MemorySource, assert_same, encode
from tests.stream.samples import entry_of

FORMAT = format_named("safetensors")


def encoded(model_state: Any, **others: Any) -> Files:
    return encode(FORMAT, {"model_state_dict": model_state, **others})


def read(files: Files, **options: Any) -> Any:
    return FORMAT.read(MemorySource(files), **options)


def opened(data: bytes) -> VerifiedFile:
    return VerifiedFile(io.BytesIO(data), None)


def header_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


# --- the library opens ours ---


def of_every_type() -> dict[str, torch.Tensor]:
    return {
        f"layers.{number}.{name}": torch.arange(24, dtype=torch.uint8).remainder(2).view(dtype)
        for number, (name, dtype) in enumerate(DTYPES.items())
    }


def test_the_file_is_the_one_that_the_library_writes() -> None:
    """Byte for byte: the order of the tensors, the spelling of the header and its padding."""
    state = {**of_every_type(), "größe\n": torch.ones(3, 2), "scalar": torch.tensor(1.5), "empty": torch.ones(0, 4)}
    assert encoded(state)["model.safetensors"] == safetensors.torch.save(state, {"format": "pt"})


@BOUNDED
@given(shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=6), data=st.data())
def test_files_of_the_library_hold_what_ours_do(shapes: list[list[int]], data: st.DataObject) -> None:
    """Any names, types and shapes: the library's header is read as ours, and its bytes are the same."""
    names = data.draw(st.lists(st.text(max_size=5), min_size=len(shapes), max_size=len(shapes), unique=True))
    dtypes = [data.draw(st.sampled_from(list(DTYPES.values()))) for _ in shapes]
    state = {n: torch.ones(shape).to(dtype) for n, shape, dtype in zip(names, shapes, dtypes, strict=True)}
    theirs = safetensors.torch.save(state, {"format": "pt"})
    assert {name: (e.dtype, e.shape) for name, e in read_header(opened(theirs)).entries.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()
    }
    if state:
        assert encoded(state)["model.safetensors"] == theirs


@BOUNDED
@given(state=states)
def test_the_library_opens_every_file(state: Any) -> None:
    """Whatever a payload holds, each of its safetensors files is one to the library, and holds equal tensors."""
    files = encoded(state, optimizer_state_dict={"a": state}, extra_state=state)
    for name, data in files.items():
        if name.endswith(".safetensors"):
            found = safetensors.torch.load(data)
            for key, entry in read_header(opened(data)).entries.items():
                assert (found[key].dtype, tuple(found[key].shape)) == (entry.dtype, entry.shape)
                assert found[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == (
                    data[entry.start : entry.stop] if entry.stop > entry.start else b""
                )


def test_a_model_is_loaded_with_the_library_alone(tmp_path: Path) -> None:
    """Tied weights are stored once, and noted as ``save_model`` does, so ``load_model`` takes the file."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    (tmp_path / "model.safetensors").write_bytes(encoded(model.state_dict())["model.safetensors"])
    torch.manual_seed(1)
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    fresh[1].weight = fresh[0].weight
    assert safetensors.torch.load_model(fresh, tmp_path / "model.safetensors") == (set(), [])
    assert_same(fresh.state_dict(), model.state_dict())
    metadata = header_of((tmp_path / "model.safetensors").read_bytes())["__metadata__"]
    assert metadata == {"format": "pt", "1.weight": "0.weight"}


# --- ours opens the library's ---


def test_files_of_the_library_are_read() -> None:
    """Written by the library in the place of ours, unaligned and in another order, the tensors are the same."""
    state = {"b": torch.arange(3, dtype=torch.uint8), "a": torch.arange(5.0), "c": torch.arange(4.0)}
    files = encoded(state)
    files["model.safetensors"] = safetensors.torch.save(state, {"note": "of another program"})
    assert_same(read(files)["model_state_dict"], state)
    body = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    header = {
        "b": {"shape": [3], "data_offsets": [0, 3], "dtype": "U8"},
        "a": {"dtype": "F32", "shape": [5], "data_offsets": [3, 23]},
        "c": {"dtype": "F32", "shape": [4], "data_offsets": [23, 39]},
    }
    text = json.dumps(header, indent=1).encode()
    files["model.safetensors"] = len(text).to_bytes(8, "little") + text + body
    found = read(files)["model_state_dict"]
    assert_same(found, state)
    assert found["a"].data_ptr() % 4 == 0


@pytest.mark.parametrize("length", range(1, 9))
def test_complex_numbers_are_aligned(length: int) -> None:
    """PyTorch copies some tensors of the widest numbers by instructions that end the process where they are not."""
    wide = torch.randn(6, dtype=torch.complex128)
    found = read(encoded({"n" * length: wide, "view": wide[::2], "one": torch.ones(1)}))["model_state_dict"]
    assert found["n" * length].data_ptr() % 16 == 0
    assert torch.equal(found["n" * length].clone(), wide)
    assert torch.equal(found["view"].contiguous(), wide[::2])
    assert found["view"].data_ptr() == found["n" * length].data_ptr()


# --- which file holds what ---


def test_each_part_has_its_file() -> None:
    """The names of the model's file are those of its state dict; several models have a file each."""
    state, adam = torch.nn.Linear(2, 1).state_dict(), {"state": {0: {"exp_avg": torch.ones(2)}}}
    files = encoded(state, optimizer_state_dict=adam, extra_state={"seen": torch.ones(1)})
    assert list(files) == ["model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json"]
    assert set(header_of(files["model.safetensors"])) == {"__metadata__", "weight", "bias"}
    assert set(header_of(files["optimizer.safetensors"])) == {"__metadata__", "state.0.exp_avg"}
    several = encoded({"generator": state, "critic": {"weight": torch.zeros(3)}})
    assert list(several) == ["generator.safetensors", "critic.safetensors", "state.json"]
    assert set(header_of(several["generator.safetensors"])) == {"__metadata__", "weight", "bias"}


@pytest.mark.parametrize(
    "names", [["optimizer", "a"], ["State"], ["nul"], ["-a"], ["A", "a"], ["a-00001-of-00002"], ["../a"], [1]]
)
def test_models_with_names_of_no_files_share_one(names: list[Any]) -> None:
    """No name of a model takes another's file, whatever the file system makes of its case, or leads elsewhere."""
    state = {name: {"weight": torch.full((2,), float(number))} for number, name in enumerate(names)}
    files = encoded(state, optimizer_state_dict={"weight": torch.ones(3)})
    assert list(files) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert_same(read(files)["model_state_dict"], state)


def test_no_two_tensors_have_one_name() -> None:
    """Dotted names that are alike are told apart by a number, and no name is the header's own."""
    state = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), "a.b#2": torch.ones(2), "__metadata__": torch.ones(3)}
    files = encoded({"x": 1, **state})
    assert_same(read(files)["model_state_dict"], {"x": 1, **state})
    assert set(header_of(files["model.safetensors"])) == {"__metadata__", "a.b", "a.b#2", "a.b#2#2", "__metadata__#2"}
    odd = {"\ud800": torch.ones(1), "$tensor": torch.ones(2), "": torch.ones(3)}
    assert_same(read(encoded(odd))["model_state_dict"], odd)


def test_large_groups_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hugging Face's libraries split and index them; a part is read from its own file alone."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 100)
    state = OrderedDict((f"layer.{number}", torch.full((10,), float(number))) for number in range(5))
    files = encoded(state, extra_state=[torch.ones(2)])
    shards = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert list(files) == [*shards, "state.safetensors", "model.safetensors.index.json", "state.json"]
    index = json.loads(files["model.safetensors.index.json"])
    assert index["metadata"] == {"total_size": 200}
    merged = {
        name: safetensors.torch.load(files[file])[name] for name, file in index["weight_map"].items()
    }  # as transformers reads them
    assert_same(merged, dict(state))
    assert_same(read(files)["model_state_dict"], state)
    odd = {"$tensor": torch.ones(20), "$x": torch.zeros(20)}
    assert_same(read(encoded(odd))["model_state_dict"], odd)
    source = MemorySource({name: files[name] for name in (shards[1], "model.safetensors.index.json", "state.json")})
    assert FORMAT.read(source, keys=["model_state_dict.layer.3"])["model_state_dict"]["layer.3"].tolist() == [3.0] * 10
    ranges = FORMAT.tensor_ranges(MemorySource(files), shards[0])
    assert set(ranges) == {"model_state_dict.layer.0", "model_state_dict.layer.1"}
    with pytest.raises(CorruptCheckpointError, match="no file"):
        FORMAT.read(MemorySource({name: data for name, data in files.items() if name != shards[2]}))


def test_headers_are_split_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file never has so many tensors that its header would be refused, nor a name that is as long as that."""
    monkeypatch.setattr(writing, "MAX_HEADER_BYTES", 2000)
    state = {f"layer.{number}": torch.ones(1) for number in range(20)}
    files = encoded(state)
    assert len(files) > 3
    assert all(len(data) < 2000 for name, data in files.items() if name.endswith(".safetensors"))
    assert_same(read(files)["model_state_dict"], state)
    with pytest.raises(UnsupportedStateError, match="too long"):
        FORMAT.lay_out(FORMAT.prepare({"model_state_dict": {"x" * 2000: torch.ones(1)}}))


# --- memory that tensors share ---


def test_overlapping_tensors_are_stored_once_and_share_memory_again() -> None:
    """In whatever way they overlap: views of one of them, of none of them, of other types; neighbours do not."""
    base = torch.arange(24.0)
    state = {
        "row": base.view(4, 6)[1],
        "base": base,
        "bytes": base.view(torch.uint8)[8:20],
        "halves": base.view(torch.bfloat16),
    }
    files = encoded(state)
    assert set(header_of(files["model.safetensors"])) == {"__metadata__", "base"}
    found = read(files)["model_state_dict"]
    assert_same(found, state)
    found["base"][7] = -1
    assert found["row"][1] == -1
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
    square = torch.arange(4.0).view(2, 2)
    files = encoded({"turned": square.T, "as it is": square})
    assert safetensors.torch.load(files["model.safetensors"])["as it is"].tolist() == square.tolist()
    assert_same(read(files)["model_state_dict"], {"turned": square.T, "as it is": square})
    crossing = {"left": base[2:10], "right": base[6:14], "apart": base[14:16]}
    files = encoded(crossing)
    assert set(header_of(files["model.safetensors"])) == {"__metadata__", "left@memory", "apart"}
    found = read(files)["model_state_dict"]
    assert_same(found, crossing)
    found["left"][4] = 7
    assert found["right"][0] == 7


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_safetensors_has_no_type_for_is_stored_as_its_bytes() -> None:
    """complex128 and the types that the library's reader refuses; the file stays readable."""
    for dtype in (torch.complex128, torch.complex32, torch.float8_e8m0fnu):
        state = {"x": torch.arange(16, dtype=torch.uint8), "t": torch.arange(32, dtype=torch.uint8).view(dtype)[1:]}
        files = encoded(state)
        found = read(files)["model_state_dict"]
        assert found["t"].dtype is dtype
        assert found["t"].view(torch.uint8).tolist() == state["t"].view(torch.uint8).tolist()
        assert dtype not in NAMES
        assert set(safetensors.torch.load(files["model.safetensors"])) == {"x", "t@memory"}


def test_an_expanded_tensor_takes_what_its_memory_takes() -> None:
    """A million equal numbers are stored as one, and come back as a view."""
    files = encoded({"x": torch.ones(1).expand(1_000_000)})
    assert len(files["model.safetensors"]) < 500
    found = read(files)["model_state_dict"]["x"]
    assert found.shape == (1_000_000,)
    assert found.stride() == (0,)


def test_a_tensor_that_is_not_contiguous_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large transposed, strided or channels-last tensor, no whole copy is made; the values are the same."""
    monkeypatch.setattr(tensor_bytes, "BLOCK_SIZE_BYTES", 64)
    copied = []
    contiguous = torch.Tensor.contiguous

    def counted(self: torch.Tensor) -> torch.Tensor:
        copied.append(self.nbytes)
        return contiguous(self)

    state = {
        "transposed": torch.arange(600.0).view(30, 20).T,
        "strided": torch.arange(1000.0)[::3],
        "channels": torch.arange(480.0).view(2, 4, 6, 10).to(memory_format=torch.channels_last),
    }
    monkeypatch.setattr(torch.Tensor, "contiguous", counted)
    files = encoded(state)
    monkeypatch.undo()
    assert 0 < max(copied) <= 64
    assert_same(read(files)["model_state_dict"], state)


def test_dimensions_keep_their_order_in_memory() -> None:
    """Fused optimizers take the memory of weights, gradients and moments side by side; tied ones stay tied."""
    weight = torch.arange(240.0).view(2, 4, 5, 6).to(memory_format=torch.channels_last)
    one = torch.arange(18.0).view(2, 1, 3, 3).to(memory_format=torch.channels_last)
    state = {"weight": weight, "tied": weight.detach(), "one": one, "transposed": torch.arange(6.0).view(2, 3).T}
    files = encoded(state)
    plain = safetensors.torch.load(files["model.safetensors"])
    assert_same(dict(sorted(plain.items())), {name: state[name] for name in ("one", "transposed", "weight")})
    found = read(files)["model_state_dict"]
    assert_same(found, state)
    assert {name: tensor.stride() for name, tensor in found.items()} == {n: t.stride() for n, t in state.items()}
    found["weight"][0, 0, 0, 0] = 7
    assert found["tied"][0, 0, 0, 0] == 7


def test_a_conjugated_tensor_is_stored_with_the_values_that_it_shows() -> None:
    """Plain readers know no lazy conjugation."""
    tensor = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64)
    files = encoded({"t": tensor.conj(), "n": tensor.conj().imag})
    found = safetensors.torch.load(files["model.safetensors"])
    assert found["t"].tolist() == [1 - 2j, 3 + 1j]
    assert found["n"].tolist() == [-2.0, 1.0]
    assert_same(read(files)["model_state_dict"], {"t": tensor.conj(), "n": tensor.conj().imag})


def test_freed_memory_is_not_read() -> None:
    """A tensor that loses its memory before it is written, whole or in part, fails the write."""
    for tensor in (torch.ones(100_000), torch.ones(100), torch.ones(1000, 200)[:, ::2], torch.ones(20, 20).T):
        layout = FORMAT.lay_out({"model_state_dict": {"t": tensor}})
        tensor.untyped_storage().resize_(16)
        with pytest.raises(UnsupportedStateError, match="lost its memory"):
            encode_layout(layout)
    with pytest.raises(UnsupportedStateError, match="lost its memory"):
        FORMAT.lay_out({"model_state_dict": {"t": tensor}})


def encode_layout(layout: Any) -> None:
    from ckpt_lib.testing.payloads import MemorySink

    layout.write(MemorySink())


# --- values ---


def test_what_else_a_tensor_is_stays() -> None:
    """Parameters, gradients asked for, flags that frameworks hang on parameters; each of several views has its own."""
    weight = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    weight.is_expert = {"rank": (1, torch.zeros(3))}  # type: ignore[attr-defined]
    payload = {"model_state_dict": {"p": weight, "leaf": torch.ones(2, requires_grad=True), "same": weight.data}}
    found = FORMAT.read(MemorySource(encode(FORMAT, payload)))["model_state_dict"]
    assert isinstance(found["p"], torch.nn.Parameter)
    assert_same(found["p"].is_expert, weight.is_expert)  # type: ignore[attr-defined]
    assert [tensor.requires_grad for tensor in found.values()] == [False, True, False]
    assert not vars(found["same"])
    found["same"].fill_(4)
    assert found["p"].tolist() == [4, 4]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_has_no_spelling_is_refused_before_anything_is_written() -> None:
    """By place, when a save is checked; never later."""
    for value in (
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        {torch.ones(1): 1},
        {torch.ones(1)},
        torch.ones(2).as_subclass(Odd),
        torch.ones(2).untyped_storage(),
    ):
        with pytest.raises(UnsupportedStateError, match=r"extra_state.*a"):
            FORMAT.lay_out(FORMAT.prepare({"extra_state": {"a": value}}))


class Odd(torch.Tensor):
    """A tensor subclass."""


def test_every_other_value_comes_back() -> None:
    """As the torch format gives it back."""
    payload = {
        "model_state_dict": {},
        "x": [{1, (2, "a"), None}, 1j, complex("inf"), b"\0\xff", bytearray(b"x"), torch.bfloat16],
        "y": [torch.Size([2]), torch.device("cuda", 1), 2**60, -(2**1999), 10.0, 1e300, float("inf"), True],
        "z": {"$tensor": 1, "$x": {"$y": 2}, "": OrderedDict([(1, 2)])},
    }
    found = FORMAT.read(MemorySource(encode(FORMAT, payload)))
    assert_same(found, TorchZipFormat().prepare(payload))


def test_a_tensor_without_data_is_called_that() -> None:
    """Of a tensor on the meta device, the error says that it has no data, and not that it is sparse."""
    with pytest.raises(UnsupportedStateError, match="has no data: it is on the meta device") as refused:
        FORMAT.lay_out(FORMAT.prepare({"model_state_dict": {"w": torch.ones(2, device="meta")}}))
    assert "dense" not in str(refused.value)


def test_an_attribute_that_would_hide_a_method_is_refused() -> None:
    """Of a dict or a tensor; before anything is written."""
    state: Any = OrderedDict(a=1)
    state.move_to_end = 1
    tensor = torch.ones(1)
    tensor.backward = 1  # type: ignore[method-assign, assignment]
    for value in (state, {"t": tensor}):
        with pytest.raises(UnsupportedStateError, match="hide a method"):
            FORMAT.lay_out(FORMAT.prepare({"x": value}))


def test_a_state_too_large_for_its_reader_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer asks what the reader asks; each tensor gives room of its own."""
    monkeypatch.setattr(decoding, "_PARTS_ALLOWED", 1000)
    with pytest.raises(UnsupportedStateError, match="too many parts"):
        FORMAT.lay_out({"x": list(range(2000))})
    encode(FORMAT, {"model_state_dict": {str(n): torch.ones(1) for n in range(500)}})
    adam = {"state": {n: {"step": torch.ones(1), "exp_avg": torch.ones(1)} for n in range(2000)}}
    encode(FORMAT, {"optimizer_state_dict": adam})


# --- reading ---


def test_only_what_is_named_is_opened_and_verified() -> None:
    """Other files may be missing, and other bytes of the same file damaged."""
    state = {"a": torch.arange(200.0), "b": torch.zeros(200)}
    files = encoded(state, optimizer_state_dict={"m": torch.ones(10)}, epoch=3)
    whole = files["model.safetensors"]
    (start, stop) = FORMAT.tensor_ranges(MemorySource(files), "model.safetensors")["model_state_dict.b"][0]
    damaged = whole[:start] + bytes(byte ^ 1 for byte in whole[start:stop]) + whole[stop:]

    class Source(MemorySource):
        def open(self, name: str = "") -> VerifiedFile:
            if name == "model.safetensors":
                return VerifiedFile(io.BytesIO(damaged), entry_of(whole, 8))
            return super().open(name)

    del files["optimizer.safetensors"]
    found = FORMAT.read(Source(files), keys=["model_state_dict.a", "epoch"])
    assert_same(found, {"model_state_dict": {"a": state["a"]}, "epoch": 3})
    with pytest.raises(CorruptCheckpointError):
        FORMAT.read(Source(files), keys=["model_state_dict.b"])
    with pytest.raises(ConfigError):
        FORMAT.read(Source(files), keys=["model_state_dict.c"])


def test_damage_of_several_files_is_told_before_a_tensor_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it at once, of the parts that are asked for by name as of a whole payload."""
    files = encoded({"a": torch.arange(200.0)}, optimizer_state_dict={"m": torch.arange(200.0)})
    damaged = {name: bytes([*data[:-1], data[-1] ^ 1]) for name, data in files.items() if name != "state.json"}

    class Source(MemorySource):
        def open(self, name: str = "") -> VerifiedFile:
            return VerifiedFile(io.BytesIO(damaged.get(name, files[name])), entry_of(files[name], 8))

    monkeypatch.delattr(torch, "frombuffer")
    for keys in (None, ["model_state_dict.a", "optimizer_state_dict"]):
        with pytest.raises(CorruptCheckpointError) as refused:
            FORMAT.read(Source(files), keys=keys)
        assert len(refused.value.damages) == 2


def test_tensors_share_the_memory_of_the_file() -> None:
    """None is copied; writing to one changes no later read."""
    files = encoded({"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int8)})
    source = MemorySource(files)
    found = FORMAT.read(source)["model_state_dict"]
    with source.open("model.safetensors").view(0, 1) as view:
        first = torch.frombuffer(view, dtype=torch.uint8).data_ptr()
    for tensor in found.values():
        assert first < tensor.data_ptr() < first + len(files["model.safetensors"])
    found["a"].mul_(2)
    assert read(files)["model_state_dict"]["a"][3] == 3


def test_tensors_go_where_they_are_asked_to() -> None:
    """To another device, sharing what they shared; by a dict or a function, as torch takes them."""
    base = torch.arange(4.0)
    files = encoded({"a": base, "b": base[1:]})
    meta = read(files, map_location="meta")["model_state_dict"]
    assert {tensor.device.type for tensor in meta.values()} == {"meta"}
    for location in (None, {"cpu": "cpu"}, {"cuda": "meta"}, lambda storage, _: storage, lambda *_: None, "cpu"):
        found = read(files, map_location=location)["model_state_dict"]
        found["a"][1] = 7
        assert found["b"].tolist() == [7, 2, 3]
    assert read(files, map_location={"cpu": "meta"})["model_state_dict"]["a"].is_meta
    for wrong in ({"cpu": "nonsense"}, 7, ["cpu"]):
        with pytest.raises(ConfigError):
            read(files, map_location=wrong)
