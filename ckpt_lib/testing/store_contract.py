"""What every store must do, as a suite: a store is done when its subclasses of these classes pass.

:class:`StoreContract` is for every store, :class:`SharedStoreContract` besides for those that several processes open by
their URL. Both need pytest.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ckpt_lib.errors import CheckpointExistsError, NotAStoreError, StoreError
from ckpt_lib.store import Entry, FolderLock, PendingFile, Store, open_store

OWN_PREFIX = ".ckpt-"
"""How the names begin under which a store keeps what is its own: leases, locks, unfinished files."""


def begin(store: Store, folder: str, content: bytes) -> PendingFile:
    """A file that lacks nothing but its name."""
    pending = store.open_write(folder)
    try:
        pending.write(content)
        pending.sync()
    except BaseException:
        pending.discard()
        raise
    return pending


def put(store: Store, path: str, content: bytes, *, replace: bool = False) -> None:
    """Publish a file, as a commit does."""
    folder = path.rpartition("/")[0]
    pending = begin(store, folder, content)
    try:
        with store.lock(folder) as held:
            held.publish(pending, path, replace=replace)
            held.sync()
    finally:
        pending.discard()


def get(store: Store, path: str) -> bytes:
    with store.open_read(path) as file:
        return file.read()


def delete(store: Store, path: str) -> None:
    with store.lock(path.rpartition("/")[0]) as held:
        held.delete(path)


def names(store: Store, folder: str) -> list[str]:
    """What is in a folder, but for the store's own."""
    return [entry.name for entry in store.entries(folder) if not entry.name.startswith(OWN_PREFIX)]


