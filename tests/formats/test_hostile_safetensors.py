"""Folders of safetensors files that were made to harm their reader: refused by an error of ours, soon and in little
memory.
"""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.formats import format_named
from ckpt_lib.formats.limits import extent
from ckpt_lib.formats.safetensors import header
from ckpt_lib.formats.safetensors.header import read_header
from ckpt_lib.formats.structure import reading
from ckpt_lib.formats.structure.decoding import decode
from ckpt_lib.formats.structure.dtypes import ALL_DTYPES
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.testing.format_contract import BOUNDED
from ckpt_lib.testing.payloads import Files, MemorySource, encode

FORMAT = format_named("safetensors")


def file_of(text: str | bytes, body: bytes = b"", size: int | None = None) -> VerifiedFile:
    data = text.encode() if isinstance(text, str) else text
    length = len(data) if size is None else size
    return VerifiedFile(io.BytesIO(length.to_bytes(8, "little") + data + body), None)


def described(**tensors: Any) -> str:
    names = ("dtype", "shape", "data_offsets")
    return json.dumps({name: dict(zip(names, facts, strict=False)) for name, facts in tensors.items()})


EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("", b""),
        ("{", b""),
        ("[]", b""),
        (' {"a": 1}', b""),
        ("1", b""),
        (b'{"\xff": 1}', b""),
        ('{"a": NaN}', b""),
        ('{"__metadata__": {"a": 1}}', b""),
        ('{"__metadata__": []}', b""),
        (described(a=("F32", [2], [0, 8])), b""),
        (described(a=("F32", [2], [0, 8])), EIGHT * 2),
        (described(a=("F32", [1], [0, 8])), EIGHT),
        (described(a=("F32", [3], [0, 8])), EIGHT),
        (described(a=("F32", [2], [8, 0])), EIGHT),
        (described(a=("F32", [2], [8, 16])), EIGHT * 2),
        (described(a=("F32", [2], [0, 8]), b=("F32", [2], [4, 12])), EIGHT * 2),
        (described(a=("F32", [2], [0, 8]), b=("F32", [1], [12, 16])), EIGHT * 2),
        (described(a=("F32", [2], [0, 8]), b=("F32", [2], [0, 8])), EIGHT),
        (described(a=("F99", [2], [0, 8])), EIGHT),
        (described(a=("F4", [16], [0, 8])), EIGHT),
        (described(a=("F32", [-2], [0, -8])), EIGHT),
        (described(a=("F32", [-1, -2], [0, 8])), EIGHT),
        (described(a=("F32", [2.0], [0, 8])), EIGHT),
        (described(a=("F32", [True, 2], [0, 8])), EIGHT),
        (described(a=("F32", "2", [0, 8])), EIGHT),
        (described(a=("F32", [2], [0, 8, 8])), EIGHT),
        (described(a=("F32", [2])), EIGHT),
        (described(a=(["F32"], [2], [0, 8])), EIGHT),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}}', EIGHT),
        ('{"a": 1}', EIGHT),
        ('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT),
        ('{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', b""),
        (described(a=("U8", [2**62, 2**62], [0, 2**124])), EIGHT),
        (described(a=("U8", [2**63], [0, 2**63])), EIGHT),
        (described(a=("U8", [0, 2**62, 2**62], [0, 0])), b""),
        (described(a=("U8", [1] * 65, [0, 1])), b"\0"),
        ('{"a": ' * 50_000, b""),
        ("[" * 100_000, b""),
        ('{"a": ' + "9" * 5000 + "}", b""),
        (described(a=("F32", [2], [0, 8])).replace("}}", "},}"), EIGHT),
        (described(a=("F32", [2], [0, 8])).replace("}}", "}"), EIGHT),
        (described(a=("F32", [2], [0, 8])) + "{}", EIGHT),
        (described(a=("F32", [2], [0, 8])).replace('"a":', '"a"'), EIGHT),
        (described(a=("F32", [2], [0, 8])).replace('"a":', "a:"), EIGHT),
        (described(a=("F32}", [2], [0, 8])), EIGHT),
        (described(a=("F32", [2], [0, 8]), b=("F32", [0], [8, 8])).replace(', "b"', ' "b"'), EIGHT),
        ('{"__metadata__": {"a": "1"}, "__metadata__": {}}', b""),
        ('{"__metadata__": {"a": "1", "a": "1"}}', b""),
    ],
)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(text: str | bytes, body: bytes) -> None:
    """Gaps, overlaps, repeats, wrong types, sizes that do not fit, numbers that overflow, and no JSON."""
    with pytest.raises(CorruptCheckpointError, match="malformed safetensors file"):
        read_header(file_of(text, body))


