"""``Loader``: finds a checkpoint, verifies it, and restores it into models, optimizers and schedulers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ckpt_lib.core.logs import logger, store_failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.payload_keys import PAYLOAD_KEYS, RESUME_ONLY_KEYS
from ckpt_lib.core.wording import listed, visible
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.experiment.edits import mark_in_use, take_mark_back
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.formats import Payload, check_keys
from ckpt_lib.loading.anywhere import HomeOrBackup
from ckpt_lib.loading.newest import load_newest
from ckpt_lib.loading.payload import read_part, read_payload
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.saving.background import wait_until_all_copied
from ckpt_lib.saving.ranks import lead_or_follow, place_of_process
from ckpt_lib.saving.reconciler import Reconciler
from ckpt_lib.state.naming import AS_STORED, Naming
from ckpt_lib.state.restoring import Stored, restore
from ckpt_lib.state.stateful import check_stateful, check_wanted
from ckpt_lib.state.stored_state import StoredState
from ckpt_lib.state.training_state import TrainingState
from ckpt_lib.stream.cache import PayloadCache

T = TypeVar("T")
Read = Callable[[Experiment, Manifest], Payload]


@dataclass(frozen=True, kw_only=True)
class LoadTarget:
    """The objects that a checkpoint is restored into, and the options of :meth:`CheckpointManager.load_checkpoint`."""

    state: TrainingState
    keep: Mapping[str, Collection[str]] | None = None
    require_exact: bool = False
    naming: Naming = AS_STORED

    def check(self, keys: Collection[str] | None = None) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` for what takes no state, or whose state ``keys`` leave out."""
        parts = {part.label: part for part in self.state.parts()}
        check_stateful("load_state_dict", **{label: part.item for label, part in parts.items()})
        self.naming.check(keys, self.state)
        check_wanted(keys, {label: PAYLOAD_KEYS[part.kind] for label, part in parts.items()})

    @property
    def is_empty(self) -> bool:
        """True where there is nothing to restore into."""
        return all(part.label == "rng" for part in self.state.parts())

    def check_thinned(self, manifest: Manifest) -> None:
        """Raise :class:`~ckpt_lib.errors.StateMismatchError` for state that the checkpoint has lost."""
        objects = [part for part in self.state.parts() if part.label != "rng"]
        lost = [part.label for part in objects if PAYLOAD_KEYS[part.kind] in RESUME_ONLY_KEYS]
        if manifest.thinned and lost:
            raise StateMismatchError(
                f"the checkpoint was thinned: only its weights are left, and no state of the {' and the '.join(lost)}",
                checkpoint_id=manifest.checkpoint_id,
                hint=f"Leave out {' and '.join(f'{label}=' for label in lost)}; "
                f"`ckpt thin --undo {manifest.checkpoint_id}` brings back what is in the trash, "
                f"`ckpt restore {manifest.checkpoint_id}` what a backup holds.",
            )

    def restore(self, payload: Payload, manifest: Manifest, process: tuple[int, int]) -> dict[str, Any]:
        """Restore a payload; return what that replaced and changed, or nothing where nothing was passed.

        ``process`` is the number of this process among those that train together, and how many these are.
        """
        stored = Stored(manifest.kinds, manifest.parameter_names)
        report = restore(
            StoredState(payload, *process),
            stored,
            self.state,
            keep=self.keep,
            require_exact=self.require_exact,
            naming=self.naming,
        )
        return {} if self.is_empty else report.told()


def _id_of(payload: Payload) -> str:
    return str(payload["checkpoint_id"])


def _resumed_from(payload: Payload | None) -> dict[str, Any] | None:
    """Return what another rank needs to resume from the same checkpoint."""
    if payload is None:
        return None
    return {name: payload[name] for name in ("checkpoint_id", "passed_over", "next_epoch")}


