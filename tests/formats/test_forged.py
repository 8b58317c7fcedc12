"""Forged structures: no stored code runs, and no tensor reaches out of its record."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsafePayloadError, UnsupportedStateError
from ckpt_lib.formats.torch.format import TorchZipFormat
from tests.formats.torch_files import encoded, opened, read, rezipped, saved

CANARY = "CKPT_TEST_CANARY"
_ASSIGN = f"__import__('os').environ.update({CANARY}='fired')"


class Reduces:
    """An object whose unpickling calls something with something, and changes what it gets."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


def _fire(*_: object) -> None:
    os.environ[CANARY] = "fired"


class Sets:
    """An object whose unpickling runs its own code."""

    def __setstate__(self, state: object) -> None:
        _fire()

    def __getstate__(self) -> object:
        return {"a": 1}


@pytest.fixture(autouse=True)
def _quiet_canary() -> Iterator[None]:
    os.environ.pop(CANARY, None)
    yield
    os.environ.pop(CANARY, None)


# --- no surprise code ---

ATTACKS: dict[str, Any] = {
    "exec": Reduces(exec, (_ASSIGN,)),
    "eval": Reduces(eval, (_ASSIGN,)),
    "getattr": Reduces(getattr, ("text", "upper")),
    "import": Reduces(builtins.__import__, ("antigravity",)),
    "ours": Reduces(_fire, ()),
    "setstate": Sets(),
    "hook": Reduces(torch.load, ("/nonexistent",)),
    "dotted": Reduces(torch.serialization.os.system, ("true",)),  # type: ignore[attr-defined]
    "module attribute": Reduces(torch.hub.load, ("a/b", "c")),
    "state of a function": Reduces(torch._utils._rebuild_parameter, (None, True, OrderedDict()), {"data": _fire}),
    "state of a size": Reduces(torch.Size, ((1,),), {"x": Reduces(_fire, ())}),
    "in a key": {Reduces(eval, (_ASSIGN,)): 1},
    "beside tensors": [torch.ones(2), Reduces(_fire, ())],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keys", [None, ["y"]], ids=["all", "another part"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_stored_code_does_not_run(attack: Any, keys: list[str] | None, legacy: bool) -> None:
    """Not even when a part is asked for that does not hold it, for the whole structure is read."""
    data = saved({"x": attack, "y": torch.ones(1)}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafePayloadError, match="trust_pickle=True"):
        read(opened(data), keys=keys)
    assert CANARY not in os.environ


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_does_not_run(protocol: int) -> None:
    """A pickle that is no torch file at all, in any protocol."""
    with pytest.raises(CheckpointError):
        read(pickle.dumps({"x": ATTACKS["exec"]}, protocol=protocol))
    assert CANARY not in os.environ


def test_a_planted_archive_does_not_run() -> None:
    """Code placed into the archive's other members is not even looked at."""
    whole = io.BytesIO(encoded({"a": torch.ones(1)}))
    with zipfile.ZipFile(whole, "a") as archive:
        prefix = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{prefix}/code/__torch__.py", _ASSIGN)
        archive.writestr(f"{prefix}/constants.pkl", pickle.dumps(ATTACKS["exec"]))
    with contextlib.suppress(CheckpointError):
        read(whole)
    assert CANARY not in os.environ


def test_stored_code_runs_for_who_asks_by_name() -> None:
    """``trust_pickle=True`` is the one door, and it is a door: otherwise the tests above would prove nothing."""
    assert read(saved({"x": ATTACKS["exec"]}), trust_pickle=True) == {"x": None}
    assert os.environ[CANARY] == "fired"


def test_refused_state_was_not_run_either() -> None:
    """Asking whether an object can be read back must not unpickle it for real."""
    for attack in ATTACKS.values():
        with pytest.raises(UnsupportedStateError):
            TorchZipFormat().prepare({"x": attack})
    assert CANARY not in os.environ


# --- tensors of one's own description ---


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
