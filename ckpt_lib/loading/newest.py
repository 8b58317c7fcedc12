"""The newest checkpoint that can be resumed from, in any location."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.core.manifest import Manifest, Thinned
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    NoValidCheckpointError,
    StoreError,
    UnsupportedFormatError,
    is_store_failure,
)
from ckpt_lib.experiment.experiment import ATTEMPTS
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.view import in_order
from ckpt_lib.formats import Payload
from ckpt_lib.loading.anywhere import HomeOrBackup, Load, unreachable
from ckpt_lib.maintenance.validate import UNLOADABLE, is_unreadable

_OF_ANOTHER_RUN = "its backup is of another run than all checkpoints here: `ckpt restore` brings it back"


def load_newest(
    home_or_backup: HomeOrBackup, load: Load, *, run_id: str | None = None, allow_thinned: bool = False
) -> Payload | None:
    """``load`` the newest checkpoint that is valid and healthy; ``None`` when the experiment has none, and no backups.

    With a ``run_id``, only those of that run are looked at. One that was thinned is passed over, unless
    ``allow_thinned``, or if there is no other and its backup still holds everything. The returned dict's
    ``passed_over`` lists the others, which are also logged.

    Raises :class:`NoValidCheckpointError` when there are checkpoints or backups of which every one is damaged, thinned,
    unhealthy, was deleted by name, or cannot be loaded without running code; :class:`UnsupportedFormatError` where the
    newest is intact and only lacks its format here; and :class:`~ckpt_lib.errors.StoreError` where there is no
    checkpoint and the backups cannot be looked at.
    """
    locations = home_or_backup.locations
    for _ in range(ATTEMPTS):
        places = _Places(home_or_backup)
        passed_over = []
        if run_id is None:
            passed_over += [_passed_over(str(error.checkpoint_id), error.message) for error in places.unreadable()]
            passed_over += [_passed_over(item.checkpoint_id, _OF_ANOTHER_RUN) for item in places.of_other_runs]
        unusable: list[Manifest] = []
        retired = False
        for manifest in places.newest_first(run_id):
            if reason := _reason_against(manifest, allow_thinned=allow_thinned):
                unusable.append(manifest)
                passed_over.append(_passed_over(manifest.checkpoint_id, reason))
                continue
            try:
                payload = places.load(load, manifest)
            except CheckpointNotFoundError:  # since it was listed; whoever did that has newer ones
                retired = True
            except (*UNLOADABLE, IntegrityError, StoreError) as error:
                is_damage = not isinstance(error, StoreError) or is_unreadable(error)
                if not (is_damage or places.can_do_without(manifest)) or isinstance(error, UnsupportedFormatError):
                    raise
                passed_over.append(_passed_over(manifest.checkpoint_id, error.message))
            else:
                _warn_of(passed_over)
                with failures_logged("looking among the backups for the best checkpoint"):
                    home_or_backup.bring_best_back(places.backups)
                return {**payload, "passed_over": passed_over}
        if not retired:
            break
    if (whole := _load_whole_backup(home_or_backup, load, unusable)) is not None:
        passed_over = [item for item in passed_over if item["checkpoint_id"] != whole["checkpoint_id"]]
        _warn_of(passed_over)
        return {**whole, "passed_over": passed_over}
    if not passed_over:
        if run_id is None:
            _raise_if_any_can_come_back(locations, places.backups)
        return None
    reasons = "; ".join(f"{item['checkpoint_id']}: {item['reason']}" for item in passed_over)
    raise NoValidCheckpointError(
        f"none of {count_of(len(passed_over), 'checkpoint')} of {locations.name!r} can be resumed from: {reasons}",
        hint=f"{_taken_on_purpose(unusable)}{_with_weights_alone(unusable)}"
        "`ckpt list --backups` lists backups, `ckpt restore ID` restores one. "
        "To begin again, choose another experiment name.",
    )


def _raise_if_any_can_come_back(locations: Locations, backups: Sequence[Manifest]) -> None:
    """Raise when nothing is there to resume from, but something that a person may bring back."""
    if set_aside := locations.home.index.view().quarantined:
        raise NoValidCheckpointError(
            f"{locations.name!r} has no checkpoint, but {len(set_aside)} that were found damaged and set aside",
            hint="`ckpt quarantine` shows them, `ckpt repair` brings one back when there is a backup of it. "
            "To begin again, choose another experiment name.",
        )
    if backups:
        raise NoValidCheckpointError(
            f"{locations.name!r} has no checkpoint, but {count_of(len(backups), 'backup')} of what was deleted by name",
            hint=f"`ckpt restore {backups[-1].checkpoint_id}` brings back the newest. "
            "To begin again, choose another experiment name.",
        )


def _reason_against(manifest: Manifest, *, allow_thinned: bool) -> str | None:
    """Return why no run goes on from a checkpoint that may be whole."""
    if manifest.unhealthy:
        return f"unhealthy: {manifest.unhealthy}"
    return _only_weights(manifest.thinned) if manifest.thinned and not allow_thinned else None


def _taken_on_purpose(unusable: Sequence[Manifest]) -> str:
    unhealthy_id = next((item.checkpoint_id for item in unusable if item.unhealthy), None)
    return f"load_checkpoint({unhealthy_id!r}) takes the newest unhealthy one all the same. " if unhealthy_id else ""


def _only_weights(thinned: Thinned) -> str:
    return f"thinned on {thinned.at:%Y-%m-%d %H:%M} UTC: only its weights are left"


def _load_whole_backup(home_or_backup: HomeOrBackup, load: Load, unusable: Sequence[Manifest]) -> Payload | None:
    """Load the newest thinned checkpoint whose backup holds everything, where there is nothing else to go on from."""
    for manifest in unusable:
        if not manifest.unhealthy and home_or_backup.has_whole_backup(manifest):
            with suppress(*UNLOADABLE, IntegrityError, StoreError):
                return home_or_backup.load_backup(load, manifest)
    return None


def _with_weights_alone(unusable: Sequence[Manifest]) -> str:
    thinned_id = next((item.checkpoint_id for item in unusable if item.thinned and not item.unhealthy), None)
    if thinned_id is None:
        return ""
    return (
        f"`ckpt thin --undo {thinned_id}` brings back what it lost, if that is in the trash, and "
        f"`ckpt restore {thinned_id}` what its backup holds; "
        "resume(allow_thinned=True) goes on with its weights and a new optimizer. "
    )


def _passed_over(checkpoint_id: str, reason: str) -> dict[str, str]:
    return {"checkpoint_id": checkpoint_id, "reason": reason}


def _warn_of(passed_over: Sequence[Mapping[str, str]]) -> None:
    for item in passed_over:
        logger.warning("passed over %s while resuming: %s", item["checkpoint_id"], item["reason"])


class _Places:
    """The checkpoints at home, in the fallback folder and in the backups, oldest first.

    What is in the fallback folder alone was saved last, as far as this machine knows. Where the home does not answer,
    it is all there is. Where the backups do not answer, home and fallback folder are, if they hold anything.
    """

    def __init__(self, home_or_backup: HomeOrBackup) -> None:
        self._home_or_backup = home_or_backup
        self._locations = home_or_backup.locations
        # Before home: what is saved and backed up between the two listings is at home, too, and not lost.
        self.backups, failure = self._in_backups()
        fallback = self._locations.fallback_catalogue
        stranded = fallback.manifests() if fallback else []
        self._stranded = {item.uid: item for item in stranded}
        home = self._at_home()
        self._at_home_uids = {item.uid for item in home}
        self._near = [*home, *(item for item in stranded if item.uid not in self._at_home_uids)]
        if failure is not None:
            self._do_without_backups(failure)
        known = {item.uid for item in self._near}
        runs = {item.run_id for item in self._near}
        lost = [item for item in self.backups if item.uid not in known]
        is_other = [bool(runs) and item.run_id not in runs for item in lost]
        newest = max((item.sequence for item in self._near), default=0)
        self.of_other_runs = [
            item for item, other in zip(lost, is_other, strict=True) if other and item.sequence >= newest
        ]
        self._lost = {item.uid: item for item, other in zip(lost, is_other, strict=True) if not other}
        at_home = [*home, *self._lost.values()]
        self._manifests = [*in_order(at_home), *self._near[len(home) :]]

    def _at_home(self) -> list[Manifest]:
        try:
            return self._locations.catalogue.manifests()
        except Exception as error:
            if not (self._stranded and is_store_failure(error)):
                raise
            return []

    def _in_backups(self) -> tuple[list[Manifest], Exception | None]:
        """Return the backups, or why the store of the backups failed."""
        try:
            return self._home_or_backup.backups(), None
        except Exception as error:
            if not is_store_failure(error):
                raise
            return [], error

    def _do_without_backups(self, failure: Exception) -> None:
        if not self._near:
            raise unreachable(self._locations, failure) from failure
        logger.warning("resuming without the backups, which cannot be looked at: %s", failure)

    def newest_first(self, run_id: str | None) -> Iterator[Manifest]:
        """Yield the checkpoints, of one run if it is given, that no person has deleted by name."""
        for manifest in reversed(self._manifests):
            if run_id is not None and manifest.run_id != run_id:
                continue
            if manifest.uid not in self._lost or not self._is_deleted(manifest):
                yield manifest

    def _is_deleted(self, manifest: Manifest) -> bool:
        """Tell whether a backup was deleted by name; where the marks cannot be read, it may have been."""
        try:
            return self._home_or_backup.is_deleted(manifest)
        except Exception as error:
            if not (self._near and is_store_failure(error)):
                raise
            logger.warning("%s is left in the backups, which do not answer: %s", manifest.checkpoint_id, error)
            return True

    def can_do_without(self, manifest: Manifest) -> bool:
        """Tell whether a checkpoint is in the backups alone while there are others elsewhere."""
        return manifest.uid in self._lost and bool(self._near)

    def load(self, action: Load, manifest: Manifest) -> Payload:
        """Load one from where it lies: if in several places, at home first; damage there costs no other copy."""
        if manifest.uid in self._lost:
            return self._home_or_backup.load_backup(action, manifest)
        stranded, fallback = self._stranded.get(manifest.uid), self._locations.fallback
        if stranded is None or fallback is None:
            return self._home_or_backup.load_at_home(action, manifest)
        if manifest.uid in self._at_home_uids:
            with suppress(IntegrityError):
                return action(self._locations.home, manifest)
        return action(fallback, stranded)

    def unreadable(self) -> list[CheckpointError]:
        """Return why each record that cannot be read cannot, unless a backup may take its place."""
        experiments = (self._locations.home, self._locations.fallback)
        views = [experiment.index.view_or_last() for experiment in experiments if experiment]
        replaced = {item.checkpoint_id for item in self._lost.values()}
        errors = [error for view in views if view for error in view.unreadable]
        return [error for error in errors if error.checkpoint_id not in replaced]
