"""The fault-injecting store fails as it is told to."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ckpt_lib.errors import StorageFullError, StoreError, StoreUnavailableError, VersionConflictError
from ckpt_lib.store import Store, open_store
from ckpt_lib.testing import OPERATIONS, BitFlip, FaultPlan, FaultyStore, faults_injected
from ckpt_lib.testing.store_contract import get, keys, upload, version_of


@pytest.fixture
def plan() -> FaultPlan:
    return FaultPlan()


@pytest.fixture
def store(tmp_path: Path, plan: FaultPlan) -> FaultyStore:
    return FaultyStore(open_store(tmp_path / "store"), plan)


def use_everything(store: Store) -> None:
    """Each operation of a store at least once."""
    upload(store, "e/x", b"0123456789")
    store.put("e/y", b"1")
    store.delete("e/y")
    assert get(store, "e/x") == b"0123456789"
    store.list("e")
    store.stat("e/x")
    store.free_bytes()


@pytest.mark.parametrize("when", ["before", "after"])
def test_every_operation_is_counted_and_fails_in_its_turn(tmp_path: Path, when: str) -> None:
    """Once, with the error asked for: before it has done anything, or after it was done."""
    counted = FaultPlan()
    use_everything(FaultyStore(open_store(tmp_path / "counted"), counted))
    assert {call.partition(" ")[0] for call in counted.calls} == OPERATIONS
    for at, call in enumerate(counted.calls, start=1):
        plan = FaultPlan(fail_at=at, when=when, error=StoreUnavailableError)  # type: ignore[arg-type]
        failing = FaultyStore(open_store(tmp_path / str(at)), plan)
        with pytest.raises(StoreUnavailableError, match=call.partition(" ")[0]):
            use_everything(failing)
        assert plan.calls == counted.calls[:at]
        use_everything(failing)
        assert plan.failures == 1


@pytest.mark.parametrize(("when", "there"), [("before", []), ("after", ["e/x"])])
def test_a_lost_answer_is_of_something_done(store: FaultyStore, plan: FaultPlan, when: str, there: list[str]) -> None:
    """A put and a commit that fail after they were done can be read; those that fail before cannot."""
    plan.fail_at, plan.when, plan.only = 1, when, frozenset({"put", "commit"})  # type: ignore[assignment]
    with pytest.raises(StoreError):
        store.put("e/x", b"1")
    assert keys(store, recursive=True) == there
    plan.fail_at = 2
    store.delete("e/x")
    with pytest.raises(StoreError):
        upload(store, "e/x", b"1")
    assert keys(store, recursive=True) == there


def test_a_persistent_fault_stays(store: FaultyStore, plan: FaultPlan) -> None:
    """Every later operation of that kind fails as well, and no other."""
    plan.fail_at, plan.persistent, plan.only = 2, True, frozenset({"put"})
    store.put("e/a", b"1")
    for _ in range(3):
        with pytest.raises(StoreError, match="put"):
            store.put("e/b", b"2")
    store.delete("e/a")
    assert keys(store, recursive=True) == []
    assert plan.failures == 3


def test_another_writer_comes_between_two_operations(store: FaultyStore, plan: FaultPlan, tmp_path: Path) -> None:
    """The callback runs before the operation does, and sees which it is."""
    rival = open_store(tmp_path / "store")
    store.put("e/x", b"old")
    version = version_of(store, "e/x")
    plan.between = lambda operation, key: rival.put(key, b"rival") if operation == "put" else None
    with pytest.raises(VersionConflictError):
        store.put("e/x", b"mine", if_version=version)
    assert get(store, "e/x") == b"rival"


def test_a_quota_is_full_to_the_byte_and_gives_room_back(store: FaultyStore, plan: FaultPlan) -> None:
    """What was aborted, refused, replaced or deleted does not count; free space says what is left."""
    plan.quota_bytes = 10
    upload(store, "e/x", b"0123456789")
    assert store.free_bytes() == 0
    with pytest.raises(StorageFullError):
        upload(store, "e/z", b"1")
    with pytest.raises(StorageFullError):
        store.put("e/y", b"1")
    store.delete("e/x")
    assert store.free_bytes() == 10
    begun = store.open_write("e/z")
    begun.write(b"0123456789")
    begun.abort()
    for _ in range(2):
        store.put("e/y", b"12345")
    with pytest.raises(VersionConflictError):
        store.put("e/y", b"12345", if_version="another")
    upload(store, "e/y", b"1234")
    assert store.free_bytes() == 6


def test_a_bit_read_wrong(store: FaultyStore, plan: FaultPlan) -> None:
    """From the second reading of that byte on, in that object alone; what lies in the store is untouched."""
    store.put("e/x", b"\0" * 100)
    store.put("e/y", b"\0" * 100)
    plan.read_flips = [BitFlip(50, bit=3, key="e/x", first=2)]
    assert get(store, "e/x") == b"\0" * 100
    assert get(store, "e/x") == b"\0" * 50 + b"\x08" + b"\0" * 49
    assert get(store, "e/y") == b"\0" * 100
    with store.open_read("e/x") as reader:
        assert reader.fileno() is None
        assert reader.read_at(51, 100) == b"\0" * 49
        assert reader.read_at(49, 51) == b"\0\x08"
    plan.read_flips = []
    assert get(store, "e/x") == b"\0" * 100


def test_a_bit_written_wrong(store: FaultyStore, plan: FaultPlan) -> None:
    """On its way into the store, put or uploaded in pieces; the caller's buffer stays as it is."""
    data = bytearray(20)
    plan.write_flips = [BitFlip(15, key="e/*")]
    begun = store.open_write("e/x")
    begun.write(memoryview(data)[:10])
    begun.write(memoryview(data)[10:])
    begun.commit()
    store.put("e/y", bytes(data))
    assert data == bytes(20)
    assert get(store, "e/x") == get(store, "e/y") == b"\0" * 15 + b"\1" + b"\0" * 4


def test_injected_faults_reach_every_store_that_is_opened(tmp_path: Path) -> None:
    """And none that was opened before or after; contexts may be nested, and other threads' operations count."""
    before = open_store(tmp_path)
    with faults_injected(FaultPlan(only=frozenset({"list"}))) as plan:
        inside = open_store(str(tmp_path))
        before.list("")
        thread = threading.Thread(target=lambda: open_store(tmp_path / "more").list("e"))
        thread.start()
        thread.join()
        with faults_injected(FaultPlan()) as inner:
            open_store(tmp_path).list("")
        inside.list("")
    open_store(tmp_path).list("")
    assert plan.calls == ["list e", "list ", "list "]
    assert inner.calls == ["list "]
