"""The database of the index: it comes back as it was, or is built anew; it is never believed when it is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from sqlalchemy.engine import make_url

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.core.owners import Owner
from ckpt_lib.index import connections
from ckpt_lib.index.database import IndexDatabase
from ckpt_lib.index.listing import FolderKey, Known
from ckpt_lib.index.rows import known_of, row_of
from ckpt_lib.index.selection import Selection
from ckpt_lib.index.tables import VERSION_TABLE, metadata
from tests.core.examples import ID, example, manifests
from tests.helpers import start_python
from tests.index.examples import STORE, note
from tests.torture.index_damage import Answers, ask, filled, mutate

KEY = FolderKey(STORE, "a")


def open_file(path: Path) -> IndexDatabase:
    return IndexDatabase(make_url(f"sqlite:///{path}"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@given(manifests())
def test_a_record_comes_back_as_it_was(manifest: Manifest) -> None:
    """Every field, those of newer versions among them."""
    found = known_of(row_of(1, Known("v", manifest.model_copy(update={"x_new": [1, {"a": None}]}), True)))
    assert found.record.to_bytes() == manifest.model_copy(update={"x_new": [1, {"a": None}]}).to_bytes()
    assert (found.version, found.is_complete) == ("v", True)


def test_a_claim_comes_back_as_it_was() -> None:
    """Claims are records too, and no list shows them."""
    claim = Claim(
        checkpoint_id=ID, uid="0" * 32, claim="1" * 16, state="saving", owner=Owner.current(), files=(f"{ID}.pt",)
    )
    row = row_of(1, Known("v", claim, False))
    assert known_of(row).record == claim
    assert not row["is_listed"]


def test_the_migrations_lead_to_the_tables(path: Path) -> None:
    """What Alembic makes is what the code asks for, and the newest migration is the one that it knows."""
    engine = connections.connect(make_url(f"sqlite:///{path}"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == connections.REVISION
    engine.dispose()


# --- damage ---


def _truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _overwritten(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + os.urandom(20_000))


def _without_a_table(path: Path) -> None:
    _execute(path, "DROP TABLE ckpt_records")


def _with_a_wrong_fact(path: Path) -> None:
    _execute(path, "UPDATE ckpt_records SET epoch = epoch + 1")


def _with_a_wrong_version(path: Path) -> None:
    _execute(path, "UPDATE ckpt_records SET version = 'v0'")


def _with_a_wrong_record(path: Path) -> None:
    _execute(path, "UPDATE ckpt_records SET record = replace(record, 'Net', 'Nut')")


def _with_a_row_less(path: Path) -> None:
    _execute(path, "DELETE FROM ckpt_records WHERE sequence = 2")


def _with_a_wrong_overview(path: Path) -> None:
    statement = "UPDATE ckpt_folders SET overview = replace(overview, 'total_checkpoints\":', 'total_checkpoints\":1')"
    _execute(path, statement)


def _of_a_revision_that_never_was(path: Path) -> None:
    _execute(path, f"UPDATE {VERSION_TABLE} SET version_num = '0000'")


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _emptied,
        _overwritten,
        _without_a_table,
        _with_a_wrong_fact,
        _with_a_wrong_version,
        _with_a_wrong_record,
        _with_a_row_less,
        _with_a_wrong_overview,
        _of_a_revision_that_never_was,
    ],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_a_damaged_file_is_never_believed(path: Path, damage: Callable[[Path], None]) -> None:
    """Each answer is the right one or none at all, and afterwards the index takes in what it is told."""
    right = filled(path)
    damage(path)
    database = open_file(path)
    found = ask(database)
    assert found.is_right_or_nothing(right), found
    if found != right:
        assert note(database, "a", list(right.manifests))
        assert ask(database) == right
    database.close()


@pytest.mark.parametrize(
    "damage",
    [_with_a_wrong_fact, _with_a_wrong_version, _with_a_wrong_record, _with_a_row_less, _with_a_wrong_overview],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_a_damaged_folder_is_never_believed(path: Path, damage: Callable[[Path], None]) -> None:
    """Also not where one folder is asked about alone; a whole one answers as of the version of its listing."""
    right = filled(path)
    key, version = KEY, next(iter(right.folders.values())).version
    database = open_file(path)
    found = database.find_in(key, str(version), Selection.of(sort_by="loss"))
    assert found is not None
    assert [known.record for known in found.records] == list(right.manifests)[::-1]
    assert database.find_in(key, "another version", Selection.of()) is None
    database.close()
    damage(path)
    database = open_file(path)
    assert database.find_in(key, str(version), Selection.of(sort_by="loss")) is None
    database.close()


def test_bytes_altered_at_random_are_never_believed(path: Path) -> None:
    """A sample of the row of the fault matrix that alters 10,000."""
    right = filled(path)
    whole = path.read_bytes()
    for seed in range(60):
        mutate(path, whole, seed)
        database = open_file(path)
        assert ask(database).is_right_or_nothing(right), seed
        database.close()


def test_a_word_of_an_outage_in_a_damaged_schema_is_none(path: Path) -> None:
    """What SQLite says of a damage may hold any text of the file."""
    right = filled(path)
    path.write_bytes(path.read_bytes().replace(b"PRIMARY KEY", b"FULL LOCKED"))
    database = open_file(path)
    assert database.known(KEY) == {}
    assert note(database, "a", list(right.manifests))
    assert ask(database) == right
    database.close()


def test_what_was_set_aside_is_there_to_look_at(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file is renamed, and that is said."""
    filled(path)
    _overwritten(path)
    database = open_file(path)
    assert database.known(KEY) == {}
    assert path.with_name("index.sqlite.damaged").exists()
    assert "is damaged and is built anew" in caplog.text
    database.close()


