"""Saves that go on while training does: who waits for whom, and where their errors come out."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.logs import logger
from ckpt_lib.errors import ConfigError
from ckpt_lib.saving.worker import Background, Worker, flush_at_end, living

if TYPE_CHECKING:
    from ckpt_lib.state.staging import Snapshot, StagingBuffer


class SaveHandle(Future["str | None"]):
    """A save under way: a future of the new id, or of ``None`` when the save policy said no.

    ``result()`` returns once the checkpoint is durable. An error that no one asks for here is raised by the manager's
    next call instead. It belongs to the process of the save: in a forked child, asking it raises
    :class:`~ckpt_lib.errors.ConfigError`, and it cannot be pickled.
    """

    def __init__(self, facts: CheckpointFacts | None = None) -> None:
        super().__init__()
        self.facts = facts
        self.buffer: StagingBuffer | None = None
        """The memory of the copy, until the save has ended."""
        self.error_was_seen = False
        self.snapshot: Snapshot | None = None
        """The copy of the state, until it is on disk, or never will be."""
        self._process_id = os.getpid()
        # Waiting for a Future's own condition, an interrupt can leave the condition's lock held for ever, and with it
        # the thread that saves. A plain lock, taken and released in C, is never left held.
        self._ended = threading.Lock()
        self._ended.acquire()
        self._has_ended = False
        self._ender: int | None = None
        self._buffer_is_free = threading.Lock()
        self._buffer_is_free.acquire()
        self._unclaimed = deque([True])
        self.set_running_or_notify_cancel()

    def __reduce__(self) -> NoReturn:
        raise ConfigError("a save under way cannot be sent to another process", hint="Send the id: handle.result().")

    def claim(self) -> bool:
        """Tell whether the caller is the first to end this save: by a commit, or before it began."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False

    def end(self, outcome: Callable[[], None]) -> None:
        """Set the outcome, by a method of ``Future``, and wake those who wait for it."""
        self._ender = threading.get_ident()
        outcome()
        self._has_ended = True
        self._ended.release()

    @property
    def has_ended(self) -> bool:
        """True once the outcome is set; on the thread that sets it, where callbacks run, it is."""
        return self._has_ended or self._ender == threading.get_ident()

    def _wait(self, timeout: float | None) -> None:
        self._check_process()
        if self.has_ended:
            return
        if timeout is None:
            with self._ended:
                return
        if self._ended.acquire(timeout=max(0.0, timeout)):
            self._ended.release()
        else:
            raise TimeoutError

    def _check_process(self) -> None:
        if self._process_id != os.getpid():
            raise ConfigError(
                "the save belongs to the process that started it",
                expected=f"process {self._process_id}",
                got=os.getpid(),
                hint="A forked child saves with a manager of its own.",
            )

    def wait_until_copied(self) -> None:
        """Return once the state that is being saved may be changed by any means."""
        self._check_process()
        if (snapshot := self.snapshot) is not None:
            snapshot.finish()

    def wait_for_buffer(self) -> None:
        """Return once the save needs its buffer no longer."""
        with self._buffer_is_free:
            pass

    def release_buffer(self) -> None:
        """Let another save have the buffer."""
        if self.buffer is not None:
            self.buffer = None
            self._buffer_is_free.release()

    def done(self) -> bool:
        if (snapshot := self.snapshot) is not None:
            snapshot.note_contact()
        return self.has_ended

    def result(self, timeout: float | None = None) -> str | None:
        try:
            self._wait(timeout)
            return super().result(0)
        finally:
            self.error_was_seen |= self.done()  # a wait that timed out has seen nothing

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            self._wait(timeout)
            return super().exception(0)
        finally:
            self.error_was_seen |= self.done()


def finished(checkpoint_id: str | None) -> SaveHandle:
    """Return the handle of a save that had nothing to do."""
    handle = SaveHandle()
    handle.end(partial(handle.set_result, checkpoint_id))
    return handle


