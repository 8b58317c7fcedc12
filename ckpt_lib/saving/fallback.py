"""The fallback folder: where saves go while the store fails, and how what is stranded there comes home.

It is an experiment's folder like any other, in another store: payloads with their manifests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    StorageFullError,
    is_store_failure,
)
from ckpt_lib.events import emit
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import LAST_SEQUENCE, Index
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.stream import Progress

T = TypeVar("T")


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


class StrandedIndex(Index):
    """The index of a fallback folder. Its checkpoints get the places that they would have had at home.

    Where this process has not seen those yet, a sequence beyond :data:`LAST_SEQUENCE` says so.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        super().__init__(folder)
        self.folder = folder
        self.home: Index | None = None

    def next_place(self, wanted: CheckpointId, suffix: str, *, is_known: bool = False) -> tuple[str, int]:
        checkpoint_id, sequence = super().next_place(wanted, suffix, is_known=is_known)
        seen = self.home is not None and self.home.last_view() is not None
        return checkpoint_id, sequence if seen else max(sequence, LAST_SEQUENCE + 1)

    def backed_up(self) -> list[Manifest]:
        """What is at home, as far as it is known: it counts like backups, from which an id may come back."""
        view = self.home.last_view() if self.home else None
        return [*view.manifests, *view.deleted, *self.home.backed_up()] if self.home and view else []


