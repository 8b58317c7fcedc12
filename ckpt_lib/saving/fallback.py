"""The fallback folder: where saves go while the store fails, and how they get from there to their home.

It is an experiment like any other, in another store: payloads with their manifests.
"""

from __future__ import annotations

from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    IntegrityError,
    NotAStoreError,
    StoreError,
    VersionConflictError,
)
from ckpt_lib.experiment import commit, keys
from ckpt_lib.experiment.copies import copy
from ckpt_lib.experiment.deletion import delete_all, purge
from ckpt_lib.experiment.edits import edit, release
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.locations import check_apart
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.experiment.view import View
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.store.identity import StoreWatch
from ckpt_lib.stream import Progress


class ReconcileReport(BaseModel):
    """The checkpoints that came home from the fallback folder; true when nothing is left there."""

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
    """One experiment's fallback folder, and the home that its checkpoints belong to."""

    def __init__(self, stranded: Experiment, home: Experiment, backups: Experiment, watch: StoreWatch) -> None:
        self.experiment = stranded
        self._home = home
        self._backups = backups
        self._watch = watch
        self._given_up: set[str] = set()

    def manifests(self) -> list[Manifest]:
        """Return what is there, oldest first. Raises :class:`~ckpt_lib.errors.StoreError`."""
        return self.experiment.index.manifests()

    @property
    def has_work(self) -> bool:
        """True while something is there to move, that did not fail to before, or to remove; costs one listing."""
        view = self._view()
        left = view.deleted or view.purging
        return bool(left) or any(manifest.uid not in self._given_up for manifest in view.manifests)

    def _view(self) -> View:
        """Look at what is there, and learn from it which store is its home: the disk of that may be unmounted now."""
        view = self.experiment.index.view()
        for home_uid in [item.home_uid for item in reversed(view.manifests) if item.home_uid][:1]:
            self._watch.expect(home_uid)
        return view

    def reconcile(self, progress: Progress | None = None) -> ReconcileReport:
        """Move everything home, oldest first: copied, made durable, verified there, then removed here.

        What comes home is the newest there. Killed at any point, the next call goes on: what is in both places is one
        checkpoint, told by its ``uid``. A damaged one stays, with a reason. Raises
        :class:`~ckpt_lib.errors.StoreError` when the store fails again, and :class:`~ckpt_lib.errors.ConfigError` when
        the fallback folder is that of the checkpoints or of their backups, under another name.
        """
        moved: dict[str, str] = {}
        already_home: dict[str, str] = {}
        moved_bytes = 0
        view = self._view()
        self._watch.check()
        if view.manifests or view.deleted or view.purging:
            self._check_apart()
        failed = {str(error.checkpoint_id): error.message for error in view.unreadable}
        if view.manifests:
            there = {item.uid for item in self._home.index.view().manifests}
        for manifest in view.manifests:
            try:
                home_id = self._move(manifest, progress)
            except CheckpointError as error:
                if isinstance(error, StoreError):
                    raise
                failed[manifest.checkpoint_id] = error.message
                if isinstance(error, IntegrityError):  # anything else may be over by the next save
                    self._given_up.add(manifest.uid)
                continue
            if home_id is None or manifest.uid in there:
                already_home[manifest.checkpoint_id] = home_id or manifest.checkpoint_id
            else:
                moved[manifest.checkpoint_id] = home_id
                moved_bytes += manifest.size_bytes
                self._tell(manifest, home_id)
        self._clear()
        return ReconcileReport(
            experiment_name=self._home.name,
            moved=moved,
            moved_bytes=moved_bytes,
            already_home=already_home,
            failed=failed,
        )

    def _check_apart(self) -> None:
        check_apart("checkpoints", self._home, "fallback_dir", self.experiment)
        with suppress(StoreError, NotAStoreError):  # what cannot be read is not what was just read here
            check_apart("backups", self._backups, "fallback_dir", self.experiment)

    def _move(self, manifest: Manifest, progress: Progress | None) -> str | None:
        """Move one and return the id that it has at home; ``None`` when it was home before, and was deleted there."""
        if manifest.home_uid not in (None, self._watch.uid):
            raise ConfigError(
                "it belongs to another store",
                checkpoint_id=manifest.checkpoint_id,
                expected=f"the store with the uid {manifest.home_uid}",
                got=str(self._watch.uid),
                hint="`ckpt import` takes it into any store.",
            )
        self._require_room(manifest)
        brought = self._copy(manifest, progress)
        if brought is None and self._is_deleted_as_damaged(manifest):
            purge(self._home, grace_seconds=0, only=lambda item: item.uid == manifest.uid, asked=True)
            brought = self._copy(manifest, progress, asked=True)
        if brought is not None:
            self._refuse_itself(manifest, brought)
            self._verify(brought)
            keys.point_to(self._home, brought)
        self._remove(manifest)
        return brought.checkpoint_id if brought else None

    def _copy(self, manifest: Manifest, progress: Progress | None, *, asked: bool = False) -> Manifest | None:
        home = self._home

        def last(item: Manifest) -> Manifest:
            return item.changed(sequence=home.index.next_sequence(), in_use_until=manifest.in_use_until)

        return copy(self.experiment, manifest, home, change=last, new_id=True, asked=asked, progress=progress)

    def _is_deleted_as_damaged(self, manifest: Manifest) -> bool:
        """Tell whether the copy at home was deleted and is damaged: no reason to give up the one that is here."""
        deleted = (item for item in self._home.index.view().deleted if item.uid == manifest.uid)
        return any(not validate(self._home, item) for item in deleted)

    def _require_room(self, manifest: Manifest) -> None:
        purpose = f"to move {manifest.checkpoint_id} to the store"
        hint = "It stays in the fallback folder."
        if lack := commit.lack_of_room(self._home, manifest.size_bytes, purpose, hint=hint):
            lack.checkpoint_id = manifest.checkpoint_id
            raise lack

    def _refuse_itself(self, manifest: Manifest, brought: Manifest) -> None:
        """Raise when the copy at home may be no copy: one that this library makes has a claim of its own."""
        if brought.claim == manifest.claim:
            raise CheckpointExistsError(
                "what is in the store may be the very same files, and no copy of them",
                checkpoint_id=manifest.checkpoint_id,
                path=self._home.location(brought.payload_name),
                hint="It was left as it is in both places. If you copied the folder by hand, delete one of the copies.",
            )

    def _verify(self, brought: Manifest) -> None:
        """Read it back from its home, and end its quarantine there: else none would be left that readers see.

        Raises :class:`IntegrityError` when it is not as it was saved.
        """
        found = self._home.read_visible(brought.checkpoint_id) if brought.quarantined else None  # before its bytes
        report = validate(self._home, brought)
        if not report:
            self._home.check_current(brought)  # raises when it was deleted meanwhile, which is no damage
            raise IntegrityError(
                f"the copy in the store is damaged: {report.message}",
                checkpoint_id=brought.checkpoint_id,
                path=self._home.location(brought.payload_name),
                hint="`ckpt repair` or delete that copy; the one in the fallback folder stays.",
            )
        if found and not (found.manifest.has_files_of(brought) and release(self._home, found)):
            raise VersionConflictError(
                "the copy in the store was changed while it was read",
                checkpoint_id=brought.checkpoint_id,
                path=self._home.location(brought.payload_name),
                hint="Try again.",
            )

    def _tell(self, manifest: Manifest, home_id: str) -> None:
        self._home.events.emit(
            "checkpoint.reconciled",
            f"{manifest.checkpoint_id} was moved from {self.experiment.location()} to the store",
            checkpoint_id=home_id,
            size_bytes=manifest.size_bytes,
        )

    def _remove(self, manifest: Manifest) -> None:
        """Delete what is home by now, also when it is pinned or a run has resumed from it here."""
        with suppress(CheckpointNotFoundError):
            edit(self.experiment, manifest.checkpoint_id, lambda item: item.changed(in_use_until=None))
        delete_all(self.experiment, [manifest.checkpoint_id], check=lambda _: None)

    def _clear(self) -> None:
        """Free the space of what is home, and of what dead processes left: nobody else looks after it."""
        purge(self.experiment, grace_seconds=0, asked=True)
        sweep(self.experiment)
