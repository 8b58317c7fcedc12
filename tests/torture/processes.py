"""Processes for the rows: forks of this warm one, which report what they did or why they could not."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Self

import torch

TIMEOUT_SECONDS = 120.0
"""Longer than anything that a child has to wait for, a lock that nobody gives up included."""


class ChildError(RuntimeError):
    """A child raised, died or hung; the message is its traceback, or how it ended."""


class Child:
    """A fork of this process that runs one function and does not return. To be used as a context: it never outlives it.

    A child that runs for longer than ``timeout_seconds`` prints where each of its threads stands, and ends.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._deadline = time.monotonic() + timeout_seconds + 10
        self._reading, writing = os.pipe()
        self._status: int | None = None
        self.is_stopped = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child uses none of this process's threads
            self.pid = os.fork()
        if not self.pid:
            _run(function, arguments, writing, timeout_seconds)
        os.close(writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._reading)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet; a stopped one is alive."""
        return not self._reap(os.WNOHANG)

    def result(self) -> Any:
        """Wait until it has ended, and return what the function did. Raises :class:`ChildError`."""
        data = bytearray()
        while True:
            remaining = self._deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._reading], [], [], remaining)[0]:
                self.kill()
                raise ChildError("it hung and was killed")
            if not (piece := os.read(self._reading, 2**20)):
                break
            data += piece
        self._reap(0)
        if not data:
            raise ChildError(f"it ended without a word: wait status {self._status}")
        is_returned, value = pickle.loads(bytes(data))
        if not is_returned:
            raise ChildError(value)
        return value

    def wait_until_stopped(self) -> bool:
        """Wait until it has stopped itself by a signal; ``False`` when it ended instead."""
        while not self.is_stopped and self._status is None:
            if time.monotonic() > self._deadline:
                self.kill()
                raise ChildError("it neither stopped nor ended, and was killed")
            self._reap(os.WUNTRACED | os.WNOHANG)
            time.sleep(0.001)
        return self.is_stopped

    def stop(self) -> None:
        """Let it stand still, wherever it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a stopped child run again."""
        self.is_stopped = False
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._reap(0)

    def _reap(self, options: int) -> bool:
        """Look at what became of it; whether it has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            if pid and os.WIFSTOPPED(status):
                self.is_stopped = True
            elif pid:
                self._status = status
        return self._status is not None


def _run(function: Callable[..., Any], arguments: Sequence[Any], writing: int, timeout_seconds: float) -> None:
    """The child's whole life. Nothing of the parent's is cleaned up in it: neither files, nor threads, nor tests."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=2, chain=True)  # no thread watches: a namespace is entered without
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
        torch.set_num_threads(1)  # the parent's threads of torch do not exist here, and would be waited for
        try:
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)


def result_of(function: Callable[..., Any], *arguments: Any, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
    """What a function returns in a child. Raises :class:`ChildError`."""
    with Child(function, *arguments, timeout_seconds=timeout_seconds) as child:
        return child.result()


def at_once(count: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float) -> list[Any]:
    """Call ``function(number, *arguments)`` in ``count`` processes; what each returned, or its :class:`ChildError`."""
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(Child(function, number, *arguments, timeout_seconds=timeout_seconds))
            for number in range(count)
        ]
        return [_outcome(child) for child in children]


def _outcome(child: Child) -> Any:
    try:
        return child.result()
    except ChildError as error:
        return error


def set_clock(clock: Callable[[], float]) -> None:
    """Let this process believe that the time of day is what ``clock`` says, in seconds since 1970. For a child."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime(1970, 1, 1, tzinfo=UTC).astimezone(tz) + timedelta(seconds=clock())

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "ckpt_lib" and getattr(module, "datetime", None) is datetime:
            module.datetime = Clock  # type: ignore[attr-defined]
    time.time = clock


@contextlib.contextmanager
def patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Put ``replacement`` in the place of ``owner.name`` for a while."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