class Fallback:
    """One experiment's fallback folder, and the home that its checkpoints belong to."""

    def __init__(self, index: StrandedIndex, home: CheckpointFolder, home_index: Index) -> None:
        self.folder = index.folder
        self.index = index
        self._home = home
        self._home_index = home_index
        self._given_up: set[str] = set()
        index.home = home_index

    def stranded(self) -> list[Manifest]:
        """What is there, oldest first. Raises :class:`~ckpt_lib.errors.StoreError`."""
        return self.index.manifests()

    @property
    def has_work(self) -> bool:
        """Whether something is there to move, that did not fail to before, or to remove; costs one listing."""
        view = self.index.view()
        return bool(view.deleted) or any(manifest.uid not in self._given_up for manifest in view.manifests)

    @property
    def has_unplaced(self) -> bool:
        """Whether something is there that was saved without a look at the store."""
        return any(item.sequence > LAST_SEQUENCE and item.uid not in self._given_up for item in self.stranded())

    def reconcile(self, progress: Progress | None = None) -> ReconcileReport:
        """Move everything home, oldest first: copied, made durable and verified there, and only then removed here.

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
                home_id, is_new = self._bring_home(manifest, progress)
            except (IntegrityError, CheckpointNotFoundError) as error:
                failed[manifest.checkpoint_id] = error.message
                self._given_up.add(manifest.uid)
                continue
            if not is_new:
                already_home[manifest.checkpoint_id] = home_id
            else:
                moved[manifest.checkpoint_id] = home_id
                moved_bytes += manifest.payload.size_bytes
        return ReconcileReport(
            experiment_name=self._home.path,
            moved=moved,
            moved_bytes=moved_bytes,
            already_home=already_home,
            failed=failed,
        )

    def sweep(self) -> None:
        """Clear what dead processes left, and what was held when it was to be removed: nobody else looks after it."""
        commit.sweep(self.folder, self.index.view().entries.values())

    def _bring_home(self, manifest: Manifest, progress: Progress | None) -> tuple[str, bool]:
        """The id that it has at home, and whether it came there now."""
        if deleted := self._deleted_at_home(manifest):
            self._remove(manifest)
            return deleted.checkpoint_id, False
        earlier = self._home_index.with_uid(manifest.uid)
        if earlier is None:
            self._require_room(manifest)
            brought = commit.adopt(
                self.folder,
                manifest,
                self._home,
                self._home_index,
                experiment_name=manifest.experiment_name,
                comes_home=True,
                progress=progress,
            )
        else:
            brought = earlier
            with self._home.lock() as held:  # whoever brought it may have died before this
                held.sync()
        self._verify(brought)
        self._remove(manifest)
        if earlier is not None:
            return earlier.checkpoint_id, False
        emit(
            "checkpoint.reconciled",
            f"{manifest.checkpoint_id} was moved from {self.folder.location()} to the store",
            experiment_name=self._home.path,
            checkpoint_id=brought.checkpoint_id,
            size_bytes=manifest.payload.size_bytes,
        )
        return brought.checkpoint_id, True

    def _deleted_at_home(self, manifest: Manifest) -> Manifest | None:
        """What someone deleted at home after this came there, if it can be brought back.

        A damaged copy is not reason enough to give up the one that is here.
        """
        deleted = (item for item in self._home_index.view().deleted if item.uid == manifest.uid)
        return next((item for item in deleted if validate(self._home, item, self._home.path)), None)

    def _require_room(self, manifest: Manifest) -> None:
        free_bytes = self._home.store.free_bytes(self._home.path)
        needed_bytes = manifest.payload.size_bytes + commit.OVERHEAD_BYTES
        if free_bytes is not None and free_bytes < needed_bytes:
            raise StorageFullError(
                f"there is not enough space to move {manifest.checkpoint_id} to the store",
                checkpoint_id=manifest.checkpoint_id,
                path=self._home.location(),
                expected=f"{needed_bytes} bytes",
                got=f"{free_bytes} bytes free",
                hint="It stays in the fallback folder.",
            )

    def _verify(self, brought: Manifest) -> None:
        """Read it back from home. Raises :class:`IntegrityError` when it is not as it was saved."""
        with self._home.hold(brought.checkpoint_id, "being moved home"):
            self._home.read_manifest(brought.checkpoint_id)
            report = validate(self._home, brought, self._home.path)
        if not report:
            raise IntegrityError(
                f"its copy in the store is damaged: {report.message}",
                checkpoint_id=brought.checkpoint_id,
                path=self._home.payload_location(brought),
                hint="`ckpt repair` or delete that copy; the one in the fallback folder stays.",
            )

    def _remove(self, manifest: Manifest) -> None:
        def replaced(current: Manifest) -> CheckpointError | None:
            if current.uid == manifest.uid:
                return None
            return CheckpointNotFoundError("another checkpoint has that id now", checkpoint_id=current.checkpoint_id)

        with contextlib.suppress(CheckpointNotFoundError):
            commit.delete(self.folder, manifest.checkpoint_id, unless=replaced)


class Reachable:
    """Home and fallback folder as one, to resume from; what :func:`ckpt_lib.loading.load_newest` asks of an index.

    Where home does not answer, what is stranded is all there is: it was saved last, as far as this machine knows.
    """

    def __init__(self, home_folder: CheckpointFolder, home: Index, fallback: Fallback) -> None:
        self._home_folder = home_folder
        self._home = home
        self._fallback = fallback
        self._stranded: dict[str, Manifest] = {}
        self._at_home: set[str] = set()

    def load(self, action: Callable[[CheckpointFolder, Manifest], T], manifest: Manifest) -> T:
        """Do something where it lies, of what :meth:`manifests` returned last: if it is in both places, at home first.

        A copy that is damaged there does not cost the one in the fallback folder.
        """
        stranded = self._stranded.get(manifest.uid)
        if stranded is None:
            return action(self._home_folder, manifest)
        if manifest.uid in self._at_home:
            with contextlib.suppress(IntegrityError):
                return action(self._home_folder, manifest)
        return action(self._fallback.folder, stranded)

    def manifests(self) -> list[Manifest]:
        """All of both, by sequence."""
        self._stranded = stranded = {item.uid: item for item in self._fallback.stranded()}
        try:
            at_home = self._home.manifests()
        except Exception as error:
            if not (stranded and is_store_failure(error)):
                raise
            at_home = []
        self._at_home = {item.uid for item in at_home}
        away = [item for item in stranded.values() if item.uid not in self._at_home]
        return sorted((*at_home, *away), key=lambda item: item.sequence)

    def unreadable(self) -> list[CheckpointError]:
        """Why each manifest that cannot be read cannot."""
        views = (self._home.last_view(), self._fallback.index.last_view())
        return [error for view in views if view for error in view.unreadable]

    def backed_up(self) -> list[Manifest]:
        return self._home.backed_up()

    def set_aside(self) -> list[str]:
        return self._home.set_aside()
