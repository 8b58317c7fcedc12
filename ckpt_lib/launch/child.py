"""The launcher's end: a command under a supervisor, whose output and end arrive on a thread."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import LaunchError
from ckpt_lib.launch.locking import VARIABLE, LaunchLock
from ckpt_lib.launch.output import Output
from ckpt_lib.launch.processes import Process, read, stop_all, with_session, with_variable
from ckpt_lib.launch.supervisor import HEADER

_READ_BYTES = 1 << 18
_SECONDS_BETWEEN_TICKS = 0.5


@dataclass(frozen=True)
class Exit:
    """How a command ended. ``code`` is negative for a signal, and ``None`` if its supervisor was killed."""

    code: int | None
    was_killed: bool


@dataclass(frozen=True)
class Order:
    """What to run: a program with its arguments, all of its environment, and how long a stop may take."""

    command: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    stop_seconds: float


class SupervisedCommand:
    """A command that is running, or has ended.

    Whatever becomes of this process, the command and all that it has started end: after :meth:`stop`, after
    :meth:`close`, or within seconds of the end of this process. The ``lock`` is held until then.

    Starting raises :class:`~ckpt_lib.errors.LaunchError` if the system refuses to run the command.
    """

    def __init__(self, order: Order, lock: LaunchLock, output: Output) -> None:
        self._order = order
        self._lock = lock
        self._output = output
        self._ended = threading.Event()
        self._exit = Exit(None, was_killed=False)
        self._command: Process | None = None
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "ckpt_lib.launch.supervisor", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), lock.descriptor),
                start_new_session=True,  # Ctrl-C reaches this process, which then stops the command
            )
        try:
            self._start()
        except BaseException:
            self._socket.close()
            self._supervisor.wait()
            raise
        # The thread logs, so it needs the context of this one; Ctrl-C and other signals do not interrupt it.
        self._thread = threading.Thread(target=copy_context().run, args=(self._serve,), name="output of the command")
        self._thread.start()

    @property
    def exit(self) -> Exit:
        """How the command ended; valid once :meth:`wait` has returned ``True``."""
        return self._exit

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the end of the command and of all that it has started; return whether it has come."""
        return self._ended.wait(timeout_seconds)

    def stop(self, seconds: float | None = None) -> None:
        """Send SIGTERM to the command's process group, and SIGKILL to everything left after so many seconds.

        Does not wait. By default it takes what the order says; a later call can only shorten it.
        """
        order = {"stop_seconds": self._order.stop_seconds if seconds is None else seconds}
        with contextlib.suppress(OSError):  # the supervisor has ended
            self._socket.sendall(json.dumps(order).encode() + b"\n")

    def close(self) -> None:
        """End the command, unless it has ended, as the death of this process would; return when nothing is left."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._thread.join()
        self._supervisor.wait()
        self._socket.close()

    def _start(self) -> None:
        order = {
            "command": list(self._order.command),
            "environment": dict(self._order.environment),
            "directory": self._order.directory,
            "stop_seconds": self._order.stop_seconds,
            "launcher": os.getpid(),
        }
        with contextlib.suppress(OSError):  # what it says, or that it says nothing, tells more
            self._socket.sendall(json.dumps(order).encode() + b"\n")
        header = self._exactly(HEADER.size)
        event = json.loads(self._exactly(HEADER.unpack(header)[1])) if header else {}
        if event.get("event") == "started":
            self._command = read(event["pid"])
            return
        raise LaunchError(
            "the command could not be started",
            path=self._order.command[0],
            got=event.get("error", "no answer from the supervisor process, whose own message is in stderr"),
            hint="Check that the program exists, is executable, and is meant for this machine.",
        )

    def _exactly(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            more = self._socket.recv(size_bytes - len(data))
            if not more:
                return b""
            data += more
        return data

    # --- on the thread ---

    def _serve(self) -> None:
        try:
            self._read_frames()
        except BaseException:  # this is the whole thread: nobody else would deal with it
            logger.exception("the output of the command could not be read")
        finally:
            if self._exit.code is None:
                self._end_leftovers()
            self._output.finish()
            self._ended.set()

    def _read_frames(self) -> None:
        """Pass on what the supervisor says, until it has nothing more to say."""
        data = b""
        while True:
            if not select.select([self._socket], [], [], _SECONDS_BETWEEN_TICKS)[0]:
                self._output.tick()
                continue
            try:
                received = self._socket.recv(_READ_BYTES)
            except OSError:  # it was killed with something unread
                return
            if not received:
                return
            data = self._take_frames(data + received)

    def _take_frames(self, data: bytes) -> bytes:
        """Pass on the whole frames; return the rest."""
        start = 0
        while len(data) >= start + HEADER.size:
            kind, size_bytes = HEADER.unpack_from(data, start)
            end = start + HEADER.size + size_bytes
            if len(data) < end:
                break
            self._take(kind, data[start + HEADER.size : end])
            start = end
        self._output.tick()
        return data[start:]

    def _take(self, kind: bytes, content: bytes) -> None:
        if kind != b"j":
            self._output.write("stdout" if kind == b"o" else "stderr", content)
            return
        event: dict[str, Any] = json.loads(content)
        if event["event"] == "dropped":
            self._output.note_dropped(event["size_bytes"])
        elif event["event"] == "ended":
            self._exit = Exit(event["code"], event["was_killed"])

    def _end_leftovers(self) -> None:
        """The supervisor was killed: end what it has left behind."""
        self._supervisor.wait()
        stop_all(self._leftovers, self._order.stop_seconds)

    def _leftovers(self) -> list[Process]:
        """Return what is left of the command: it may hide its environment, or leave its session."""
        of_session = with_session(self._command) if self._command else []
        return [*with_variable(VARIABLE, self._lock.name), *of_session]
