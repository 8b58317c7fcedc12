"""Preemption: a signal asks training to stop, and it saves once more before it does.

A signal arrives between any two instructions, in the middle of an optimizer's step for example, when the state is of no
use. So the handler notes the signal, and nothing else; the save is made at the next place that the loop declares to be
safe.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Collection
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import ConfigError
from ckpt_lib.saving.ranks import CommonStop

_SECOND_THOUGHT_SECONDS = 1.0
"""A later Ctrl-C is a person who does not want to wait; an earlier one is the same, delivered twice by a launcher."""


class Preemption:
    """Takes over signals while its ``with`` block lasts; ``save`` is called once, when one of them came.

    ::

        with manager.save_on_signal(lambda: {"model": model, "epoch": epoch}) as preemption:
            for epoch in range(100):
                for batch in batches:
                    step(batch)
                    preemption.safe_point()

    After the save, what would have handled the signal gets it: an earlier handler, Python's own for Ctrl-C, which
    raises ``KeyboardInterrupt``, among them. Where that would have been the end of the process, it is as well:
    ``SystemExit(128 + signal number)``, so that ``finally`` blocks and exit handlers run. A signal that the process
    ignores, as under ``nohup``, stays ignored.

    It acts in the process that entered the block alone: processes forked inside answer signals as before.

    An error that ends the block after the signal, as of a loader whose workers got the signal too, is logged, and what
    would have handled the signal gets it.

    A second Ctrl-C, more than a second after the first, goes to the earlier handler at once. So does the signal itself,
    without a save, when the loop comes to no safe point within ``deadline_seconds``. A save that has begun is not cut
    off.
    """

    def __init__(
        self,
        save: Callable[[], object],
        signals: Collection[int],
        deadline_seconds: float | None = None,
        *,
        with_ranks: bool = False,
    ) -> None:
        """``with_ranks`` lets all ranks of a distributed training stop at the same safe point."""
        self.handler: Final = self._note
        """The handler that is installed while the block lasts."""
        self._save = save
        self._common_stop = CommonStop() if with_ranks else None
        self._deadline_seconds = deadline_seconds
        self._deadline: threading.Timer | None = None
        self._is_reminder_due = False
        self._signals = [_checked(number) for number in signals]
        self._earlier: dict[int, Any] = {}
        self._received: int | None = None
        self._received_at = 0.0
        self._has_saved = False

    @property
    def requested(self) -> bool:
        """True once a signal has asked training to stop."""
        return self._received is not None

    def safe_point(self) -> None:
        """Say that the state is whole here. Does nothing, unless a signal came: then saves, and ends training.

        An error of the save is raised; training ends by that.
        """
        is_asked = self._received is not None
        if is_asked if self._common_stop is None else self._common_stop.is_here(is_asked=is_asked):
            self._end()

    def _end(self) -> None:
        """Save, and let what would have handled the signal have it; of other ranks, that is as if it had come here."""
        number = next(iter(self._earlier), signal.SIGTERM) if self._received is None else self._received
        if self._common_stop is not None:
            self._common_stop.is_over = True
        if not self._has_saved:
            self._has_saved = True
            self._stop_waiting()
            self._save()
        self._hand_over(number)

    def _hand_over(self, number: int) -> None:
        """Let what would have handled the signal have it."""
        self._restore()
        self._received = None
        earlier = self._earlier.get(number, signal.SIG_DFL)
        if callable(earlier):
            earlier(number, None)
        else:
            raise SystemExit(128 + number)

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                "signals can be handled in the main thread only", got=f"thread {threading.current_thread().name}"
            )
        earlier = {number: signal.getsignal(number) for number in self._signals}
        if foreign := [number.name for number, handler in earlier.items() if handler is None]:
            raise ConfigError(f"{foreign[0]} has a handler that is not Python's, which could not be put back")
        self._earlier = {number: handler for number, handler in earlier.items() if handler is not signal.SIG_IGN}
        _ACTIVE.add(self)
        for number in self._earlier:
            signal.signal(number, self.handler)
        try:
            if self._common_stop is not None:
                self._common_stop.begin()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            is_asked = self._received is not None
            if error is None and (
                is_asked if self._common_stop is None else self._common_stop.is_at_end(is_asked=is_asked)
            ):
                self._end()  # the end of the block is a safe point
            elif error is not None and self._common_stop is not None:
                self._common_stop.leave()
            if isinstance(error, Exception) and self._received is not None and not self._has_saved:
                logger.error("training failed after the signal to stop, and nothing was saved: %r", error)
                self._hand_over(self._received)  # it was asked to stop: nobody is to try again for the error
            elif error is None and self._received is not None:  # while the ranks agreed that nobody was asked
                self._hand_over(self._received)
        finally:
            self._stop_waiting()
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received, self._received_at = number, now
            self._begin_waiting(number)
        elif self._is_reminder_due:
            self._is_reminder_due = False
            if not self._has_saved:
                logger.error("no safe point came within %s s of the signal: nothing was saved", self._deadline_seconds)
                self._hand_over(self._received)
        elif number == signal.SIGINT and now - self._received_at > _SECOND_THOUGHT_SECONDS:
            earlier = self._earlier[number]
            if callable(earlier):
                earlier(number, frame)
            else:
                raise KeyboardInterrupt

    def _begin_waiting(self, number: int) -> None:
        if self._deadline_seconds is None:
            return

        def remind() -> None:
            self._is_reminder_due = True
            main_thread = threading.main_thread().ident
            assert main_thread is not None
            signal.pthread_kill(main_thread, number)  # which ends a wait there as well

        self._deadline = threading.Timer(self._deadline_seconds, remind)
        self._deadline.daemon = True
        self._deadline.start()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _leave_to_parent(self) -> None:
        """In a forked child, which did not ask for this: answer signals as if it were not there."""
        self._restore()
        self._received = None

    def _restore(self) -> None:
        _ACTIVE.discard(self)
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) is self.handler:  # else someone took over after us, and is not ours to undo
                signal.signal(number, earlier)


_ACTIVE: weakref.WeakSet[Preemption] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for preemption in list(_ACTIVE):
        preemption._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _checked(number: int) -> signal.Signals:
    try:
        found = signal.Signals(number)
        signal.getsignal(found)
    except ValueError as error:
        raise ConfigError(f"{number!r} is not a signal", expected="one such as signal.SIGTERM") from error
    if found.name in ("SIGKILL", "SIGSTOP"):
        raise ConfigError(f"{found.name} cannot be handled", expected="one such as signal.SIGTERM")
    return found
