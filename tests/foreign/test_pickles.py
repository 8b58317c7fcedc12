"""Hostile pickles: nothing in them is called, and none costs time or memory out of proportion."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import os
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.foreign import StoredObject
from ckpt_lib.foreign.dangerous_names import is_of_names
from ckpt_lib.foreign.pickles import describe, no_reference, no_tensor
from ckpt_lib.formats.torch.limits import max_structure_bytes
from tests.foreign.files import Calls, Opened, objects_in, pickled_alone, saved

PROTOCOLS = range(6)
_SECONDS, _BYTES = 2, 2**30


def described(data: bytes) -> Any:
    """What a pickle without tensors holds."""
    return describe(data, find_reference=no_reference, stored=no_tensor).value


class Thing:
    """A class that only these tests have."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Entries(dict[str, Any]):
    """A dict with a class of its own."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_object_is_described(protocol: int) -> None:
    """Its class, attributes and entries are those that were pickled, in every protocol."""
    thing, entries = described(pickled_alone([Thing(width=3, of=[1, "a"]), Entries(x=1)], protocol))
    assert (thing.class_name, thing.state) == (f"{__name__}.Thing", {"width": 3, "of": [1, "a"]})
    assert (entries.class_name, entries.entries) == (f"{__name__}.Entries", {"x": 1})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.25), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (PurePosixPath("/data/run"), "/data/run"),
        (PurePosixPath("a/b"), "a/b"),
        (PureWindowsPath("C:\\runs\\a"), "C:\\runs\\a"),
        (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
        (collections.deque([1, 2], maxlen=3), [1, 2]),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 67), "2026-01-02T03:04:05.000067"),  # noqa: DTZ001
        (frozenset({1}), {1}),
        (b"", b""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_of_libraries_are_plain(value: Any, plain: Any, protocol: int) -> None:
    """NumPy scalars, paths, dates and the containers of collections are what they stand for."""
    found = described(pickled_alone({"value": value}, protocol))["value"]
    assert (type(found), found) == (type(plain), plain)


_keys = st.one_of(st.text(max_size=4), st.integers(-9, 9), st.tuples(st.integers(), st.text(max_size=2)))
_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**1999), 2**1999),
        st.floats(allow_nan=False),
        st.text(max_size=300),
        st.binary(max_size=300),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_keys, inner, max_size=4),
        st.dictionaries(_keys, inner, max_size=4).map(collections.OrderedDict),
        st.sets(_keys, max_size=4),
    ),
    max_leaves=15,
)


@settings(deadline=None, max_examples=100)
@given(_values, st.sampled_from(PROTOCOLS))
def test_plain_pickles_are_read_as_pickle_does(value: Any, protocol: int) -> None:
    """Any plain value, in any protocol: what is described is what was pickled."""
    assert described(pickle.dumps(value, protocol)) == value


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_any_bytes_are_described_or_refused(noise: bytes, tail: bytes) -> None:
    """Whatever follows the start of a pickle, it is described, or refused by an error of ours."""
    for data in (noise, b"\x80\x04}(" + noise + b"." + tail, pickle.dumps({"a": [1, noise]}, 4)[: len(tail)]):
        try:
            described(data)
        except CheckpointError as error:
            assert isinstance(error, CorruptCheckpointError | UnsafePayloadError)  # noqa: PT017 - both are right


@pytest.mark.parametrize("layout", [("zip", 2), ("zip", 4), ("legacy", 2)])
def test_no_call_of_a_pickle_is_made(tmp_path: Path, layout: tuple[str, int]) -> None:
    """Calls of any function, wherever they stand, are described, named as suspicious, and not made."""
    canary = tmp_path / "canary"
    command = f"touch {canary}"
    calls = [
        Calls(os.system, command),
        Calls(exec, f"open({str(canary)!r}, 'w')"),
        Calls(Calls, os.system, command),
        Calls(getattr, Calls(__import__, "os"), "system"),
        Calls(torch.hub.load, "a/b", "c"),
    ]
    data = saved({"state_dict": {"weight": torch.ones(1)}, "hook": calls, "args": {"a": calls[0]}}, layout)
    found = Opened(tmp_path / "evil.pt", data)
    assert not canary.exists()
    assert list(found.payload["model_state_dict"]) == ["weight"]
    assert "system" in found.findings
    assert "posix.system" in {item.class_name for item in objects_in(found.contents["hook"])}
    assert "hook" in found.left_out
    assert found.facts.config == {}
    assert not canary.exists()


def test_a_state_never_hides_a_call(tmp_path: Path) -> None:
    """A model with a call among its weights is not loaded without it."""
    found = Opened(
        tmp_path / "evil.pt", saved({"state_dict": {"weight": torch.ones(1), "x": Calls(os.system, "true")}})
    )
    assert found.payload is None
    assert "posix.system" in found.obstacle


def _archive(pickled: bytes) -> bytes:
    """A file of torch.save with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def _doubled(make: bytes, levels: int = 60) -> bytes:
    """A pickle in which each level holds the one before twice."""
    start = make + b"q\x00"
    for level in range(1, levels):
        start += make + b"q" + bytes([level]) + b"(h" + bytes([level - 1]) + b"h" + bytes([level - 1]) + b"e"
    return b"\x80\x02" + start + b"."


