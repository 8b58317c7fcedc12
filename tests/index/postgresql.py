"""A PostgreSQL server of the tests' own, in a temporary folder, on this machine alone."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Start a server whose data lie in ``folder``; yield the URL of its database, and stop it in the end."""
    data, port = folder / "data", _free_port()
    prefix: list[str] = []
    folder.mkdir()
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        prefix = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
        for parent in folder.parents:
            if parent.owner() == getpass.getuser() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o111)
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    start = ["-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start"]
    _run([*prefix, _program("initdb"), "-D", str(data), "-U", "ckpt", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"])
    _run([*prefix, _program("pg_ctl"), *start])
    try:
        yield f"postgresql+psycopg://ckpt@127.0.0.1:{port}/postgres"
    finally:
        _run([*prefix, _program("pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop"])


def lacking() -> str:
    """Return what is missing for a server, and how to get it; empty when one can run."""
    missing = [name for name in ("initdb", "pg_ctl") if _found(name) is None]
    return f"{' and '.join(missing)}: install PostgreSQL (Debian: apt-get install postgresql)" if missing else ""


def _program(name: str) -> str:
    found = _found(name)
    assert found, lacking()
    return found


def _found(name: str) -> str | None:
    return shutil.which(name) or next(map(str, sorted(_DEBIAN.glob(f"*/bin/{name}"), reverse=True)), None)


def _run(command: list[str]) -> None:
    # Not by pipes: the server would keep them open.
    done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, " ".join(command)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
