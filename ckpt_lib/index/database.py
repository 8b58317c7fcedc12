"""``IndexDatabase``: what is known of every store, in SQLite or PostgreSQL. A cache: it may be deleted at any time."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Row, delete, func, insert, select, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import CheckpointError
from ckpt_lib.index import connections, queries
from ckpt_lib.index.listing import FolderKey, Found, Known, KnownFolder, Listing
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.rows import FACTS, DamagedIndexError, check_folder_row, check_row, folder_row, known_of, row_of
from ckpt_lib.index.selection import Selection, unknown_metric
from ckpt_lib.index.tables import folders, records

T = TypeVar("T")

_SECONDS_UNTIL_TRIED_AGAIN = 60.0
_DAYS_KEPT = 180
_BATCH = 500
_SQLITE_HEADER = b"SQLite format 3\0"
_OUTAGES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
}
_databases: weakref.WeakSet[IndexDatabase] = weakref.WeakSet()
_inherited: list[Engine] = []
"""Those that a fork has inherited. Their connections are the parent's: closing one here would end its locks."""


@cache
def database_at(url: str | None) -> IndexDatabase:
    """Return the database of a URL, by default the user's own; a process opens each once."""
    return IndexDatabase(connections.default_url() if url is None else make_url(url), is_ours=url is None)