_OBJECT = b"ca\nb\n)\x81"
BOMBS = {
    "lists that double": _doubled(b"]"),
    "objects that double": _doubled(_OBJECT),
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "lists in lists": b"\x80\x02" + b"]" * 9000 + b"a" * 8999 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 2_000_000 + b".",
    "a key of nested tuples": b"\x80\x02}(" + b"K\x01" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"Nu.",
    "a length beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a text beyond the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"abc.",
    "bytes by number": b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x8a\x05\0\0\0\0\x7f\x85R.",
    "a range as a list": b"\x80\x02cbuiltins\nlist\ncbuiltins\nrange\n\x8a\x06\0\0\0\0\0\x7f\x85R\x85R.",
    "a number of many digits": b"I" + b"9" * 4_000 + b"\n.",
    "a storage of any size": b"\x80\x02ctorch\nFloatStorage\n\x8a\x06\0\0\0\0\0\x7f\x85R.",
    "a tensor of any size": b"\x80\x02ctorch\nempty\n\x8a\x06\0\0\0\0\0\x7f\x85R.",
    "a memo far away": b"\x80\x02]r\xff\xff\xff\x7f.",
    "names without end": b"\x80\x02]" + b"".join(b"cm%d\nn\na" % number for number in range(20_000)) + b".",
    "marks without end": b"\x80\x02" + b"(" * 100_000 + b".",
    "steps without end": b"\x80\x02" + b"N0" * 5_000_000 + b"N.",
    "objects without end": b"\x80\x02cm\nn\nq\x00(" + b"h\x00)\x81}b" * 500_000 + b"t.",
    "a frame that goes back": b"\x80\x04\x95" + struct.pack("<q", -100) + b"N.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(tmp_path: Path, name: str) -> None:
    """Every pickle made to cost time or memory is described or refused in two seconds and little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with contextlib.suppress(CheckpointError):
        Opened(tmp_path / "bomb.pt", _archive(BOMBS[name]))
    assert time.process_time() - begun < _SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < _BYTES


def test_objects_may_refer_to_what_they_are_part_of() -> None:
    """A module may know its parent. What is described never contains itself: there, the parent's class is named."""
    parent, child = Thing(), Thing()
    parent.child, child.parent = child, parent  # type: ignore[attr-defined]  # of any class
    found = described(pickled_alone(parent))
    assert found.state["child"].state["parent"].class_name == f"{__name__}.Thing"
    assert found.state["child"].state["parent"].state is None


def test_equal_hashes_are_refused() -> None:
    """Keys chosen to have one hash would make a dict take forever."""
    with pytest.raises(UnsafePayloadError, match="hash"):
        described(pickled_alone({number * (2**61 - 1): None for number in range(2_000)}))


def test_a_structure_beyond_its_limit_is_not_read() -> None:
    """A pickle of more bytes than any checkpoint's is refused before it is executed."""
    with pytest.raises(UnsafePayloadError, match="longer"):
        described(b"\x80\x02N." + bytes(max_structure_bytes(0)))


def test_pickles_of_python_2_are_read() -> None:
    """Texts and dicts as Python 2 pickled them, for files of the first years of torch."""
    data = b"\x80\x02}q\x01(U\x06weightK\x01U\x01\xffK\x02"
    data += b"X\x01\0\0\0dccollections\nOrderedDict\n]q\x02]q\x03(U\x01aK\x03ea\x85Ru."
    assert described(data) == {"weight": 1, b"\xff": 2, "d": collections.OrderedDict(a=3)}
    assert described(b"(dp0\nS'it\\'s'\np1\nI1\ns.") == {"it's": 1}


def test_a_bare_pickle_is_described_and_not_loaded(tmp_path: Path) -> None:
    """A file of pickle without torch shows what it holds, and says what to do."""
    found = Opened(tmp_path / "args.pkl", pickled_alone({"args": argparse.Namespace(lr=0.1)}))
    assert (found.kind, found.payload) == ("pickle", None)
    assert "bare pickle" in found.obstacle
    assert isinstance(found.contents["args"], StoredObject)
    assert found.facts.config == {"lr": 0.1}


@pytest.mark.parametrize("name", ["ctypes.CDLL", "pty.Spawn", "webbrowser.Open", "os.System", "subprocess.Popen"])
def test_what_runs_commands_is_told_once(name: str) -> None:
    """A pickle that names such a function has one finding, which says which."""
    module, _, attribute = name.rpartition(".")
    (finding,) = describe(
        f"c{module}\n{attribute}\n(S'evil'\ntR.".encode(), find_reference=no_reference, stored=no_tensor
    ).findings
    assert is_of_names(finding)
    assert name in finding
