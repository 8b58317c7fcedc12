"""A local Prefect server with its own database in ``.prefect/``.

``python -m deployments.server COMMAND ...`` runs a command with such a server, and stops the server afterwards.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import httpx

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
HOME = Path(__file__).resolve().parent.parent / ".prefect"
_SERVER_SETTINGS = ("PREFECT_SERVER_", "PREFECT_API_", "PREFECT_UI_", "PREFECT_CLOUD_", "PREFECT_PROFILE")
SECONDS_TO_START = 300.0  # reached only when something is wrong: a busy machine takes a minute
SECONDS_TO_STOP = 15.0


class ServerError(RuntimeError):
    """The server did not start; the message says where the log is."""


class PortTakenError(ServerError):
    """Another program has taken the port since it was found free."""


def free_port(preferred: int = DEFAULT_PORT) -> int:
    """Return ``preferred`` if it is free, else another free port."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            if os.name == "posix":  # as servers do, so that a port that was just closed counts as free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise ServerError("no port is free")


@contextmanager
def prefect_server(home: Path = HOME, port: int | None = None, **settings: str) -> Iterator[dict[str, str]]:
    """Run a server until the block ends; yield the environment variables with which other processes use it.

    The server ignores the caller's settings of servers (database, authentication, paths); ``settings`` are additional
    environment variables for it.

    Processes that use the server should end inside the block, because Prefect sends the last logs when they end. The
    server is a child process, stopped by its pid; its log is ``server.log`` in ``home``. Raises :class:`ServerError` if
    it does not start.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("ab") as log:
        try:
            server, environment = _started(home, port or free_port(), settings, log)
        except PortTakenError:
            if port is not None:
                raise
            server, environment = _started(home, free_port(0), settings, log)
        try:
            yield environment
        finally:
            _stop(server)


def _started(
    home: Path, port: int, settings: Mapping[str, str], log: BinaryIO
) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start a server, and wait until it answers."""
    address = f"http://{HOST}:{port}"
    environment = {**_without_server_settings(), **settings, **_settings(home, address, port)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    server = subprocess.Popen(
        command,
        env=environment,
        cwd=home,  # Prefect also reads settings from files in the working directory
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C must end the block first, which then stops the server
    )
    try:
        _wait_until_ready(server, home, port)
    except BaseException:
        _stop(server)
        raise
    return server, environment


def _without_server_settings() -> dict[str, str]:
    """Return the caller's environment without settings of another server or its database."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SERVER_SETTINGS)}


def _settings(home: Path, address: str, port: int) -> dict[str, str]:
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), HOST)))
    return {
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # On disk, so that the next server knows when the slots of dead runs are free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "ckpt_lib",
    }


def _wait_until_ready(server: subprocess.Popen[bytes], home: Path, port: int) -> None:
    log, deadline = home / "server.log", time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if (answering := _home_at(port)) == str(home):
            return
        is_taken = answering is not None or (server.poll() is not None and free_port(port) != port)
        if is_taken:
            raise PortTakenError(f"another program has taken port {port}; the log of the Prefect server is {log}")
        if server.returncode is not None:
            raise ServerError(f"the Prefect server ended with code {server.returncode}; its log is {log}")
        time.sleep(0.2)
    raise ServerError(f"the Prefect server was not ready after {SECONDS_TO_START:.0f} s; its log is {log}")


def _home_at(port: int) -> str | None:
    """Return the home of the Prefect server that answers; empty for another program, ``None`` without an answer."""
    try:
        answer = httpx.get(f"http://{HOST}:{port}/api/admin/settings", timeout=2, trust_env=False)
        return str(answer.json()["home"]) if answer.is_success else ""
    except httpx.HTTPError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(command: Sequence[str], home: Path = HOME) -> int:
    """Run ``command`` with a server; return its exit code. The server is stopped however the command ends."""
    if not command:
        print("usage: python -m deployments.server COMMAND ...", file=sys.stderr)
        return 2
    child: subprocess.Popen[bytes] | None = None

    def end(*_: Any) -> None:
        if child is None:
            raise KeyboardInterrupt
        child.send_signal(signal.SIGTERM)  # a command that began as a background job ignores SIGINT

    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal sends SIGHUP; nohup ignores it
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), end)
    print("Starting a Prefect server ...", flush=True)
    try:
        with prefect_server(home) as environment:
            child = subprocess.Popen(command, env=environment)
            # Ctrl-C reaches the command directly; signals to this process alone are passed on.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = child.wait()
            return code if code >= 0 else 128 - code  # the shell's code for a signal
    except KeyboardInterrupt:
        return 130
    except (ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
