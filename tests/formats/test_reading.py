"""Reading without copying: what ``torch.load`` gives, from verified bytes only and no more than were asked for."""

from __future__ import annotations

import gc
import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import ConfigError, CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.formats.selection import check_keys, select
from ckpt_lib.formats.torch.reading import TorchReader, tensor_ranges
from ckpt_lib.stream import StreamDigest, VerifiedFile
from ckpt_lib.testing.format_contract import BOUNDED, states
from ckpt_lib.testing.payloads import assert_same
from tests.formats.torch_files import read

CANARY = "CKPT_TEST_CANARY"


def saved(payload: Any, **options: Any) -> bytes:
    """What plain torch writes."""
    buffer = io.BytesIO()
    torch.save(payload, buffer, **options)
    return buffer.getvalue()


def entry_of(data: bytes, chunk_size_bytes: int = 64) -> FileEntry:
    digest = StreamDigest(chunk_size_bytes)
    digest.update(data)
    return FileEntry(name="file.pt", **digest.finish().__dict__)


def opened(data: bytes, original: bytes | None = None, chunk_size_bytes: int = 64) -> VerifiedFile:
    """``data`` as a verified file that should hold ``original``."""
    return VerifiedFile(io.BytesIO(data), entry_of(original or data, chunk_size_bytes))


def views(payload: Any, keys: Any = None) -> Any:
    """A payload read as users read it, which is known not to need torch's own reader."""
    data = saved(payload)
    assert TorchReader(opened(data)).unusual is None
    return read(opened(data), keys=keys)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


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


def rezipped(data: bytes, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with its records changed, or left out where ``change`` says ``None``."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for info in source.infolist():
            record = change(info.filename, source.read(info))
            if record is not None:
                archive.writestr(info.filename, record)
    return target.getvalue()


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


# --- names ---

TREE: dict[str, Any] = {
    "model_state_dict": OrderedDict({"encoder.0.weight": 1, "encoder.0.bias": 2, "encoders": 3, "head": 4}),
    "optimizer_state_dict": {"state": {0: {"step": 5, "exp_avg": 6}, 1: {"step": 7}}, "param_groups": [8]},
    "epoch": 9,
}


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (["epoch"], {"epoch": 9}),
        (["model_state_dict.encoder"], {"model_state_dict": {"encoder.0.weight": 1, "encoder.0.bias": 2}}),
        (["model_state_dict.encoder.0.bias"], {"model_state_dict": {"encoder.0.bias": 2}}),
        (["optimizer_state_dict.state.0.step"], {"optimizer_state_dict": {"state": {0: {"step": 5}}}}),
        (["optimizer_state_dict.param_groups", "epoch"], {"optimizer_state_dict": {"param_groups": [8]}, "epoch": 9}),
        (["model_state_dict", "model_state_dict.head"], {"model_state_dict": TREE["model_state_dict"]}),
    ],
)
def test_a_name_stands_for_all_that_is_below_it(keys: list[str], kept: dict[str, Any]) -> None:
    """Dots stand between dicts and within keys; what is not named is left out, and the rest keeps its order."""
    found = select(TREE, keys)
    assert found == kept
    assert list(found) == [key for key in TREE if key in kept]
    if "model_state_dict" in kept:
        assert type(found["model_state_dict"]) is OrderedDict


@pytest.mark.parametrize(
    ("key", "like"),
    [
        ("modelstate_dict", "model_state_dict"),
        ("model_state_dict.encodr.0.bias", "model_state_dict.encoder.0.bias"),
        ("optimizer_state_dict.param_groups.0", "optimizer_state_dict.param_groups"),
        ("epoch.x", "epoch"),
    ],
)
def test_a_name_that_stands_for_nothing_is_told_its_like(key: str, like: str) -> None:
    """Before a tensor is read; lists are taken as a whole."""
    with pytest.raises(ConfigError) as refused:
        select(TREE, ["model_state_dict.head", key])
    assert repr(key) in refused.value.message
    assert refused.value.hint is not None
    assert repr(like) in refused.value.hint


