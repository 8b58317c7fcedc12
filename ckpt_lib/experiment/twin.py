"""A save in two places at once: the bytes of a checkpoint are hashed once and written twice.

The second copy, the twin, is a backup. It never fails the save, and delays it little: the checkpoint is committed at
home first, whatever becomes of its twin, which can be made from it later.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.experiment.claims import HeldClaim, claim_over, give_up, note_ended
from ckpt_lib.experiment.commit import Payload, commit
from ckpt_lib.experiment.copies import copied_manifest
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.stream.mirror import PATIENCE_SECONDS, Mirror


class Twin:
    """The twin of one save, a payload of a single file, in the experiment ``target``.

    Killed at any point, it leaves a claim, which a sweep ends together with its file, or a whole copy.
    """

    def __init__(self, target: Experiment, uid: str, suffix: str, *, room_bytes: int) -> None:
        """``room_bytes`` have to be free in the target: those of both copies, which may lie on one disk."""
        self._target = target
        self._room_bytes = room_bytes
        self._uid = uid
        self._suffix = suffix
        self._mirror: Mirror | None = None
        self._at_home: SimpleQueue[Manifest | None] = SimpleQueue()
        self._held: HeldClaim | None = None
        self._is_committed = False
        self._is_late = False

    def beside(self, write: Callable[[Payload], object]) -> Callable[[Payload], object]:
        """Return a ``write`` for :func:`~ckpt_lib.experiment.commit.save` that gives the twin the same bytes."""

        def write_both(payload: Payload) -> None:
            self._mirror = payload.mirror = Mirror(partial(self._make, payload.checkpoint_id), "ckpt-twin")
            self._mirror.start()
            write(payload)

        return write_both

    def finish(self, manifest: Manifest) -> None:
        """Tell its thread to commit the twin of what was committed at home; return at once."""
        self._at_home.put(manifest)

    def wait(self, timeout_seconds: float) -> bool:
        """Tell, once that is decided or the time is over, whether the twin is committed."""
        if self._mirror is None:
            return False
        if self._mirror.is_dropped:
            self.drop()
        else:
            self._is_late = not self._mirror.join(timeout_seconds)
        if not self._is_committed:
            logger.debug("the backup is made after the save, and not with it: %r", self._mirror.failure)
        return self._is_committed

    def drop(self) -> None:
        """Give the twin up, and return when nothing is left of it, or its thread hangs.

        What hangs loses its claim: nothing can come of it any more, and nobody need wait for it.
        """
        if self._mirror is None:
            return
        self._mirror.drop()
        self._at_home.put(None)  # wakes the thread, which then finds that it was dropped
        if not self._mirror.join(PATIENCE_SECONDS) and self._held is not None:
            note_ended(self._held.claim.claim)

    @property
    def hangs(self) -> bool:
        """True while the backup location has not answered the thread of a twin that nobody waits for any more."""
        if self._mirror is None or not (self._mirror.is_dropped or self._is_late):
            return False
        return not self._mirror.join(0)

    def _make(self, checkpoint_id: str, mirror: Mirror) -> None:
        """Do, on the thread of ``mirror``, all that may take long or not return: the backups may be unreachable."""
        free_bytes = self._target.store.free_bytes()
        if free_bytes is not None and free_bytes < self._room_bytes:
            return
        self._held = held = claim_over(self._target, checkpoint_id, self._uid, self._suffix)
        if held is None:
            return
        try:
            held.confirm()
            self._write(held, mirror)
        except BaseException as error:
            give_up(held, error)
            raise

    def _write(self, held: HeldClaim, mirror: Mirror) -> None:
        name = held.file_name("")
        upload = self._target.store.open_write(self._target.key(name))
        try:
            for buffer in mirror.buffers():
                held.renew()
                upload.write(buffer)
            manifest = self._at_home.get()
            mirror.check()
            assert manifest is not None
            file = manifest.files[0].model_copy(update={"name": name})
            size_bytes = upload.commit().size_bytes
        finally:
            upload.abort()
        if size_bytes != file.size_bytes:
            raise CorruptCheckpointError(
                "the backup location does not give back what was written",
                path=self._target.location(name),
                expected=f"{file.size_bytes} bytes",
                got=f"{size_bytes} bytes",
            )
        commit(held, copied_manifest(manifest, held, [file]), take_monitor=False)
        self._is_committed = True