class IndexDatabase:
    """The records of many folders.

    No method raises what the database does. One that cannot be used is said so once, and then knows nothing for a
    while; a damaged one is set aside, and begun anew.
    """

    def __init__(self, url: URL, *, is_ours: bool = False) -> None:
        self._url = url
        self._is_ours = is_ours
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._unusable_until = 0.0
        self._has_forgotten = False
        self._checked: set[tuple[str, str | None]] = set()
        _databases.add(self)

    def __repr__(self) -> str:
        return f"IndexDatabase({self._url.render_as_string()!r})"

    @property
    def url(self) -> str:
        """The URL, without its password."""
        return self._url.render_as_string()

    def known(self, key: FolderKey) -> dict[str, Known]:
        """Return the records of a folder, by id, as they were when it was last listed."""

        def read(connection: Connection) -> dict[str, Known]:
            rows = connection.execute(select(records).join(folders).where(*_is(key)))
            return {row["checkpoint_id"]: known_of(row) for row in _plain(rows)}

        return self._run(read, {})

    def note(self, key: FolderKey, listing: Listing) -> bool:
        """Take in a listing, unless a later one is known; return whether the database is up to date now."""

        def write(connection: Connection) -> bool:
            self._forget_old(connection)
            folder = _folder(connection, key)
            if folder is not None and listing.listed_seconds < folder.listed_seconds <= time.time():
                return False
            facts = {
                "store": key.store,
                "path": key.path,
                "listed_seconds": listing.listed_seconds,
                "folder_version": listing.folder_version,
                "record_count": len(listing.records),
                "overview": listing.overview.model_dump_json(),
            }
            folder_id = _put_folder(connection, folder_row(facts), folder.folder_id if folder else None)
            _replace(connection, folder_id, listing.records)
            return True

        return self._run(write, False, writes=True)

    def folders(self, store: str) -> dict[str, KnownFolder]:
        """Return what is known of the folders of a store, by path."""

        def read(connection: Connection) -> dict[str, KnownFolder]:
            found = {}
            for row in _plain(connection.execute(select(folders).where(folders.c.store == store))):
                check_folder_row(row)
                overview = ExperimentOverview.model_validate_json(row["overview"])
                found[row["path"]] = KnownFolder(row["folder_version"], overview)
            return dict(sorted(found.items()))

        return self._run(read, {})

    def find(self, store: str, selection: Selection) -> list[CheckpointMetadata] | None:
        """Return the checkpoints of all experiments of a store that are meant; ``None`` if the database is no help.

        Raises :class:`~ckpt_lib.errors.UnknownMetricError` and :class:`~ckpt_lib.errors.CheckpointNotFoundError` as
        :func:`~ckpt_lib.index.queries.find`.
        """

        def read(connection: Connection) -> list[CheckpointMetadata]:
            self._check_once(connection, store)
            _check_metrics(connection, store, selection)
            return [_described(row) for row in queries.find(connection, store, selection)]

        return self._run(read, None)

    def find_in(self, key: FolderKey, folder_version: str, selection: Selection) -> Found | None:
        """Return the records of one folder that are meant; ``None`` unless it was listed when it had this version.

        Raises as :meth:`find`.
        """

        def read(connection: Connection) -> Found | None:
            overview = _overview_at(connection, key, folder_version)
            if overview is None:
                return None
            self._check_once(connection, key.store, key.path)
            _check_metrics(connection, key.store, selection, key.path)
            rows = queries.find(connection, key.store, selection, path=key.path)
            return Found(overview, [known_of(row) for row in rows])

        return self._run(read, None)

    def overview_of(self, key: FolderKey, folder_version: str) -> ExperimentOverview | None:
        """Return a folder in a few numbers; ``None`` unless it was listed when it had this version."""
        return self._run(lambda connection: _overview_at(connection, key, folder_version), None)

    def _check_once(self, connection: Connection, store: str, path: str | None = None) -> None:
        """Check all rows of a store or folder, once for each connection: a query does not see one of damaged facts."""
        if {(store, None), (store, path)} & self._checked:
            return
        chosen = [folders.c.store == store, *([] if path is None else [folders.c.path == path])]
        counts: Counter[int] = Counter()
        facts = (*(records.c[name] for name in FACTS), records.c.digest)
        for row in _plain(connection.execute(select(*facts).join(folders).where(*chosen))):
            check_row(row)
            counts[row["folder_id"]] += 1
        for row in _plain(connection.execute(select(folders).where(*chosen))):
            check_folder_row(row)
            if counts[row["folder_id"]] != row["record_count"]:
                raise DamagedIndexError("rows are missing")
        self._checked.add((store, path))

    def forget(self, store: str, paths: Collection[str] | None = None) -> None:
        """Forget some folders of a store, or all."""
        chosen = [folders.c.store == store, *([] if paths is None else [folders.c.path.in_(paths)])]

        def write(connection: Connection) -> None:
            old = select(folders.c.folder_id).where(*chosen)
            connection.execute(delete(records).where(records.c.folder_id.in_(old)))
            connection.execute(delete(folders).where(*chosen))

        self._run(write, None, writes=True)

    def is_usable(self) -> bool:
        """Tell whether the database answers."""
        return self._run(lambda connection: connection.execute(select(func.count())).scalar() is not None, False)

    def close(self) -> None:
        """Close the connection; the next question opens it again."""
        with self._lock:
            self._disconnect()

    def _run(self, action: Callable[[Connection], T], otherwise: T, *, writes: bool = False) -> T:
        """Do something in a transaction; return ``otherwise`` where the database cannot be used."""
        with self._lock:
            if time.monotonic() < self._unusable_until:
                return otherwise
            for _ in range(2):
                try:
                    if self._engine is None:
                        self._engine = connections.connect(self._url)
                    with connections.transaction(self._engine, writes=writes) as connection:
                        return action(connection)
                except CheckpointError:  # the question is wrong
                    raise
                except Exception as error:  # whatever it is: training and lists go on without an index
                    failure = error
                self._disconnect()
                if not (_is_damage(failure, writes=writes) and self._set_aside(failure)):
                    break
            self._unusable_until = time.monotonic() + _SECONDS_UNTIL_TRIED_AGAIN
            logger.warning(
                "the index %s cannot be used, so that questions take longer: %s", self.url, str(failure).split("\n")[0]
            )
            return otherwise

    def _set_aside(self, failure: Exception) -> bool:
        """Rename a damaged file, so that another one takes its place; return whether that could be done."""
        path = connections.file_of(self._url)
        if path is None or not self._may_be_renamed():
            return False
        logger.warning("the index %s is damaged and is built anew: %s", path, str(failure).split("\n")[0])
        try:
            path.replace(path.with_name(f"{path.name}.damaged"))
            for suffix in ("-wal", "-shm"):
                path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _may_be_renamed(self) -> bool:
        """Tell whether the file is an index of ours: a configured path may lead to anything."""
        path = connections.file_of(self._url)
        with contextlib.suppress(OSError):
            if path is not None:
                with path.open("rb") as file:
                    return self._is_ours or file.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER
        return False

    def _forget_old(self, connection: Connection) -> None:
        """Forget, once in a process, folders that nobody has listed for long: their store may be gone."""
        if self._has_forgotten:
            return
        limit = time.time() - _DAYS_KEPT * 86_400
        old = select(folders.c.folder_id).where(folders.c.listed_seconds < limit)
        connection.execute(delete(records).where(records.c.folder_id.in_(old)))
        connection.execute(delete(folders).where(folders.c.listed_seconds < limit))
        self._has_forgotten = True

    def _disconnect(self) -> None:
        if self._engine is not None:
            with contextlib.suppress(Exception):
                self._engine.dispose()
            self._engine = None
            self._checked.clear()

    def let_go(self) -> None:
        """Leave the connection to the parent of a forked process, and open another one when it is needed."""
        self._lock = threading.RLock()
        if self._engine is not None:
            _inherited.append(self._engine)
            self._engine = None


