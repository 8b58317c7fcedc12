"""The newest checkpoint that can be resumed from, in the primary and in the fallback folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    NoValidCheckpointError,
    StoreError,
    is_store_failure,
)
from ckpt_lib.experiment.experiment import CheckpointSet
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.experiment.query import ATTEMPTS
from ckpt_lib.formats import Payload
from ckpt_lib.maintenance.validate import UNLOADABLE, is_unreadable

logger = logging.getLogger("ckpt_lib")

T = TypeVar("T")


class IndexView(Protocol):
    """What has to be known of an experiment to resume it: what an :class:`~ckpt_lib.experiment.index.Index` tells."""

    def manifests(self) -> list[Manifest]: ...

    def unreadable(self) -> list[CheckpointError]: ...

    def backed_up(self) -> list[Manifest]: ...

    def set_aside(self) -> list[str]: ...


def load_newest(index: IndexView, load: Callable[[Manifest], Payload], experiment_name: str) -> Payload | None:
    """``load`` the newest checkpoint that is valid and healthy; ``None`` when the experiment has none, and no backups.

    The returned dict's ``passed_over`` lists the others, which are also logged. Raises
    :class:`NoValidCheckpointError` when there are backups alone, or checkpoints of which every one is damaged, cannot
    be loaded without running code, or is unhealthy.
    """
    for _ in range(ATTEMPTS):
        passed_over = [_passed_over(str(error.checkpoint_id), error.message) for error in index.unreadable()]
        unhealthy_id, retired = None, False
        for manifest in reversed(index.manifests()):
            if manifest.unhealthy:
                unhealthy_id = unhealthy_id or manifest.checkpoint_id
                passed_over.append(_passed_over(manifest.checkpoint_id, f"unhealthy: {manifest.unhealthy}"))
                continue
            try:
                payload = load(manifest)
            except CheckpointNotFoundError:  # since it was listed; whoever did that has newer ones
                retired = True
            except (*UNLOADABLE, IntegrityError, StoreError) as error:
                if isinstance(error, StoreError) and not is_unreadable(error):
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
        _refuse_to_forget(index, experiment_name)
        return None
    reasons = "; ".join(f"{item['checkpoint_id']}: {item['reason']}" for item in passed_over)
    raise NoValidCheckpointError(
        f"none of {count_of(len(passed_over), 'checkpoint')} of {experiment_name!r} can be resumed from: {reasons}",
        hint=f"{_taken_on_purpose(unhealthy_id)}`ckpt list --backups` lists backups, `ckpt restore ID` restores one. "
        "To begin again, choose another experiment name.",
    )


def _refuse_to_forget(index: IndexView, experiment_name: str) -> None:
    if set_aside := index.set_aside():
        raise NoValidCheckpointError(
            f"{experiment_name!r} has no checkpoint, but {len(set_aside)} that were found damaged and set aside",
            hint="`ckpt quarantine` shows them, `ckpt repair` brings one back when there is a backup of it. "
            "To begin again, choose another experiment name.",
        )
    if backups := index.backed_up():
        raise NoValidCheckpointError(
            f"{experiment_name!r} has no checkpoint, but {count_of(len(backups), 'backup')} of what it had",
            hint=f"`ckpt restore {backups[-1].checkpoint_id}` brings back the newest. "
            "To begin again, choose another experiment name.",
        )


def _taken_on_purpose(unhealthy_id: str | None) -> str:
    return f"load_checkpoint({unhealthy_id!r}) takes the newest unhealthy one all the same. " if unhealthy_id else ""


def _passed_over(checkpoint_id: str, reason: str) -> dict[str, str]:
    return {"checkpoint_id": checkpoint_id, "reason": reason}


def _warn_of(passed_over: Sequence[Mapping[str, str]]) -> None:
    for item in passed_over:
        logger.warning("passed over %s while resuming: %s", item["checkpoint_id"], item["reason"])


class MergedIndex:
    """The primary and the fallback folder as one, to resume from.

    Where the primary one does not answer, what is in the fallback is all there is: it was saved last, as far as this
    machine knows.
    """

    def __init__(self, primary: CheckpointSet, fallback: CheckpointSet) -> None:
        self._primary = primary
        self._fallback = fallback
        self._in_fallback: dict[str, Manifest] = {}
        self._in_primary: set[str] = set()

    def load(self, action: Callable[[CheckpointFolder, Manifest], T], manifest: Manifest) -> T:
        """Do something where it lies, of what :meth:`manifests` returned last: if in both, in the primary one first.

        A copy that is damaged there does not cost the one in the fallback folder.
        """
        in_fallback = self._in_fallback.get(manifest.uid)
        if in_fallback is None:
            return action(self._primary.folder, manifest)
        if manifest.uid in self._in_primary:
            with suppress(IntegrityError):
                return action(self._primary.folder, manifest)
        return action(self._fallback.folder, in_fallback)

    def manifests(self) -> list[Manifest]:
        """All of both, by sequence."""
        self._in_fallback = {item.uid: item for item in self._fallback.index.manifests()}
        try:
            primary = self._primary.index.manifests()
        except Exception as error:
            if not (self._in_fallback and is_store_failure(error)):
                raise
            primary = []
        self._in_primary = {item.uid for item in primary}
        away = [item for item in self._in_fallback.values() if item.uid not in self._in_primary]
        return sorted((*primary, *away), key=lambda item: item.sequence)

    def unreadable(self) -> list[CheckpointError]:
        """Why each manifest that cannot be read cannot."""
        views = (self._primary.index.last_view(), self._fallback.index.last_view())
        return [error for view in views if view for error in view.unreadable]

    def backed_up(self) -> list[Manifest]:
        return self._primary.index.backed_up()

    def set_aside(self) -> list[str]:
        return self._primary.index.set_aside()
