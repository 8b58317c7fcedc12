"""The newest checkpoint that can be resumed from, at home and in the fallback folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ckpt_lib.core.logs import logger
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
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.formats import Payload
from ckpt_lib.maintenance.validate import UNLOADABLE, is_unreadable

Load = Callable[[Experiment, Manifest], Payload]


def load_newest(locations: Locations, load: Load, *, allow_thinned: bool = False) -> Payload | None:
    """``load`` the newest checkpoint that is valid and healthy; ``None`` when the experiment has none, and no backups.

    One that was thinned is passed over, unless ``allow_thinned``. The returned dict's ``passed_over`` lists the others,
    which are also logged. Raises :class:`NoValidCheckpointError` when there are backups alone, or checkpoints of which
    every one is damaged, thinned, unhealthy, or cannot be loaded without running code; and
    :class:`UnsupportedFormatError` where the newest is intact and only lacks its format here.
    """
    for _ in range(ATTEMPTS):
        copies = _Copies(locations)
        passed_over = [_passed_over(str(error.checkpoint_id), error.message) for error in copies.unreadable()]
        unhealthy_id, thinned_id, retired = None, None, False
        for manifest in reversed(copies.manifests):
            if manifest.unhealthy:
                unhealthy_id = unhealthy_id or manifest.checkpoint_id
                passed_over.append(_passed_over(manifest.checkpoint_id, f"unhealthy: {manifest.unhealthy}"))
                continue
            if manifest.thinned and not allow_thinned:
                thinned_id = thinned_id or manifest.checkpoint_id
                passed_over.append(_passed_over(manifest.checkpoint_id, _only_weights(manifest.thinned)))
                continue
            try:
                payload = copies.load(load, manifest)
            except CheckpointNotFoundError:  # since it was listed; whoever did that has newer ones
                retired = True
            except (*UNLOADABLE, IntegrityError, StoreError) as error:
                is_damage = not isinstance(error, StoreError) or is_unreadable(error)
                if not is_damage or isinstance(error, UnsupportedFormatError):
                    raise
                passed_over.append(_passed_over(manifest.checkpoint_id, error.message))
            else:
                _warn_of(passed_over)
                if not manifest.epoch_finished:
                    logger.warning(
                        "%s was saved in the middle of epoch %d: train it again from its start, range(resumed"
                        '["next_epoch"], ...)',
                        manifest.checkpoint_id,
                        manifest.epoch,
                    )
                next_epoch = manifest.epoch + manifest.epoch_finished
                return {**payload, "passed_over": passed_over, "next_epoch": next_epoch}
        if not retired:
            break
    if not passed_over:
        _refuse_to_forget(locations)
        return None
    reasons = "; ".join(f"{item['checkpoint_id']}: {item['reason']}" for item in passed_over)
    raise NoValidCheckpointError(
        f"none of {count_of(len(passed_over), 'checkpoint')} of {locations.name!r} can be resumed from: {reasons}",
        hint=f"{_taken_on_purpose(unhealthy_id)}{_with_weights_alone(thinned_id)}"
        "`ckpt list --backups` lists backups, `ckpt restore ID` restores one. "
        "To begin again, choose another experiment name.",
    )


def _refuse_to_forget(locations: Locations) -> None:
    """Raise when nothing is there to resume from, but something that may be brought back."""
    if set_aside := locations.home.index.view().quarantined:
        raise NoValidCheckpointError(
            f"{locations.name!r} has no checkpoint, but {len(set_aside)} that were found damaged and set aside",
            hint="`ckpt quarantine` shows them, `ckpt repair` brings one back when there is a backup of it. "
            "To begin again, choose another experiment name.",
        )
    if backups := locations.backup_catalogue.manifests():
        raise NoValidCheckpointError(
            f"{locations.name!r} has no checkpoint, but {count_of(len(backups), 'backup')} of what it had",
            hint=f"`ckpt restore {backups[-1].checkpoint_id}` brings back the newest. "
            "To begin again, choose another experiment name.",
        )


def _taken_on_purpose(unhealthy_id: str | None) -> str:
    return f"load_checkpoint({unhealthy_id!r}) takes the newest unhealthy one all the same. " if unhealthy_id else ""


def _only_weights(thinned: Thinned) -> str:
    return f"thinned on {thinned.at:%Y-%m-%d %H:%M} UTC: only its weights are left"


def _with_weights_alone(thinned_id: str | None) -> str:
    if thinned_id is None:
        return ""
    return (
        f"`ckpt thin --undo {thinned_id}` brings back what it lost, if that is in the trash; "
        "resume(allow_thinned=True) goes on with its weights and a new optimizer. "
    )


def _passed_over(checkpoint_id: str, reason: str) -> dict[str, str]:
    return {"checkpoint_id": checkpoint_id, "reason": reason}


def _warn_of(passed_over: Sequence[Mapping[str, str]]) -> None:
    for item in passed_over:
        logger.warning("passed over %s while resuming: %s", item["checkpoint_id"], item["reason"])


class _Copies:
    """The checkpoints at home and in the fallback folder, oldest first.

    What is in the fallback folder alone was saved last, as far as this machine knows. Where the home does not answer,
    it is all there is.
    """

    def __init__(self, locations: Locations) -> None:
        self._locations = locations
        fallback = locations.fallback_catalogue
        stranded = fallback.manifests() if fallback else []
        self._stranded = {item.uid: item for item in stranded}
        home = self._at_home()
        self._at_home_uids = {item.uid for item in home}
        self.manifests = [*home, *(item for item in stranded if item.uid not in self._at_home_uids)]

    def _at_home(self) -> list[Manifest]:
        try:
            return self._locations.catalogue.manifests()
        except Exception as error:
            if not (self._stranded and is_store_failure(error)):
                raise
            return []

    def load(self, action: Load, manifest: Manifest) -> Payload:
        """Load one from where it lies: if in both, at home first; damage there does not cost the other copy."""
        stranded, fallback = self._stranded.get(manifest.uid), self._locations.fallback
        if stranded is None or fallback is None:
            return action(self._locations.home, manifest)
        if manifest.uid in self._at_home_uids:
            with suppress(IntegrityError):
                return action(self._locations.home, manifest)
        return action(fallback, stranded)

    def unreadable(self) -> list[CheckpointError]:
        """Return why each record that cannot be read cannot."""
        experiments = (self._locations.home, self._locations.fallback)
        views = [experiment.index.view_or_last() for experiment in experiments if experiment]
        return [error for view in views if view for error in view.unreadable]