class BackgroundSaves(Background):
    """Copies, commits and follow-ups, each on a thread of its own, in the order of the calls.

    At most ``limit`` saves are under way; each has a staging buffer, and one more waits for a buffer. What follows a
    commit (backup, retirement) is waited for by :meth:`flush` alone. The interpreter flushes when it ends.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        super().__init__()

    def _reset(self) -> None:
        self._buffers: list[StagingBuffer] = []
        self._handles: list[SaveHandle] = []
        self._lock = threading.Lock()
        self._copying = Worker("ckpt-copy")
        self._committing = Worker("ckpt-save", steps_back=True)
        self._following_up = Worker("ckpt-after-save", steps_back=True)

    @property
    def staging_bytes(self) -> int:
        """The memory that the copies take, in bytes."""
        return sum(buffer.size_bytes for buffer in self._buffers)

    def prepare(self, snapshot_into: Callable[[StagingBuffer], Snapshot]) -> None:
        """Make a copy into each buffer, as saves will, and forget it: the memory is then in place."""
        self._committing.wait()
        with self._lock:
            self._buffers += self._new_buffers(self._limit - len(self._buffers))
            buffers = list(self._buffers)
        for buffer in buffers:
            snapshot_into(buffer).finish()

    def start(
        self,
        facts: CheckpointFacts,
        snapshot_into: Callable[[StagingBuffer], Snapshot],
        commit: Callable[[Snapshot], Any],
        follow_up: Callable[[Any], object],
    ) -> SaveHandle:
        """Copy a state, and have it committed and followed up. Waits while ``limit`` saves are under way."""
        flush_at_end()
        handle = SaveHandle(facts)
        snapshot: Snapshot | None = None
        try:
            self._begin(handle)
            assert handle.buffer is not None
            snapshot = snapshot_into(handle.buffer)
            handle.snapshot = snapshot
            if not snapshot.is_complete:
                self._copying.put(snapshot.finish_in_background)
            self._committing.put(partial(self._commit, handle, snapshot, commit, follow_up))
        except BaseException:
            if handle.claim():  # else it is being committed: the interrupt came when all was said
                if snapshot is not None:
                    snapshot.abandon()  # the copying may have begun: the buffer is free only when it is over
                self._forget(handle)
            raise
        return handle

    def _begin(self, handle: SaveHandle) -> None:
        """Wait for a buffer and note a save that uses it.

        Which buffers are free follows from the saves under way, so that no interrupt can lose one.
        """
        while True:
            with self._lock:
                # Each handle is asked once: it may give its buffer back at any moment.
                busy = [(handle, buffer) for handle in self._handles if (buffer := handle.buffer) is not None]
                free = [buffer for buffer in self._buffers if not any(buffer is used for _, used in busy)]
                if not free and len(busy) < self._limit:
                    free = self._new_buffers(1)
                    self._buffers += free
                if free:
                    handle.buffer = free[0]
                    self._handles.append(handle)
                    return
                oldest = busy[0][0]
            if self._committing.is_current:
                raise RuntimeError("a callback of a save would wait for a later save, which waits for the callback")
            oldest.wait_for_buffer()

    @staticmethod
    def _new_buffers(count: int) -> list[StagingBuffer]:
        from ckpt_lib.state.staging import StagingBuffer

        return [StagingBuffer() for _ in range(count)]

    def _forget(self, handle: SaveHandle) -> None:
        handle.release_buffer()
        with self._lock:
            self._handles = [other for other in self._handles if other is not handle]

    def _commit(
        self,
        handle: SaveHandle,
        snapshot: Snapshot,
        commit: Callable[[Snapshot], Any],
        follow_up: Callable[[Any], object],
    ) -> None:
        if not handle.claim():
            return  # its start was interrupted
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
        handle.snapshot = None
        handle.release_buffer()
        handle.end(outcome)

    @property
    def under_way(self) -> list[SaveHandle]:
        """The saves that are not committed yet, oldest first."""
        with self._lock:
            return [handle for handle in self._handles if not handle.done()]

    def raise_failure(self) -> None:
        """Raise the oldest error that no one has seen, once."""
        with self._lock:
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

    def wait_all(self) -> None:
        """:meth:`flush`, but raise nothing: what failed is in the log, and keeps no last save from being made."""
        self._wait()
        with self._lock:
            self._handles = [handle for handle in self._handles if not handle.done()]

    def wait_for_commits(self) -> None:
        """Return once every save so far is committed or has failed. What follows a commit may take longer."""
        self._committing.wait()

    def _wait(self) -> None:
        self._committing.wait()
        self._following_up.wait()

    def close(self) -> None:
        """:meth:`flush`, and let go of the memory; a later save takes new."""
        try:
            self.flush()
        finally:
            with self._lock:
                self._buffers = []


def wait_until_all_copied() -> None:
    """Return once nothing that is being saved in this process is still to be copied from where it is used."""
    for saves in living():
        if isinstance(saves, BackgroundSaves):
            saves.wait_until_copied()
