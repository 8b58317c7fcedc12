"""What a command writes, as lines for a log."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from ckpt_lib.core.logs import logger
from ckpt_lib.core.wording import count_of, size_text

Stream = Literal["stdout", "stderr"]

MAX_LINE_CHARACTERS = 8_192
"""A longer line is logged in pieces."""
TAIL_LINES = 60
LINES_PER_SECOND = 200
BURST_LINES = 5_000
"""A log, a server most of all, takes only so much. What comes faster is counted, and left out but for its end."""
PARTIAL_SECONDS = 2.0
"""An unfinished line, such as a question or a progress bar, is logged after this time."""


class Output:
    """Makes lines of what a command writes, keeps the last ones, and logs them as they come.

    Bytes that are not UTF-8 are shown as ``\\xff``. Of a line that was written over itself, as progress bars are, its
    last state is logged. Used by one thread.
    """

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._lines = {"stdout": _Lines(), "stderr": _Lines()}
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._allowance = float(BURST_LINES)
        self._allowed_at = time.monotonic()
        self._left_out = 0
        self._lost_bytes = 0
        self._has_failed = False

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of both streams."""
        return tuple(self._tail)

    def write(self, stream: Stream, data: bytes) -> None:
        """Take what the command has written to a stream."""
        for line in self._lines[stream].add(data):
            self._emit(line)

    def tick(self) -> None:
        """Log unfinished lines that have been waiting: to be called about once a second."""
        for lines in self._lines.values():
            for line in lines.take_overdue():
                self._emit(line)
        if self._is_behind and self._may_log(BURST_LINES / 2):
            self._tell_left_out()

    def finish(self) -> None:
        """Log what is left: the command has ended."""
        for lines in self._lines.values():
            for line in lines.take_rest():
                self._emit(line)
        if self._is_behind:
            last = list(self._tail)[-self._left_out :] if self._left_out else []
            self._tell_left_out()
            for line in last:
                self._send(line)

    def note_dropped(self, size_bytes: int) -> None:
        """Note that output was lost because this process did not read it in time."""
        self._lost_bytes += size_bytes

    @property
    def _is_behind(self) -> bool:
        return bool(self._left_out or self._lost_bytes)

    def _emit(self, line: str) -> None:
        self._tail.append(line)
        if not self._is_behind and self._may_log(1):
            self._allowance -= 1
            self._send(line)
        else:
            self._left_out += 1

    def _may_log(self, lines: float) -> bool:
        now = time.monotonic()
        self._allowance = min(self._allowance + (now - self._allowed_at) * LINES_PER_SECOND, BURST_LINES)
        self._allowed_at = now
        return self._allowance >= lines

    def _tell_left_out(self) -> None:
        lost = f" and {size_text(self._lost_bytes)}" if self._lost_bytes else ""
        self._send(f"[{count_of(self._left_out, 'line')}{lost} left out: more than the log can take]")
        self._left_out = self._lost_bytes = 0

    def _send(self, line: str) -> None:
        try:
            self._log(line)
        except BaseException:  # training must not end because of a log; nor because one ends the program
            if not self._has_failed:
                self._has_failed = True
                logger.exception("the output of the command cannot be logged")


class _Lines:
    """The lines of one stream."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self._partial = ""
        self._partial_since = 0.0

    def add(self, data: bytes) -> list[str]:
        """Return the lines that ``data`` ends, and those that have grown too long."""
        if not self._partial:
            self._partial_since = time.monotonic()
        *whole, partial = (self._partial + self._decode(data)).split("\n")
        if whole:
            self._partial_since = time.monotonic()
        if (at := partial.rstrip("\r").rfind("\r")) >= 0:
            partial = partial[at:]  # what came before was written over
        pieces = [piece for line in whole for piece in _pieces(_as_seen(line))]
        while len(partial) > MAX_LINE_CHARACTERS:
            pieces.append(_printable(partial[:MAX_LINE_CHARACTERS]))
            partial = partial[MAX_LINE_CHARACTERS:]
        self._partial = partial
        return pieces

    def take_overdue(self) -> list[str]:
        if self._partial and time.monotonic() - self._partial_since > PARTIAL_SECONDS:
            return self._take_partial()
        return []

    def take_rest(self) -> list[str]:
        self._partial += self._decode(b"", True)
        return self._take_partial()

    def _take_partial(self) -> list[str]:
        line, self._partial = _as_seen(self._partial), ""
        return _pieces(line) if line else []


def _as_seen(line: str) -> str:
    """Return what a terminal shows of a line in the end."""
    return line.rstrip("\r").rpartition("\r")[2]


def _pieces(line: str) -> list[str]:
    starts = range(0, max(len(line), 1), MAX_LINE_CHARACTERS)
    return [_printable(line[start : start + MAX_LINE_CHARACTERS]) for start in starts]


def _printable(line: str) -> str:
    return line.replace("\0", "\\x00")  # no database takes it