def _let_go() -> None:
    for database in list(_databases):
        database.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _plain(rows: CursorResult[Any]) -> Iterator[dict[str, Any]]:
    names = list(rows.keys())
    for row in rows:
        yield dict(zip(names, row, strict=True))


def _check_metrics(connection: Connection, store: str, selection: Selection, path: str | None = None) -> None:
    for metric in selection.metrics:
        if not queries.is_recorded(connection, store, metric, path=path):
            raise unknown_metric(metric, queries.recorded_metrics(connection, store, path=path))


def _overview_at(connection: Connection, key: FolderKey, folder_version: str) -> ExperimentOverview | None:
    for row in _plain(connection.execute(select(folders).where(*_is(key)))):
        check_folder_row(row)
        if row["folder_version"] == folder_version:
            return ExperimentOverview.model_validate_json(row["overview"])
    return None


def _described(row: Mapping[str, Any]) -> CheckpointMetadata:
    known, overview = known_of(row), ExperimentOverview.model_validate_json(row["overview"])
    if not isinstance(known.record, Manifest):
        raise DamagedIndexError("a claim is listed")
    checkpoint_id = known.record.checkpoint_id
    described = known.record.describe(
        is_best=checkpoint_id == overview.best_checkpoint,
        is_latest=checkpoint_id == overview.latest_checkpoint,
        is_complete=known.is_complete,
    )
    return described.model_copy(update={"experiment_name": row["path"]})  # a folder may be a copy of another one


def _is(key: FolderKey) -> Sequence[Any]:
    return folders.c.store == key.store, folders.c.path == key.path


def _folder(connection: Connection, key: FolderKey) -> Row[Any] | None:
    """Return the row of a folder; nobody else changes it before the transaction ends."""
    return connection.execute(select(folders).where(*_is(key)).with_for_update()).one_or_none()


def _put_folder(connection: Connection, row: Mapping[str, Any], folder_id: int | None) -> int:
    if folder_id is not None:
        connection.execute(update(folders).where(folders.c.folder_id == folder_id).values(**row))
        return folder_id
    (inserted,) = connection.execute(insert(folders).values(**row)).inserted_primary_key or (0,)
    return int(inserted)


def _replace(connection: Connection, folder_id: int, wanted: Mapping[str, Known]) -> None:
    """Let the rows of a folder be these records; those that are so already stay."""
    columns = records.c.checkpoint_id, records.c.version, records.c.is_complete
    rows = connection.execute(select(*columns).where(records.c.folder_id == folder_id))
    there = {checkpoint_id: (version, is_complete) for checkpoint_id, version, is_complete in rows}
    changed = [item for item, known in wanted.items() if there.get(item) != (known.version, known.is_complete)]
    outdated = [*(there.keys() - wanted.keys()), *(there.keys() & set(changed))]
    for start in range(0, len(outdated), _BATCH):
        chosen = records.c.checkpoint_id.in_(outdated[start : start + _BATCH])
        connection.execute(delete(records).where(records.c.folder_id == folder_id, chosen))
    if changed:
        connection.execute(insert(records), [row_of(folder_id, wanted[item]) for item in changed])


def _is_damage(error: Exception, *, writes: bool) -> bool:
    """Tell damaged content from a database that is out of reach, and from a value that it cannot hold."""
    if isinstance(error, DBAPIError):
        code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # none for text that is no UTF-8
        return code & 0xFF not in _OUTAGES
    is_unreadable = isinstance(error, ValueError | TypeError | LookupError) and not writes
    return is_unreadable or isinstance(error, DamagedIndexError)
