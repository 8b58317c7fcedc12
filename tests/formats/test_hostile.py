"""Payloads made to harm: what is refused, by which error, before it costs anything; and what is left to honest ones."""

from __future__ import annotations

import contextlib
import gc
import io
import pickle
import random
import struct
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib import CheckpointConfig
from ckpt_lib.core.manifest import parse_record
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    CorruptManifestError,
    UnsafePayloadError,
    UnsupportedStateError,
)
from ckpt_lib.formats.limits import MAX_EXPANDED_BYTES, expanded_bytes, extent
from ckpt_lib.formats.torch import limits, writing
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.formats.torch.pickle_checking import PickleChecker, Unknown
from ckpt_lib.formats.torch.reading import check_structure
from ckpt_lib.formats.torch.zip_reading import read_directory, start_of
from ckpt_lib.store import open_store
from ckpt_lib.testing.payloads import round_trip
from tests.formats.torch_files import encoded, opened, read, saved
from tests.torture.attacker import archive_of
from tests.torture.resource_limits import MANIFESTS

# --- the pickle ---


def structure(value: bytes) -> bytes:
    return b"\x80\x02}X\1\0\0\0x" + value + b"s."


plain_keys = st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.text(max_size=2))
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=12) | st.tuples(inner, inner) | st.dictionaries(plain_keys, inner, max_size=9)
    ),
    max_leaves=40,
)


@given(value=plain_values)
def test_the_checker_unpickles_as_python_does(value: Any) -> None:
    """Compared with the unpickler of the standard library, on what its pickler writes."""

    def nothing(*_: Any) -> Any:
        raise AssertionError("a plain value names nothing")

    assert PickleChecker(pickle.dumps(value, 2), find_name=nothing, find_reference=nothing).load() == value


