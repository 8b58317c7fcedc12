"""``Loader``: finds a checkpoint, verifies it, and restores it into models, optimizers and schedulers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ckpt_lib.core.logs import store_failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.experiment.edits import mark_in_use
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.formats import Payload, check_keys
from ckpt_lib.loading.newest import load_newest
from ckpt_lib.loading.payload import read_payload
from ckpt_lib.saving.background import wait_until_all_copied
from ckpt_lib.saving.reconciler import Reconciler
from ckpt_lib.state.restoring import Stored, restore
from ckpt_lib.state.stateful import Stateful, check_stateful, check_wanted
from ckpt_lib.stream.cache import PayloadCache

Read = Callable[[Experiment, Manifest], Payload]


@dataclass(frozen=True, kw_only=True)
class LoadTarget:
    """The objects that a checkpoint is restored into, and the options of :meth:`CheckpointManager.load_checkpoint`."""

    model: Stateful | None = None
    optimizer: Stateful | None = None
    scheduler: Stateful | None = None
    keep: Mapping[str, Collection[str]] | None = None
    require_exact: bool = False

    def check(self, keys: Collection[str] | None = None) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` for what takes no state, or whose state ``keys`` leave out."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        check_stateful("load_state_dict", **parts)
        check_wanted(keys, **parts)

    def check_thinned(self, manifest: Manifest) -> None:
        """Raise :class:`~ckpt_lib.errors.StateMismatchError` for state that the checkpoint has lost."""
        asked = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        parts = [part for part, stateful in asked.items() if stateful is not None]
        if manifest.thinned and parts:
            raise StateMismatchError(
                f"the checkpoint was thinned: only its weights are left, and no state of the {' and the '.join(parts)}",
                checkpoint_id=manifest.checkpoint_id,
                hint=f"Leave out {' and '.join(f'{part}=' for part in parts)}; `ckpt thin --undo` brings back what is "
                "in the trash, `ckpt restore` what a backup holds.",
            )

    def restore(self, payload: Payload, manifest: Manifest) -> dict[str, Any]:
        """Restore a payload; return what that replaced and changed, or nothing where nothing was passed."""
        report = restore(
            payload,
            Stored(manifest.kinds, manifest.parameter_names),
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            keep=self.keep,
            require_exact=self.require_exact,
        )
        # Compared with None: some models cannot be asked for their truth.
        if self.model is None and self.optimizer is None and self.scheduler is None:
            return {}
        return {"replaced": report.replaced, "changed_values": report.changed_values}


class Loader:
    """Loads the checkpoints of one experiment; the run goes on from the one loaded last."""

    def __init__(self, locations: Locations, lineage: Lineage, reconciler: Reconciler | None) -> None:
        self._locations = locations
        self._lineage = lineage
        self._reconciler = reconciler
        size_bytes = locations.config.cache_size_bytes
        self.cache = PayloadCache(size_bytes) if size_bytes else None

    def load(
        self, name: str, target: LoadTarget, *, keys: Collection[str] | None, map_location: Any, trust_pickle: bool
    ) -> Payload:
        """Load what ``name`` stands for; nothing is changed where that fails."""
        wanted = check_keys(keys)
        target.check(wanted)
        read = partial(
            read_payload,
            verify=self._locations.config.validate_checkpoints,
            map_location=map_location,
            trust_pickle=trust_pickle,
            keys=wanted,
            cache=self.cache,
        )
        self._reconcile()
        return self._locations.with_found(name, partial(self._load, read, target))

    def resume(self, target: LoadTarget, *, map_location: Any, allow_thinned: bool) -> Payload | None:
        """Load the newest checkpoint that is valid and healthy; see :func:`~ckpt_lib.loading.newest.load_newest`."""
        target.check()
        read = partial(read_payload, verify=True, map_location=map_location, cache=self.cache)
        self._reconcile()
        return load_newest(self._locations, partial(self._resume_from, read, target), allow_thinned=allow_thinned)

    def _reconcile(self) -> None:
        if self._reconciler is not None:
            self._reconciler.before_load()

    def _resume_from(self, read: Read, target: LoadTarget, experiment: Experiment, manifest: Manifest) -> Payload:
        payload = self._load(read, target, experiment, manifest, is_kept=True)
        self._locations.monitor_record.tell_if_other(manifest.monitor)
        return payload

    def _load(
        self, read: Read, target: LoadTarget, experiment: Experiment, manifest: Manifest, *, is_kept: bool = False
    ) -> Payload:
        """Load one checkpoint; ``is_kept`` keeps it from being deleted until the run has had time to save."""
        target.check_thinned(manifest)
        payload = read(experiment, manifest)
        experiment.get(manifest.checkpoint_id)  # raises when it was deleted meanwhile: nobody could go on from it
        if is_kept:
            with store_failures_logged(f"keeping {manifest.checkpoint_id} from being deleted"):
                mark_in_use(experiment, manifest.checkpoint_id)
        wait_until_all_copied()  # before what is being copied is written over
        report = target.restore(payload, manifest)
        self._lineage.go_on_from(manifest)
        return {**payload, "checkpoint_id": manifest.checkpoint_id, **report}
