"""Saves that go on while training does: who waits for whom, and where their errors come out."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing.util
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ckpt_lib.draft import Draft

if TYPE_CHECKING:
    from ckpt_lib.stream.staging import Snapshot, StagingBuffer

logger = logging.getLogger("ckpt_lib")

_NICENESS = 10
"""Training comes first: where it wants every processor, saving gets a tenth of one, and elsewhere what it needs."""


class SaveHandle(Future["str | None"]):
    """A save under way: a future of the new id, or of ``None`` when the save policy said no.

    ``result()`` returns once the checkpoint is durable. An error that no one asks for here is raised by the manager's
    next call instead.
    """

    def __init__(self, draft: Draft | None = None, snapshot: Snapshot | None = None) -> None:
        super().__init__()
        self.draft = draft
        self.error_was_seen = False
        self._snapshot = snapshot

    def wait_until_copied(self) -> None:
        """Return once the state that is being saved may be changed by any means."""
        if (snapshot := self._snapshot) is not None:
            snapshot.finish()

    def forget_snapshot(self) -> None:
        """Let go of the state, which is on disk, or never will be."""
        self._snapshot = None

    def done(self) -> bool:
        if (snapshot := self._snapshot) is not None:
            snapshot.note_contact()
        return super().done()

    def result(self, timeout: float | None = None) -> str | None:
        try:
            return super().result(timeout)
        finally:
            self.error_was_seen |= self.done()  # a wait that timed out has seen nothing

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            return super().exception(timeout)
        finally:
            self.error_was_seen |= self.done()


def finished(checkpoint_id: str | None) -> SaveHandle:
    """The handle of a save that had nothing to do."""
    handle = SaveHandle()
    handle.set_result(checkpoint_id)
    return handle


class BackgroundSaves:
    """Copies, commits and follow-ups, each on a thread of its own, in the order of the calls.

    At most ``limit`` saves are under way; each has a staging buffer, and one more waits for a buffer. What follows a
    commit (backup, retirement) is waited for by :meth:`flush` alone. The interpreter flushes when it ends.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reset()
        _LIVING.add(self)

    def _reset(self) -> None:
        self._buffers: list[StagingBuffer] = []
        self._free: list[StagingBuffer] = []
        self._handles: list[SaveHandle] = []
        self._changed = threading.Condition()
        self._copying = _Worker("ckpt-copy")
        self._committing = _Worker("ckpt-save", niceness=_NICENESS)
        self._following_up = _Worker("ckpt-after-save", niceness=_NICENESS)

    @property
    def staging_bytes(self) -> int:
        """How much memory the copies take."""
        return sum(buffer.size_bytes for buffer in self._buffers)

    def prepare(self, snapshot_into: Callable[[StagingBuffer], Snapshot]) -> None:
        """Make a copy into each buffer, as saves will, and forget it: the memory is then in place."""
        taken = self._take_buffers(self._limit)
        try:
            for buffer in taken:
                snapshot_into(buffer).finish()
        finally:
            self._give_back(taken)

    def start(
        self,
        draft: Draft,
        snapshot_into: Callable[[StagingBuffer], Snapshot],
        commit: Callable[[Snapshot], Any],
        follow_up: Callable[[Any], object],
    ) -> SaveHandle:
        """Copy a state, and have it committed and followed up. Waits while ``limit`` saves are under way."""
        _flush_at_end()
        taken = self._take_buffers(1)
        snapshot: Snapshot | None = None
        try:
            snapshot = snapshot_into(taken[0])
            handle = SaveHandle(draft, snapshot)
            handle.set_running_or_notify_cancel()
            with self._changed:
                self._handles.append(handle)
            if not snapshot.is_complete:
                self._copying.put(snapshot.finish_in_background)
            self._committing.put(partial(self._commit, handle, snapshot, taken, commit, follow_up))
        except BaseException:
            if snapshot is not None:
                snapshot.abandon()  # the copying may have begun: the buffer is given back only when it is over
            with self._changed:
                self._handles = [other for other in self._handles if other.draft is not draft]
            self._give_back(taken)
            raise
        return handle

    def _commit(
        self,
        handle: SaveHandle,
        snapshot: Snapshot,
        taken: list[StagingBuffer],
        commit: Callable[[Snapshot], Any],
        follow_up: Callable[[Any], object],
    ) -> None:
        try:
            saved = commit(snapshot)
            if saved is not None:
                self._following_up.put(lambda: follow_up(saved))
        except BaseException as error:
            logger.error("a background save failed: %s", error)
            outcome: Callable[[], None] = partial(handle.set_exception, error)
        else:
            outcome = partial(handle.set_result, None if saved is None else saved.checkpoint_id)
        # First, so that whoever is called back with the outcome may save again.
        snapshot.abandon()
        handle.forget_snapshot()
        self._give_back(taken)
        outcome()

    def _take_buffers(self, count: int) -> list[StagingBuffer]:
        from ckpt_lib.stream.staging import StagingBuffer

        def is_enough() -> bool:
            return len(self._free) + self._limit - len(self._buffers) >= count

        with self._changed:
            if self._committing.is_current and not is_enough():
                raise RuntimeError("a callback of a save would wait for a later save, which waits for the callback")
            self._changed.wait_for(is_enough)
            while len(self._free) < count:
                self._buffers.append(StagingBuffer())
                self._free.append(self._buffers[-1])
            taken, self._free = self._free[:count], self._free[count:]
            return taken

    def _give_back(self, taken: list[StagingBuffer]) -> None:
        with self._changed:
            # One that is not known any more was let go of by close() meanwhile.
            self._free += [buffer for buffer in taken if any(buffer is known for known in self._buffers)]
            self._changed.notify_all()

    @property
    def under_way(self) -> list[SaveHandle]:
        """The saves that are not committed yet, oldest first."""
        with self._changed:
            return [handle for handle in self._handles if not handle.done()]

    def raise_failure(self) -> None:
        """Raise the oldest error that no one has seen, once."""
        with self._changed:
            done: list[SaveHandle] = []
            pending: list[SaveHandle] = []
            for handle in self._handles:  # asked once each: it may come to its end meanwhile
                (done if handle.done() else pending).append(handle)
            failed = [handle for handle in done if not handle.error_was_seen and Future.exception(handle)]
            self._handles = failed[1:] + pending
        if failed:
            failed[0].result()

    def wait_until_copied(self) -> None:
        """Return once nothing that is being saved is still to be copied from where it is used."""
        for handle in self.under_way:
            handle.wait_until_copied()

    def flush(self) -> None:
        """Return once every save so far is committed, backed up and followed up; raise an error no one has seen."""
        self._wait()
        self.raise_failure()

    def settle(self) -> None:
        """:meth:`flush`, but raise nothing: what failed is in the log, and keeps no last save from being made."""
        self._wait()
        with self._changed:
            self._handles = [handle for handle in self._handles if not handle.done()]

    def _wait(self) -> None:
        self._committing.wait()
        self._following_up.wait()

    def close(self) -> None:
        """:meth:`flush`, and let go of the memory; a later save takes new."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._buffers, self._free = [], []
                self._changed.notify_all()


class _Worker:
    """Does one thing after the other on a thread, which lives for as long as there is something to do."""

    def __init__(self, name: str, niceness: int = 0) -> None:
        self._name = name
        self._niceness = niceness
        self._tasks: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, task: Callable[[], object]) -> None:
        with self._changed:
            self._tasks.append(task)
            if self._thread is None:
                # A daemon: the interpreter waits for it in an exit handler, while threads may still be started.
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except BaseException:
                    self._thread = None
                    self._tasks.pop()
                    raise

    @property
    def is_current(self) -> bool:
        """Whether the caller is on this thread."""
        return self._thread is threading.current_thread()

    def wait(self) -> None:
        """Return once there is nothing left to do."""
        with self._changed:
            if self.is_current:
                raise RuntimeError("a callback of a save waits for the thread that called it")
            self._changed.wait_for(lambda: self._thread is None)

    def _work(self) -> None:
        _step_back(self._niceness)
        while (task := self._next_task()) is not None:
            try:
                task()
            except BaseException:  # whatever it is, others wait for this thread
                logger.exception("%s failed", self._name)

    def _next_task(self) -> Callable[[], object] | None:
        with self._changed:
            if self._tasks:
                return self._tasks.popleft()
            self._thread = None
            self._changed.notify_all()
            return None


def _step_back(niceness: int) -> None:
    """Lower the priority of this thread, and of those it starts; Linux alone has priorities of threads."""
    if niceness and sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))


_LIVING: weakref.WeakSet[BackgroundSaves] = weakref.WeakSet()


def wait_until_all_copied() -> None:
    """Return once nothing that is being saved in this process is still to be copied from where it is used."""
    for saves in list(_LIVING):
        saves.wait_until_copied()


def _flush_all() -> None:
    for saves in list(_LIVING):
        try:
            saves.flush()
        except Exception as error:  # it was logged when it happened; nothing is left that could catch it
            logger.error("a background save had failed before the end: %s", error)


@cache
def _flush_at_end() -> None:
    """Have the end of this process wait for its saves; one that multiprocessing started calls no exit handlers."""
    atexit.register(_flush_all)
    multiprocessing.util.Finalize(None, _flush_all, exitpriority=0)


def _forget_all() -> None:
    """A forked child has none of the threads, and the saves are its parent's."""
    _flush_at_end.cache_clear()
    for saves in list(_LIVING):
        saves._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
