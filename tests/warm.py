"""Child processes that need not load PyTorch: forks of a process that has loaded it once, and has no threads.

To a script it is as if it had been started by ``python -c``: it is the main program, and has streams and an environment
of its own. It ends as an interpreter does, after its threads and exit handlers, but does not take its modules apart:
with PyTorch loaded that takes a second. What is about a new interpreter, or its end, starts one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

ROOT = str(Path(__file__).parent.parent)
_servers: dict[int, socket.socket] = {}
"""The connection to the server of each process, since a fork must not speak over its parent's."""


class Python:
    """A script that runs in a process of its own; the methods are those of :class:`subprocess.Popen`."""

    def __init__(self, code: str, arguments: list[str]) -> None:
        self.returncode: int | None = None
        pipes = [os.pipe() for _ in range(3)]
        self._ended, status = os.pipe()
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1], status]
        request = json.dumps({"code": code, "arguments": arguments, "environment": dict(os.environ)}).encode()
        socket.send_fds(_server(), [len(request).to_bytes(8)], theirs)
        _server().sendall(request)
        for descriptor in theirs:
            os.close(descriptor)
        self.stdin = os.fdopen(pipes[0][1], "w")
        self.stdout, self.stderr = os.fdopen(pipes[1][0]), os.fdopen(pipes[2][0])
        self.pid = int.from_bytes(os.read(self._ended, 8))
        assert self.pid, "the server has ended"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.wait()

    def poll(self) -> int | None:
        """Return how it ended, if it has."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended. Raises ``subprocess.TimeoutExpired``."""
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("python", timeout)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            status = os.read(self._ended, 8)
            assert len(status) == 8, "the process that watches the script was killed"
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status))
            os.close(self._ended)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close its input, and return what it printed until it ended. Raises ``subprocess.TimeoutExpired``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        said = ["", ""]

        def read(number: int, stream: io.TextIOWrapper) -> None:
            said[number] = stream.read()

        readers = [threading.Thread(target=read, args=item) for item in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                self.kill()
                raise subprocess.TimeoutExpired("python", timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.stdout.close()
        self.stderr.close()
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Signal it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self.send_signal(signal.SIGKILL)


def _server() -> socket.socket:
    if os.getpid() not in _servers:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-W", "error", "-c", _SERVER, str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        _servers.clear()
        _servers[os.getpid()] = ours
        atexit.register(_end, process, ours, os.getpid())
    return _servers[os.getpid()]


def _end(process: subprocess.Popen[bytes], connection: socket.socket, owner: int) -> None:
    if os.getpid() == owner:
        connection.close()
        process.wait()


# --- in the server ---

_SERVER = """
import sys
from tests.warm import end_at_once, wait_for_a_script
_program = wait_for_a_script(int(sys.argv[1]))
if _program:
    try:
        exec(_program.code, _program.main.__dict__)
    except SystemExit as ending:
        if isinstance(ending.code, str):
            raise
        end_at_once(ending.code or 0)
    end_at_once(0)
"""


@dataclass
class Program:
    """What a fork of the server is to run."""

    code: Any
    main: ModuleType


def wait_for_a_script(descriptor: int) -> Program | None:
    """Return in each fork with its script, and in the server when nobody will ask for another one."""
    _load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers are nobody's concern
    connection = socket.socket(fileno=descriptor)
    while True:
        size, descriptors, _, _ = socket.recv_fds(connection, 8, 4)
        if not size:
            connection.close()
            return None
        request = json.loads(_receive(connection, int.from_bytes(size)))
        if os.fork() == 0:
            connection.close()
            return _keep(request, descriptors)
        for one in descriptors:
            os.close(one)


def end_at_once(code: int) -> None:
    """End a script that has come to its end: as the processes of ``multiprocessing`` do, and with exit handlers."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _load() -> None:
    """Import what scripts import, and what is imported when it is first used."""
    import torch

    import ckpt_lib

    torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    for module in pkgutil.walk_packages(ckpt_lib.__path__, "ckpt_lib."):
        if not module.name.startswith(("ckpt_lib.index.migrations", "ckpt_lib.cli", "ckpt_lib.testing")):
            importlib.import_module(module.name)
    for name in ("alembic.command", "hypothesis", "pytest"):
        importlib.import_module(name)


def _receive(connection: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        data += connection.recv(size_bytes - len(data))
    return bytes(data)


def _keep(request: dict[str, Any], descriptors: list[int]) -> Program:
    """Fork once more; this process tells the number of the script's process and how it ended, that one returns."""
    *streams, ended = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        for one in streams:
            os.close(one)
        os.write(ended, child.to_bytes(8))
        os.write(ended, os.waitpid(child, 0)[1].to_bytes(8))
        os._exit(0)
    os.close(ended)
    for number, one in enumerate(streams):
        os.dup2(one, number)
        os.close(one)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = ["-c", *request["arguments"]]
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    return Program(compile(request["code"], "<string>", "exec"), main)
