"""What becomes of a save when its store fails: it is tried again, goes to the fallback folder, or is given up.

Only failures of the store degrade. State that cannot be stored, wrong arguments and bugs are raised whatever is
configured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ckpt_lib.config import OnSaveFailure
from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.logs import store_failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CorruptCheckpointError,
    StorageFullError,
    StoreUnavailableError,
    VersionConflictError,
    is_store_failure,
)
from ckpt_lib.experiment import commit, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import FOLDER_SUFFIX
from ckpt_lib.experiment.twin import Twin
from ckpt_lib.formats import Format, Layout, Payload
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.saving.free_space import FreeSpace
from ckpt_lib.store.identity import StoreWatch

_chance = random.SystemRandom()
"""Not the generator of everybody, from which the training may draw."""
RETRY_DELAYS_SECONDS = (0.2, 0.8)
"""How long to wait, each give or take a half, before a store that did not answer is asked again."""
MAX_RETRY_SECONDS = 15.0
"""No retry begins later: a store that takes long to fail, such as a lock that nobody gives up, was asked enough."""
_ROOMY = 4
"""With free space for so many saves like the last, the size of the next is not worth computing."""


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint, at home or in the fallback folder."""

    manifest: Manifest
    in_fallback: bool = False
    twin: Twin | None = None
    """The backup that was written in the same pass."""

    @property
    def checkpoint_id(self) -> str:
        return self.manifest.checkpoint_id


class SaveTarget:
    """An experiment that saves go to. With ``verify``, payloads are read back before they are committed.

    With a ``watch``, a save fails where the store is not the one of earlier saves. With ``backups``, payloads of a
    single file are written to both in one pass, where there is room for both.
    """

    def __init__(
        self,
        experiment: Experiment,
        known: KnownVersions,
        free_space: FreeSpace,
        *,
        watch: StoreWatch | None = None,
        backups: Experiment | None = None,
        verify: bool = False,
    ) -> None:
        self.experiment = experiment
        self._backups = backups
        self._twin: Twin | None = None
        """The backup that was last written with its save."""
        self._known = known
        self._free_space = free_space
        self._watch = watch
        self._verify = verify
        self._last_size_bytes: int | None = None

    @property
    def store_uid(self) -> str | None:
        """The ``uid`` of the store that is watched; ``None`` where it is not known."""
        return self._watch.uid if self._watch else None

    def save(
        self, facts: CheckpointFacts, payload_format: Format, layout: Layout, *, with_backup: bool = True
    ) -> Saved:
        """Commit; what is transient is tried again, and a full store is given room once.

        Each attempt is a save of its own: a file that could not be made durable is never tried again. A backup that is
        written with it may take time from it: leave that out where the process is about to end.
        """
        attempt = partial(self._attempt, facts, payload_format, layout, with_backup)
        begun, is_repeated = time.monotonic(), False
        for delay_seconds in RETRY_DELAYS_SECONDS:
            try:
                return attempt(is_repeated=is_repeated)
            except (StoreUnavailableError, VersionConflictError) as error:
                if time.monotonic() - begun > MAX_RETRY_SECONDS:
                    raise
                self.experiment.events.emit("save.retried", error.message, **_described(error))
            time.sleep(delay_seconds * _chance.uniform(0.5, 1.5))
            is_repeated = True
        return attempt(is_repeated=is_repeated)

    def _attempt(
        self, facts: CheckpointFacts, payload_format: Format, layout: Layout, with_backup: bool, *, is_repeated: bool
    ) -> Saved:
        if self._watch:
            self._watch.check()
        if is_repeated and (left := self._left_behind(facts)):
            return Saved(left)
        needed_bytes = self._require_room(layout)
        twin = self._new_twin(facts, payload_format, needed_bytes) if with_backup else None
        self._twin = twin or self._twin  # which may hang
        try:
            return self._commit(facts, payload_format, layout, twin)
        except StorageFullError as error:
            if twin is not None:  # which may have taken the room
                with suppress(StorageFullError):
                    return self._commit(facts, payload_format, layout)
            # Another program may have been faster, or a quota is smaller than the disk.
            self.experiment.events.emit("store.full", error.message, **_described(error))
            self._free_space.make(None)
        return self._commit(facts, payload_format, layout)

    def _new_twin(self, facts: CheckpointFacts, payload_format: Format, needed_bytes: int) -> Twin | None:
        """Return the backup to be written with the save; ``None`` where the location is not local, or hangs."""
        if self._backups is None or payload_format.suffix == FOLDER_SUFFIX:
            return None
        if (self._twin is not None and self._twin.hangs) or not self._backups.store.capabilities.memory_map:
            return None
        return Twin(self._backups, facts.uid, payload_format.suffix, room_bytes=2 * needed_bytes)

    def _commit(
        self, facts: CheckpointFacts, payload_format: Format, layout: Layout, twin: Twin | None = None
    ) -> Saved:
        try:
            manifest = commit.save(
                self.experiment,
                facts,
                twin.beside(layout.write) if twin else layout.write,
                format_name=payload_format.name,
                suffix=payload_format.suffix,
                verify=self._verify,
            )
            if twin:
                twin.finish(manifest)
        except BaseException:
            if twin:
                twin.drop()
            raise
        self._last_size_bytes = manifest.plain_size_bytes
        if manifest.uid == facts.uid:  # else another process was faster with the same save, and this one read nothing
            with store_failures_logged("looking at what was just saved"):
                self._known.remember(self.experiment, manifest, is_loadable=True)
        return Saved(manifest, twin=twin)

    def _require_room(self, layout: Layout) -> int:
        """Make room, and return a number of bytes that suffices for the save.

        Raises :class:`StorageFullError` before anything is written.
        """
        free_bytes, last_bytes = self.experiment.store.free_bytes(), self._last_size_bytes
        if last_bytes is not None:
            ample_bytes = _ROOMY * last_bytes + commit.OVERHEAD_BYTES
            if free_bytes is None or free_bytes >= ample_bytes:
                return ample_bytes
        size_bytes = layout.size_bytes
        needed_bytes = size_bytes + commit.OVERHEAD_BYTES
        hint = "Free some space: `ckpt cleanup` shows what may go."
        lack = partial(commit.lack_of_room, self.experiment, size_bytes, "for the checkpoint", hint=hint)
        if (error := lack()) is None:
            return needed_bytes
        self.experiment.events.emit(
            "store.full",
            error.message,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
            **_described(error),
        )
        self._free_space.make(needed_bytes)
        if error := lack():
            raise error
        return needed_bytes

    def _left_behind(self, facts: CheckpointFacts) -> Manifest | None:
        """Return what an attempt committed whose acknowledgement was lost."""
        manifests = self.experiment.index.view().manifests
        return next((manifest for manifest in manifests if manifest.uid == facts.uid), None)