@pytest.mark.parametrize("keys", ["epoch", [], [1], 5, [b"epoch"]], ids=repr)
def test_keys_are_a_collection_of_names(keys: Any) -> None:
    """A bare text would be taken apart into letters, and nothing means nothing."""
    with pytest.raises(ConfigError):
        check_keys(keys)


@given(keys=st.sets(st.sampled_from(["a", "a.b", "a.b.c", "a.d", "e", "e.f"]), min_size=1))
def test_selecting_is_keeping_the_leaves_that_are_named(keys: set[str]) -> None:
    """Selection equals its definition, leaf by leaf."""
    leaves = {"a.b.c": 1, "a.b.x": 2, "a.d": 3, "e.f": 4, "g": 5}
    tree = {"a": {"b": {"c": 1, "x": 2}, "d": 3}, "e": {"f": 4}, "g": 5}
    wanted = {name: value for name, value in leaves.items() if any(f"{name}.".startswith(f"{key}.") for key in keys)}

    def flat(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in mapping.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    assert dict(flat(select(tree, keys))) == wanted


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
        with VerifiedFile(open(path, "rb", buffering=0), entry_of(data)) as file:
            tensor: torch.Tensor = read(file)["a"]
        return tensor

    load().mul_(2)
    assert path.read_bytes() == data
    assert torch.equal(load(), torch.arange(5000.0))


# --- no surprise code, no way out of the record ---


class Reduces:
    """An object whose unpickling calls something with something, and changes what it gets."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


def _fire(*_: object) -> None:
    os.environ[CANARY] = "fired"


@pytest.fixture
def _quiet_canary() -> Iterator[None]:
    os.environ.pop(CANARY, None)
    yield
    os.environ.pop(CANARY, None)


ATTACKS: dict[str, Any] = {
    "exec": Reduces(exec, (f"__import__('os').environ.update({CANARY}='fired')",)),
    "ours": Reduces(_fire, ()),
    "dotted": Reduces(torch.serialization.os.system, ("true",)),  # type: ignore[attr-defined]
    "module attribute": Reduces(torch.hub.load, ("a/b", "c")),
    "state of a function": Reduces(torch._utils._rebuild_parameter, (None, True, OrderedDict()), {"data": _fire}),
    "state of a size": Reduces(torch.Size, ((1,),), {"x": Reduces(_fire, ())}),
    "beside tensors": [torch.ones(2), Reduces(_fire, ())],
}


@pytest.mark.usefixtures("_quiet_canary")
@pytest.mark.parametrize("keys", [None, ["y"]], ids=["all", "another part"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_stored_code_does_not_run(attack: Any, keys: list[str] | None) -> None:
    """Not even when a part is asked for that does not hold it, for the whole structure is read."""
    data = saved({"x": attack, "y": torch.ones(1)})
    with pytest.raises(UnsafePayloadError):
        read(opened(data), keys=keys)
    assert CANARY not in os.environ


def structured(pickled: bytes, **records: bytes) -> bytes:
    """A torch archive with the given structure."""
    data = saved({"x": torch.arange(8.0)})
    return rezipped(
        data, lambda name, record: pickled if name.endswith("data.pkl") else records.get(name.split("/")[-1], record)
    )


class _Persistent(pickle.Pickler):
    """Writes tensors as a forger would: with any storage, offset, size and stride."""

    def persistent_id(self, item: Any) -> Any:
        return item.reference if isinstance(item, Forged) else None


class Forged:
    """A reference to a storage of so many elements."""

    def __init__(self, count: Any, name: Any = "0", kind: Any = torch.FloatStorage) -> None:
        self.reference = ("storage", kind, name, "cpu", count)

    def __repr__(self) -> str:
        return f"{getattr(self.reference[1], '__name__', 'no type')}({self.reference[2]!r}, {self.reference[4]!r})"


def forged(storage: Forged, *shape: Any) -> bytes:
    buffer = io.BytesIO()
    tensor = Reduces(torch._utils._rebuild_tensor_v2, (storage, *shape, False, OrderedDict()))
    _Persistent(buffer, protocol=2).dump({"x": tensor})
    return structured(buffer.getvalue())


def test_a_forged_tensor_that_fits_is_read() -> None:
    """Otherwise the refusals below would prove nothing."""
    assert read(opened(forged(Forged(8), 2, (3, 2), (2, 1))))["x"].tolist() == [[2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("storage", "shape"),
    [
        (Forged(8), (0, (9,), (1,))),
        (Forged(8), (1, (8,), (1,))),
        (Forged(8), (0, (2, 2), (7, 1))),
        (Forged(8), (8, (), ())),
        (Forged(8), (0, (2,), (2**62,))),
        (Forged(8), (2**70, (1,), (1,))),
        (Forged(9), (0, (9,), (1,))),
        (Forged(2**40), (0, (2**40,), (1,))),
        (Forged(8, "1"), (0, (8,), (1,))),
        (Forged(8, "../data.pkl"), (0, (8,), (1,))),
    ],
    ids=str,
)
def test_a_tensor_never_reaches_out_of_its_record(storage: Forged, shape: tuple[Any, ...]) -> None:
    """Whatever a structure says: a view of other memory would be handed out, so it is damage."""
    with pytest.raises(CorruptCheckpointError):
        read(opened(forged(storage, *shape)))


@pytest.mark.parametrize(
    ("storage", "shape"),
    [
        (Forged(8), (-1, (1,), (1,))),
        (Forged(8), (4, (2,), (-1,))),
        (Forged(8), (0, (-1,), (1,))),
        (Forged(8), (0, (2, 2), (1,))),
        (Forged(8), (0.5, (1,), (1,))),
        (Forged(8), (True, (1,), (1,))),
        (Forged(-8), (0, (1,), (1,))),
        (Forged(8, 7), (0, (1,), (1,))),
        (Forged(8, kind="FloatStorage"), (0, (1,), (1,))),
        (Forged(8), (0, "12", "12")),
    ],
    ids=str,
)
def test_a_tensor_of_no_sense_is_not_built(storage: Forged, shape: tuple[Any, ...]) -> None:
    """A tensor with an impossible shape is refused, and never handed to torch."""
    with pytest.raises((CorruptCheckpointError, UnsafePayloadError)):
        read(opened(forged(storage, *shape)))


def test_a_record_described_twice_is_not_read_beyond_the_first() -> None:
    """Two tensors may claim one record with different lengths; the longer claim is checked as well."""
    buffer = io.BytesIO()
    tensors = [
        Reduces(torch._utils._rebuild_tensor_v2, (Forged(count), 0, (count,), (1,), False, OrderedDict()))
        for count in (2, 8)
    ]
    _Persistent(buffer, protocol=2).dump({"x": tensors})
    with pytest.raises(CorruptCheckpointError):
        read(opened(structured(buffer.getvalue())))


@pytest.mark.parametrize("field", ["size", "offset", "name length"])
def test_a_directory_that_points_elsewhere_is_damage(field: str) -> None:
    """A record is never given out beyond the next one's beginning, whatever directory and heads say."""
    data = bytearray(saved({"x": torch.arange(8.0)}))
    central = data.rindex(b"PK\1\2", 0, data.index(b"archive/data/0", data.index(b"PK\1\2")))
    if field == "size":
        struct.pack_into("<II", data, central + 20, 2**31, 2**31)
    elif field == "offset":
        struct.pack_into("<I", data, central + 42, len(data) - 8)
    else:
        head = data.index(b"PK\3\4", data.index(b"byteorder"))
        struct.pack_into("<H", data, head + 26, 60_000)
    with pytest.raises(CorruptCheckpointError):
        read(opened(bytes(data)))