@pytest.mark.parametrize("size", [1, 3, 2**31, 2**63, 2**64 - 1])
def test_a_header_is_no_longer_than_its_file(size: int) -> None:
    """The length is compared before anything of that length is read or allocated."""
    with pytest.raises(CorruptCheckpointError):
        read_header(file_of("{}", size=size))


def test_a_header_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is as long as it says is refused by that, unread."""
    monkeypatch.setattr(header, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(CorruptCheckpointError, match="than any header may be"):
        read_header(file_of("{" + " " * 1000 + "}"))


HEADERS = {
    "names of nothing": b",".join(b'"%d":{}' % number for number in range(10**6)),
    "objects": b'"a":[' + b"{}," * 5_000_000 + b"0]",
    "objects in one": b'"a":{"dtype":[' + b"{}," * 5_000_000 + b"0]}",
    "lists": b'"a":[' + b"[]," * 5_000_000 + b"0]",
    "numbers": b'"a":[' + b"1," * 7_000_000 + b"0]",
    "names of numbers": b",".join(b'"%x":0' % number for number in range(10**6)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_is_read_no_further_than_its_first_wrong_tensor(kind: str) -> None:
    """What is no tensor is refused where it is met: megabytes of it cost a hundredth of what reading them costs."""
    file = file_of(b"{" + HEADERS[kind] + b"}")
    start = time.process_time()
    with pytest.raises(CorruptCheckpointError, match="malformed safetensors file"):
        read_header(file)
    assert time.process_time() - start < 0.3


def test_a_header_may_be_spaced_and_escaped() -> None:
    """Any JSON of the same meaning is the same header, wherever its blanks are and whatever its names."""
    name = 'a"}\\{:, \u00e9'
    text = json.dumps({name: {"data_offsets": [0, 8], "shape": [2], "dtype": "F32"}, "__metadata__": {"{": "}"}})
    for spaced in (text, text.replace(" ", ""), json.dumps(json.loads(text), indent=3), f"{text} \n\t\r"):
        found = read_header(file_of(spaced, EIGHT))
        names = {json.loads(spaced).popitem()[0], *json.loads(spaced)} - {"__metadata__"}
        assert found.entries.keys() == names
        assert found.metadata == {"{": "}"}
    assert read_header(file_of("{}")) == ({}, {})


# --- the structure ---


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**58, 2**62, 2**63 - 1])


@BOUNDED
@given(
    shape=st.lists(NUMBERS, max_size=3),
    stride=st.lists(NUMBERS, max_size=3),
    offset=NUMBERS,
    dtype=st.sampled_from(sorted(ALL_DTYPES)),
    is_view=st.booleans(),
)
def test_no_view_leaves_its_memory(shape: list[int], stride: list[int], offset: int, dtype: str, is_view: bool) -> None:
    """Whatever numbers stand in the structure: what is built lies in the stored bytes, or nothing is built."""
    facts = {"view": view(dtype, shape, stride, offset)} if is_view else {"stride": stride}
    try:
        found = FORMAT.read(MemorySource(files_with({"a": tensor(**facts)})))["a"]
    except CorruptCheckpointError:
        return
    if found.numel():
        assert found.storage_offset() + extent(found.shape, found.stride()) <= 16 // found.itemsize
        assert found.untyped_storage().nbytes() == 16


def files_with(structure: Any, **others: Any) -> Files:
    """A payload of one tensor, ``state/t``, of 16 bytes, with another structure."""
    files = encode(FORMAT, {"t": torch.arange(4.0)})
    found = {"format": "safetensors", "version": 1, "files": {"state": "state.safetensors"}, "payload": structure}
    return {**files, "state.json": json.dumps({**found, **others}).encode()}


def view(dtype: Any = "float32", shape: Any = (4,), stride: Any = (1,), offset: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "stride": stride, "offset": offset}


def tensor(**facts: Any) -> dict[str, Any]:
    return {"$tensor": "state/t", **facts}


def test_what_the_cases_below_alter_is_read() -> None:
    """The tensor that each case describes in another way."""
    found = FORMAT.read(MemorySource(files_with({"a": tensor(), "b": tensor(view=view(shape=[2], offset=2))})))
    assert found["b"].tolist() == [2, 3]
    assert found["a"][2:].data_ptr() == found["b"].data_ptr()


def test_orders_of_dimensions_are_copies_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that wants one tensor in many orders asks for as many copies of it; writers know one order."""
    monkeypatch.setattr(reading, "MAX_EXPANDED_BYTES", 100)
    files = encode(FORMAT, {"t": torch.arange(64.0).view([2] * 6)})
    found = json.loads(files["state.json"])
    orders = [list(order) for order in itertools.islice(itertools.permutations([32, 16, 8, 4, 2, 1]), 1, 3)]
    for count in (1, 2):
        found["payload"] = {"a": [tensor(stride=order) for order in orders[:count] * 5]}
        files["state.json"] = json.dumps(found).encode()
        if count == 1:
            assert len({item.data_ptr() for item in FORMAT.read(MemorySource(files))["a"]}) == 1
        else:
            with pytest.raises(CorruptCheckpointError, match="larger than their stored memory"):
                FORMAT.read(MemorySource(files))