class StoreContract:
    """Subclass it, and give it a fixture ``store`` of a store that holds nothing yet, ``other``, and :meth:`plant`."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def other(self, store: Store) -> Store:
        """A second client of the same root."""
        raise NotImplementedError

    def plant(self, store: Store, path: str, content: bytes) -> None:
        """Put a file there as a foreign program would, without this library."""
        raise NotImplementedError

    # --- reading ---

    def test_it_knows_its_url(self, store: Store, other: Store) -> None:
        """A person recognises the store by it, and clients of one root have the same."""
        assert store.url
        assert store.url == other.url

    def test_nothing_is_there_before_something_is_written(self, store: Store) -> None:
        """A root that does not exist is an empty store, and asking creates nothing."""
        assert store.entries("") == []
        assert store.entries("e") == []
        assert store.entries("e/deep/er") == []
        assert store.stat("e/x") is None
        assert store.held("e") == {}
        with pytest.raises(FileNotFoundError):
            store.open_read("e/x")
        with store.hold("e", "x", "reading"):
            pass
        assert store.entries("") == []

    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 9000], ids=["empty", "small", "large"])
    def test_what_was_published_is_read_back(self, store: Store, other: Store, content: bytes) -> None:
        """By this client and another; the entry has the size."""
        put(store, "e/x", content)
        for client in (store, other):
            assert get(client, "e/x") == content
            entry = client.stat("e/x")
            assert entry is not None
            assert (entry.name, entry.size_bytes, entry.is_folder) == ("x", len(content), False)
            assert entry in client.entries("e")
            assert names(client, "e") == ["x"]

    def test_a_file_is_read_from_any_place(self, store: Store) -> None:
        """Readers seek, ask for how much they want, and read into their own buffers."""
        put(store, "e/x", b"0123456789")
        with store.open_read("e/x") as file:
            assert file.read(3) == b"012"
            file.seek(8)
            assert file.read(100) == b"89"
            assert file.read(100) == b""
            file.seek(-4, 2)
            buffer = bytearray(3)
            assert file.readinto(buffer) == 3  # type: ignore[attr-defined]
            assert bytes(buffer) == b"678"
            assert file.tell() == 9

    def test_entries_are_sorted_and_tell_folders(self, store: Store) -> None:
        """By name, folders marked, contents of folders not included."""
        for path in ("e/b", "e/a-1", "e/a/1", "e/a.1", "top"):
            put(store, path, b"1")
        shown = [(entry.name, entry.is_folder) for entry in store.entries("e") if entry.name in names(store, "e")]
        assert shown == [("a", True), ("a-1", False), ("a.1", False), ("b", False)]
        assert [(entry.name, entry.is_folder) for entry in store.entries("") if entry.name in names(store, "")] == [
            ("e", True),
            ("top", False),
        ]

    def test_a_folder_is_no_file(self, store: Store) -> None:
        """``stat`` answers for files alone."""
        put(store, "e/a/x", b"1")
        assert store.stat("e/a") is None

    def test_a_location_names_the_file(self, store: Store) -> None:
        """People and messages get something that ends in the path."""
        assert store.location("e/x").replace("\\", "/").endswith("e/x")
        assert store.location("e/x") != store.location("e/y")

    def test_free_space_is_a_number_or_unknown(self, store: Store) -> None:
        """Of a folder that is not there yet too, and asking creates nothing."""
        free = store.free_bytes("e")
        assert free is None or free >= 0
        assert store.entries("") == []

    # --- writing ---

    def test_nobody_sees_a_file_before_it_is_published(self, store: Store, other: Store) -> None:
        """Not even when all of it has been written and synced."""
        pending = store.open_write("e")
        assert pending.write(b"abc") == 3
        assert pending.write(memoryview(b"de")) == 2
        pending.sync()
        for client in (store, other):
            assert names(client, "e") == []
        with store.lock("e") as held:
            held.publish(pending, "e/x")
        pending.discard()
        assert get(other, "e/x") == b"abcde"
        assert names(other, "e") == ["x"]

    def test_any_buffer_is_written_as_its_bytes(self, store: Store) -> None:
        """Serializers pass byte arrays, and views of wider items."""
        pending = store.open_write("e")
        assert pending.write(bytearray(b"ab")) == 2
        assert pending.write(memoryview(bytearray(8)).cast("I")) == 8
        assert pending.write(memoryview(b"c-d-e-")[::1]) == 6
        assert pending.write(b"") == 0
        with store.lock("e") as held:
            held.publish(pending, "e/x")
        assert get(store, "e/x") == b"ab" + bytes(8) + b"c-d-e-"

    def test_what_was_written_is_read_back_before_it_has_a_name(self, store: Store) -> None:
        """As it will be under its name; reading it changes nothing."""
        content = bytes(range(256)) * 9000
        pending = begin(store, "e", content)
        with pending.open_read() as file:
            assert file.read() == content
        with store.lock("e") as held:
            held.publish(pending, "e/x")
        assert get(store, "e/x") == content

    def test_a_taken_name_is_refused_and_left_alone(self, store: Store, other: Store) -> None:
        """Ours or a foreign file's; what was to have it can then be published under another."""
        put(store, "e/x", b"first")
        self.plant(store, "e/foreign", b"foreign")
        pending = begin(other, "e", b"second")
        with other.lock("e") as held:
            for name in ("x", "foreign"):
                with pytest.raises(CheckpointExistsError):
                    held.publish(pending, f"e/{name}")
            held.publish(pending, "e/y")
        assert [get(store, f"e/{name}") for name in names(store, "e")] == [b"foreign", b"first", b"second"]

    def test_replacing_is_whole(self, store: Store, other: Store) -> None:
        """The old content is there until the new one is, also for whoever has it open."""
        put(store, "e/x", b"old")
        pending = begin(store, "e", b"new and longer")
        assert get(other, "e/x") == b"old"
        with other.open_read("e/x") as reader:
            with store.lock("e") as held:
                held.publish(pending, "e/x", replace=True)
            assert reader.read() in {b"old", b"new and longer"}
        assert get(other, "e/x") == b"new and longer"
        put(store, "e/fresh", b"1", replace=True)
        assert names(store, "e") == ["fresh", "x"]

    def test_a_discarded_file_leaves_nothing(self, store: Store) -> None:
        """Discarding is final, may be repeated, and never raises."""
        pending = begin(store, "e", b"abc")
        pending.discard()
        pending.discard()
        assert names(store, "e") == []
        with pytest.raises(ValueError, match="discarded"):
            pending.write(b"more")

    def test_discarding_after_publishing_changes_nothing(self, store: Store) -> None:
        """So that ``finally: discard()`` is always right."""
        pending = begin(store, "e", b"abc")
        with store.lock("e") as held:
            held.publish(pending, "e/x")
            pending.discard()
        pending.discard()
        assert get(store, "e/x") == b"abc"

    @pytest.mark.parametrize("durable", [True, False])
    def test_a_small_file_is_put_whole(self, store: Store, other: Store, durable: bool) -> None:
        """It takes the place of what was there, and other files stay as they are."""
        put(store, "e/y", b"other")
        with store.lock("e") as held:
            held.put("e/x", b"first and longer", durable=durable)
            assert get(other, "e/x") == b"first and longer"
            held.put("e/x", b"second", durable=durable)
            held.put("e/empty", b"", durable=durable)
        assert [get(other, f"e/{name}") for name in names(store, "e")] == [b"", b"second", b"other"]

    def test_deleting_removes_one_file(self, store: Store) -> None:
        """That one and no other; what is not there is no error."""
        put(store, "e/x", b"1")
        put(store, "e/xy", b"2")
        delete(store, "e/x")
        delete(store, "e/x")
        assert names(store, "e") == ["xy"]
        put(store, "e/x", b"free again")

    def test_a_deleted_file_stays_with_whoever_has_it_open(self, store: Store) -> None:
        """Readers of a retired checkpoint finish; or the store says that it is gone, and never gives other bytes."""
        put(store, "e/x", b"content")
        with store.open_read("e/x") as file:
            delete(store, "e/x")
            try:
                assert file.read() == b"content"
            except (StoreError, FileNotFoundError):
                assert store.stat("e/x") is None

    def test_syncing_a_folder(self, store: Store) -> None:
        """Works for every folder, the root included, after writing and after deleting."""
        for folder in ("e", ""):
            with store.lock(folder) as held:
                held.put(f"{folder}/x".lstrip("/"), b"1")
                held.sync()
                held.delete(f"{folder}/x".lstrip("/"))
                held.sync()
        assert names(store, "e") == []

    def test_a_file_in_the_way_of_a_folder_is_an_error_of_ours(self, store: Store) -> None:
        """A mistyped root must not come out as a bare OSError."""
        put(store, "e", b"a file")
        with pytest.raises(NotAStoreError):
            store.open_write("e")
        with pytest.raises(NotAStoreError), store.lock("e"):
            pass
        with pytest.raises(NotAStoreError):
            store.entries("e")
        assert get(store, "e") == b"a file"

    def test_a_folder_in_the_way_of_a_file_is_an_error_of_ours(self, store: Store) -> None:
        """Whatever is to have or to lose the name, the folder and what is in it stay."""
        put(store, "e/sub/x", b"1")
        pending = begin(store, "e", b"2")
        attempts: list[Callable[[FolderLock], None]] = [
            lambda held: held.publish(pending, "e/sub"),
            lambda held: held.publish(pending, "e/sub", replace=True),
            lambda held: held.put("e/sub", b"3"),
            lambda held: held.delete("e/sub"),
        ]
        for attempt in attempts:
            with store.lock("e") as held, pytest.raises((StoreError, NotAStoreError, CheckpointExistsError)):
                attempt(held)
        pending.discard()
        assert names(store, "e") == ["sub"]
        assert get(store, "e/sub/x") == b"1"

    # --- versions and times ---

    def test_a_version_stays_while_the_file_does(self, store: Store, other: Store) -> None:
        """Reading, listing and other files do not change it, and clients agree on it."""
        put(store, "e/x", b"1")
        before = store.stat("e/x")
        get(store, "e/x")
        put(store, "e/y", b"2")
        delete(store, "e/y")
        assert store.stat("e/x") == before == other.stat("e/x")
        assert before in other.entries("e")

    def test_a_version_changes_with_every_replacement(self, store: Store) -> None:
        """Also when size and content are the same."""
        versions = []
        for _ in range(20):
            put(store, "e/x", b"same", replace=True)
            versions.append(_entry(store, "e/x").version)
            time.sleep(0.011)  # some kernels' clocks move in steps of 10 ms
        assert len(set(versions)) == len(versions)

    def test_times_are_of_one_clock(self, store: Store, other: Store) -> None:
        """A file is as old as the lock's time says, whoever wrote it: grace periods are counted so."""
        with store.lock("e") as held:
            before = held.time_seconds
        time.sleep(0.05)
        put(store, "e/x", b"1")
        time.sleep(0.05)
        with other.lock("e") as held:
            after = held.time_seconds
        modified = _entry(store, "e/x").modified_seconds
        assert before - 0.03 <= modified <= after + 0.03
        with store.lock("e") as held:
            held.put("e/y", b"1")
        assert _entry(other, "e/x").modified_seconds == modified

    # --- the lock ---

    def test_the_lock_creates_its_folder(self, store: Store) -> None:
        """The first save of an experiment locks before anything is there."""
        with store.lock("new/er") as held:
            held.put("new/er/x", b"1")
        assert get(store, "new/er/x") == b"1"

    def test_the_lock_excludes_threads(self, store: Store, other: Store) -> None:
        """Eight threads on two clients: never two inside at once."""
        inside, seen = 0, []

        def enter(client: Store) -> None:
            nonlocal inside
            for _ in range(10):
                with client.lock("e"):
                    inside += 1
                    seen.append(inside)
                    time.sleep(0.0005)
                    inside -= 1

        _together([lambda: enter(store), lambda: enter(other)] * 4)
        assert seen == [1] * 80

    def test_the_lock_is_not_taken_twice(self, store: Store, other: Store) -> None:
        """By one thread, which would wait for itself for ever."""
        with store.lock("e"):
            for client in (store, other):
                with pytest.raises(StoreError), client.lock("e"):
                    pass
        with other.lock("e"):
            pass

    def test_locks_of_other_folders_are_free(self, store: Store) -> None:
        """Experiments do not wait for each other, nor an experiment for its own backups."""
        with store.lock("e"), store.lock("e/backups"), store.lock("f"):
            pass

    def test_an_error_inside_releases_the_lock_and_comes_out(self, store: Store, other: Store) -> None:
        """As it was: what goes wrong under a lock is not the lock's business."""
        boom = OSError("not the store's")
        with pytest.raises(OSError, match="not the store's") as raised, store.lock("e"):
            raise boom
        assert raised.value is boom
        with other.lock("e"):
            pass

    def test_one_of_many_racers_gets_the_name(self, store: Store, other: Store) -> None:
        """Eight threads, ten names: one winner each, seven refusals of ours, and nothing left over."""
        for number in range(10):
            path, outcomes, barrier = f"e/{number}", list[object](), threading.Barrier(8)

            def race(client: Store, path: str = path, outcomes: list[object] = outcomes) -> None:
                content = str(threading.get_ident()).encode()
                barrier.wait()  # noqa: B023  # all are done before the next round
                try:
                    put(client, path, content)
                    outcomes.append(content)
                except Exception as error:
                    outcomes.append(error)

            _together([lambda: race(store), lambda: race(other)] * 4)
            won = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
            assert won == [get(store, path)]
            assert [type(lost) for lost in outcomes if lost not in won] == [CheckpointExistsError] * 7
        assert names(store, "e") == [str(number) for number in range(10)]

    # --- unfinished files ---

    def test_a_sweep_leaves_the_living_alone(self, store: Store, other: Store) -> None:
        """Published, foreign and unfinished files; what another client has begun as well."""
        put(store, "e/kept", b"1")
        self.plant(store, "e/foreign.tmp", b"2")
        self.plant(store, "e/.hidden", b"3")
        pending = begin(other, "e", b"4")
        with store.lock("e") as held:
            assert held.sweep() == []
        with other.lock("e") as held:
            held.publish(pending, "e/living")
        assert names(store, "e") == [".hidden", "foreign.tmp", "kept", "living"]

    # --- holds ---

    def test_what_is_held_is_known_to_all(self, store: Store, other: Store) -> None:
        """While it lasts, in that folder alone, as often as it is held."""
        put(store, "e/x", b"1")
        with store.hold("e", "x", "loading"):
            for client in (store, other):
                assert list(client.held("e")) == ["x"]
                assert "loading" in client.held("e")["x"]
                assert client.held("f") == {}
            with other.hold("e", "x", "loading"), other.hold("e", "y", "exporting"):
                assert sorted(store.held("e")) == ["x", "y"]
            assert list(other.held("e")) == ["x"]
        assert other.held("e") == {}

    def test_a_hold_ends_with_an_error(self, store: Store) -> None:
        """Which comes out as it was."""
        put(store, "e/x", b"1")
        with pytest.raises(KeyError, match="boom"), store.hold("e", "x", "loading"):
            raise KeyError("boom")
        assert store.held("e") == {}

    # --- overwriting ---

    @pytest.mark.parametrize(
        ("pieces", "size_bytes", "content"),
        [
            ([], 10, b"0123456789"),
            ([(2, b"ab"), (7, b"c")], 10, b"01ab456c89"),
            ([(0, memoryview(b"abcdefghij"))], 10, b"abcdefghij"),
            ([(8, b"abcd")], 12, b"01234567abcd"),
            ([(1, b"x")], 4, b"0x23"),
            ([], 0, b""),
        ],
    )
    def test_a_patch_changes_its_pieces_and_no_other_byte(
        self, store: Store, other: Store, pieces: list[tuple[int, bytes]], size_bytes: int, content: bytes
    ) -> None:
        """It overwrites, lengthens and cuts, and every client reads it so."""
        put(store, "e/x", b"0123456789")
        with store.lock("e") as held:
            held.patch("e/x", iter(pieces), size_bytes=size_bytes)
        assert get(store, "e/x") == get(other, "e/x") == content
        assert names(store, "e") == ["x"]

    def test_a_patch_changes_the_version(self, store: Store) -> None:
        """A file that was looked at before is not taken for that one."""
        put(store, "e/x", b"0123456789")
        before = _entry(store, "e/x")
        time.sleep(0.02)  # more than the clock of a file system needs to tick
        with store.lock("e") as held:
            held.patch("e/x", [(0, b"a")], size_bytes=10)
        assert before.version != _entry(store, "e/x").version

    def test_what_is_not_there_is_not_patched(self, store: Store) -> None:
        """No file comes of it."""
        put(store, "e/y", b"1")
        with store.lock("e") as held, pytest.raises(FileNotFoundError):
            held.patch("e/x", [(0, b"a")], size_bytes=1)
        assert store.stat("e/x") is None

    def test_an_error_between_pieces_is_raised_as_it_is(self, store: Store) -> None:
        """Where the pieces come from may fail; what was written by then stays written."""
        put(store, "e/x", b"0123456789")

        def pieces() -> Iterator[tuple[int, bytes]]:
            yield 0, b"ab"
            raise NotAStoreError("the source is gone")

        with store.lock("e") as held, pytest.raises(NotAStoreError, match="the source is gone"):
            held.patch("e/x", pieces(), size_bytes=10)
        assert get(store, "e/x") == b"ab23456789"