class FailoverWriter:
    """Commits to the store, or else to the fallback folder, or else does what ``on_failure`` says."""

    def __init__(self, home: SaveTarget, fallback: SaveTarget | None, on_failure: OnSaveFailure) -> None:
        self.home = home
        self.fallback = fallback
        self._on_failure = on_failure
        self._given_up: Exception | None = None

    def save(
        self, facts: CheckpointFacts, payload_format: Format, payload: Payload, *, with_backup: bool = True
    ) -> Saved | None:
        """Commit and say where; ``None`` when nothing was saved and training goes on without."""
        layout = payload_format.lay_out(payload)
        try:
            return self.home.save(facts, payload_format, layout, with_backup=with_backup)
        except Exception as error:
            if not _is_degrading(error):
                raise
            failure = error
        events = self.home.experiment.events
        if self.fallback is not None:
            events.emit("save.degraded", str(failure), **_described(failure))
            try:
                return self._save_in_fallback(self.fallback, facts, payload_format, layout)
            except Exception as error:
                if not _is_degrading(error):
                    raise
                failure.add_note(f"The fallback folder failed, too: {error}")
        notes = " ".join((str(failure), *getattr(failure, "__notes__", ())))
        events.emit("save.failed", notes, **_described(failure))
        if self._on_failure == "warn":
            self._given_up = failure
            return None
        raise failure

    def take_failure(self) -> Exception | None:
        """Return why the last save ended without a checkpoint and without an error, and forget it.

        An error holds on to what was being saved.
        """
        failure, self._given_up = self._given_up, None
        return failure

    def _save_in_fallback(
        self, fallback: SaveTarget, facts: CheckpointFacts, payload_format: Format, layout: Layout
    ) -> Saved:
        manifest = fallback.save(replace(facts, home_uid=self.home.store_uid), payload_format, layout).manifest
        path = fallback.experiment.location(manifest.payload_name)
        fallback.experiment.events.emit(
            "checkpoint.stranded",
            f"saved in the fallback folder, {path}; `ckpt reconcile` moves it to the store",
            checkpoint=manifest.describe(),
            path=path,
            size_bytes=manifest.size_bytes,
        )
        return Saved(manifest, in_fallback=True)

    @property
    def targets(self) -> tuple[SaveTarget, ...]:
        return (self.home,) if self.fallback is None else (self.home, self.fallback)

    def earlier(self, facts: CheckpointFacts) -> Manifest | None:
        """Return the whole checkpoint, wherever it is, that an earlier save with the key of ``facts`` made."""
        if facts.idempotency_key is not None:
            for target in self.targets:
                with store_failures_logged(f"looking for an earlier save in {target.experiment.location()}"):
                    if found := keys.find(target.experiment, facts.idempotency_key):
                        return found
        return None

    def look_again(self) -> None:
        """Learn what others have saved and deleted in both places, as far as they answer."""
        for target in self.targets:
            target.experiment.index.view_or_last()

    def saved(self) -> Sequence[Manifest]:
        """Return the whole checkpoints in both places, oldest first: of a place that fails, those last seen.

        What is stranded in the fallback folder was saved last, as far as this process can tell.
        """
        views = [view for target in self.targets if (view := target.experiment.index.affordable_view())]
        if len(views) == 1:
            return views[0].whole
        return list({item.uid: item for view in views for item in view.whole}.values())


def _is_degrading(error: Exception) -> bool:
    """Tell whether the store is to blame for a save that failed: also one that does not give back what was written."""
    return is_store_failure(error) or isinstance(error, CorruptCheckpointError)


def _described(error: BaseException) -> dict[str, Any]:
    return {"error": type(error).__name__, "reason": str(error), "path": getattr(error, "path", None)}
