"""The fallback folder: where saves go while the store fails, and how they get from there into the primary folder.

It is an experiment's folder like any other, in another store: payloads with their manifests.
"""

from __future__ import annotations

import contextlib

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    StorageFullError,
)
from ckpt_lib.events import emit
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.experiment import CheckpointSet
from ckpt_lib.experiment.index import LAST_SEQUENCE
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.stream import Progress


class ReconcileReport(BaseModel):
    """What came home from the fallback folder; true when nothing is left there."""

    model_config = ConfigDict(frozen=True)

    experiment_name: str
    moved: dict[str, str] = {}
    """Id in the fallback folder to id in the store, which is the same unless it was taken; oldest first."""
    moved_bytes: int = 0
    already_home: dict[str, str] = {}
    """The same of what was home already, and was only to be removed."""
    failed: dict[str, str] = {}
    """Id to reason of what stays, because it is damaged here or there."""

    def __bool__(self) -> bool:
        return not self.failed


class Fallback:
    """One experiment's fallback folder, and the primary one that its checkpoints belong to."""

    def __init__(self, checkpoints: CheckpointSet, primary: CheckpointSet) -> None:
        self.folder = checkpoints.folder
        self.index = checkpoints.index
        self._primary = primary.folder
        self._primary_index = primary.index
        self._given_up: set[str] = set()

    def manifests(self) -> list[Manifest]:
        """What is there, oldest first. Raises :class:`~ckpt_lib.errors.StoreError`."""
        return self.index.manifests()

    @property
    def has_work(self) -> bool:
        """Whether something is there to move, that did not fail to before, or to remove; costs one listing."""
        view = self.index.view()
        return bool(view.deleted) or any(manifest.uid not in self._given_up for manifest in view.manifests)

    @property
    def has_unordered(self) -> bool:
        """Whether something is there that was saved without a look at the primary folder."""
        return any(item.sequence > LAST_SEQUENCE and item.uid not in self._given_up for item in self.manifests())

    def reconcile(self, progress: Progress | None = None) -> ReconcileReport:
        """Move everything to the primary folder, oldest first: copied, made durable, verified there, then removed here.

        Killed at any point, the next call goes on: what is in both places is one checkpoint, told by its ``uid``. A
        damaged one stays, with a reason. Raises :class:`~ckpt_lib.errors.StoreError` when the store fails again.
        """
        moved: dict[str, str] = {}
        already_home: dict[str, str] = {}
        moved_bytes = 0
        view = self.index.view()
        failed = {str(error.checkpoint_id): error.message for error in view.unreadable}
        for manifest in view.manifests:
            try:
                primary_id, is_new = self._move(manifest, progress)
            except (IntegrityError, CheckpointNotFoundError) as error:
                failed[manifest.checkpoint_id] = error.message
                self._given_up.add(manifest.uid)
                continue
            if not is_new:
                already_home[manifest.checkpoint_id] = primary_id
            else:
                moved[manifest.checkpoint_id] = primary_id
                moved_bytes += manifest.payload.size_bytes
        return ReconcileReport(
            experiment_name=self._primary.path,
            moved=moved,
            moved_bytes=moved_bytes,
            already_home=already_home,
            failed=failed,
        )

    def sweep(self) -> None:
        """Clear what dead processes left, and what was held when it was to be removed: nobody else looks after it."""
        commit.sweep(self.folder, self.index.view().entries.values())

    def _move(self, manifest: Manifest, progress: Progress | None) -> tuple[str, bool]:
        """The id that it has in the primary folder, and whether it was moved there now."""
        if deleted := self._deleted_in_primary(manifest):
            self._remove(manifest)
            return deleted.checkpoint_id, False
        earlier = self._primary_index.with_uid(manifest.uid)
        if earlier is None:
            self._require_room(manifest)
            brought = commit.adopt(
                self.folder,
                manifest,
                self._primary,
                self._primary_index,
                experiment_name=manifest.experiment_name,
                comes_home=True,
                progress=progress,
            )
        else:
            brought = earlier
            with self._primary.lock() as held:  # whoever brought it may have died before this
                held.sync()
        self._verify(brought)
        self._remove(manifest)
        if earlier is not None:
            return earlier.checkpoint_id, False
        emit(
            "checkpoint.reconciled",
            f"{manifest.checkpoint_id} was moved from {self.folder.location()} to the store",
            experiment_name=self._primary.path,
            checkpoint_id=brought.checkpoint_id,
            size_bytes=manifest.payload.size_bytes,
        )
        return brought.checkpoint_id, True

    def _deleted_in_primary(self, manifest: Manifest) -> Manifest | None:
        """What someone deleted from the primary folder after this was moved there, if it can be brought back.

        A damaged copy is not reason enough to give up the one that is here.
        """
        deleted = (item for item in self._primary_index.view().deleted if item.uid == manifest.uid)
        return next((item for item in deleted if validate(self._primary, item, self._primary.path)), None)

    def _require_room(self, manifest: Manifest) -> None:
        free_bytes = self._primary.store.free_bytes(self._primary.path)
        needed_bytes = manifest.payload.size_bytes + commit.OVERHEAD_BYTES
        if free_bytes is not None and free_bytes < needed_bytes:
            raise StorageFullError(
                f"there is not enough space to move {manifest.checkpoint_id} to the store",
                checkpoint_id=manifest.checkpoint_id,
                path=self._primary.location(),
                expected=f"{needed_bytes} bytes",
                got=f"{free_bytes} bytes free",
                hint="It stays in the fallback folder.",
            )

    def _verify(self, brought: Manifest) -> None:
        """Read it back from the primary folder. Raises :class:`IntegrityError` when it is not as it was saved."""
        with self._primary.hold(brought.checkpoint_id, "being moved home"):
            self._primary.read_manifest(brought.checkpoint_id)
            report = validate(self._primary, brought, self._primary.path)
        if not report:
            raise IntegrityError(
                f"its copy in the store is damaged: {report.message}",
                checkpoint_id=brought.checkpoint_id,
                path=self._primary.payload_location(brought),
                hint="`ckpt repair` or delete that copy; the one in the fallback folder stays.",
            )

    def _remove(self, manifest: Manifest) -> None:
        def replaced(current: Manifest) -> CheckpointError | None:
            if current.uid == manifest.uid:
                return None
            return CheckpointNotFoundError("another checkpoint has that id now", checkpoint_id=current.checkpoint_id)

        with contextlib.suppress(CheckpointNotFoundError):
            commit.delete(self.folder, manifest.checkpoint_id, unless=replaced)