@pytest.mark.parametrize(
    "value",
    [
        {"$tensor": "state/x"},
        {"$tensor": "other/t"},
        {"$tensor": "t"},
        {"$tensor": 1},
        {"$tensor": ["state/t"]},
        tensor(view=view(shape=[5])),
        tensor(view=view(offset=1)),
        tensor(view=view(offset=-1)),
        tensor(view=view(stride=[2])),
        tensor(view=view(stride=[-1])),
        tensor(view=view(shape=[1, 4])),
        tensor(view=view(shape=[2**62], stride=[0])),
        tensor(view=view(shape=[2**64], stride=[0])),
        tensor(view=view(shape=[2**29], stride=[0])),
        tensor(view=view(dtype="complex128", shape=[2])),
        tensor(view=view(dtype="nn")),
        tensor(view=view(dtype=1)),
        tensor(view=view(shape=[True])),
        tensor(view={}),
        tensor(view=view(shape=[0, 2**62], stride=[1, 1], offset=5)),
        tensor(view=view(shape=[0, 2**62, 2**62], stride=[1, 1, 1])),
        tensor(view=view(shape=[1] * 100, stride=[1] * 100)),
        tensor(stride=[2]),
        tensor(stride=[1, 1]),
        tensor(stride=[-1]),
        tensor(stride="1"),
        tensor(stride=[1], view=view()),
        tensor(view=[1]),
        tensor(view=view(dtype="int32"), requires_grad=True),
        tensor(requires_grad=1),
        tensor(parameter="yes"),
        tensor(attributes={"grad": 1}),
        tensor(attributes={"backward": 1}),
        tensor(attributes={"__class__": 1}),
        tensor(attributes=[1]),
        {"$ordered": {}, "attributes": {"items": 1}},
        {"$ordered": {}, "attributes": {"__deepcopy__": 1}},
        {"$ordered": {}, "attributes": {"$dict": [[1, 2]]}},
        {"$ordered": 1},
        {"$ordered": [[1]]},
        {"$dict": {}},
        {"$dict": [[1, 2], [1, 3]]},
        {"$dict": [[[], 1]]},
        {"$dict": [[{"$set": []}, 1]]},
        {"$dict": [[tensor(), 1, 2]]},
        {"$set": [[1]]},
        {"$set": 3},
        {"$tuple": "abc"},
        {"$size": [-1]},
        {"$size": [2**70]},
        {"$int": "one"},
        {"$int": "1" * 5000},
        {"$int": 1.5},
        {"$float": "ff"},
        {"$float": "xx"},
        {"$complex": [1]},
        {"$complex": ["1", 2]},
        {"$bytes": "a"},
        {"$bytes": 1000000000000},
        {"$bytearray": 1000000000000},
        {"$dtype": "load"},
        {"$device": "nowhere"},
        {"$device": 1},
        {"$eval": "1"},
        {"$tuple": [], "more": 1},
        {"$int": "1", "$float": "2"},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_structure_that_makes_no_sense_is_refused(value: Any) -> None:
    """By a reading and by an inspection, as damage: views beyond their memory, unknown spellings, wrong types."""
    source = MemorySource(files_with({"a": value}))
    for ask in (FORMAT.read, FORMAT.inspect):
        with pytest.raises(CorruptCheckpointError):
            ask(source)


@pytest.mark.parametrize(
    "files",
    [
        {"state": "../state.safetensors"},
        {"state": "/etc/passwd"},
        {"state": "state.json"},
        {"state": "missing.safetensors"},
        {"state": 1},
        {"state": ["state.safetensors"]},
        {"state": "missing.safetensors.index.json"},
        {},
        [],
    ],
)
def test_a_name_leads_to_no_other_file(files: Any) -> None:
    """Only files that the manifest names, and of the right kind."""
    with pytest.raises(CorruptCheckpointError):
        FORMAT.read(MemorySource(files_with({"a": tensor()}, files=files)))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {"t": 1}}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"t": "../../x.safetensors"}}',
        b'{"weight_map": {"t": "i.safetensors.index.json"}}',
        b'{"weight_map": {"t": "state.json"}}',
    ],
)
def test_an_index_leads_to_no_other_file(index: bytes) -> None:
    """As the structure itself."""
    files = files_with({"a": tensor()}, files={"state": "i.safetensors.index.json"})
    with pytest.raises(CorruptCheckpointError):
        FORMAT.read(MemorySource({**files, "i.safetensors.index.json": index}))


