"""The files by which live runs are found: one for each, in the state folder of the user.

A file is written before its socket listens and removed when the run ends. A run that was killed leaves both; whoever
lists the runs next removes them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.logs import logger
from ckpt_lib.core.owners import Owner, is_proven_dead
from ckpt_lib.errors import StoreError

_MAX_SOCKET_BYTES = 100
"""The kernel takes paths of 107 bytes, that of macOS of 103."""
_PREFIX = "ckpt-run-"
_ABANDONED_SECONDS = 3_600.0
"""Writing a registration takes a moment: an unfinished one of this age was left by a process that was killed."""


class RunRecord(BaseModel):
    """The registration of a live run."""

    model_config = ConfigDict(frozen=True)

    owner: Owner
    experiment_name: str
    store: str
    """Where its store is: an absolute path or a URL."""
    run_id: str
    shared_at: AwareDatetime
    socket: str
    """The path of the socket that answers."""


def runs_folder() -> Path:
    """Return the folder of registrations. It may not exist."""
    return user_state_path("ckpt") / "runs"


def new_socket_path() -> Path:
    """Return where a run of this process may listen: a path that the kernel takes, in a folder of the user alone."""
    folder = _own_folder()
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_BYTES:
        return path
    return Path(tempfile.mkdtemp(prefix=_PREFIX)) / "run.sock"


def register(record: RunRecord) -> Path:
    """Write the registration of a run and return its path. Raises :class:`~ckpt_lib.errors.StoreError`."""
    path = _own_folder() / f"{record.owner.pid}-{secrets.token_hex(4)}.json"
    unfinished = path.with_suffix(".tmp")
    try:
        unfinished.write_text(record.model_dump_json(), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise StoreError("the run cannot be registered", path=str(path), got=error.strerror) from error
    return path


def forget(path: Path | None, record: RunRecord) -> None:
    """Remove a registration, if there is one, and the socket, as far as they are there."""
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    socket_path = Path(record.socket)
    with suppress(OSError):
        socket_path.unlink(missing_ok=True)
    if socket_path.parent.name.startswith(_PREFIX):
        shutil.rmtree(socket_path.parent, ignore_errors=True)


def registered() -> list[RunRecord]:
    """Return the runs of this machine that are registered and not known to be dead, the oldest first.

    What dead ones left is removed.
    """
    found = []
    folder = runs_folder()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        record = _read(path)
        if record is None:
            continue
        if is_proven_dead(record.owner):
            forget(path, record)
        elif is_of_this_machine(record.owner):
            found.append(record)
    _remove_unfinished(folder)
    return sorted(found, key=lambda record: record.shared_at)


def is_of_this_machine(owner: Owner) -> bool:
    """Tell whether a process is one of this machine: the user's folder may be shared by several."""
    here = Owner.current()
    return (owner.host, owner.system) == (here.host, here.system)


def _read(path: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:  # the run has just ended
        return None
    except (OSError, ValidationError) as error:
        logger.warning("the registration %s cannot be read: %s", path, error)
        return None


def _own_folder() -> Path:
    """Return the folder, which nobody else can enter. Raises :class:`~ckpt_lib.errors.StoreError`."""
    folder = runs_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise StoreError("the folder of live runs cannot be used", path=str(folder), got=error.strerror) from error
    return folder


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("*.tmp") if folder.is_dir() else ():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