def test_a_file_of_somebody_else_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A configured path may lead to a payload: it is neither renamed nor written to."""
    path.write_bytes(b"PK\x03\x04 a payload" * 1000)
    before = path.read_bytes()
    database = open_file(path)
    assert database.known(KEY) == {}
    assert not note(database, "a", [])
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert "cannot be used" in caplog.text


def test_the_tables_of_somebody_else_stay(path: Path) -> None:
    """A team may keep the index in a database that it has."""
    _execute(path, "CREATE TABLE theirs (a)")
    filled(path)
    _execute(path, "INSERT INTO theirs VALUES (1)")


def test_an_index_of_a_newer_version_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not used, and not changed: a newer version may be in use beside this one."""
    filled(path)
    _execute(path, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    database = open_file(path)
    assert database.known(KEY) == {}
    assert not note(database, "a", [example()])
    assert "revision 9999" in caplog.text
    _execute(path, f"UPDATE {VERSION_TABLE} SET version_num = '{connections.REVISION}'")
    assert len(open_file(path).known(KEY)) == 3


# --- outages ---


def test_a_locked_file_is_waited_for_and_then_done_without(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else writes for longer than anyone waits: nothing is lost, and the next questions do not wait again."""
    monkeypatch.setattr(connections, "_SECONDS_TO_WAIT_FOR_A_LOCK", 1.0)
    right = filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database = open_file(path)
    assert ask(database) == right  # readers do not wait for writers
    assert not note(database, "a", [])
    started = time.monotonic()
    assert database.known(KEY) == {}
    assert time.monotonic() - started < 0.9
    assert "locked" in caplog.text
    other.execute("ROLLBACK")
    other.close()
    assert ask(open_file(path)) == right


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Something else has its name; it is said once, and tried again only later."""
    (tmp_path / "cache").write_text("not a folder")
    database = open_file(tmp_path / "cache/index.sqlite")
    for _ in range(3):
        assert database.known(KEY) == {}
    assert caplog.text.count("cannot be used") == 1


def test_no_file_is_made_on_a_network_file_system(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite's locks and shared memory do not work there."""
    monkeypatch.setattr(connections, "_file_system_of", lambda _folder: "nfs4")
    assert open_file(path).known(KEY) == {}
    assert not path.exists()
    assert "network file system (nfs4)" in caplog.text


def test_the_type_of_a_file_system_is_read_from_the_mounts() -> None:
    """Of the innermost mount above a folder."""
    if Path("/proc/self/mounts").exists():
        assert connections._file_system_of(Path("/proc/self")) == "proc"


def test_a_server_that_is_not_there_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    """The index is no reason for training to stop."""
    database = IndexDatabase(make_url("postgresql+psycopg://nobody@127.0.0.1:1/none"))
    assert database.known(KEY) == {}
    assert database.find(STORE, Selection()) is None
    assert "cannot be used" in caplog.text


# --- several processes ---


def test_an_older_listing_does_not_replace_a_later_one(path: Path) -> None:
    """Of two processes that listed, the slower one may have been the earlier one."""
    database = open_file(path)
    now = time.time()
    assert note(database, "a", [example()], listed_seconds=now)
    assert not note(database, "a", [], listed_seconds=now - 1)
    assert len(database.known(KEY)) == 1
    database.close()


def test_a_listing_of_the_future_is_replaced(path: Path) -> None:
    """The clock of another machine was wrong; else nothing would be taken in until that time."""
    database = open_file(path)
    assert note(database, "a", [example()], listed_seconds=time.time() + 86_400)
    assert note(database, "a", [])
    assert database.known(KEY) == {}
    database.close()


def test_a_forked_child_opens_a_connection_of_its_own(path: Path) -> None:
    """It may ask and write, and the parent goes on."""
    right = filled(path)
    database = open_file(path)
    assert ask(database) == right
    child = os.fork() if hasattr(os, "fork") else None
    if child == 0:
        if database._engine is not None:  # SQLite's locks are the process's: two must not share a connection
            os._exit(2)
        os._exit(0 if ask(database) == right and note(database, "a", list(right.manifests)) else 1)
    assert child is None or os.waitpid(child, 0)[1] == 0
    assert ask(database) == right
    assert note(database, "a", list(right.manifests))
    database.close()


_KILLED = """
import os, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url
from ckpt_lib.index.database import IndexDatabase
from tests.index.examples import note
from tests.core.examples import example

statements = 0

@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    global statements
    statements += 1
    if statements == int(sys.argv[2]):
        os.kill(os.getpid(), 9)

assert note(IndexDatabase(make_url(f"sqlite:///{sys.argv[1]}")), "a", [example()])
"""


@pytest.mark.parametrize("statement", range(1, 18))
def test_a_process_killed_at_any_statement_is_healed_by_the_next(tmp_path: Path, statement: int) -> None:
    """In the middle of the migration or of a listing: what it did not finish is not there."""
    path = tmp_path / "index.sqlite"
    child = start_python(_KILLED, path, statement)
    _, errors = child.communicate(timeout=120)
    assert child.returncode in (0, -9), errors
    database = open_file(path)
    assert len(database.known(KEY)) == (1 if child.returncode == 0 else 0)
    assert note(database, "a", [example()])
    assert len(database.known(KEY)) == 1
    assert [item.checkpoint_id for item in database.find(STORE, Selection()) or ()] == [ID]
    database.close()


def test_what_nobody_has_listed_for_long_is_forgotten(path: Path) -> None:
    """Stores that are gone leave nothing behind in the end."""
    note(open_file(path), "a", [example()], listed_seconds=time.time() - 181 * 86_400)
    database = open_file(path)
    note(database, "b", [example()])
    assert list(database.folders(STORE)) == ["b"]
    database.close()


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="ckpt_lib")


def test_answers_of_a_whole_file_are_all_there(path: Path) -> None:
    """The tests above compare with answers that say something."""
    right = filled(path)
    assert isinstance(right, Answers)
    assert (len(right.known), len(right.found), len(right.folders)) == (3, 3, 1)
