"""Pickles that were made to cost whoever looks at them: told or refused, in less than 2 s of processor and 1 GB."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_lib import inspect_checkpoint
from tests.torture.attacker import archive_of
from tests.torture.pickles import name, text
from tests.torture.sandbox import run_in_child

HEAD, STOP = b"\x80\x02", b"."
MIB = 2**20


def listed(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def remembered(value: bytes, number: int = 0) -> bytes:
    return value + b"r" + struct.pack("<I", number)


def again(number: int = 0) -> bytes:
    return b"j" + struct.pack("<I", number)


def _shared_texts(count: int) -> bytes:
    return listed(remembered(text("x" * 3 * MIB)), again() * count)


def _texts(count: int) -> bytes:
    return listed(b"X\1\0\0\0x" * count)


def _long_names(count: int) -> bytes:
    """Dicts that all lie below one long key, each of which has a name that begins with it."""
    return b"}" + text("k" * MIB) + listed(b"}K\1]s" * count) + b"s"


def _long_names_shared(count: int) -> bytes:
    return listed(remembered(text("k" * MIB)), b"".join(b"}" + again() + b"]s" for _ in range(count)))


def _shared_long_list(count: int) -> bytes:
    """A list of a hundred thousand numbers, which stands in another one again and again."""
    return listed(remembered(listed(b"K\1" * 100_000)), again() * count)


def _shared_levels(levels: int) -> bytes:
    steps = b"".join(b"](" + again(number) * 2 + b"er" + struct.pack("<I", number + 1) for number in range(levels))
    return listed(remembered(listed(b"K\1")), steps)


def _objects(count: int) -> bytes:
    return listed(remembered(name("some.library", "Thing")), (again() + b")R}b") * count)


def _dicts(count: int) -> bytes:
    return listed(b"}K\1K\2s" * count)


PICKLES: dict[str, Callable[[], bytes]] = {
    "one text, shared": lambda: _shared_texts(600_000),
    "one text, shared too often": lambda: _shared_texts(3_000_000),
    "texts": lambda: _texts(1_000_000),
    "texts without end": lambda: _texts(4_000_000),
    "lists": lambda: listed(b"]" * 24_000),
    "lists without end": lambda: listed(b"]" * 33 * MIB),
    "dicts": lambda: _dicts(24_000),
    "dicts without end": lambda: _dicts(8_000_000),
    "tuples": lambda: listed(b"K\1\x85" * 24_000),
    "numbers": lambda: listed(b"M\1\2" * 2_900_000),
    "numbers without end": lambda: listed(b"M\1\2" * 20_000_000),
    "many rows of numbers": lambda: listed((b"](" + b"M\1\2" * 50 + b"e") * 400_000),
    "a long list, shared": lambda: _shared_long_list(20_000),
    "lists shared and shared": lambda: _shared_levels(60),
    "names that begin with a long key": lambda: _long_names(24_000),
    "a long key, shared": lambda: _long_names_shared(24_000),
    "objects": lambda: _objects(6_000),
    "objects without end": lambda: _objects(2_000_000),
    "sets": lambda: listed((b"c__builtin__\nset\nq\0" + b"(]K\1at" + b"R") + (b"h\0(]K\1atR" * 150_000)),
}
ROOMS: dict[str, Callable[[Path, bytes], Path]] = {
    "a bare pickle": lambda folder, data: _written(folder / "x.pkl", data),
    "a torch file": lambda folder, data: _written(folder / "x.pt", archive_of(data)),
    "metadata of DCP": lambda folder, data: _written(folder / ".metadata", data).parent,
}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", PICKLES)
def test_no_pickle_costs_more_than_it_may(kind: str, room: str, tmp_path: Path) -> None:
    """Whatever it holds and wherever it lies, an inspection tells it or says why it does not."""
    path = ROOMS[room](tmp_path, HEAD + PICKLES[kind]() + STOP)
    ending = run_in_child(lambda: inspect_checkpoint(path))
    assert ending.broken_promise() is None
    assert ending.kind == "returned"


def test_what_is_shared_too_often_is_refused_by_name(tmp_path: Path) -> None:
    """The reason is told, and in no time."""
    path = ROOMS["a bare pickle"](tmp_path, HEAD + PICKLES["a long list, shared"]() + STOP)
    begun = time.process_time()
    assert "repeats itself without end" in str(inspect_checkpoint(path).problem)
    assert time.process_time() - begun < 2
