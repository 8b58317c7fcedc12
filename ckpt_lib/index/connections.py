"""Connections to the database of the index: where it is, and how it is opened."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
from sqlalchemy import Connection, Engine, column, create_engine, event, func, inspect, select, table
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from ckpt_lib.index.rows import DamagedIndexError
from ckpt_lib.index.tables import VERSION_TABLE

REVISION = "0001"
"""The newest migration."""

_SECONDS_TO_WAIT_FOR_A_LOCK = 5.0
_CACHE_BYTES = 32 * 2**20
"""Holds the rows of 10,000 checkpoints: with the 2 MB that are SQLite's default, each question reads all of them."""
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "glusterfs"}
_FOR_MIGRATIONS = 0x636B7074  # any number that others are not likely to lock by


class NewerIndexError(Exception):
    """The index was written by a newer version of this library."""


class NetworkFolderError(Exception):
    """The folder of the index is on a network file system, where SQLite's locks and shared memory do not work."""


def default_url() -> URL:
    """Return where the index is unless it is configured: a file in the user's cache folder."""
    path = platformdirs.user_cache_path("prefect-checkpoints", appauthor=False) / "index.sqlite"
    return URL.create("sqlite", database=str(path))


def file_of(url: URL) -> Path | None:
    """Return the file of an SQLite database; ``None`` for one in memory, or on a server."""
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def connect(url: URL) -> Engine:
    """Return an engine whose database has the tables of this version. Its one connection is used under a lock.

    Raises :class:`NewerIndexError`, :class:`NetworkFolderError`, ``OSError``, and what SQLAlchemy raises.
    """
    path = file_of(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_network(path.parent)
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        options = {"timeout": _SECONDS_TO_WAIT_FOR_A_LOCK, "check_same_thread": False}
    engine = create_engine(url, poolclass=StaticPool, connect_args=options)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    cache = f"cache_size = -{_CACHE_BYTES // 1024}"
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "cell_size_check = ON", cache):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """Begin: for writing at once, so that no transaction has to be begun anew because another one wrote first."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def transaction(engine: Engine, *, writes: bool = False) -> Iterator[Connection]:
    """Run what is in the context as one transaction."""
    with engine.connect().execution_options(writes=writes) as connection, connection.begin():
        yield connection


def _migrate(engine: Engine) -> None:
    with transaction(engine) as connection:
        if _revision(connection) == REVISION:
            return
    with transaction(engine, writes=True) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_FOR_MIGRATIONS)))
        if (found := _revision(connection)) == REVISION:
            return  # by another process meanwhile
        if found is not None and found > REVISION:
            raise NewerIndexError(f"the index has revision {found}, and this version knows {REVISION}")
        _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(files("ckpt_lib.index") / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # a revision that never was
        raise DamagedIndexError(str(error)) from error


def _refuse_network(folder: Path) -> None:
    kind = _file_system_of(folder.resolve())
    if kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.ssh"):
        raise NetworkFolderError(f"{folder} is on a network file system ({kind})")


def _file_system_of(folder: Path) -> str:
    """Return the type of the file system of a folder, where the system tells; else an empty text."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = [fields for line in lines if len(fields := line.split(" ")) > 2]
    above = [fields for fields in mounts if folder.is_relative_to(fields[1].replace("\\040", " "))]
    return max(above, key=lambda fields: len(fields[1]))[2] if above else ""