@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x02}(", b"\x80\x02](K\1"]))
def test_any_bytes_are_a_structure_or_a_typed_error(data: bytes, start: bytes) -> None:
    """Nothing else is ever raised, whatever is read as a pickle."""
    with contextlib.suppress(CorruptCheckpointError, UnsafePayloadError):
        check_structure(start + data)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (b"K\1r\xff\xff\xff\x7f", "gaps"),
        (b"]" + b"q\0h\0\x86" * 40 + b"]", "damaged"),
        (b"}K\1" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Ns", "too many parts"),
        (b"}K\1" + b"\x85" * 5000 + b"Ns", "too many parts"),
        (b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb", "attributes that a dict does not have"),
        (b"ccollections\nOrderedDict\n)RK\1b", "attributes that a dict does not have"),
        (b"ccollections\nOrderedDict\n)R}X\x0c\0\0\0__setstate__K\1sb", "attributes that a dict does not have"),
        (b"ccollections\nOrderedDict\n)R}X\x0c\0\0\0__deepcopy__K\1sb", "attributes that a dict does not have"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", "named in the pickle"),
        (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R", "makes an empty"),
        (b"ctorch.nn.parameter\nParameter\n)\x81", "makes an empty"),
        (b"ccollections\nOrderedDict\n](K\1K\2\x86e\x85R", "not checked"),
        (b"ccollections\nCounter\n](K\1e\x85R", "not checked"),
        (b"(X\6\0\0\0moduleK\1tQ", "no storage"),
        (b"cos\nsystem\n)R}b", None),
        (b"2", "an opcode that torch.save does not write"),
        (b"(" * 20_000, "nested too deeply"),
        (b"]" + b"ctorch\nfloat32\n" * 10_001, "names more things"),
        (b"]q\0h\0a", None),
    ],
)  # fmt: skip
def test_what_no_state_needs_is_refused(steps: bytes, reason: str | None) -> None:
    """A structure that no state needs is refused by a typed error, through the method that users call."""
    with pytest.raises((UnsafePayloadError, CorruptCheckpointError)) as refused:
        read(archive_of(structure(steps)))
    if reason:
        assert reason in refused.value.message


def test_keys_of_one_hash_are_few() -> None:
    """A hundred keys with one hash are accepted, thousands are refused: each is compared with all the others."""

    def keys(count: int) -> bytes:
        numbers = (number * (2**61 - 1) for number in range(1, count + 1))
        return structure(b"}(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little") + b"N" for n in numbers) + b"u")

    check_structure(keys(100))
    with pytest.raises(UnsafePayloadError, match="one hash"):
        check_structure(keys(2000))
    check_structure(pickle.dumps({"x": {(number, -number): number for number in range(50_000)}}, 2))


def test_repetition_is_bounded_and_sharing_is_not() -> None:
    """A list in a million places is accepted; lists that double forty times over are refused."""
    shared = [[1]]
    check_structure(pickle.dumps({"x": [shared] * 100_000}, 2))
    value: Any = [1]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(UnsafePayloadError, match="repeats itself"):
        check_structure(pickle.dumps({"x": value}, 2))
    value.append(value)
    with pytest.raises(UnsafePayloadError, match="contains itself"):
        check_structure(pickle.dumps({"x": value}, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, at its own quantized tensors
def test_a_storage_that_only_torch_would_read_is_no_longer_than_its_record() -> None:
    """Torch's reader takes the length at its word, and reads what lies behind the record in memory."""
    number = b"J" + struct.pack("<i", 4096)
    storage = b"(X\7\0\0\0storagectorch\nQInt8Storage\nX\1\0\0\x000X\3\0\0\0cpu" + number + b"tQ"
    parameters = b"(ctorch\nper_tensor_affine\nG" + struct.pack(">d", 1) + b"K\0t"
    hooks = b"ccollections\nOrderedDict\n)R"
    shape = b"K\0" + number + b"\x85K\1\x85"
    call = b"ctorch._utils\n_rebuild_qtensor\n(" + storage + shape + parameters + b"\x89" + hooks + b"tR"
    whole, short = (archive_of(structure(call), {"data/0": bytes(size_bytes)}) for size_bytes in (4096, 32))
    assert torch.load(io.BytesIO(whole), weights_only=True)["x"].numel() == 4096
    with pytest.raises(CorruptCheckpointError, match="too short"):
        read(short)


def test_unknown_names_build_no_memory() -> None:
    """Unknown names are left to torch, except calls that would allocate a tensor or a storage."""
    assert Unknown("my.Thing")(1).name == "my.Thing()"
    assert Unknown("my.Thing").result(is_object=True).may_change
    assert not Unknown("torch._utils._rebuild_x")().may_change
    with pytest.raises(UnsafePayloadError):
        Unknown("torch.cuda.FloatTensor")(10**9)


def test_garbage_is_collected_again_afterwards() -> None:
    """Checking pauses the collector for all threads, and leaves it as it was: on, or off."""
    data = structure(b"](" + b"]" * 2000 + b"e")
    for is_on in (True, False):
        (gc.enable if is_on else gc.disable)()
        try:
            threads = [threading.Thread(target=check_structure, args=(data,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with pytest.raises(CorruptCheckpointError):
                check_structure(data[:-5])
            assert gc.isenabled() is is_on
        finally:
            gc.enable()


# --- what is saved is read back ---


def test_expanded_tensors_round_trip_up_to_the_limit() -> None:
    """Expanded tensors are stored small and come back as views; beyond the limit they are refused before a write."""
    base = torch.arange(4.0)
    payload = {
        "a": base.expand(1000, 4),
        "window": torch.arange(100.0).unfold(0, 50, 1),
        "b": torch.ones(1).expand(10**8),
    }
    found = round_trip(TorchZipFormat(), payload)
    assert torch.equal(found["a"], payload["a"])
    assert torch.equal(found["window"], payload["window"])
    assert (found["b"].stride(), found["b"].untyped_storage().nbytes()) == ((0,), 4)
    halves = {name: torch.ones(1).expand(MAX_EXPANDED_BYTES // 8 + 2) for name in "ab"}
    with pytest.raises(UnsupportedStateError, match="expanded"):
        TorchZipFormat().prepare(halves)
    TorchZipFormat().prepare({"a": halves["a"], "again": halves["a"]})  # one tensor, however often


def test_the_reader_has_the_writers_limit() -> None:
    """The reader accepts a file of another program at the limit, and refuses one beyond it."""
    most = MAX_EXPANDED_BYTES // 4 + 1
    assert read(saved({"x": torch.ones(1).expand(most)}))["x"].numel() == most
    with pytest.raises(UnsafePayloadError, match="larger than their stored memory"):
        read(saved({"x": torch.ones(1).expand(most + 1)}))


@given(
    size=st.lists(st.integers(0, 6), max_size=4),
    strides=st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_expansion_is_what_a_copy_takes_beyond_the_extent(size: list[int], strides: list[int]) -> None:
    """Extent and expanded bytes equal a count of the elements in memory."""
    stride = strides[: len(size)]
    places = {0} if size == [] else set()
    for index in torch.cartesian_prod(*[torch.arange(n) for n in size]).reshape(-1, len(size)).tolist() if size else []:
        places.add(sum(i * s for i, s in zip(index, stride, strict=True)))
    longest = max(places) + 1 if places else 0
    elements = torch.Size(size).numel()
    assert extent(size, stride) == longest
    assert expanded_bytes(size, stride, 4) == max(0, elements - longest) * 4


def test_a_structure_that_no_reader_takes_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many steps: refused when it is saved, with how many there may be. No save of few steps counts them."""
    monkeypatch.setattr(limits, "_STEPS_ALLOWED", 1000)
    calls: list[int] = []
    checked = check_structure

    def counted(data: bytes, records: int) -> None:
        calls.append(len(data))
        checked(data, records)

    monkeypatch.setattr(writing, "check_structure", counted)
    assert round_trip(TorchZipFormat(), {"x": [[]] * 50})["x"] == [[]] * 50
    assert calls == []
    assert len(round_trip(TorchZipFormat(), {"x": list(range(900))})["x"]) == 900  # long, and few steps
    assert len(calls) == 1
    with pytest.raises(UnsupportedStateError, match=r"too many parts.* beside 1 tensors.*1200 steps"):
        encoded({"x": [[number] for number in range(900)], "t": torch.ones(1)})


# --- the archive ---


def test_the_directory_is_that_of_pythons_own_reader() -> None:
    """Names and offsets equal those of Python's reader, for archives by torch, by this library and by Python."""
    payload = {"a": torch.arange(3.0), "b": torch.ones(5)}
    for data in (saved(payload), encoded(payload), archive_of(structure(b"N"))):
        file = opened(data)
        found = read_directory(file)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert list(found) == archive.namelist()
            for name, record in found.items():
                start = start_of(file, record)
                assert data[start : start + record.size_bytes] == archive.read(name)


@given(seed=st.integers(0, 2**32))
def test_any_damage_to_an_archive_is_a_typed_error_or_none(seed: int) -> None:
    """Up to four changed bytes in the directory, its end or the headers raise a typed error or change nothing."""
    choice = random.Random(seed)
    data = bytearray(archive_of(structure(b"N")))
    for _ in range(choice.randint(1, 4)):
        data[choice.randrange(len(data))] = choice.choice([0, 1, 0xFF, choice.randrange(256)])
    with contextlib.suppress(CheckpointError):
        read(bytes(data))


# --- small files and names ---


@pytest.mark.parametrize("kind", sorted(MANIFESTS.keys() - {"many chunks"}))
def test_a_manifest_that_is_a_bomb_is_corrupt(kind: str) -> None:
    """By its own error, and not as something that Python or the system did not like."""
    with pytest.raises(CorruptManifestError):
        parse_record(MANIFESTS[kind](random.Random(1)), path="x")


def test_numbers_that_json_lacks_are_no_manifest() -> None:
    """Python reads NaN and Infinity, which no other program would."""
    for name in (b"NaN", b"Infinity", b"-Infinity"):
        with pytest.raises(CorruptManifestError, match="no number of JSON"):
            parse_record(b'{"schema_version": 1, "config": {"x": ' + name + b"}}", path="x")


@pytest.mark.parametrize("path", ["a\ud800b", "\0", "a\0"])
def test_half_a_character_is_no_path(path: str) -> None:
    """Where a path is given: refused there, and not when the system cannot spell it."""
    with pytest.raises(ConfigError):
        open_store(path)
    for option in ("checkpoint_dir", "backup_dir"):
        with pytest.raises(ConfigError):
            CheckpointConfig.development(**{option: path})


@pytest.mark.parametrize("pid", [0, -1, 2**31, 10**30])
def test_an_owner_that_is_no_process_is_refused(pid: int) -> None:
    """A number that no process can have would be an error of the system when it is asked about."""
    with pytest.raises(ValueError, match="pid"):
        Owner(host="h", system="s", pid=pid, started="")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "ckpt_lib"):
        yield
