"""What every store must do, as a suite: a store is done when its subclass of ``StoreContract`` passes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ckpt_lib.errors import CheckpointExistsError, NotAStoreError, StoreUnavailableError
from ckpt_lib.store import Entry, PendingFile, Store, open_store

_PROLOGUE = """
import sys
from ckpt_lib.store import open_store
store = open_store(sys.argv[1])
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def process(url: str, script: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has run ``script`` up to its ``wait()`` and does what follows when told to."""
    child = subprocess.Popen(
        [sys.executable, "-c", _PROLOGUE + script, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def put(store: Store, path: str, content: bytes, *, replace: bool = False) -> None:
    """Publish a file, as a commit does."""
    pending = store.open_write(path, replace=replace)
    try:
        pending.write(content)
        pending.sync()
        pending.publish()
    finally:
        pending.discard()


def get(store: Store, path: str) -> bytes:
    with store.open_read(path) as file:
        return file.read()


def names(store: Store, folder: str) -> list[str]:
    return [entry.name for entry in store.entries(folder)]


class StoreContract:
    """Subclass it, and give it a fixture ``url``: the root of a store that holds nothing yet."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Store:
        return open_store(url)

    @pytest.fixture
    def other(self, url: str) -> Store:
        """A second client of the same root."""
        return open_store(url)

    # --- reading ---

    def test_it_knows_its_url(self, store: Store, url: str) -> None:
        """As it was given: a person must recognise it."""
        assert store.url == url

    def test_nothing_is_there_before_something_is_written(self, store: Store) -> None:
        """A root that does not exist is an empty store, and asking creates nothing."""
        assert store.entries("") == []
        assert store.entries("e") == []
        assert store.entries("e/deep/er") == []
        assert store.stat("e/x") is None
        assert store.sweep("e") == []
        store.delete("e/x")
        with pytest.raises(FileNotFoundError):
            store.open_read("e/x")
        assert store.entries("") == []

    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 9000])
    def test_what_was_published_is_read_back(self, store: Store, other: Store, content: bytes) -> None:
        """Empty, small and large, by this client and another; the entry has the size."""
        put(store, "e/x", content)
        for client in (store, other):
            assert get(client, "e/x") == content
            entry = client.stat("e/x")
            assert entry is not None
            assert (entry.name, entry.size_bytes, entry.is_folder) == ("x", len(content), False)
            assert client.entries("e") == [entry]

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
        assert [(entry.name, entry.is_folder) for entry in store.entries("e")] == [
            ("a", True),
            ("a-1", False),
            ("a.1", False),
            ("b", False),
        ]
        assert [(entry.name, entry.is_folder) for entry in store.entries("")] == [("e", True), ("top", False)]

    def test_a_folder_is_no_file(self, store: Store) -> None:
        """``stat`` answers for files alone."""
        put(store, "e/a/x", b"1")
        assert store.stat("e/a") is None

    def test_a_location_names_the_file(self, store: Store) -> None:
        """People and messages get something that ends in the path."""
        assert store.location("e/x").replace("\\", "/").endswith("e/x")
        assert store.location("e/x") != store.location("e/y")

    # --- writing ---

    def test_nobody_sees_a_file_before_it_is_published(self, store: Store, other: Store) -> None:
        """Not even when all of it has been written and synced."""
        pending = store.open_write("e/x")
        assert pending.write(b"abc") == 3
        assert pending.write(memoryview(b"de")) == 2
        pending.sync()
        for client in (store, other):
            assert "x" not in names(client, "e")
            assert client.stat("e/x") is None
            with pytest.raises(FileNotFoundError):
                client.open_read("e/x")
        pending.publish()
        assert get(other, "e/x") == b"abcde"
        assert names(other, "e") == ["x"]

    def test_any_buffer_is_written_as_its_bytes(self, store: Store) -> None:
        """Serializers pass byte arrays, and views of wider items."""
        pending = store.open_write("e/x")
        assert pending.write(bytearray(b"ab")) == 2
        assert pending.write(memoryview(bytearray(8)).cast("I")) == 8
        assert pending.write(memoryview(b"c-d-e-")[::1]) == 6
        assert pending.write(b"") == 0
        pending.publish()
        assert get(store, "e/x") == b"ab" + bytes(8) + b"c-d-e-"

    def test_a_taken_name_is_refused_and_left_alone(self, store: Store, other: Store) -> None:
        """Exclusive creation, and no leftover of the attempt."""
        put(store, "e/x", b"first")
        with pytest.raises(CheckpointExistsError):
            other.open_write("e/x")
        assert get(store, "e/x") == b"first"
        assert names(store, "e") == ["x"]
        put(store, "e/y", b"works")

    def test_a_name_taken_while_writing_is_refused(self, store: Store, other: Store) -> None:
        """The claim does not bind foreign programs: publishing checks again."""
        pending = store.open_write("e/x")
        pending.write(b"mine")
        self.plant(other, "e/x", b"foreign")
        with pytest.raises(CheckpointExistsError):
            pending.publish()
        pending.discard()
        assert get(store, "e/x") == b"foreign"
        assert names(store, "e") == ["x"]

    def plant(self, store: Store, path: str, content: bytes) -> None:
        """Put a file there without asking for a claim, as a foreign program would."""
        raise NotImplementedError

    def test_replacing_is_whole(self, store: Store, other: Store) -> None:
        """The old content is there until the new one is, also for whoever has it open."""
        put(store, "e/x", b"old")
        pending = store.open_write("e/x", replace=True)
        pending.write(b"new and longer")
        pending.sync()
        assert get(other, "e/x") == b"old"
        with other.open_read("e/x") as reader:
            pending.publish()
            assert reader.read() in {b"old", b"new and longer"}
        assert get(other, "e/x") == b"new and longer"
        put(store, "e/fresh", b"1", replace=True)
        assert names(store, "e") == ["fresh", "x"]

    def test_a_discarded_file_leaves_nothing(self, store: Store) -> None:
        """Discarding is final, may be repeated, and never raises."""
        for replace in (False, True):
            pending = store.open_write("e/x", replace=replace)
            pending.write(b"abc")
            pending.discard()
            pending.discard()
            assert names(store, "e") == []
        put(store, "e/x", b"free again")

    def test_discarding_after_publishing_changes_nothing(self, store: Store) -> None:
        """So that ``finally: discard()`` is always right."""
        pending = store.open_write("e/x")
        pending.write(b"abc")
        pending.publish()
        pending.discard()
        assert get(store, "e/x") == b"abc"
        replacing = store.open_write("e/x", replace=True)
        replacing.discard()
        assert get(store, "e/x") == b"abc"

    def test_deleting_removes_one_file(self, store: Store) -> None:
        """That one and no other; what is not there is no error."""
        put(store, "e/x", b"1")
        put(store, "e/xy", b"2")
        store.delete("e/x")
        store.delete("e/x")
        assert names(store, "e") == ["xy"]
        put(store, "e/x", b"free again")

    def test_syncing_a_folder(self, store: Store) -> None:
        """Works for a folder that is there, root included, after writing and after deleting."""
        put(store, "e/x", b"1")
        store.sync("e")
        store.sync("")
        store.delete("e/x")
        store.sync("e")

    def test_a_file_in_the_way_of_a_folder_is_an_error_of_ours(self, store: Store) -> None:
        """A mistyped root must not come out as a bare OSError."""
        put(store, "e", b"a file")
        with pytest.raises(NotAStoreError):
            store.open_write("e/x")
        with pytest.raises(NotAStoreError), store.lock("e"):
            pass
        with pytest.raises(NotAStoreError):
            store.entries("e")
        assert get(store, "e") == b"a file"

    # --- versions ---

    def test_a_version_stays_while_the_file_does(self, store: Store, other: Store) -> None:
        """Reading, listing and other files do not change it, and clients agree on it."""
        put(store, "e/x", b"1")
        before = store.stat("e/x")
        get(store, "e/x")
        put(store, "e/y", b"2")
        store.delete("e/y")
        store.sync("e")
        assert store.stat("e/x") == before == other.stat("e/x")
        assert other.entries("e") == [before]

    def test_a_version_changes_with_every_replacement(self, store: Store) -> None:
        """Also when size and content are the same."""
        versions = []
        for _ in range(20):
            put(store, "e/x", b"same", replace=True)
            versions.append(self.version(store, "e/x"))
            time.sleep(0.011)  # some kernels' clocks move in steps of 10 ms
        assert len(set(versions)) == len(versions)

    @staticmethod
    def version(store: Store, path: str) -> str:
        entry: Entry | None = store.stat(path)
        assert entry is not None
        return entry.version

    # --- claims ---

    def test_a_living_writer_keeps_its_claim(self, store: Store, other: Store) -> None:
        """Against this client and another: taken for good, or to be tried again by who would replace it anyway."""
        pending = store.open_write("e/x")
        pending.write(b"mine")
        for client in (store, other):
            with pytest.raises(CheckpointExistsError):
                client.open_write("e/x")
            with pytest.raises(StoreUnavailableError, match="being written"):
                client.open_write("e/x", replace=True)
        put(other, "e/y", b"free")
        pending.write(b" still")
        pending.publish()
        assert get(store, "e/x") == b"mine still"

    def test_a_claim_ends_with_its_file(self, store: Store) -> None:
        """Published or discarded, the next one may claim the name."""
        store.open_write("e/x").discard()
        put(store, "e/x", b"1")
        put(store, "e/x", b"2", replace=True)
        put(store, "e/x", b"3", replace=True)
        assert get(store, "e/x") == b"3"

    def test_one_of_many_racers_gets_the_claim(self, store: Store, url: str) -> None:
        """Eight threads, twenty names: one winner each, seven refusals of ours, and nothing left over."""
        for number in range(20):
            path, barrier = f"e/{number}", threading.Barrier(8)
            outcomes: list[object] = []

            def race(path: str = path, barrier: threading.Barrier = barrier, outcomes: list[object] = outcomes) -> None:
                client = open_store(url)
                barrier.wait()
                try:
                    pending = client.open_write(path)
                    pending.write(str(threading.get_ident()).encode())
                    pending.publish()
                    outcomes.append(str(threading.get_ident()).encode())
                except Exception as error:
                    outcomes.append(error)

            _together([threading.Thread(target=race) for _ in range(8)])
            won = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
            assert won == [get(store, path)]
            assert [type(lost) for lost in outcomes if lost not in won] == [CheckpointExistsError] * 7
        assert len(names(store, "e")) == 20

    def test_a_claim_of_another_process_holds_while_it_lives(self, store: Store, url: str) -> None:
        """It is not swept either, though its owner seems idle."""
        script = "p = store.open_write('e/x'); p.write(b'theirs'); wait(); p.publish(); wait()"
        with process(url, script) as writer:
            with pytest.raises(CheckpointExistsError):
                store.open_write("e/x")
            with pytest.raises(StoreUnavailableError):
                store.open_write("e/x", replace=True)
            with store.lock("e"):
                assert store.sweep("e") == []
            _go_on(writer)
            assert get(store, "e/x") == b"theirs"

    @pytest.mark.parametrize("replace", [False, True])
    def test_a_claim_of_a_killed_process_is_taken_over(self, store: Store, url: str, replace: bool) -> None:
        """At once, without waiting for anything to expire, and nothing of the dead one's bytes gets in."""
        script = f"p = store.open_write('e/x', replace={replace}); p.write(b'dead' * 1000); wait()"
        with process(url, script) as writer:
            writer.kill()
            writer.wait()
            put(store, "e/x", b"alive", replace=replace)
        assert get(store, "e/x") == b"alive"
        assert names(store, "e") == ["x"]

    def test_leftovers_of_killed_processes_are_swept(self, store: Store, url: str) -> None:
        """All of them, and nothing else: not published files, not those of living writers, not foreign ones."""
        put(store, "e/kept", b"1")
        self.plant(store, "e/foreign.tmp", b"2")
        self.plant(store, "e/.hidden", b"3")
        living = store.open_write("e/living")
        script = "p = [store.open_write(f'e/{n}') for n in 'ab']; p[0].write(b'dead'); p[1].sync(); wait()"
        with process(url, script) as writer:
            writer.kill()
            writer.wait()
            with store.lock("e"):
                assert len(store.sweep("e")) == 2
                assert store.sweep("e") == []
        living.write(b"4")
        living.publish()
        assert [name for name in names(store, "e") if name in {"a", "b"}] == []
        assert {"kept", "foreign.tmp", ".hidden", "living"} <= set(names(store, "e"))
        put(store, "e/a", b"free again")

    # --- the lock ---

    def test_the_lock_creates_its_folder(self, store: Store) -> None:
        """The first save of an experiment locks before anything is there."""
        with store.lock("new/er"):
            put(store, "new/er/x", b"1")
        assert get(store, "new/er/x") == b"1"

    def test_the_lock_excludes_threads(self, url: str) -> None:
        """Eight threads, each with its own client: never two inside at once."""
        inside, seen = 0, []

        def enter() -> None:
            nonlocal inside
            for _ in range(10):
                with open_store(url).lock("e"):
                    inside += 1
                    seen.append(inside)
                    time.sleep(0.0005)
                    inside -= 1

        _together([threading.Thread(target=enter) for _ in range(8)])
        assert seen == [1] * 80

    def test_the_lock_of_one_client_excludes_its_own_threads(self, store: Store) -> None:
        """One store object shared by threads is no way around the lock."""
        waiting, entered = threading.Event(), threading.Event()

        def enter() -> None:
            waiting.set()
            with store.lock("e"):
                entered.set()

        thread = threading.Thread(target=enter)
        with store.lock("e"):
            thread.start()
            waiting.wait()
            assert not entered.wait(0.05)
        assert entered.wait(10)
        thread.join()

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

    def test_the_lock_excludes_other_processes(self, store: Store, url: str) -> None:
        """It is theirs until they leave."""
        entered = threading.Event()

        def enter() -> None:
            with open_store(url).lock("e"):
                entered.set()

        with process(url, "\nwith store.lock('e'):\n    wait()\nwait()") as holder:
            thread = threading.Thread(target=enter)
            thread.start()
            assert not entered.wait(0.2)
            _go_on(holder)
            assert entered.wait(10)
            thread.join()

    def test_the_lock_of_a_killed_process_is_free_at_once(self, store: Store, url: str) -> None:
        """No lease to wait for."""
        with process(url, "\nwith store.lock('e'):\n    wait()") as holder:
            holder.kill()
            holder.wait()
            started = time.monotonic()
            with store.lock("e"):
                assert time.monotonic() - started < 5

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
        with store.lock("e"):
            store.patch("e/x", iter(pieces), size_bytes=size_bytes)
        assert get(store, "e/x") == get(other, "e/x") == content
        assert names(store, "e")[-1:] == ["x"]

    def test_a_patch_changes_the_version(self, store: Store) -> None:
        """A file that was looked at before is not taken for that one."""
        put(store, "e/x", b"0123456789")
        before = store.stat("e/x")
        time.sleep(0.02)  # more than the clock of a file system needs to tick
        store.patch("e/x", [(0, b"a")], size_bytes=10)
        after = store.stat("e/x")
        assert before is not None
        assert after is not None
        assert before.version != after.version

    def test_what_is_not_there_is_not_patched(self, store: Store) -> None:
        """No file comes of it."""
        put(store, "e/y", b"1")
        with pytest.raises(FileNotFoundError):
            store.patch("e/x", [(0, b"a")], size_bytes=1)
        assert store.stat("e/x") is None

    def test_an_error_between_pieces_is_raised_as_it_is(self, store: Store) -> None:
        """Where the pieces come from may fail; what was written by then stays written."""
        put(store, "e/x", b"0123456789")

        def pieces() -> Iterator[tuple[int, bytes]]:
            yield 0, b"ab"
            raise NotAStoreError("the source is gone")

        with pytest.raises(NotAStoreError, match="the source is gone"):
            store.patch("e/x", pieces(), size_bytes=10)
        assert get(store, "e/x") == b"ab23456789"

    def test_pending_files_have_the_whole_protocol(self, store: Store) -> None:
        """write, sync, publish and discard are there under those names."""
        pending: PendingFile = store.open_write("e/x")
        assert pending.write(b"") == 0
        pending.sync()
        pending.publish()
        pending.discard()


def _together(threads: list[threading.Thread]) -> None:
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