class SharedStoreContract(StoreContract):
    """For stores that several processes open by their URL. Give it a fixture ``url``, and a second client follows."""

    dead_owner_seconds = 5.0
    """How long a killed process of the same machine may keep others waiting."""

    prologue = "from ckpt_lib.store import open_store\nstore = open_store(sys.argv[1])"
    """How another process opens the store whose URL is its first argument."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Store:
        return open_store(url)

    @pytest.fixture
    def other(self, store: Store) -> Store:
        return open_store(store.url)

    @contextmanager
    def process(self, store: Store, script: str) -> Iterator[subprocess.Popen[str]]:
        """Another process that has run ``script`` up to its ``wait()`` and does what follows when told to."""
        code = f"import sys\n{self.prologue}\n{_WAIT}\n{script}"
        child = subprocess.Popen(
            [sys.executable, "-c", code, store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()
            child.communicate()

    def test_its_url_opens_it(self, store: Store, url: str) -> None:
        """It is as it was given."""
        assert store.url == url

    def test_another_process_keeps_its_unfinished_file(self, store: Store) -> None:
        """It is not swept while its owner lives, though that seems idle, and gets its name in the end."""
        script = (
            "p = store.open_write('e'); p.write(b'theirs'); wait()\n"
            "with store.lock('e') as held: held.publish(p, 'e/x')\n"
            "wait()"
        )
        with self.process(store, script) as writer:
            assert names(store, "e") == []
            with store.lock("e") as held:
                assert held.sweep() == []
            _go_on(writer)
            assert get(store, "e/x") == b"theirs"

    def test_leftovers_of_killed_processes_are_swept(self, store: Store) -> None:
        """All of them, and nothing else."""
        put(store, "e/kept", b"1")
        self.plant(store, "e/foreign.tmp", b"2")
        living = begin(store, "e", b"3")
        script = "p = [store.open_write('e') for _ in 'ab']; p[0].write(b'dead'); p[1].sync(); wait()"
        with self.process(store, script) as writer:
            writer.kill()
            writer.wait()
            deadline, swept = time.monotonic() + self.dead_owner_seconds, 0
            while swept < 2 and time.monotonic() < deadline:
                with store.lock("e") as held:
                    swept += len(held.sweep())
            assert swept == 2
            with store.lock("e") as held:
                assert held.sweep() == []
        with store.lock("e") as held:
            held.publish(living, "e/living")
        living.discard()
        assert names(store, "e") == ["foreign.tmp", "kept", "living"]

    def test_the_lock_excludes_other_processes(self, store: Store) -> None:
        """It is theirs until they leave."""
        entered = threading.Event()

        def enter() -> None:
            with store.lock("e"):
                entered.set()

        with self.process(store, "\nwith store.lock('e'):\n    wait()\nwait()") as holder:
            thread = threading.Thread(target=enter)
            thread.start()
            assert not entered.wait(0.2)
            _go_on(holder)
            assert entered.wait(10)
            thread.join()

    def test_the_lock_of_a_killed_process_is_free(self, store: Store) -> None:
        """Soon: nobody waits for a process that is known to be dead."""
        with self.process(store, "\nwith store.lock('e') as held:\n    held.put('e/x', b'1'); wait()") as holder:
            holder.kill()
            holder.wait()
            started = time.monotonic()
            with store.lock("e") as held:
                assert time.monotonic() - started < self.dead_owner_seconds
                held.put("e/y", b"2")
        assert names(store, "e") == ["x", "y"]

    def test_what_another_process_holds_is_known(self, store: Store) -> None:
        """Until it lets go of it, or dies."""
        put(store, "e/x", b"1")
        with self.process(store, "\nwith store.hold('e', 'x', 'loading'):\n    wait()\nwait()") as holder:
            assert "loading" in store.held("e")["x"]
            _go_on(holder)
            assert store.held("e") == {}
        with self.process(store, "\nwith store.hold('e', 'x', 'loading'):\n    wait()") as holder:
            assert list(store.held("e")) == ["x"]
            holder.kill()
            holder.wait()
            deadline = time.monotonic() + self.dead_owner_seconds
            while store.held("e") and time.monotonic() < deadline:
                time.sleep(0.05)
            assert store.held("e") == {}


_WAIT = """
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def _entry(store: Store, path: str) -> Entry:
    entry = store.stat(path)
    assert entry is not None
    return entry


def _together(actions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _go_on(child: subprocess.Popen[str]) -> None:
    """Let the other process run to its next ``wait()``."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "ready\n"
