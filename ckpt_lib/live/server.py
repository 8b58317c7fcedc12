"""``RequestServer``: takes the requests of other processes, on threads of its own, and hands answers back.

It touches nothing of the training: saves and loads wait in the inbox until the training loop carries them out.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import CheckpointError, ConfigError, RunUnavailableError, StoreError
from ckpt_lib.live.messages import Answer, Failure, Question, RunStatus, question_in, read_line

_MOST_CONNECTIONS = 16
MOST_WAITING = 12
"""How many saves and loads may wait for the training: the other connections answer who asks for the status."""
_MESSAGE_SECONDS = 5.0
_LOOK_SECONDS = 0.2
"""How often a handler looks whether the process that asked is still there."""


class Request:
    """A save or load that waits for the training loop. It is claimed once: by the loop, or by who withdraws it."""

    def __init__(self, question: Question) -> None:
        self.question = question
        # Both are atomic in C: an interrupt of the training leaves no lock held.
        self._unclaimed = deque([True])
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def claim(self) -> bool:
        """Tell whether the caller is the first to claim the request."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False

    def answer(self, outcome: str | BaseException) -> None:
        """Answer with the id of a checkpoint or an error."""
        if isinstance(outcome, BaseException):
            self._answers.put(Answer(failure=Failure.of(outcome)))
        else:
            self._answers.put(Answer(checkpoint_id=outcome))

    def wait(self, seconds: float) -> Answer | None:
        """Return the answer, or ``None`` if there is none yet."""
        with suppress(queue.Empty):
            return self._answers.get(timeout=seconds)
        return None


class RequestServer:
    """Listens on a Unix socket that the user alone can reach."""

    def __init__(self, path: Path, status: Callable[[], RunStatus], *, takes_loads: bool) -> None:
        self._path = path
        self._status = status
        self._takes_loads = takes_loads
        self._waiting: deque[Request] = deque()
        self._entering = threading.Lock()  # which the training never takes
        self._is_closing = False
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(_MOST_CONNECTIONS)
        except OSError as error:
            self._listener.close()
            raise StoreError("the socket of the run cannot be made", path=str(path), got=error.strerror) from error
        self._thread = threading.Thread(target=self._accept, name="ckpt-share", daemon=True)
        self._thread.start()

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def take(self, ask: str) -> list[Request]:
        """Claim and return the requests of one kind that wait, oldest first."""
        taken = [request for request in list(self._waiting) if request.question.ask == ask and request.claim()]
        for request in taken:
            self._drop(request)
        return taken

    def close(self) -> None:
        """Stop listening, and answer all that still waits with :class:`~ckpt_lib.errors.RunUnavailableError`."""
        self._is_closing = True
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_MESSAGE_SECONDS)
            connection.connect(str(self._path))  # wakes the thread
        self._thread.join(_MESSAGE_SECONDS)
        self._listener.close()
        for request in list(self._waiting):
            if request.claim():
                request.answer(RunUnavailableError("the run ended before it came to a safe point"))
        for _ in range(_MOST_CONNECTIONS):  # let the answers out
            self._places.acquire(timeout=_MESSAGE_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._is_closing:
                connection.close()
                return
            self._places.acquire()
            threading.Thread(target=self._handle, args=(connection,), name="ckpt-share-request", daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):  # the other side may go at any time
                connection.settimeout(_MESSAGE_SECONDS)
                answer = self._answer(connection)
                if answer is not None:
                    connection.sendall(answer.to_line())
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket) -> Answer | None:
        """Return the answer; ``None`` if nobody waits for it any more."""
        try:
            question = question_in(read_line(connection))
            if question.ask == "status":
                return Answer(status=self._status())
            return self._carried_out(self._checked(question), connection)
        except CheckpointError as error:
            return Answer(failure=Failure.of(error))
        except OSError:
            raise
        except Exception as error:
            logger.exception("a request of another process failed")
            return Answer(failure=Failure.of(error))

    def _checked(self, question: Question) -> Request:
        if question.ask == "load":
            if not question.name:
                raise ConfigError("a load needs the name of a checkpoint", expected="an id, latest, best or a tag")
            if not self._takes_loads:
                raise ConfigError("the run takes no loads", hint="It would with share(load=...).")
        return Request(question)

    def _carried_out(self, request: Request, connection: socket.socket) -> Answer | None:
        with self._entering:
            if len(self._waiting) >= MOST_WAITING:
                raise RunUnavailableError(
                    "too many requests wait for the training loop of the run",
                    expected=f"at most {MOST_WAITING}",
                    hint="Try again once it has come to a safe point.",
                )
            self._waiting.append(request)
        if self._is_closing and request.claim():
            self._drop(request)
            raise RunUnavailableError("the run is ending")
        while (answer := request.wait(_LOOK_SECONDS)) is None:
            if _is_gone(connection) and request.claim():
                self._drop(request)
                return None
        return answer

    def _drop(self, request: Request) -> None:
        with suppress(ValueError):
            self._waiting.remove(request)


def _is_gone(connection: socket.socket) -> bool:
    """Tell whether the other side has closed the connection, without waiting for it."""
    seconds = connection.gettimeout()
    connection.setblocking(False)  # with a timeout, Python waits before it calls recv
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(seconds)


def check_possible() -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` where there are no Unix sockets."""
    if os.name != "posix" or not hasattr(socket, "AF_UNIX"):
        raise ConfigError("a run can be shared on Linux and macOS only", got=os.name)
