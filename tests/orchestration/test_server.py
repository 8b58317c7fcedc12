"""The local server beside a command: whatever ends the command, no server stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments import server
from deployments.server import HOME, PortTakenError, free_port, prefect_server
from tests.orchestration.runs import is_running

pytestmark = pytest.mark.servers
PROJECT = HOME.parent
SECONDS_TO_WAIT = 300.0  # reached only when something is wrong
ANNOUNCED = """
import sys
from pathlib import Path
from deployments import server

wait_until_ready = server._wait_until_ready

def announced(process, *rest):
    print(process.pid, flush=True)
    wait_until_ready(process, *rest)

server._wait_until_ready = announced
sys.exit(server.main(sys.argv[2:], Path(sys.argv[1])))
"""
RUNS_ON = "import time; print('running', flush=True); time.sleep(300)"


@contextmanager
def started(home: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command beside a server of its own, and the server's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCED, str(home), *command], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("Starting")
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("moment", ["starting", "running"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_no_server_stays(tmp_path: Path, name: str, moment: str) -> None:
    """Ended by a signal or a closed terminal, while the server starts or later, the server ends as well."""
    number = signal.Signals[name]
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as nohup has it")
    with started(tmp_path, sys.executable, "-c", RUNS_ON) as (process, server_pid):
        assert process.stdout is not None
        if moment == "running":
            assert process.stdout.readline() == "running\n"
        assert is_running(server_pid)
        process.send_signal(number)
        assert process.wait(timeout=SECONDS_TO_WAIT) != 0
        assert not is_running(server_pid)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_background_job_of_a_script_is_stopped(tmp_path: Path) -> None:
    """Where SIGINT is ignored, as in background jobs of scripts, SIGTERM still ends the command and the server."""
    ignores = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from pathlib import Path; "
        "from deployments import server; sys.exit(server.main(sys.argv[2:], Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", ignores, str(tmp_path), sys.executable, "-c", RUNS_ON]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("Starting")
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS_TO_WAIT) == 128 + signal.SIGTERM
        assert process.stderr.read() == ""


def test_the_server_takes_no_settings_of_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database, a password, a base path or a key that the caller's environment names for a server do not reach it."""
    theirs = tmp_path / "theirs.db"
    for name, value in {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{theirs}",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{theirs}",
        "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
        "PREFECT_SERVER_API_BASE_PATH": "/other",
        "PREFECT_SERVER_UI_SERVE_BASE": "/other",
        "PREFECT_API_AUTH_STRING": "admin:secret",
        "PREFECT_API_KEY": "pnu_0",
        "PREFECT_PROFILE": "none-of-this-name",
    }.items():
        monkeypatch.setenv(name, value)
    asks = "from prefect import get_client; get_client(sync_client=True).read_flows()"
    with prefect_server(tmp_path / "home") as environment:
        subprocess.run([sys.executable, "-c", asks], env=environment, check=True, timeout=SECONDS_TO_WAIT)
    assert not theirs.exists()
    assert (tmp_path / "home" / "prefect.db").exists()


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    """A mistyped command is told of in one line; none at all starts no server."""
    with started(tmp_path, "no-such-command") as (process, server_pid):
        assert process.wait(timeout=SECONDS_TO_WAIT) == 1
        assert not is_running(server_pid)
    none = [sys.executable, "-m", "deployments.server"]
    done = subprocess.run(none, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS_TO_WAIT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage:")


def test_a_proxy_does_not_come_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a proxy, this machine's own server is still reached directly."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    asks = "from prefect import get_client; get_client(sync_client=True).hello().raise_for_status()"
    with prefect_server(tmp_path) as environment:
        subprocess.run([sys.executable, "-c", asks], env=environment, check=True, timeout=SECONDS_TO_WAIT)


def test_the_server_of_someone_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has taken the port meanwhile: the server comes up at another one, unless this one was asked for."""
    with prefect_server(tmp_path / "theirs", free_port(0)) as theirs:
        port = int(theirs["PREFECT_SERVER_API_PORT"])
        with pytest.raises(PortTakenError, match=str(port)), prefect_server(tmp_path / "ours", port):
            pass
        monkeypatch.setattr(server, "free_port", lambda preferred=port: preferred or free_port(0))
        with prefect_server(tmp_path / "ours") as ours:
            assert ours["PREFECT_API_URL"] != theirs["PREFECT_API_URL"]
            assert server._home_at(int(ours["PREFECT_SERVER_API_PORT"])) == str(tmp_path / "ours")


def test_serving_needs_a_server(tmp_path: Path) -> None:
    """Without a server that would show them, nothing is served, and the message says what to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "deployments.serve"],
        cwd=PROJECT,
        env={**environment, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_WAIT,
        check=False,
    )
    assert done.returncode == 1
    assert "make serve" in done.stderr