@pytest.mark.parametrize("change", [{"format": "x"}, {"version": 0}, {"version": "1"}, {"payload": []}, {"payload": 1}])
def test_another_structure_is_none(change: dict[str, Any]) -> None:
    """Its kind and its version come first."""
    with pytest.raises(CorruptCheckpointError):
        FORMAT.read(MemorySource(files_with({}, **change)))


def test_a_later_version_is_not_damage() -> None:
    """It is said which version it is, so that nobody repairs or retires what a newer library reads."""
    with pytest.raises(UnsupportedFormatError, match="later version"):
        FORMAT.inspect(MemorySource(files_with({}, version=2, more="of it")))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deep lists": (lambda: b"[" * 1_000_000, "nested too deeply"),
    "deep and closed": (lambda: b'{"payload":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
    "levels": (lambda: json.dumps(nested(150)).encode(), "more than 100 levels"),
    "empty lists": (lambda: b"[" + b"[]," * 5_000_000 + b"[]]", "parts, more than 4000000"),
    "long": (lambda: b'"' + b"x" * (65 * 2**20) + b'"', "bytes, more than 67108864"),
    "equal hashes": (lambda: json.dumps({"$dict": _pairs_of_one_hash(20_000)}).encode(), "one hash"),
    "digits": (lambda: b"[" + b"9" * 100_000 + b"]", "digits"),
    "repeats": (lambda: b'{"a":1,"a":1}', "twice"),
}


def _pairs_of_one_hash(count: int) -> list[Any]:
    return [[{"$int": str(number * (2**61 - 1))}, 0] for number in range(count)]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return {"format": "safetensors", "version": 1, "files": {}, "payload": {"a": value}}


@pytest.mark.parametrize("name", BOMBS)
def test_a_structure_costs_no_more_than_it_may(name: str) -> None:
    """Depth, number, length and equal hashes have limits: refused in a moment."""
    files = {**files_with({}), "state.json": BOMBS[name][0]()}
    begun = time.process_time()
    with pytest.raises(CorruptCheckpointError, match=BOMBS[name][1]):
        FORMAT.inspect(MemorySource(files))
    assert time.process_time() - begun < 3


def test_a_full_stack_is_no_damage() -> None:
    """A caller that is itself deep in calls gets its RecursionError, and no word of a damaged payload."""

    data = json.dumps(nested(200)).encode()

    def from_depth(levels: int) -> Any:
        return from_depth(levels - 1) if levels else decode(data)

    def from_deeper_and_deeper() -> None:
        for levels in range(500, 1000):
            from_depth(levels)

    with pytest.raises(RecursionError):
        from_deeper_and_deeper()
    with pytest.raises(CorruptCheckpointError, match="too deeply"):
        decode(b"[" * 1_000_000)
