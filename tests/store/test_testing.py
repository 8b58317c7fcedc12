"""The fault-injecting store and the model of a disk keep the contract of stores, and fail as they are told to."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from ckpt_lib.errors import StorageFullError, StoreError, StoreUnavailableError
from ckpt_lib.store import Store, open_store
from ckpt_lib.testing import OPERATIONS, BitFlip, FaultPlan, FaultyStore, StoreContract, faults_injected
from ckpt_lib.testing.store_contract import begin, delete, get, names, put
from tests.torture.model_store import Disk, ModelStore


class TestFaultyStore(StoreContract):
    """With a plan that says nothing, it is the store that it wraps."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return FaultyStore(open_store(tmp_path / "store"), FaultPlan())

    @pytest.fixture
    def other(self, store: Store) -> Store:
        return FaultyStore(open_store(store.url), FaultPlan())

    def plant(self, store: Store, path: str, content: bytes) -> None:
        target = Path(store.location(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


class TestModelStore(StoreContract):
    """The model of a disk is a store like any other, as long as the power lasts."""

    @pytest.fixture
    def store(self) -> ModelStore:
        return ModelStore(Disk())

    @pytest.fixture
    def other(self, store: ModelStore) -> Store:
        return ModelStore(store.disk)

    def plant(self, store: Store, path: str, content: bytes) -> None:
        put(store, path, content)


@pytest.fixture
def plan() -> FaultPlan:
    return FaultPlan()


@pytest.fixture
def store(tmp_path: Path, plan: FaultPlan) -> FaultyStore:
    return FaultyStore(open_store(tmp_path / "store"), plan)


def use_everything(store: Store) -> None:
    """Each operation of a store at least once."""
    put(store, "e/x", b"0123456789", replace=True)
    with store.lock("e") as held:
        held.put("e/y", b"1")
        held.patch("e/x", [(0, b"a")], size_bytes=10)
        held.link("e/x", "e/z")
        held.delete("e/y")
        held.sweep()
        held.sync()
    with store.hold("e", "x", "reading"):
        assert get(store, "e/x") == b"a123456789"
    store.entries("e")
    store.stat("e/x")
    store.held("e")
    store.leftovers("e")
    store.free_bytes("e")


def test_every_operation_is_counted_and_fails_in_its_turn(tmp_path: Path) -> None:
    """Once, or from then on; with the error asked for, before it has done anything."""
    counted = FaultPlan()
    use_everything(FaultyStore(open_store(tmp_path / "counted"), counted))
    assert {call.partition(" ")[0] for call in counted.calls} == OPERATIONS
    for at, call in enumerate(counted.calls, start=1):
        plan = FaultPlan(fail_at=at, error=StoreUnavailableError)
        failing = FaultyStore(open_store(tmp_path / str(at)), plan)
        with pytest.raises(StoreUnavailableError, match=call.partition(" ")[0]):
            use_everything(failing)
        assert plan.calls == counted.calls[:at]
        use_everything(failing)
        assert plan.failures == 1


def test_a_persistent_fault_stays(store: FaultyStore, plan: FaultPlan) -> None:
    """Every later operation of that kind fails as well, and no other."""
    plan.fail_at, plan.persistent, plan.only = 2, True, frozenset({"put"})
    with store.lock("e") as held:
        held.put("e/a", b"1")
        for _ in range(3):
            with pytest.raises(StoreError, match="put"):
                held.put("e/b", b"2")
        held.delete("e/a")
    assert names(store, "e") == []
    assert plan.failures == 3


def test_a_quota_is_full_to_the_byte_and_gives_room_back(store: FaultyStore, plan: FaultPlan) -> None:
    """What was discarded, replaced or deleted does not count; free space says what is left."""
    plan.quota_bytes = 10
    put(store, "e/x", b"0123456789")
    assert store.free_bytes("e") == 0
    with pytest.raises(StorageFullError):
        begin(store, "e", b"1")
    with store.lock("e") as held, pytest.raises(StorageFullError):
        held.put("e/y", b"1")
    with store.lock("e") as held, pytest.raises(StorageFullError):
        held.patch("e/x", [(10, b"a")], size_bytes=11)
    delete(store, "e/x")
    assert store.free_bytes("e") == 10
    begin(store, "e", b"0123456789").discard()
    for _ in range(3):
        with store.lock("e") as held:
            held.put("e/y", b"12345")
    put(store, "e/y", b"1234", replace=True)
    assert store.free_bytes("e") == 6


def test_a_bit_read_wrong(store: FaultyStore, plan: FaultPlan) -> None:
    """From the second reading of that byte on, in that file alone; what lies in the store is untouched."""
    put(store, "e/x", b"\0" * 100)
    put(store, "e/y", b"\0" * 100)
    plan.read_flips = [BitFlip(50, bit=3, path="e/x", first=2)]
    assert get(store, "e/x") == b"\0" * 100
    assert get(store, "e/x") == b"\0" * 50 + b"\x08" + b"\0" * 49
    assert get(store, "e/y") == b"\0" * 100
    with store.open_read("e/x") as file:
        file.seek(51)
        assert file.read() == b"\0" * 49
        file.seek(49)
        assert file.read(2) == b"\0\x08"
    plan.read_flips = []
    assert get(store, "e/x") == b"\0" * 100


def test_a_bit_written_wrong(store: FaultyStore, plan: FaultPlan) -> None:
    """On its way to the disk, in a pending file, a put one and a patched one; the caller's buffer stays as it is."""
    data = bytearray(20)
    plan.write_flips = [BitFlip(15, path="e/*")]
    pending = store.open_write("e")
    pending.write(data)
    with store.lock("e") as held:
        held.publish(pending, "e/x")
        held.put("e/y", bytes(data))
        held.publish(begin(store, "e", b"1234567890123456789"), "e/z")
        held.patch("e/z", [(10, b"\0" * 6)], size_bytes=19)
    assert data == bytes(20)
    assert get(store, "e/x") == get(store, "e/y") == b"\0" * 15 + b"\1" + b"\0" * 4
    assert get(store, "e/z")[15:16] == b"\1"


def test_operations_take_longer(store: FaultyStore, plan: FaultPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by as much as the plan says."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    plan.latency_seconds = 0.25
    store.entries("e")
    store.stat("e/x")
    assert slept == [0.25, 0.25]


def test_injected_faults_reach_every_store_that_is_opened(tmp_path: Path) -> None:
    """And none that was opened before or after; contexts may be nested, and other threads' operations count."""
    before = open_store(tmp_path)
    with faults_injected(FaultPlan(only=frozenset({"entries"}))) as plan:
        inside = open_store(str(tmp_path))
        before.entries("")
        thread = threading.Thread(target=lambda: open_store(tmp_path / "more").entries("e"))
        thread.start()
        thread.join()
        with faults_injected(FaultPlan()) as inner:
            open_store(tmp_path).entries("")
        inside.entries("")
    open_store(tmp_path).entries("")
    assert plan.calls == ["entries e", "entries ", "entries "]
    assert inner.calls == ["entries "]


# --- the model of a disk ---


def states(disk: Disk) -> set[tuple[tuple[str, bytes], ...]]:
    """Everything that the disk may come up with."""
    import random

    return {tuple(sorted(state.items())) for state in disk.moment().states(10_000, random.Random(0))}


def disk_with(**files: bytes) -> tuple[Disk, ModelStore]:
    disk = Disk({f"e/{name}": data for name, data in files.items()})
    return disk, ModelStore(disk)


def test_what_was_synced_survives() -> None:
    """Bytes by the file's sync, names by the folder's: then there is one state."""
    disk, store = disk_with(old=b"1")
    put(store, "e/x", b"22")
    assert states(disk) == {(("e/old", b"1"), ("e/x", b"22"))}
    with store.lock("e") as held:
        held.put("e/old", b"333")
        held.delete("e/x")
        held.sync()
    assert states(disk) == {(("e/old", b"333"),)}


def test_names_may_survive_in_any_combination() -> None:
    """Each new or taken name on its own, whatever the order they were changed in."""
    disk, store = disk_with(a=b"a", b=b"b")
    with store.lock("e") as held:
        held.delete("e/a")
        held.put("e/b", b"B")
        held.put("e/c", b"c")
    found = {tuple(path + "=" + data.decode() for path, data in state) for state in states(disk)}
    every = itertools.product(["e/a=a", ""], ["e/b=b", "e/b=B"], ["e/c=c", ""])
    assert found == {tuple(filter(None, combination)) for combination in every}


def test_changes_of_one_name_stay_in_order() -> None:
    """The disk may have any of them last, and no mixture."""
    disk, store = disk_with(a=b"1")
    with store.lock("e") as held:
        held.put("e/a", b"2")
        held.delete("e/a")
        held.put("e/a", b"3")
    assert states(disk) == {(("e/a", b"1"),), (("e/a", b"2"),), (), (("e/a", b"3"),)}


def test_unsynced_bytes_may_be_lost_cut_off_or_zero() -> None:
    """Though the file has its name for good."""
    disk, store = disk_with()
    pending = store.open_write("e")
    pending.write(b"x" * 2000)
    with store.lock("e") as held:
        held.publish(pending, "e/x")
        held.sync()
    contents = {dict(state)["e/x"] for state in states(disk)}
    assert {b"", b"x" * 1000, bytes(2000), b"x" * 2000} < contents
    assert b"x" * 512 + bytes(512) + b"x" * 512 + bytes(464) in contents


def test_a_patch_that_was_not_synced_is_in_part_there() -> None:
    """Old and new sectors in any mixture; bytes that were not patched are as they were in each."""
    disk, store = disk_with(x=b"0" * 1536)
    seen: set[bytes] = set()
    disk.on_change = lambda: seen.update(dict(state)["e/x"] for state in states(disk))
    with store.lock("e") as held:
        held.patch("e/x", [(0, b"1" * 512), (1024, b"1" * 512)], size_bytes=1536)
    assert all(data[512:1024] == b"0" * 512 for data in seen)
    ends = {(data[:512], data[1024:]) for data in seen}
    assert ends >= set(itertools.product([b"0" * 512, b"1" * 512], repeat=2))
    assert states(disk) == {(("e/x", b"1" * 512 + b"0" * 512 + b"1" * 512),)}


def test_a_folder_made_just_now_may_be_missing() -> None:
    """With everything in it, until its own name is durable."""
    disk = Disk()
    store = ModelStore(disk)
    seen: list[set[tuple[tuple[str, bytes], ...]]] = []
    disk.on_change = lambda: seen.append(states(disk))
    put(store, "e/x", b"1")
    assert seen[0] == {()}
    (made,) = [barrier for barrier in disk.barriers if barrier.kind == "folder made"]
    unsafe = Disk(ignored=[made])
    put(ModelStore(unsafe), "e/x", b"1")
    assert states(unsafe) == {(), (("e/x", b"1"),)}


def test_unfinished_files_are_gone_after_power_loss() -> None:
    """Nothing but names brings bytes back."""
    disk, store = disk_with(a=b"1")
    begin(store, "e", b"2")
    assert states(disk) == {(("e/a", b"1"),)}


def test_too_many_states_are_sampled_with_both_extremes() -> None:
    """Nothing survived, and everything did."""
    import random

    disk, store = disk_with()
    with store.lock("e") as held:
        for number in range(30):
            held.put(f"e/{number}", b"1")
    found = [len(state) for state in disk.moment().states(50, random.Random(1))]
    assert len(found) == 50
    assert found[:2] == [0, 30]
    assert len(set(found)) > 5
