"""The process between a launcher and its command: ``python -m ckpt_lib.launch.supervisor SOCKET``.

It starts the command in a session of its own, passes its output on, and ends it with all that it has started: when it
is told to, when the command itself has ended, and when the launcher is gone, however that ended. All descendants of the
command are found, since Linux gives orphans to this process, whichever group or session they have moved to.

The standard library alone is imported: it starts at once, and takes next to no memory beside a training.

The socket carries lines of JSON to this process, the first one an ``order``, and frames back: a byte for the kind, the
length, and so many bytes. Kinds: ``o`` and ``e``, what the command wrote to stdout and stderr; ``j``, an event as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from functools import partial
from typing import IO, Any

from ckpt_lib.launch.processes import Process, descendants, send, table

HEADER = struct.Struct("!cI")
ORPHAN_STOP_SECONDS = 8.0
"""How long the command may take to save when the launcher is gone: the next run waits for its end."""
MAX_WAITING_BYTES = 4 << 20
"""How much output may wait for a launcher that reads slowly. The oldest is dropped then: the command never waits."""

_READ_BYTES = 65_536
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_KILLS = 0.05
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None, use_errno=True)


class Supervisor:
    """Runs one command to its end."""

    def __init__(self, control: socket.socket, order: dict[str, Any], rest: bytes = b"") -> None:
        self._control: socket.socket | None = control
        self._order = order
        self._received = rest
        self._frames: deque[tuple[bytes, bytes]] = deque()
        self._waiting_bytes = 0
        self._dropped_bytes = 0
        self._sending = b""
        self._command: subprocess.Popen[bytes]
        self._told: set[tuple[int, str]] = set()
        self._deadline: float | None = None
        self._was_killed = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Start the command, and return when neither it nor anything that it has started is left."""
        _LIBC.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._handle_signals()
        try:
            self._command = self._start()
        except OSError as error:
            self._tell(event="refused", error=str(error))
            return
        try:
            self._tell(event="started", pid=self._command.pid)
            self._watch()
            while not self._is_over():
                for key, _ in self._selector.select(self._seconds_until_look()):
                    key.data()
        finally:
            self._kill_everything()
        self._drain()
        ended = {"event": "ended", "code": self._command.wait(), "was_killed": self._was_killed}
        self._frames.append((b"j", json.dumps(ended).encode()))
        self._deliver()

    # --- the command ---

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._order["command"],
            env=self._order["environment"],
            cwd=self._order["directory"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  there are no other threads
        )

    def _watch(self) -> None:
        """Read what the command writes, and what the launcher says, without ever waiting for one of them."""
        for kind, pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, partial(self._read, kind, pipe))
        if self._control is not None:
            self._control.setblocking(False)
            self._selector.register(self._control, selectors.EVENT_READ, self._serve_control)
            self._take_order(b"")

    def _pipes(self) -> list[tuple[bytes, IO[bytes]]]:
        pipes = ((b"o", self._command.stdout), (b"e", self._command.stderr))
        return [(kind, pipe) for kind, pipe in pipes if pipe is not None and not pipe.closed]

    def _has_ended(self) -> bool:
        """Return whether the command has ended. It stays a zombie, so that nobody else gets the number of its group."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._command.pid, options) is not None

    def _is_over(self) -> bool:
        """Do what is due, and return whether nothing of the command is left."""
        if self._control is None or os.getppid() != self._order["launcher"]:
            self._stop_without_launcher()
        late = self._deadline is not None and time.monotonic() > self._deadline
        if not self._has_ended():
            if late:
                self._kill()
            return False
        left = self._others()
        if not left:
            return True
        self._stop(self._order["stop_seconds"])
        if late:
            self._kill()
        else:
            send([process for process in left if process.key not in self._told], signal.SIGTERM)
            self._told |= {process.key for process in left}
        return False

    def _others(self) -> list[Process]:
        """Return what the command has started, directly or not; wait for what has ended."""
        processes = table().values()
        for process in processes:
            if process.has_ended and process.parent == os.getpid() and process.pid != self._command.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return [found for found in descendants(os.getpid(), processes) if found.pid != self._command.pid]

    def _stop(self, seconds: float) -> None:
        """Ask the command's group to end, once. The earliest deadline of several requests counts."""
        deadline = time.monotonic() + seconds
        if self._deadline is None:
            self._deadline = deadline
            self._told |= {process.key for process in self._others() if process.group == self._command.pid}
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # a stopped process would not see the other one
        self._deadline = min(self._deadline, deadline)

    def _kill(self) -> None:
        self._was_killed = True
        self._signal_group(signal.SIGKILL)
        send(self._others(), signal.SIGKILL)

    def _kill_everything(self) -> None:
        while not self._has_ended() or self._others():
            self._kill()
            time.sleep(_SECONDS_BETWEEN_KILLS)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._command.pid, number)

    def _seconds_until_look(self) -> float:
        if self._deadline is None:
            return _SECONDS_BETWEEN_LOOKS
        return min(max(self._deadline - time.monotonic(), _SECONDS_BETWEEN_KILLS), _SECONDS_BETWEEN_LOOKS)

    # --- signals ---

    def _handle_signals(self) -> None:
        """Take what asks this process to end as a request to end the command, and wake up when a child has ended.

        These are handlers, not ``SIG_IGN``, which the command would inherit.
        """
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._wakeup = (reader, writer)
        self._selector.register(reader, selectors.EVENT_READ, self._serve_signals)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def _serve_signals(self) -> None:
        numbers = set(self._wakeup[0].recv(_READ_BYTES))
        if numbers - {signal.SIGCHLD}:
            self._stop(self._order["stop_seconds"])

    # --- the launcher ---

    def _serve_control(self) -> None:
        """Read what the launcher says, and send what it can take."""
        assert self._control is not None
        try:
            self._send_frames()
            data = self._control.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take_order(data)
        else:
            self._stop_without_launcher()

    def _take_order(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._stop(json.loads(line)["stop_seconds"])

    def _stop_without_launcher(self) -> None:
        """Go on without the launcher, to the command's early end."""
        if self._control is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._control)
            self._control.close()
            self._control = None
        self._frames.clear()
        self._waiting_bytes = 0
        if self._deadline is None or self._deadline > time.monotonic() + ORPHAN_STOP_SECONDS:
            self._stop(ORPHAN_STOP_SECONDS)

    # --- output ---

    def _read(self, kind: bytes, pipe: IO[bytes]) -> bool:
        """Take what the command has written; ``False`` when there is nothing now."""
        try:
            data = os.read(pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(pipe)
            pipe.close()
            return False
        if self._control is not None:
            self._frames.append((kind, data))
            self._waiting_bytes += len(data)
            while self._waiting_bytes > MAX_WAITING_BYTES:
                _, oldest = self._frames.popleft()
                self._waiting_bytes -= len(oldest)
                self._dropped_bytes += len(oldest)
            self._watch_control()
        return True

    def _drain(self) -> None:
        """Take what is left in the pipes. Nobody writes to them any more, but perhaps processes that are not ours."""
        for kind, pipe in self._pipes():
            limit = MAX_WAITING_BYTES // _READ_BYTES
            while limit and self._read(kind, pipe):
                limit -= 1

    def _watch_control(self) -> None:
        """Wake up for a launcher that can take more, as long as there is more."""
        if self._control is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._frames or self._sending else 0)
        self._selector.modify(self._control, events, self._serve_control)

    def _send_frames(self) -> None:
        assert self._control is not None
        while self._sending or self._frames:
            if not self._sending:
                self._sending = self._next_frames()
            try:
                sent = self._control.send(self._sending)
            except BlockingIOError:
                break
            self._sending = self._sending[sent:]
        self._watch_control()

    def _next_frames(self) -> bytes:
        """Return the oldest frame, after one that says what was dropped before it."""
        kind, data = self._frames.popleft()
        self._waiting_bytes -= len(data)
        dropped, self._dropped_bytes = self._dropped_bytes, 0
        before = _event(event="dropped", size_bytes=dropped) if dropped else b""
        return before + _frame(kind, data)

    def _deliver(self) -> None:
        """Send the rest, while the launcher is there to read it."""
        while (self._frames or self._sending) and self._control is not None:
            if os.getppid() != self._order["launcher"]:
                return
            self._control.settimeout(_SECONDS_BETWEEN_LOOKS)
            try:
                self._send_frames()
            except TimeoutError:
                continue
            except OSError:
                return

    def _tell(self, **event: Any) -> None:
        """Send the first event, for which there is room."""
        if self._control is not None:
            with contextlib.suppress(OSError):  # the launcher is gone
                self._control.sendall(_event(**event))


def _event(**event: Any) -> bytes:
    return _frame(b"j", json.dumps(event).encode())


def _frame(kind: bytes, data: bytes) -> bytes:
    return HEADER.pack(kind, len(data)) + data


def _end_with_parent() -> None:
    """In the command's process: ask it to end if the supervisor is killed."""
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def main(arguments: list[str]) -> None:
    """Serve the launcher at the other end of the socket whose descriptor is the only argument."""
    control = socket.socket(fileno=int(arguments[0]))
    received = b""
    while b"\n" not in received:
        data = control.recv(_READ_BYTES)
        if not data:
            return  # the launcher ended before it said what to do
        received += data
    line, _, rest = received.partition(b"\n")
    Supervisor(control, json.loads(line), rest).run()


if __name__ == "__main__":
    main(sys.argv[1:])
