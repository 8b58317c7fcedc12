"""Saves that go on while training does: who waits for whom, and where their errors come out."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from ckpt_lib.draft import Draft

if TYPE_CHECKING:
    from ckpt_lib.stream.staging import Snapshot, StagingBuffer

logger = logging.getLogger("ckpt_lib")

T = TypeVar("T")

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

    def result(self, timeout: float | None = None) -> str | None:
        self.error_was_seen = True
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.error_was_seen = True
        return super().exception(timeout)


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
        taken = [self._take_buffer() for _ in range(self._limit)]
        try:
            for buffer in taken:
                snapshot_into(buffer).finish()
        finally:
            for buffer in taken:
                self._give_back(buffer)

    def start(
        self,
        draft: Draft,
        snapshot_into: Callable[[StagingBuffer], Snapshot],
        commit: Callable[[Snapshot], T],
        follow_up: Callable[[T], object],
    ) -> SaveHandle:
        """Copy a state, and have it committed and followed up. Waits while ``limit`` saves are under way."""
        buffer = self._take_buffer()
        try:
            snapshot = snapshot_into(buffer)
        except BaseException:
            self._give_back(buffer)
            raise
        handle = SaveHandle(draft, snapshot)
        with self._changed:
            self._handles.append(handle)
        handle.set_running_or_notify_cancel()
        if not snapshot.is_complete:
            self._copying.put(snapshot.finish)
        self._committing.put(lambda: self._commit(handle, snapshot, buffer, commit, follow_up))
        return handle

    def _commit(
        self,
        handle: SaveHandle,
        snapshot: Snapshot,
        buffer: StagingBuffer,
        commit: Callable[[Snapshot], Any],
        follow_up: Callable[[Any], object],
    ) -> None:
        try:
            manifest = commit(snapshot)
        except BaseException as error:
            logger.error("a background save failed: %s", error)
            handle.set_exception(error)
        else:
            self._following_up.put(lambda: follow_up(manifest))
            handle.set_result(manifest.checkpoint_id)
        finally:
            handle.forget_snapshot()
            self._give_back(buffer)

    def _take_buffer(self) -> StagingBuffer:
        from ckpt_lib.stream.staging import StagingBuffer

        with self._changed:
            if not self._free and len(self._buffers) < self._limit:
                self._buffers.append(StagingBuffer())
                return self._buffers[-1]
            self._changed.wait_for(lambda: self._free)
            return self._free.pop()

    def _give_back(self, buffer: StagingBuffer) -> None:
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    @property
    def under_way(self) -> list[SaveHandle]:
        """The saves that are not committed yet, oldest first."""
        with self._changed:
            return [handle for handle in self._handles if not handle.done()]

    def raise_failure(self) -> None:
        """Raise the oldest error that no one has seen, once."""
        with self._changed:
            done = [handle for handle in self._handles if handle.done()]
            self._handles = [handle for handle in self._handles if not handle.done()]
            failed = [handle for handle in done if not handle.error_was_seen and Future.exception(handle)]
            self._handles = failed[1:] + self._handles
        if failed:
            failed[0].result()

    def wait_until_copied(self) -> None:
        """Return once nothing that is being saved is still to be copied from where it is used."""
        for handle in self.under_way:
            handle.wait_until_copied()

    def wait_for_commits(self) -> None:
        """Return once every save so far is committed or has failed; raise an error that no one has seen."""
        self._committing.wait()
        self.raise_failure()

    def flush(self) -> None:
        """Return once every save so far is committed, backed up and followed up; raise an error no one has seen."""
        self._committing.wait()
        self._following_up.wait()
        self.raise_failure()

    def close(self) -> None:
        """:meth:`flush`, and let go of the memory; a later save takes new."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._buffers, self._free = [], []


class _Worker:
    """Does one thing after the other on a thread, which lives for as long as there is something to do."""

    def __init__(self, name: str, niceness: int = 0) -> None:
        self._name = name
        self._niceness = niceness
        self._tasks: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._is_busy = False

    def put(self, task: Callable[[], object]) -> None:
        with self._changed:
            self._tasks.append(task)
            if not self._is_busy:
                self._is_busy = True
                # A daemon: the interpreter waits for it in an exit handler, while threads may still be started.
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def wait(self) -> None:
        """Return once there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_busy)

    def _work(self) -> None:
        _step_back(self._niceness)
        while (task := self._next_task()) is not None:
            try:
                task()
            except Exception:
                logger.exception("%s failed", self._name)

    def _next_task(self) -> Callable[[], object] | None:
        with self._changed:
            if self._tasks:
                return self._tasks.popleft()
            self._is_busy = False
            self._changed.notify_all()
            return None


def _step_back(niceness: int) -> None:
    """Lower the priority of this thread, and of those it starts; Linux alone has priorities of threads."""
    if niceness and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


_LIVING: weakref.WeakSet[BackgroundSaves] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    for saves in list(_LIVING):
        try:
            saves.flush()
        except Exception as error:  # it was logged when it happened; nothing is left that could catch it
            logger.error("a background save had failed before the end: %s", error)


def _forget_all() -> None:
    """A forked child has none of the threads, and the saves are its parent's."""
    for saves in list(_LIVING):
        saves._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
