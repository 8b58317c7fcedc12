"""Tests what every store must do: a store is done when its subclass of ``StoreContract`` passes."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from ckpt_lib.errors import ConfigError, InvalidNameError, StoreError, StoreUnavailableError, VersionConflictError
from ckpt_lib.store import ABSENT, Condition, Delete, Entry, Put, Store, open_store

CONTENTS = [b"", b"1", bytes(range(256)) * 300]
BAD_KEYS = [
    ".ckpt-tmp/x",
    "e/.ckpt-tmp",
    "",
    "/",
    "/x",
    "x/",
    "e//x",
    ".",
    "e/..",
    "../x",
    "e/./x",
    "a\\b",
    "e/\0",
    "e/a\nb",
    "e/\ud800",
    "x" * 256,
]


def get(store: Store, key: str) -> bytes:
    """Read a whole object."""
    with store.open_read(key) as reader:
        return reader.read_at(0, reader.size_bytes)


def upload(store: Store, key: str, content: bytes) -> Entry:
    """Write an object as a stream."""
    begun = store.open_write(key)
    try:
        begun.write(content)
        return begun.commit()
    finally:
        begun.abort()


def keys(store: Store, prefix: str = "", *, recursive: bool = False) -> list[str]:
    """Return the keys of a listing."""
    return [entry.key for entry in store.list(prefix, recursive=recursive)]


def version_of(store: Store, key: str) -> str:
    """Return the version of a key that is there."""
    entry = store.stat(key)
    assert entry is not None, key
    return entry.version


def in_threads(actions: Sequence[Callable[[], object]]) -> list[object]:
    """Run all at once; return what each returned or raised."""
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> object:
        barrier.wait()
        try:
            return action()
        except StoreError as error:
            return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def add(store: Store, key: str, count: int) -> None:
    """Add one to a number so many times, whoever else does so at the same time."""
    while count:
        version = version_of(store, key)
        number = int(get(store, key))
        with suppress(VersionConflictError):
            store.put(key, b"%d" % (number + 1), if_version=version)
            count -= 1


class StoreContract:
    """Subclass it, and give a ``store`` fixture that makes an empty store.

    ``other`` is another client of the same store; override it if the URL does not open one.
    """

    rounds = 20
    """The number of runs of each race."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("override this fixture")

    @pytest.fixture
    def other(self, store: Store) -> Store:
        return open_store(store.url)

    # --- whole objects ---

    @pytest.mark.parametrize("content", CONTENTS, ids=len)
    def test_an_object_is_read_back(self, store: Store, other: Store, content: bytes) -> None:
        """Put or uploaded, to a new key or in the place of an old one, it is seen at once by every client."""
        for key in ("x", "e/x", "e/deeper/x"):
            for write in (store.put, partial(upload, store)):
                entry = write(key, content)
                assert get(other, key) == get(store, key) == content
                assert entry == other.stat(key) == store.stat(key)
                assert entry.size_bytes == len(content)

    @pytest.mark.parametrize("key", ["a b", "ü", "a%20b", "#[b]", "-rf", "~", ".hidden", "x" * 200, "a/b/c/d/e"])
    def test_keys_of_any_spelling(self, store: Store, key: str) -> None:
        """No character is taken for a pattern, an escape or a home directory."""
        store.put(key, b"1")
        assert keys(store, recursive=True) == [key]
        assert get(store, key) == b"1"

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_what_is_no_key_is_refused(self, store: Store, key: str) -> None:
        """By every operation, before anything is written."""
        for operation in (store.stat, store.open_read, store.open_write, store.delete):
            with pytest.raises(InvalidNameError):
                operation(key)
        with pytest.raises(InvalidNameError):
            store.put(key, b"1")
        assert keys(store, recursive=True) == []

    def test_a_key_that_is_not_there(self, store: Store) -> None:
        """It has no entry, cannot be read, and may be deleted."""
        store.put("e/y", b"1")
        for key in ("x", "e/x", "f/x", "e"):
            assert store.stat(key) is None
            with pytest.raises(FileNotFoundError):
                store.open_read(key)
        store.delete("e/x")
        store.delete("f/x")
        assert keys(store, recursive=True) == ["e/y"]

    def test_a_deleted_key_is_gone(self, store: Store, other: Store) -> None:
        """For every client; the next object of that key is a new one."""
        before = store.put("e/x", b"1")
        store.delete("e/x")
        assert other.stat("e/x") is None
        assert keys(other, "e") == keys(other) == []
        assert store.put("e/x", b"1").version != before.version

    # --- uploads ---

    def test_an_upload_is_invisible_until_it_is_committed(self, store: Store, other: Store) -> None:
        """Nothing lists it, and the object that has the key is as it was."""
        store.put("e/x", b"old")
        begun = store.open_write("e/x")
        assert begun.write(b"new ") == 4
        begun.write(bytearray(b"an"))
        begun.write(memoryview(b"d whole"))
        assert get(other, "e/x") == b"old"
        assert keys(other, recursive=True) == ["e/x"]
        entry = begun.commit()
        assert get(other, "e/x") == b"new and whole"
        assert entry == other.stat("e/x")

    def test_an_aborted_upload_leaves_nothing(self, store: Store) -> None:
        """Not even when it is aborted more than once; one that was committed stays."""
        begun = store.open_write("e/x")
        begun.write(b"1")
        begun.abort()
        begun.abort()
        assert keys(store, recursive=True) == []
        done = store.open_write("e/x")
        done.commit()
        done.abort()
        assert get(store, "e/x") == b""

    @pytest.mark.parametrize("end", ["commit", "abort"])
    def test_an_upload_that_has_ended_takes_nothing(self, store: Store, end: str) -> None:
        """Neither bytes nor another commit."""
        begun = store.open_write("e/x")
        getattr(begun, end)()
        before = keys(store, recursive=True)
        with pytest.raises(StoreError):
            begun.write(b"late")
        with pytest.raises(StoreError):
            begun.commit()
        assert keys(store, recursive=True) == before

    def test_uploads_of_one_key_do_not_disturb_each_other(self, store: Store, other: Store) -> None:
        """The last to be committed has the key."""
        first, second = store.open_write("e/x"), other.open_write("e/x")
        first.write(b"first")
        second.write(b"second")
        second.commit()
        first.commit()
        assert get(store, "e/x") == b"first"

    # --- listing ---

    def test_a_listing_shows_keys_and_folders(self, store: Store) -> None:
        """Keys directly under the folder, the first folder of deeper ones, or all keys below; sorted."""
        for key in ("x", "e/b", "e/a", "e/f/c", "e/f/g/d", "ee/x", "f/h/z"):
            store.put(key, b"1")
        assert keys(store) == ["e/", "ee/", "f/", "x"]
        assert keys(store, "e") == keys(store, "e/") == ["e/a", "e/b", "e/f/"]
        assert keys(store, "e/f") == ["e/f/c", "e/f/g/"]
        assert keys(store, "e", recursive=True) == ["e/a", "e/b", "e/f/c", "e/f/g/d"]
        assert len(keys(store, recursive=True)) == 7
        assert keys(store, "none") == keys(store, "e/none", recursive=True) == []

    def test_entries_of_a_listing_are_those_of_stat(self, store: Store) -> None:
        """A folder has a key and nothing else."""
        store.put("e/x", b"123")
        store.put("e/f/y", b"1")
        folder, entry = store.list("e")
        assert (entry, entry.is_folder) == (store.stat("e/x"), False)
        assert (folder, folder.is_folder) == (Entry("e/f/"), True)

    def test_a_folder_without_keys_is_not_listed(self, store: Store) -> None:
        """Object stores have no folders; a folder that was emptied is none."""
        store.put("e/f/x", b"1")
        store.delete("e/f/x")
        begun = store.open_write("g/x")
        begun.abort()
        assert keys(store) == keys(store, "e") == keys(store, recursive=True) == []

    # --- versions and times ---

    def test_a_version_stays_until_the_next_write(self, store: Store) -> None:
        """Reading, listing and writing other keys change nothing."""
        before = store.put("e/x", b"1")
        get(store, "e/x")
        store.put("e/y", b"1")
        assert store.stat("e/x") == before
        assert before in store.list("e")

    def test_no_two_writes_of_a_key_have_one_version(self, store: Store, other: Store) -> None:
        """Of the same bytes, in quick succession, by whatever way, and after it was deleted."""
        seen = []
        for _ in range(50):
            seen += [store.put("e/x", b"1").version, upload(other, "e/x", b"1").version]
            store.delete("e/x")
        assert len(set(seen)) == len(seen)

    def test_time_does_not_run_backwards(self, store: Store) -> None:
        """A later write of the same client has no earlier time."""
        times = [store.put(f"e/{number % 3}", b"1").modified_seconds for number in range(30)]
        assert times == sorted(times)
        assert times[0] > 0

    # --- reading ---

    def test_any_range_is_read(self, store: Store) -> None:
        """Fewer bytes at the end, and none behind it."""
        content = bytes(range(256)) * 10
        store.put("e/x", content)
        with store.open_read("e/x") as reader:
            assert reader.size_bytes == len(content)
            for start, stop in [(0, 0), (0, 1), (100, 300), (2500, 9999), (2560, 2561), (9999, 10000), (7, 2560)]:
                assert reader.read_at(start, stop) == content[start:stop]

    def test_threads_share_a_reader(self, store: Store) -> None:
        """Each gets the bytes that it asked for."""
        content = b"".join(number.to_bytes(4, "big") for number in range(10_000))
        upload(store, "e/x", content)
        with store.open_read("e/x") as reader, ThreadPoolExecutor(4) as pool:
            starts = range(0, len(content), 1000)
            assert b"".join(pool.map(lambda start: reader.read_at(start, start + 1000), starts)) == content

    @pytest.mark.parametrize("change", ["replace", "delete"])
    def test_a_reader_reads_one_version(self, store: Store, change: str) -> None:
        """An object that is to be replaced or deleted meanwhile is read as it was, or not any more.

        Where open files stay (Windows), the change is refused for as long as the reader is open.
        """
        store.put("e/x", b"old " * 1000)
        changes: dict[str, Callable[[], object]] = {
            "replace": partial(store.put, "e/x", b"new " * 1000),
            "delete": partial(store.delete, "e/x"),
        }
        with store.open_read("e/x") as reader:
            try:
                changes[change]()
                assert reader.read_at(0, 4000) == b"old " * 1000
            except FileNotFoundError:
                assert not store.capabilities.memory_map
            except StoreUnavailableError:
                assert not store.capabilities.memory_map
                assert reader.read_at(0, 4000) == b"old " * 1000
        changes[change]()
        assert keys(store, "e") == ([] if change == "delete" else ["e/x"])

    def test_what_is_mapped_outlives_its_key(self, store: Store) -> None:
        """Where there is something to map; a store without has no descriptor."""
        store.put("e/x", b"old " * 1000)
        with store.open_read("e/x") as reader:
            descriptor = reader.fileno()
            assert (descriptor is not None) is store.capabilities.memory_map
            if descriptor is not None:
                with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapping:
                    store.put("e/x", b"new " * 1000)
                    store.delete("e/x")
                    assert mapping[:] == b"old " * 1000

    # --- conditions ---

    def test_a_free_key_is_created_once(self, store: Store, other: Store) -> None:
        """And is free again when it was deleted. A store that cannot tell refuses, and writes nothing."""
        if not store.capabilities.create_if_absent:
            with pytest.raises(ConfigError, match="create_if_absent"):
                store.put("e/x", b"1", if_version=ABSENT)
            assert keys(store, recursive=True) == []
            return
        store.put("e/x", b"1", if_version=ABSENT)
        with pytest.raises(VersionConflictError):
            other.put("e/x", b"2", if_version=ABSENT)
        assert get(store, "e/x") == b"1"
        store.delete("e/x")
        other.put("e/x", b"3", if_version=ABSENT)
        assert get(store, "e/x") == b"3"

    def test_a_version_is_replaced_once(self, store: Store, other: Store) -> None:
        """Nothing is written over another version, or where no key is. A store that cannot tell refuses."""
        first = store.put("e/x", b"1")
        if not store.capabilities.replace_if_version:
            with pytest.raises(ConfigError, match="replace_if_version"):
                store.put("e/x", b"2", if_version=first.version)
            assert store.stat("e/x") == first
            return
        second = other.put("e/x", b"2", if_version=first.version)
        self._refused(store, "e/x", first.version, second)
        store.put("e/x", b"1")
        self._refused(store, "e/x", first.version, store.stat("e/x"))
        store.delete("e/x")
        self._refused(store, "e/x", second.version, None)
        self._refused(store, "f/x", second.version, None)

    def _refused(self, store: Store, key: str, version: str, after: Entry | None) -> None:
        with pytest.raises(VersionConflictError):
            store.put(key, b"late", if_version=version)
        assert store.stat(key) == after

    def test_a_version_is_deleted(self, store: Store, other: Store) -> None:
        """No other one is; a key that is not there conflicts with nothing. A store that cannot tell refuses."""
        first = store.put("e/x", b"1")
        if not store.capabilities.delete_if_version:
            with pytest.raises(ConfigError, match="delete_if_version"):
                store.delete("e/x", if_version=first.version)
            assert store.stat("e/x") == first
            return
        second = other.put("e/x", b"1")
        with pytest.raises(VersionConflictError):
            store.delete("e/x", if_version=first.version)
        assert store.stat("e/x") == second
        store.delete("e/x", if_version=second.version)
        store.delete("e/x", if_version=second.version)
        store.delete("f/x", if_version=second.version)
        assert store.stat("e/x") is None

    def test_free_space_is_known_or_not(self, store: Store) -> None:
        """As the capabilities say, before and after the first write."""
        for _ in range(2):
            assert (store.free_bytes() is not None) is store.capabilities.free_space
            store.put("e/x", b"1")

    # --- many at once ---

    def test_many_are_put_each_under_its_condition(self, store: Store, other: Store) -> None:
        """The answers are in the order of the puts; one that conflicts keeps no other one from being written."""
        if not (store.capabilities.create_if_absent and store.capabilities.replace_if_version):
            self._check_many_without_conditions(store, other)
            return
        old = [store.put(f"e/{number}", b"old") for number in range(150)]
        late = other.put("e/7", b"theirs")
        puts = [Put(entry.key, b"new", entry.version) for entry in old]
        answers = store.put_many(
            [*puts, Put("f/x", b"new", ABSENT), Put("e/y", b"new", ABSENT), Put("f/x", b"", ABSENT)]
        )
        refused = [number for number, answer in enumerate(answers) if isinstance(answer, VersionConflictError)]
        assert refused == [7, 152]
        written = [answer for answer in answers if isinstance(answer, Entry)]
        assert [entry.key for entry in written] == [*(entry.key for entry in old if entry.key != "e/7"), "f/x", "e/y"]
        assert all(other.stat(entry.key) == entry and get(other, entry.key) == b"new" for entry in written)
        assert other.stat("e/7") == late
        assert len({entry.version for entry in (*old, *written)}) == len(old) + len(written)

    def _check_many_without_conditions(self, store: Store, other: Store) -> None:
        with pytest.raises(ConfigError):
            store.put_many([Put("e/x", b"new", ABSENT), Put("e/y", b"new", "1")])
        answers = store.put_many([Put("e/x", b"1", None), Put("f/y", b"2", None)])
        assert answers == [other.stat("e/x"), other.stat("f/y")]

    def test_many_are_deleted(self, store: Store, other: Store) -> None:
        """One that is not there is no error; one that is another version by now stays."""
        for number in range(150):
            store.put(f"e/{number}", b"1")
        store.put("f/x", b"1")
        deletes = [Delete("e/none"), Delete("f/x"), *(Delete(f"e/{number}") for number in range(149))]
        assert list(store.delete_many(deletes)) == [None] * len(deletes)
        assert keys(other, recursive=True) == ["e/149"]
        if not store.capabilities.delete_if_version:
            return
        first, second = version_of(store, "e/149"), other.put("e/149", b"2")
        before = other.put("e/x", b"1")
        answers = store.delete_many([Delete("e/149", first), Delete("e/x", before.version)])
        assert isinstance(answers[0], VersionConflictError)
        assert answers[1] is None
        assert other.stat("e/149") == second
        assert keys(other, "e") == ["e/149"]

    def test_nothing_of_many_is_nothing(self, store: Store) -> None:
        """Whoever has nothing to write need not ask."""
        assert list(store.put_many([])) == list(store.delete_many([])) == []

    # --- races ---

    def test_one_of_many_creates_a_key(self, store: Store, other: Store) -> None:
        """The others are refused, and what is there is the winner's."""
        if store.capabilities.create_if_absent:
            for number in range(self.rounds):
                self._race_for(f"e/{number}", ABSENT, [store, other])
        else:
            self.test_a_free_key_is_created_once(store, other)

    def test_one_of_many_replaces_a_version(self, store: Store, other: Store) -> None:
        """The others are refused, and what is there is the winner's."""
        if store.capabilities.replace_if_version:
            for number in range(self.rounds):
                version = store.put(f"e/{number}", b"before").version
                self._race_for(f"e/{number}", version, [store, other])
        else:
            self.test_a_version_is_replaced_once(store, other)

    def _race_for(self, key: str, condition: Condition, clients: Sequence[Store]) -> None:
        contents = [b"%d" % number for number in range(6)]
        puts = [
            partial(clients[number % 2].put, key, content, if_version=condition)
            for number, content in enumerate(contents)
        ]
        results = in_threads(puts)
        winners = [content for content, result in zip(contents, results, strict=True) if isinstance(result, Entry)]
        assert [get(clients[0], key)] == winners
        assert all(isinstance(result, Entry | VersionConflictError) for result in results)

    def test_a_version_is_replaced_or_deleted(self, store: Store, other: Store) -> None:
        """Whoever wants either at the same moment, one succeeds."""
        if not (store.capabilities.replace_if_version and store.capabilities.delete_if_version):
            self.test_a_version_is_deleted(store, other)
            return
        for number in range(self.rounds):
            key = f"e/{number}"
            version = store.put(key, b"before").version

            replaced, deleted = in_threads(
                [
                    partial(store.put, key, b"after", if_version=version),
                    partial(other.delete, key, if_version=version),
                ]
            )
            if isinstance(replaced, Entry):
                assert isinstance(deleted, VersionConflictError)
                assert store.stat(key) == replaced
            else:
                assert (type(replaced), deleted) == (VersionConflictError, None)
                assert store.stat(key) is None

    def test_no_change_is_lost(self, store: Store, other: Store) -> None:
        """Numbers that many add to at once are the sum of all."""
        store.put("e/x", b"0")
        if not store.capabilities.replace_if_version:
            self.test_a_version_is_replaced_once(store, other)
            return
        in_threads([partial(add, client, "e/x", 10) for client in [store, other] * 2])
        assert get(store, "e/x") == b"40"

    def test_readers_see_whole_objects_while_writers_race(self, store: Store, other: Store) -> None:
        """Of whoever wrote last, by whatever way."""
        size = 20_000
        store.put("e/x", bytes(size))

        def write(client: Store, fill: int) -> None:
            for number in range(self.rounds):
                (client.put if number % 2 else lambda key, data: upload(client, key, data))("e/x", bytes([fill]) * size)

        def read(client: Store) -> bool:
            seen = {get(client, "e/x") for _ in range(5 * self.rounds)}
            return all(content == content[:1] * size for content in seen)

        results = in_threads([partial(write, other, 1), partial(write, other, 2), partial(read, store)])
        assert results == [None, None, True]
        assert keys(store, recursive=True) == ["e/x"]