class Loader:
    """Loads the checkpoints of one experiment; the run goes on from the one loaded last."""

    def __init__(self, locations: Locations, lineage: Lineage, reconciler: Reconciler | None, copies: Copies) -> None:
        self._locations = locations
        self._home_or_backup = HomeOrBackup(locations, copies)
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
            read_part,
            verify=self._locations.config.validate_checkpoints,
            map_location=map_location,
            trust_pickle=trust_pickle,
            keys=wanted,
            only=target.naming.only,
            cache=self.cache,
        )
        load = partial(self._load_named, read, target)
        if target.is_empty or not isinstance(name, str) or is_checkpoint_id(name):
            return load(name)
        return self._as_rank_zero(f"load of {name}", partial(load, name), tell=_id_of, follow=load)

    def resume(self, target: LoadTarget, *, map_location: Any, allow_thinned: bool) -> Payload | None:
        """Load the newest checkpoint that is valid and healthy; see :func:`~ckpt_lib.loading.newest.load_newest`."""
        target.check()
        read = partial(read_payload, verify=True, map_location=map_location, cache=self.cache)
        newest = partial(self._newest, read, target, allow_thinned)
        if target.is_empty:
            return newest()
        return self._as_rank_zero("resume", newest, tell=_resumed_from, follow=partial(self._follow, read, target))

    def _as_rank_zero(
        self, what: str, lead: Callable[[], T], *, tell: Callable[[T], Any], follow: Callable[[Any], T]
    ) -> T:
        """Load on rank 0, and on other ranks what rank 0 has loaded, so that they go on from the same checkpoint."""
        if not self._locations.config.rank_zero_saves:
            return lead()
        return lead_or_follow(f"{what} of {self._locations.name}", lead, tell=tell, follow=follow)

    def _newest(self, read: Read, target: LoadTarget, allow_thinned: bool) -> Payload | None:
        self._reconcile()
        return load_newest(
            self._home_or_backup,
            partial(self._resume_from, read, target),
            run_id=self._lineage.only_run_id,
            allow_thinned=allow_thinned,
        )

    def _follow(self, read: Read, target: LoadTarget, resumed: Mapping[str, Any] | None) -> Payload | None:
        return None if resumed is None else {**self._load_named(read, target, resumed["checkpoint_id"]), **resumed}

    def _load_named(self, read: Read, target: LoadTarget, name: str) -> Payload:
        self._reconcile()
        return self._home_or_backup.load_named(name, partial(self._load, read, target))

    def _reconcile(self) -> None:
        if self._reconciler is not None and not self._home_or_backup.is_follower:
            self._reconciler.before_load()

    def _resume_from(self, read: Read, target: LoadTarget, experiment: Experiment, manifest: Manifest) -> Payload:
        try:
            payload = self._load(read, target, experiment, manifest, is_kept=True)
        except StateMismatchError as error:
            if manifest.description:  # of an import, it says what was imported
                described = visible(manifest.description.splitlines()[0])
                error.hint = f"It is the newest, and described as: {described} {error.hint or ''}".rstrip()
            raise
        self._locations.monitor_record.tell_if_other(manifest.monitor)
        if not manifest.epoch_finished and target.state.data is None and target.state.rng:
            logger.warning(
                "%s was saved in the middle of epoch %d, and no data= is there to go on with its next batch: train the "
                'epoch again from its start, range(resumed["next_epoch"], ...)',
                manifest.checkpoint_id,
                manifest.epoch,
            )
        if left := payload.get("not_restored"):
            logger.info("stored in %s, and not restored: %s", manifest.checkpoint_id, listed(left, 10))
        return payload

    def _load(
        self, read: Read, target: LoadTarget, experiment: Experiment, manifest: Manifest, *, is_kept: bool = False
    ) -> Payload:
        """Load one checkpoint; ``is_kept`` keeps it from being deleted until the run has had time to save."""
        target.check_thinned(manifest)
        payload = read(experiment, manifest)
        experiment.get(manifest.checkpoint_id)  # raises when it was deleted meanwhile: nobody could go on from it
        is_marked = is_kept and not self._home_or_backup.is_follower
        with self._marked_in_use(experiment, manifest) if is_marked else nullcontext():
            wait_until_all_copied()  # before what is being copied is written over
            process = place_of_process() if self._locations.config.rank_zero_saves else (0, 1)
            try:
                report = target.restore(payload, manifest, process)
            except StateMismatchError as error:
                error.checkpoint_id = error.checkpoint_id or manifest.checkpoint_id
                raise
        self._lineage.go_on_from(manifest)
        next_epoch = {"next_epoch": manifest.epoch + manifest.epoch_finished} if report or is_kept else {}
        return {**payload, "checkpoint_id": manifest.checkpoint_id, **next_epoch, **report}

    @contextmanager
    def _marked_in_use(self, experiment: Experiment, manifest: Manifest) -> Iterator[None]:
        """Keep a checkpoint from being deleted for a while, unless the run cannot go on from it after all."""
        marked = None
        with store_failures_logged(f"keeping {manifest.checkpoint_id} from being deleted"):
            marked = mark_in_use(experiment, manifest.checkpoint_id)
        try:
            yield
        except Exception:
            if marked is not None:
                with store_failures_logged(f"letting {manifest.checkpoint_id} be deleted again"):
                    take_mark_back(experiment, marked, until=manifest.in_use_until)
            raise
