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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
HOME = Path(__file__).resolve().parent.parent / ".prefect"
_SERVER_SETTINGS = ("PREFECT_SERVER_", "PREFECT_API_", "PREFECT_UI_", "PREFECT_CLOUD_", "PREFECT_PROFILE")
SECONDS_TO_START = 300.0  # reached only when something is wrong: a busy machine takes a minute
SECONDS_TO_STOP = 15.0


class ServerError(RuntimeError):
    """The server did not start; the message says where the log is."""


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
    port = port or free_port()
    address = f"http://{HOST}:{port}"
    environment = {**_without_server_settings(), **settings, **_settings(home, address, port)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with (home / "server.log").open("ab") as log:
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
            _wait_until_ready(server, address, Path(log.name))
            yield environment
        finally:
            _stop(server)


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


def _wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServerError(f"the Prefect server ended with code {server.returncode}; its log is {log}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/api/health", timeout=2, trust_env=False).is_success:
                return
        time.sleep(0.2)
    raise ServerError(f"the Prefect server was not ready after {SECONDS_TO_START:.0f} s; its log is {log}")


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
