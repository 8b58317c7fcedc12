"""``CheckpointManager``: the façade over one experiment's checkpoints."""

from __future__ import annotations

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from ckpt_lib.analysis.results import CheckpointComparison, ExperimentSummary
from ckpt_lib.config import CheckpointConfig, config_error, is_monitor_given, located
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.names import CheckpointId, check_description, check_experiment_name, check_tags, is_checkpoint_id
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptManifestError,
    IntegrityError,
    ProtectedCheckpointError,
    StoreError,
    UnsupportedSchemaError,
    is_store_failure,
)
from ckpt_lib.events import emit
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index, snapshot
from ckpt_lib.experiment.layout import BACKUPS_NAME, SNAPSHOT_NAME, CheckpointFolder
from ckpt_lib.experiment.query import ATTEMPTS, Catalogue, MonitorRecord, check_metric_is_known, select
from ckpt_lib.formats import Payload, check_keys
from ckpt_lib.loading import load_newest, read_payload
from ckpt_lib.maintenance import quarantine, transfer
from ckpt_lib.maintenance.cleanup import CleanupReport, clean, kept_if_valid
from ckpt_lib.maintenance.doctor import Doctor
from ckpt_lib.maintenance.findings import DoctorReport
from ckpt_lib.maintenance.quarantine import QuarantinedCheckpoint, QuarantineReport
from ckpt_lib.maintenance.repair import Remedy, RepairReport, remedy, repair
from ckpt_lib.maintenance.scrub import ScrubReport, scrub
from ckpt_lib.maintenance.validate import KnownVersions, ValidationReport, unreadable_report, validate, with_tensors
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.policies.retention import KeepAtMost, RetentionPolicy
from ckpt_lib.policies.saving import SavePolicy, policy_of
from ckpt_lib.saving.background import SaveHandle, wait_until_all_copied
from ckpt_lib.saving.failover import Committer, Target
from ckpt_lib.saving.fallback import Fallback, Reachable, ReconcileReport, StrandedIndex
from ckpt_lib.saving.free_space import reclaim
from ckpt_lib.saving.preemption import Preemption
from ckpt_lib.saving.saver import Saver, SaveRequest
from ckpt_lib.state.restoring import Stored, restore
from ckpt_lib.state.stateful import Stateful, check_stateful, check_wanted
from ckpt_lib.store import open_store
from ckpt_lib.store.identity import ensure_identity
from ckpt_lib.stream import Progress
from ckpt_lib.stream.cache import PayloadCache

logger = logging.getLogger("ckpt_lib")

_ABOUT_BACKUPS = {"backup_checkpoints", "backup_only_best", "backup_dir", "max_backups"}

T = TypeVar("T")


class CheckpointManager:
    """Saves, finds, checks, loads and retires the checkpoints of one experiment.

    Creating a manager reads and writes nothing. It may be shared by threads, and any number of managers, in any number
    of processes of one machine, may work on the same experiment. Pickled or copied, it becomes a manager of the same
    folders, also in another working directory, without the saves under way.

    Wherever a checkpoint is asked for, its id may be given, or ``"latest"``, ``"best"``, or a tag, which stands for the
    newest checkpoint that carries it; the two keywords and ids come before tags. The best is by the metric that the
    first save recorded, ``monitor_metric`` of its configuration; :meth:`set_monitor` changes the record.

    A manager stands for one run of a training. A run goes on from the checkpoint that it loads; one that loads nothing
    is a new run, also under an old name.
    """

    def __init__(
        self,
        config: CheckpointConfig | None = None,
        experiment_name: str = "default",
        *,
        save_policy: SavePolicy | None = None,
        retention_policy: RetentionPolicy | None = None,
    ) -> None:
        """``save_policy`` and ``retention_policy`` take the place of those that ``config`` spells.

        Raises :class:`~ckpt_lib.errors.InvalidNameError` or :class:`~ckpt_lib.errors.ConfigError`.
        """
        self.config = config if config is not None else CheckpointConfig()
        if not isinstance(self.config, CheckpointConfig):
            raise ConfigError("the first argument is a CheckpointConfig", got=type(config).__name__)
        self.experiment_name = check_experiment_name(experiment_name)
        _check_policies(save_policy, retention_policy)
        self._located_config = located(self.config)  # now: the working directory may be another later
        self._own_save_policy = save_policy
        self.save_policy = save_policy or policy_of(self.config)
        self.retention_policy = retention_policy
        store = open_store(self.config.checkpoint_dir)
        self._folder = CheckpointFolder(store, self.experiment_name)
        self._backups = (
            CheckpointFolder(open_store(self.config.backup_dir), self.experiment_name)
            if self.config.backup_dir
            else self._folder.child(BACKUPS_NAME)
        )
        _check_apart("backups", self._backups, "backup_dir", self._folder)
        self._backup_index = Index(self._backups)
        stranded = self._stranded_index()
        self._index = Index(self._folder, self._backup_index, stranded=stranded)
        self._fallback = None if stranded is None else Fallback(stranded, self._folder, self._index)
        self._reconciling = threading.Lock()
        self._monitor_record = MonitorRecord(self.config.monitor, is_given=is_monitor_given(self.config))
        self._catalogue = Catalogue(self._index, self._monitor_record)
        self._backup_catalogue = self._catalogue_of(self._backup_index)
        self._known = KnownVersions()
        self._cache = PayloadCache(self.config.cache_size_bytes) if self.config.cache_size_bytes else None
        self._saves_to_snapshot = 0
        self._is_snapshot_behind = False
        self._loaded_id: str | None = None
        self._going_on_from = ExitStack()
        weakref.finalize(self, self._going_on_from.close)
        self._saver = Saver(
            self.config,
            self.save_policy,
            committer=self._committer(),
            monitor_record=self._monitor_record,
            before_commit=_weakly(self._place_stranded),
        )

    def _catalogue_of(self, index: Index) -> Catalogue:
        """A catalogue of copies, whose record is not what the configuration is compared with."""
        return Catalogue(index, MonitorRecord(self.config.monitor))

    def _stranded_index(self) -> StrandedIndex | None:
        if self.config.fallback_dir is None:
            return None
        folder = CheckpointFolder(open_store(self.config.fallback_dir), self.experiment_name)
        for name, other in (("checkpoints", self._folder), ("backups", self._backups)):
            _check_apart(name, other, "fallback_dir", folder)
        return StrandedIndex(folder)

    def _committer(self) -> Committer:
        home = Target(
            self._folder, self._index, self._known, _weakly(self._make_room), verify=self.config.verify_after_write
        )
        if self._fallback is None:
            return Committer(home, None, self.config.on_save_failure)
        fallback = Target(
            self._fallback.folder,
            self._fallback.index,
            self._known,
            _weakly(self._make_room_in_fallback),
            verify=self.config.verify_after_write,
        )
        return Committer(home, fallback, self.config.on_save_failure)

    def __reduce__(self) -> tuple[Any, ...]:
        # A manager for the same checkpoints; saves under way, and what this one has loaded, stay in its process.
        return _rebuild, (self._located_config, self.experiment_name, self._own_save_policy, self.retention_policy)

    def __repr__(self) -> str:
        return f"CheckpointManager({self._folder.location()!r})"

    # --- saving and loading ---

    def save_checkpoint(
        self,
        *,
        model: Stateful,
        epoch: int,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        step: int = 0,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        extra_state: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        compare_content: bool = False,
        epoch_finished: bool = True,
        force: bool = False,
    ) -> str | None:
        """Save, if the save policy says so or with ``force``, and return the new id; ``None`` when it says no.

        When this returns, the checkpoint survives a kill and, where the file system honours fsync, power loss. Then
        it is backed up and old ones are retired, as configured; a failure of *that* is logged and does not undo or
        fail the save. Any error raised leaves the experiment as it was.

        ``config`` is the run's own configuration, kept for comparisons: a mapping, a dataclass or a Namespace, whose
        values are stored as :mod:`ckpt_lib.core.plain` says. ``extra_state`` is anything else to resume
        from, of tensors and plain values. With an ``idempotency_key``, repeating a save returns the first one's id;
        with ``compare_content`` as well, only if state, metrics, configuration, tags and description are the same, and
        what differs is saved. ``epoch_finished=False`` says that the epoch goes on, so that :meth:`resume` names it as
        the next one to train.
        """
        request = SaveRequest(
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            extra_state=extra_state,
            epoch=epoch,
            step=step,
            metrics=metrics,
            config=config,
            tags=tags,
            description=description,
            idempotency_key=idempotency_key,
            compare_content=compare_content,
            epoch_finished=epoch_finished,
            force=force,
        )
        return self._saver.save(request, self._after_save)

    def check(
        self,
        *,
        model: Stateful,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        extra_state: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise what a save of this would raise, and write nothing: to be called before training begins.

        Pass ``metrics`` as training will, whatever their values: with ``save_best_only`` or
        ``on_missing_metric="raise"``, a save without the monitored metric is refused.
        """
        self._saver.check(
            SaveRequest(
                model=model,
                optimizer=optimizer,
                scheduler=scheduler,
                extra_state=extra_state,
                epoch=0,
                metrics=metrics,
                config=config,
                tags=tags,
                description=description,
            )
        )

    def save_checkpoint_async(
        self,
        *,
        model: Stateful,
        epoch: int,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        step: int = 0,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        extra_state: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        epoch_finished: bool = True,
        force: bool = False,
    ) -> SaveHandle:
        """Save as :meth:`save_checkpoint` does, but return as soon as the state is copied: what training does next
        never reaches the file.

        With ``overlap_copy`` the parameters of ``optimizer`` and its state are copied later, while the next forward and
        backward pass run; its next step waits for what is left. Nothing may write to them before that, unless the
        handle's ``wait_until_copied`` has returned. A write that PyTorch counts fails the save with
        :class:`~ckpt_lib.errors.StateChangedError`, and later saves of this manager copy at once. Everything else, such
        as the statistics of batch normalisation, is copied before this returns.

        ``handle.result()`` returns the id once the checkpoint is durable; until then ``"latest"`` is an earlier one. A
        failure is logged, and raised by the handle or else by the next save or :meth:`flush`. With
        ``max_pending_saves`` under way, this waits for the oldest. A kill loses what is not durable, and nothing else;
        the interpreter's normal end waits.
        """
        request = SaveRequest(
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            extra_state=extra_state,
            epoch=epoch,
            step=step,
            metrics=metrics,
            config=config,
            tags=tags,
            description=description,
            idempotency_key=idempotency_key,
            epoch_finished=epoch_finished,
            force=force,
        )
        return self._saver.start(request, self._after_save)

    def save_on_signal(
        self, state: Callable[[], Mapping[str, Any]], *, signals: Collection[int] | None = None
    ) -> Preemption:
        """Save once more when a signal, by default SIGTERM or SIGINT, asks this process to stop.

        ``state`` is called then, and returns the arguments for :meth:`save_checkpoint`. It is called at the next safe
        point that the loop declares, for only the loop knows when the state is whole; see
        :class:`ckpt_lib.saving.preemption.Preemption`. The save policy is not asked, and background saves are waited
        for.

        Use it as a context manager, in the main thread: anywhere else it raises
        :class:`~ckpt_lib.errors.ConfigError`, as it does for what is no signal.
        """
        if not callable(state):
            raise ConfigError("state must be a function that returns what to save", got=type(state).__name__)
        wanted = (signal.SIGTERM, signal.SIGINT) if signals is None else signals
        return Preemption(lambda: self._save_preempted(state), wanted)

    def _save_preempted(self, state: Callable[[], Mapping[str, Any]]) -> None:
        emit("training.preempted", "a signal asked training to stop", experiment_name=self.experiment_name)
        self._saver.background.settle()
        try:
            request = SaveRequest(**{"epoch_finished": False, **state(), "force": True})
        except TypeError as error:
            raise ConfigError(
                f"what state() returned cannot be saved: {error}", expected="the arguments of save_checkpoint"
            ) from error
        self._saver.save(request, self._after_save)
        self._catch_up()

    def prepare(self, *, model: Stateful, optimizer: Stateful | None = None, scheduler: Stateful | None = None) -> None:
        """Take and touch the memory for background saves, so that the first does not keep training any longer than
        the next: to be called when the optimizer has its state, which is after its first step.
        """
        self._saver.prepare(model, optimizer, scheduler)

    @property
    def staging_bytes(self) -> int:
        """How much memory background saves hold for copies: ``max_pending_saves`` times the state at most."""
        return self._saver.background.staging_bytes

    def flush(self) -> None:
        """Return once every background save so far is durable and backed up. Raises an error no one has seen."""
        self._saver.background.flush()
        self._catch_up()

    def close(self, final: Mapping[str, Any] | None = None) -> None:
        """:meth:`flush`, and let go of the memory for copies. The manager may still be used.

        ``final``, the arguments of :meth:`save_checkpoint`, is saved first, whatever the save policy says.
        """
        if final is not None:
            self.save_checkpoint(**{**final, "force": True})
        self._saver.background.close()
        self._catch_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"besides, a background save had failed: {failure}")

    def _after_save(self, manifest: Manifest) -> None:
        """What follows a save and must not fail it: the checkpoint is safe already."""
        self._keep_house(manifest)
        if self._fallback is not None:
            with _logged("moving stranded checkpoints to the store"):
                if self._fallback.has_work:
                    self.reconcile()

    def _keep_house(self, manifest: Manifest) -> None:
        with _logged("writing the identity of the store"):  # after the first save, and where that was cut off
            ensure_identity(self._folder.store)
        # What someone else has deleted by now needs no backup.
        with _logged(f"backing up {manifest.checkpoint_id}"), suppress(CheckpointNotFoundError):
            if self.config.backup_checkpoints and not (
                self.config.backup_only_best and self._catalogue.best_id() != manifest.checkpoint_id
            ):
                self.backup_checkpoint(manifest.checkpoint_id)
        with _logged("retiring old checkpoints"):
            self._retire_surplus()
        self._saves_to_snapshot -= 1
        self._is_snapshot_behind = True
        if self._saves_to_snapshot < 0:
            self._write_snapshot()

    def _retire_surplus(self) -> None:
        view = self._index.view()
        if self.retention_policy is None and len(view.manifests) <= self.config.max_checkpoints:
            # A plan would keep them all, and takes a while to say so.
            commit.sweep(self._folder, view.entries.values(), grace_seconds=self.config.trash_seconds)
        else:
            self._clean(None, dry_run=False, known=self._known)

    def _make_room(self, needed_bytes: int | None) -> None:
        for folder, retire in (
            (self._folder, partial(self._clean, None, dry_run=False, known=self._known)),
            (self._backups, partial(self._clean_backups, known=self._known)),
        ):
            with _logged(f"making room in {folder.location()}"):
                reclaim(folder, needed_bytes, retire, experiment_name=self.experiment_name)

    def _make_room_in_fallback(self, needed_bytes: int | None) -> None:
        assert self._fallback is not None
        folder, index = self._fallback.folder, self._fallback.index
        with _logged(f"making room in {folder.location()}"):
            retire = partial(self._clean, None, dry_run=False, known=self._known, folder=folder, index=index)
            reclaim(folder, needed_bytes, retire, experiment_name=self.experiment_name)

    def _place_stranded(self) -> None:
        """Bring home, before anything newer is saved, what was stranded without a look at the order of saving here."""
        if self._fallback is not None:
            with _logged("moving stranded checkpoints to the store"):
                if self._fallback.has_unplaced:
                    self.reconcile()

    def _catch_up(self) -> None:
        if self._is_snapshot_behind:
            self._write_snapshot()

    def _write_snapshot(self) -> None:
        """Renew checkpoint_metadata.json; it is derived, so a failure is logged and the next change tries again."""
        if not self.config.save_metadata:
            return
        with _logged(f"updating {SNAPSHOT_NAME}"):
            commit.write_snapshot(self._folder, SNAPSHOT_NAME, self._snapshot)

    def _snapshot(self) -> bytes:
        manifests = self._index.manifests()
        # Renewing it costs as much as there are checkpoints; spread over so many saves, each save costs the same.
        self._saves_to_snapshot = len(manifests) // 10
        self._is_snapshot_behind = False
        return snapshot(manifests, self.experiment_name)

    def load_checkpoint(
        self,
        checkpoint_id: str = "latest",
        model: Stateful | None = None,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        *,
        keys: Collection[str] | None = None,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keep: Mapping[str, Collection[str]] | None = None,
        require_exact: bool = False,
    ) -> Payload:
        """Verify a checkpoint, restore it into what was passed, and return its payload as a dict.

        The dict holds the payload's keys (docs/FORMAT.md) and ``checkpoint_id``. Nothing is handed out before its bytes
        have been verified, no stored code runs unless ``trust_pickle``, and an error leaves model, optimizer and
        scheduler as they were.

        Its tensors are views of the file's memory, read when they are used. They stay valid when the checkpoint is
        deleted, whose space is free once they are gone; writing to them changes neither the file nor what was restored.

        With ``keys``, payload keys or dotted names below them such as ``"model_state_dict.encoder"``, the dict holds
        only those, and only their bytes are read and verified: damage elsewhere does not matter. A name that stands for
        nothing raises :class:`~ckpt_lib.errors.ConfigError`, as does a part to restore that ``keys`` leaves out.

        A model takes what its own ``load_state_dict`` takes. An optimizer's state is matched by parameter names where
        both sides have them, else by position; another kind of optimizer or scheduler is refused. The dict's
        ``replaced`` lists settings, such as a learning rate or the length of a schedule, that the stored state has
        overwritten, as ``{part: {name: (yours, stored)}}``; ``keep={"optimizer": ["lr"]}`` keeps yours.
        ``changed_values`` names tensors whose stored values the model's types cannot hold. With ``require_exact``, any
        value of model or optimizer that would differ is refused, if only by rounding.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, :class:`~ckpt_lib.errors.UnsafePayloadError`,
        :class:`~ckpt_lib.errors.StateMismatchError`, :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        check_stateful("load_state_dict", model=model, optimizer=optimizer, scheduler=scheduler)
        wanted = check_keys(keys)
        check_wanted(wanted, model=model, optimizer=optimizer, scheduler=scheduler)
        read = partial(
            read_payload,
            verify=self.config.validate_checkpoints,
            map_location=map_location,
            trust_pickle=trust_pickle,
            keys=wanted,
            cache=self._cache,
        )
        owners = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        options = {"keep": keep, "require_exact": require_exact}
        self._bring_stranded_home()
        _, payload = self._with_resolved(
            checkpoint_id, lambda folder, found: self._restored(folder, found, read, owners, options)
        )
        return payload

    def _restored(
        self,
        folder: CheckpointFolder,
        manifest: Manifest,
        read: Callable[[CheckpointFolder, Manifest], Payload],
        owners: Mapping[str, Stateful | None],
        options: Mapping[str, Any],
    ) -> Payload:
        with ExitStack() as stack:
            # Whoever cleans up, in whatever process, has to leave it until this manager goes on from another.
            stack.enter_context(folder.hold(manifest.checkpoint_id, "in use: loaded"))
            payload = read(folder, manifest)
            folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted before it was held
            wait_until_all_copied()  # before what is being copied is written over
            facts = Stored(manifest.kinds, manifest.parameter_names)
            report = restore(payload, facts, **owners, **options)  # type: ignore[arg-type]  # mypy mixes the two up
            self._saver.go_on_from(manifest)
            self._loaded_id = manifest.checkpoint_id
            earlier = self._going_on_from.pop_all()
            self._going_on_from.push(stack.pop_all())
            earlier.close()
        said = {"replaced": report.replaced, "changed_values": report.changed_values}
        is_restored = any(owner is not None for owner in owners.values())  # some models cannot be asked for their truth
        return {**payload, "checkpoint_id": manifest.checkpoint_id, **(said if is_restored else {})}

    def _bring_stranded_home(self) -> None:
        """Before anything is loaded, so that ``"latest"`` is what was saved last; a warning tells what stays away."""
        if self._fallback is not None:
            with _logged("moving stranded checkpoints to the store"):
                if self._fallback.has_work:
                    self.reconcile()
                if stranded := self._fallback.stranded():
                    logger.warning("%d checkpoints are still in %s", len(stranded), self._fallback.folder.location())

    def _locate(self, name: str) -> tuple[CheckpointFolder, Manifest]:
        """What ``name`` stands for, and where: an id may be stranded in the fallback folder."""
        try:
            return self._folder, self._catalogue.resolve(name)
        except Exception as error:
            is_away = isinstance(error, CheckpointNotFoundError) or is_store_failure(error)
            if is_away and self._fallback is not None and is_checkpoint_id(name):
                with suppress(CheckpointNotFoundError, StoreError):
                    return self._fallback.folder, self._fallback.index.get(name)
            raise

    def _with_resolved(self, name: str, action: Callable[[CheckpointFolder, Manifest], T]) -> tuple[Manifest, T]:
        """Do something with what ``name`` stands for, and with what it then stands for if that was just retired."""
        attempt = 1
        while True:
            folder, manifest = self._locate(name)
            try:
                return manifest, action(folder, manifest)
            except CheckpointNotFoundError:
                if name == manifest.checkpoint_id or attempt == ATTEMPTS:
                    raise
                attempt += 1

    def resume(
        self,
        model: Stateful | None = None,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        *,
        map_location: Any = "cpu",
        keep: Mapping[str, Collection[str]] | None = None,
        require_exact: bool = False,
    ) -> Payload | None:
        """Restore from the newest healthy checkpoint that is valid; return what :meth:`load_checkpoint` returns.

        Those that are damaged, unhealthy, or cannot be loaded without running code are passed over, each with a warning
        in the log; the returned dict's ``passed_over`` lists them as ``{"checkpoint_id", "reason"}``. Returns ``None``
        when the experiment has no checkpoint yet. When it has some and *none* will do, or only backups are left, raises
        :class:`~ckpt_lib.errors.NoValidCheckpointError`: beginning again from nothing is a decision for a person.

        ``next_epoch`` is the epoch to train next: the one after the checkpoint's, or the same if it was saved in the
        middle of that. Its first batches are then seen again. ``keep`` and ``require_exact`` are those of
        :meth:`load_checkpoint`.
        """
        check_stateful("load_state_dict", model=model, optimizer=optimizer, scheduler=scheduler)

        read = partial(read_payload, verify=True, map_location=map_location, cache=self._cache)
        owners = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        options = {"keep": keep, "require_exact": require_exact}

        def load(folder: CheckpointFolder, found: Manifest) -> Payload:
            payload = self._restored(folder, found, read, owners, options)
            self._monitor_record.tell_if_other(found.monitor)
            return payload

        if self._fallback is None:
            return load_newest(self._index, partial(load, self._folder), self.experiment_name)
        self._bring_stranded_home()
        reachable = Reachable(self._folder, self._index, self._fallback)
        return load_newest(reachable, partial(reachable.load, load), self.experiment_name)

    # --- finding ---

    @property
    def monitor(self) -> Monitor:
        """What decides which checkpoint is the best: the record of the first save, or the configuration before that."""
        return self._catalogue.monitor()

    @property
    def monitor_warning(self) -> str | None:
        """Why there is no best checkpoint, where none has recorded the monitored metric; else ``None``."""
        return self._catalogue.monitor_warning()

    def set_monitor(self, metric: str, mode: Mode) -> Monitor:
        """Change the recorded metric that decides which checkpoint is the best, for every later question and save.

        The manifests are rewritten, the newest first; a crash leaves the change made, since the newest holds the
        record. Raises :class:`~ckpt_lib.errors.UnknownMetricError` when no checkpoint has recorded ``metric``, and
        :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none.
        """
        manifests = self._index.manifests()
        if not manifests:
            raise CheckpointNotFoundError(
                "nothing has been saved yet",
                hint="Change monitor_metric of the configuration, which the first save records.",
            )
        check_metric_is_known(metric, manifests)
        try:
            monitor = Monitor(metric=metric, mode=mode)
        except ValidationError as error:
            raise config_error(error) from None
        self._monitor_record.settle()
        for manifest in reversed(manifests):
            if manifest.monitor != monitor:
                with suppress(CheckpointNotFoundError):  # deleted since it was listed
                    commit.edit(self._folder, manifest.checkpoint_id, lambda found: found.changed(monitor=monitor))
        self._write_snapshot()
        return monitor

    def list_checkpoints(
        self,
        *,
        tags: Collection[str] = (),
        search: str = "",
        min_epoch: int | None = None,
        max_epoch: int | None = None,
        sort_by: str = "sequence",
        descending: bool = False,
        limit: int | None = None,
    ) -> list[CheckpointMetadata]:
        """The checkpoints, oldest first unless told otherwise; see :func:`ckpt_lib.experiment.query.select`."""
        return select(
            self._catalogue.describe_all(),
            tags=tags,
            search=search,
            min_epoch=min_epoch,
            max_epoch=max_epoch,
            sort_by=sort_by,
            descending=descending,
            limit=limit,
        )

    def checkpoint_ids(self) -> list[str]:
        """Every id there is, oldest first, and then those whose manifest cannot be read."""
        readable = [manifest.checkpoint_id for manifest in self._index.manifests()]
        return readable + [str(error.checkpoint_id) for error in self._index.unreadable()]

    def get_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """The metadata of one checkpoint."""
        return self._catalogue.describe(self._catalogue.resolve(checkpoint_id))

    def get_latest_checkpoint(self) -> CheckpointMetadata | None:
        """The newest checkpoint, by order of saving; ``None`` when there is none."""
        return next(reversed(self._catalogue.describe_all()), None)

    def get_best_checkpoint(self, metric: str | None = None, mode: Mode | None = None) -> CheckpointMetadata | None:
        """The best healthy checkpoint by any metric, by default the monitored one; ``None`` when no value is finite.

        Of equals, the earlier. Another metric than the monitored needs a ``mode``.

        Raises :class:`~ckpt_lib.errors.UnknownMetricError` for a ``metric`` that no checkpoint has.
        """
        checkpoints = self._catalogue.describe_all()
        if metric is not None:
            check_metric_is_known(metric, checkpoints)
        if mode not in (None, "min", "max"):
            raise ConfigError('mode must be "min" or "max"', got=repr(mode))
        monitor = self._catalogue.monitor()
        if metric not in (None, monitor.metric) and mode is None:
            raise ConfigError(
                f"whether a smaller or a larger {metric!r} is better was not said", expected='mode="min" or "max"'
            )
        best = ranked(checkpoints, Monitor(metric=metric or monitor.metric, mode=mode or monitor.mode))
        return best[0] if best else None

    # --- checking, comparing, summarising ---

    def validate_checkpoint(
        self, checkpoint_id: str = "latest", *, deep: bool = True, progress: Progress | None = None
    ) -> ValidationReport:
        """Read every byte of a checkpoint; the report is true when it is valid and says what is wrong and where.

        One that cannot be loaded without running code is damaged as well; its structure is read, and no code runs.
        By its SHA-256, or with ``deep=False`` by the digests of its chunks, which all processors share: these find
        every accident, in a fraction of the time. Damage is reported, not raised, with the names of the tensors it
        hits; a checkpoint that does not exist raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        try:
            _, report = self._with_resolved(
                checkpoint_id, lambda folder, manifest: self._validate(folder, manifest, progress, deep=deep)
            )
        except (CorruptManifestError, UnsupportedSchemaError) as error:
            return unreadable_report(error, checkpoint_id, self.experiment_name)
        return report

    def validate_all(self, *, deep: bool = True, progress: Progress | None = None) -> Iterator[ValidationReport]:
        """Validate every checkpoint, oldest first, those whose manifest cannot be read at the end."""
        return self._validate_each(self._folder, self._index, progress, deep=deep)

    def validate_all_backups(
        self, *, deep: bool = True, progress: Progress | None = None
    ) -> Iterator[ValidationReport]:
        """Validate every backup, as :meth:`validate_all` does every checkpoint."""
        return self._validate_each(self._backups, self._backup_index, progress, deep=deep)

    def _validate_each(
        self, folder: CheckpointFolder, index: Index, progress: Progress | None, *, deep: bool
    ) -> Iterator[ValidationReport]:
        for manifest in index.manifests():
            with suppress(CheckpointNotFoundError):  # retired meanwhile
                yield self._validate(folder, manifest, progress, deep=deep)
        yield from self._unreadable(index)

    def list_unreadable(self) -> list[ValidationReport]:
        """The checkpoints that :meth:`list_checkpoints` cannot show, because their manifest cannot be read."""
        return self._unreadable(self._index)

    def list_unreadable_backups(self) -> list[ValidationReport]:
        """The backups that :meth:`list_backups` cannot show, because their manifest cannot be read."""
        return self._unreadable(self._backup_index)

    def _unreadable(self, index: Index) -> list[ValidationReport]:
        return [
            unreadable_report(error, str(error.checkpoint_id), self.experiment_name) for error in index.unreadable()
        ]

    def _validate(
        self, folder: CheckpointFolder, manifest: Manifest, progress: Progress | None, *, deep: bool
    ) -> ValidationReport:
        report = validate(folder, manifest, self.experiment_name, progress, deep=deep)
        if report or report.is_unloadable:
            self._known.remember(folder, manifest, is_loadable=report.is_valid)
        if report:
            return report
        if not folder.is_complete(manifest):
            folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        return with_tensors(report, manifest, folder, self._backups if folder is self._folder else self._folder)

    def scrub(
        self,
        *,
        max_bytes_per_second: float | None = None,
        restart: bool = False,
        progress: Progress | None = None,
    ) -> ScrubReport:
        """Read every byte of every checkpoint and backup, by all processors.

        See :func:`ckpt_lib.maintenance.scrub.scrub`. Killed or interrupted, the next call goes on where this one
        stopped; ``restart`` begins anew. All threads together read no faster than ``max_bytes_per_second``, and leave
        the page cache as they found it.
        """
        return scrub(
            self._index,
            self._folder,
            self._backup_index,
            self._backups,
            self.experiment_name,
            max_bytes_per_second=max_bytes_per_second,
            restart=restart,
            progress=progress,
        )

    def payload_version(self, checkpoint_id: str) -> str | None:
        """Return a text that changes when the payload file or its recorded digest does; ``None`` without the file.

        The file is not read. The outcome of a validation may be remembered by this text.
        """
        manifest = self._catalogue.resolve(checkpoint_id)
        entry = self._folder.payload_entry(manifest)
        return None if entry is None else f"{manifest.payload.sha256}/{entry.version}"

    def compare_checkpoints(
        self, checkpoint_ids: Sequence[str], *, metrics: Collection[str] | None = None, tensors: bool = False
    ) -> CheckpointComparison:
        """Set checkpoints side by side.

        ``metrics`` restricts ``metrics_comparison``. With ``tensors``, ``tensors_comparison`` maps each further id to
        how its tensors differ from the first one's; that loads them, two at a time.
        """
        from ckpt_lib.analysis.compare import compare, compare_tensors  # pandas and torch, only where they are used

        for name, value in (("checkpoint_ids", checkpoint_ids), ("metrics", () if metrics is None else metrics)):
            if isinstance(value, str) or not isinstance(value, Collection):
                raise ConfigError(f"{name} must be a list", got=repr(value)[:120])
        checkpoints = [self.get_checkpoint(checkpoint_id) for checkpoint_id in checkpoint_ids]
        for metric in metrics or ():
            check_metric_is_known(metric, checkpoints)
        comparison = compare(checkpoints)
        if metrics is not None:
            lined_up = comparison["metrics_comparison"]
            comparison["metrics_comparison"] = {metric: lined_up[metric] for metric in metrics}
        if tensors:
            reference, *others = (
                partial(
                    read_payload,
                    self._folder,
                    self._catalogue.resolve(item.checkpoint_id),
                    verify=True,
                    keys=["model_state_dict"],
                )
                for item in checkpoints
            )
            first = reference()
            comparison["tensors_comparison"] = {
                item.checkpoint_id: compare_tensors(first, other())
                for item, other in zip(checkpoints[1:], others, strict=True)
            }
        return comparison

    def get_checkpoint_summary(self) -> ExperimentSummary:
        """Return totals, the best and the latest id, and statistics of every metric."""
        from ckpt_lib.analysis.statistics import summarize

        return summarize(
            self._catalogue.describe_all(),
            self.experiment_name,
            total_backups=len(self.backup_ids()),
            unreadable=[str(error.checkpoint_id) for error in self._index.unreadable()],
            monitor=self._catalogue.monitor(),
            monitor_warning=self._catalogue.monitor_warning(),
        )

    # --- editing ---

    def edit_checkpoint(
        self,
        checkpoint_id: str,
        *,
        add_tags: Collection[str] = (),
        remove_tags: Collection[str] = (),
        description: str | None = None,
    ) -> CheckpointMetadata:
        """Change tags and description of a saved checkpoint; the payload stays untouched."""
        added, removed = check_tags(add_tags), set(check_tags(remove_tags))
        text = None if description is None else check_description(description)

        def change(manifest: Manifest) -> Manifest:
            tags = tuple(tag for tag in dict.fromkeys((*manifest.tags, *added)) if tag not in removed)
            return manifest.changed(tags=tags, description=manifest.description if text is None else text)

        return self._edit(checkpoint_id, change)

    def pin_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """Protect a checkpoint from retention and deletion."""
        return self._edit(checkpoint_id, lambda manifest: manifest.changed(pinned=True))

    def unpin_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """Take that protection away."""
        return self._edit(checkpoint_id, lambda manifest: manifest.changed(pinned=False))

    def _edit(self, checkpoint_id: str, change: Callable[[Manifest], Manifest]) -> CheckpointMetadata:
        manifest = commit.edit(self._folder, self._catalogue.resolve(checkpoint_id).checkpoint_id, change)
        self._write_snapshot()
        return self._catalogue.describe(manifest)  # not read again: another process may have retired it by now

    # --- copies ---

    def backup_checkpoint(
        self, checkpoint_id: str = "latest", *, verify_existing: bool = False, progress: Progress | None = None
    ) -> bool:
        """Make a verified copy in the backup location; ``False`` when there is one already.

        A copy that is there counts if its size is right, and so does the checkpoint then. ``verify_existing`` reads
        every byte of both, and replaces a damaged copy. Afterwards old backups are retired down to ``max_backups``.
        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when the checkpoint is found damaged, which is never
        copied.
        """
        manifest = self._catalogue.resolve(checkpoint_id)
        copied = transfer.backup(
            self._folder, manifest, self._backups, verify_existing=verify_existing, progress=progress
        )
        if copied:
            self._known.remember(self._backups, manifest)
            self._clean_backups(just_made=manifest.checkpoint_id, known=self._known)
        return copied

    def backup_ids(self) -> list[str]:
        """The id of every backup there is, oldest first, and then those whose manifest cannot be read."""
        readable = [manifest.checkpoint_id for manifest in self._backup_index.manifests()]
        return readable + [str(error.checkpoint_id) for error in self._backup_index.unreadable()]

    def list_backups(self) -> list[CheckpointMetadata]:
        """What is in the backup location, oldest first; ``is_best`` and ``is_latest`` are among the backups."""
        return self._backup_catalogue.describe_all()

    def get_backup(self, checkpoint_id: str) -> CheckpointMetadata:
        """The metadata of one backup; ``"latest"``, ``"best"`` and tags stand for one of the backups."""
        return self._backup_catalogue.describe(self._backups.read_manifest(self._backup_id_of(checkpoint_id)))

    def validate_backup(
        self, checkpoint_id: str, *, deep: bool = True, progress: Progress | None = None
    ) -> ValidationReport:
        """Read every byte of a backup, as :meth:`validate_checkpoint` does of a checkpoint."""
        checkpoint_id = self._backup_id_of(checkpoint_id)
        with self._naming_backups(checkpoint_id):
            try:
                manifest = self._backups.read_manifest(checkpoint_id)
            except (CorruptManifestError, UnsupportedSchemaError) as error:
                return unreadable_report(error, checkpoint_id, self.experiment_name)
            return self._validate(self._backups, manifest, progress, deep=deep)

    def _id_of(self, name: str) -> str:
        """An id as it is, even of a checkpoint that is gone; anything else as the experiment knows it."""
        return name if is_checkpoint_id(name) else self._catalogue.resolve(name).checkpoint_id

    def _backup_id_of(self, name: str) -> str:
        """The same among the backups."""
        return name if is_checkpoint_id(name) else self._backup_catalogue.resolve(name).checkpoint_id

    @contextmanager
    def _naming_backups(self, checkpoint_id: str) -> Iterator[None]:
        """Say that it is the backup that there is not."""
        try:
            yield
        except CheckpointNotFoundError as error:
            raise transfer.no_backup(self._backups, checkpoint_id) from error

    def restore_checkpoint(self, checkpoint_id: str, *, progress: Progress | None = None) -> CheckpointMetadata:
        """Put the backup of a checkpoint back in its place; its bytes are verified on the way.

        ``checkpoint_id`` is an id: a checkpoint that is gone answers to nothing else. When there is no backup or it is
        damaged, the error says what else may help.
        """
        checkpoint_id = self._id_of(checkpoint_id)
        try:
            manifest = transfer.restore(self._folder, checkpoint_id, self._backups, progress)
        except (CheckpointNotFoundError, IntegrityError) as error:
            if isinstance(error, IntegrityError):
                error.message = f"its backup cannot be restored: {error.message}"
            error.hint = transfer.other_ways(self._folder, self._backups, checkpoint_id)
            raise
        self._known.remember(self._folder, manifest)
        self._write_snapshot()
        return self._catalogue.describe(manifest)

    def repair_checkpoint(self, checkpoint_id: str = "latest", *, progress: Progress | None = None) -> RepairReport:
        """Bring the damaged bytes of a checkpoint back from its backup, in place.

        See :func:`ckpt_lib.maintenance.repair.repair`. The cost grows with the damage, and the backup need not be
        whole: its chunks that are needed have to be. One that is in quarantine comes back if it verifies by now, or its
        backup does.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when these are damaged in both or there is no backup.
        """
        return self._repair(self._folder, self._id_of(checkpoint_id), self._backups, progress)

    def repair_backup(self, checkpoint_id: str, *, progress: Progress | None = None) -> RepairReport:
        """Bring the damaged bytes of a backup back from its checkpoint, as :meth:`repair_checkpoint` does the reverse.

        A backup that does not exist raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        checkpoint_id = self._backup_id_of(checkpoint_id)
        with self._naming_backups(checkpoint_id):
            return self._repair(self._backups, checkpoint_id, self._folder, progress)

    def _repair(
        self, folder: CheckpointFolder, checkpoint_id: str, other: CheckpointFolder, progress: Progress | None
    ) -> RepairReport:
        was_set_aside = quarantine.is_quarantined(folder, checkpoint_id)
        if was_set_aside:
            is_backup = folder is self._backups
            report = quarantine.bring_back(
                folder, checkpoint_id, other, self.experiment_name, progress, is_backup=is_backup
            )
        else:
            report = repair(folder, checkpoint_id, other, self.experiment_name, progress)
        self._known.remember(folder, folder.read_manifest(report.checkpoint_id))
        if was_set_aside or report.method == "file":  # it may have brought a manifest back
            self._write_snapshot()
        return report

    def remedy(
        self, report: ValidationReport, *, of_backup: bool = False, other: ValidationReport | None = None
    ) -> Remedy:
        """What helps a checkpoint, or a backup, that a report tells to be damaged.

        ``"repair"`` where its other copy has what is missing, ``"doctor"`` where that has lost its manifest, and else
        ``"quarantine"``. The other copy is read, unless its report is given as ``other``.
        """
        pair = (self._backups, self._folder) if of_backup else (self._folder, self._backups)
        return remedy(*pair, report, other)

    def quarantine_checkpoint(self, checkpoint_id: str, *, progress: Progress | None = None) -> QuarantineReport:
        """Set a damaged checkpoint aside, with the report, unless its backup can repair it, which is then done instead.

        It is not listed and not loaded any more, and no retention rule counts it; its payload stays where it is.
        :meth:`repair_checkpoint` brings it back. Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is
        intact, or somebody has it in use.
        """
        checkpoint_id = self._id_of(checkpoint_id)
        report = quarantine.set_aside(self._folder, checkpoint_id, self._backups, self.experiment_name, progress)
        self._write_snapshot()
        return report

    def quarantine_backup(self, checkpoint_id: str, *, progress: Progress | None = None) -> QuarantineReport:
        """Set a damaged backup aside, as :meth:`quarantine_checkpoint` does of a checkpoint.

        It is repaired instead when its checkpoint can. :meth:`backup_checkpoint` replaces it, :meth:`repair_backup`
        brings it back and :meth:`delete_backup` removes it.
        """
        checkpoint_id = self._backup_id_of(checkpoint_id)
        with self._naming_backups(checkpoint_id):
            return quarantine.set_aside(self._backups, checkpoint_id, self._folder, self.experiment_name, progress)

    def list_quarantined(self) -> list[QuarantinedCheckpoint]:
        """The checkpoints that were set aside, each with the report that says why."""
        return quarantine.list_quarantined(self._folder, self.experiment_name)

    def list_quarantined_backups(self) -> list[QuarantinedCheckpoint]:
        """The backups that were set aside, as :meth:`list_quarantined` does the checkpoints."""
        found = quarantine.list_quarantined(self._backups, self.experiment_name)
        return [item.model_copy(update={"is_backup": True}) for item in found]

    def delete_quarantined(self, checkpoint_id: str) -> int:
        """Remove what is left of a checkpoint in quarantine, for good; return how many bytes that frees.

        Its backup stays: :meth:`delete_backup` removes that. Raises
        :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint is not in quarantine.
        """
        checkpoint_id = str(CheckpointId.parse(checkpoint_id))
        try:
            return quarantine.remove(self._folder, checkpoint_id)
        except CheckpointNotFoundError as error:
            error.hint = self._where_it_is_set_aside(checkpoint_id)
            raise

    def _where_it_is_set_aside(self, checkpoint_id: str) -> str:
        with suppress(CheckpointError):  # backups that cannot be reached
            if quarantine.is_quarantined(self._backups, checkpoint_id):
                return f"Its backup is: `delete_backup` removes it, or `ckpt delete --backups {checkpoint_id}`."
        return "`list_quarantined` and `ckpt quarantine` show what is."

    def doctor(self, *, fix: bool = False, deep: bool = False, progress: Progress | None = None) -> DoctorReport:
        """Check an experiment for leftovers, damage, missing backups and unknown files; with ``fix``, fix what can be.

        With ``deep``, every byte is read as well. Nothing is deleted but what a save or a deletion that did not come to
        its end left behind; what a living process is at work on is left alone. It may be killed at any point, and run
        again.
        """
        ward = Doctor(
            folder=self._folder,
            index=self._index,
            backups=self._backups,
            backup_index=self._backup_index,
            experiment_name=self.experiment_name,
            monitor=self._catalogue.monitor(),
            trash_seconds=self.config.trash_seconds,
            has_snapshot=self.config.save_metadata,
            wanted_backups=self._wanted_backups,
            back_up=partial(self.backup_checkpoint, progress=progress),
            renew_snapshot=self._write_snapshot,
            deep=deep,
            progress=progress,
        )
        return ward.treat() if fix else ward.diagnose()

    def _wanted_backups(self) -> set[str]:
        """What should have a backup: as the configuration says, and as many as the backup location keeps.

        Where it says nothing, there may be a training whose own says otherwise: then only where there are backups at
        all, the best and the newest, which each of these trainings backs up.
        """
        if not self.config.backup_checkpoints:
            return set()
        checkpoints = {manifest.checkpoint_id: manifest for manifest in self._index.manifests()}
        backups = {manifest.checkpoint_id: manifest for manifest in self._backup_index.manifests()}
        best = {best_id} if (best_id := self._catalogue.best_id()) else set()
        if self.config.backup_only_best:
            return best
        if not self.config.model_fields_set & _ABOUT_BACKUPS:
            return best | set(list(checkpoints)[-1:]) if backups else set()
        monitor = self._catalogue.monitor()
        kept = kept_if_valid((backups | checkpoints).values(), _at_most(self.config.max_backups, monitor), [monitor])
        return kept & checkpoints.keys()

    def export_checkpoint(
        self, checkpoint_id: str, destination: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> str:
        """Copy a checkpoint and its manifest into another folder; return the path of the payload there.

        Plain ``torch.load`` reads that file; :meth:`import_checkpoint` of any experiment takes it back. A
        ``destination`` that ends with ``.pt``, ``.pth`` or ``.ckpt`` becomes that file, without a manifest, unless it
        is an existing folder. Anything else is a folder: a path that ends with a slash or with another suffix, too.
        """
        return transfer.export(self._folder, self._catalogue.resolve(checkpoint_id), destination, progress)

    def import_checkpoint(self, source: str | os.PathLike[str], *, progress: Progress | None = None) -> str:
        """Take in an exported checkpoint as the newest of this experiment; return its id here.

        Raises :class:`~ckpt_lib.errors.UnsafePayloadError` or :class:`~ckpt_lib.errors.CorruptCheckpointError` for one
        that cannot be loaded without running code, or is damaged; nothing is written then.
        """
        manifest = transfer.import_checkpoint(
            self._folder, self._index, source, experiment_name=self.experiment_name, progress=progress
        )
        self._known.remember(self._folder, manifest, is_loadable=True)
        with _logged("writing the identity of the store"):
            ensure_identity(self._folder.store)
        self._write_snapshot()
        return manifest.checkpoint_id

    # --- the fallback folder ---

    def list_stranded(self) -> list[CheckpointMetadata]:
        """What is in the fallback folder and waits to be moved home, oldest first."""
        return [manifest.describe() for manifest in self._fallback.stranded()] if self._fallback else []

    def reconcile(self, *, progress: Progress | None = None) -> ReconcileReport:
        """Move what is stranded in the fallback folder home; see :meth:`ckpt_lib.saving.fallback.Fallback.reconcile`.

        Then back it up and retire old ones, as after a save. Each save that does not fail does this by itself, and so
        does :meth:`resume`. It may run beside training. Raises :class:`~ckpt_lib.errors.ConfigError` without a
        ``fallback_dir``, and :class:`~ckpt_lib.errors.StoreError` when the store fails on the way.
        """
        if self._fallback is None:
            raise ConfigError("no fallback folder is configured", expected="fallback_dir")
        with self._reconciling:
            report = self._fallback.reconcile(progress)
            self._follow({**report.already_home, **report.moved})
            self._fallback.sweep()
        for checkpoint_id in report.moved.values():
            with _logged(f"looking after {checkpoint_id}"), suppress(CheckpointNotFoundError):
                manifest = self._folder.read_manifest(checkpoint_id)
                self._known.remember(self._folder, manifest)
                self._keep_house(manifest)
        return report

    def _follow(self, moved: Mapping[str, str]) -> None:
        """Go on from where the checkpoint is now that this manager goes on from."""
        if (parent_id := self._saver.parent_id) is not None:
            self._saver.parent_id = moved.get(parent_id, parent_id)
        if self._loaded_id is not None and self._loaded_id in moved:
            self._loaded_id = moved[self._loaded_id]
            earlier = self._going_on_from.pop_all()
            self._going_on_from.enter_context(self._folder.hold(self._loaded_id, "in use: loaded"))
            earlier.close()

    # --- retiring ---

    def delete_backup(self, checkpoint_id: str) -> int:
        """Delete the backup of a checkpoint, sound or in quarantine, for good; return how many bytes that frees.

        Its checkpoint stays. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is no such backup,
        :class:`~ckpt_lib.errors.ProtectedCheckpointError` while somebody reads it, and
        :class:`~ckpt_lib.errors.CorruptManifestError` when its manifest is damaged: set it aside first.
        """
        checkpoint_id = self._backup_id_of(checkpoint_id)
        if quarantine.is_quarantined(self._backups, checkpoint_id):
            return quarantine.remove(self._backups, checkpoint_id)
        try:
            deleted = commit.delete(self._backups, checkpoint_id, unless=self._refuse_held_backup)
        except CorruptManifestError as error:
            error.hint = f"Set it aside first: `ckpt quarantine --backups {checkpoint_id}`."
            raise
        if deleted is None:
            raise transfer.no_backup(self._backups, checkpoint_id)
        return deleted.payload.size_bytes

    def _refuse_held_backup(self, manifest: Manifest) -> CheckpointError | None:
        if reason := self._backups.held().get(manifest.checkpoint_id):
            return ProtectedCheckpointError(reason, checkpoint_id=manifest.checkpoint_id)
        return None

    def delete_checkpoint(self, checkpoint_id: str) -> str:
        """Delete one checkpoint and return its id; its backup stays.

        For ``trash_seconds``, :meth:`undelete_checkpoint` brings it back. One that another process has loaded is
        deleted as well, which retention and cleanups never do; its bytes stay until that process lets go. Raises
        :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is pinned.
        """
        resolved = self._catalogue.resolve(checkpoint_id).checkpoint_id
        try:
            deleted = commit.delete(
                self._folder, resolved, unless=_refuse_pinned, grace_seconds=self.config.trash_seconds
            )
        except StoreError:  # it may be gone all the same
            self._write_snapshot()
            raise
        if deleted is None:
            raise CheckpointNotFoundError(f"{resolved} was deleted by someone else", checkpoint_id=resolved)
        self._write_snapshot()
        return resolved

    def undelete_checkpoint(self, checkpoint_id: str, *, pin: bool = False) -> CheckpointMetadata:
        """Bring a deleted checkpoint back as it was, its place in the order of saving included.

        ``checkpoint_id`` is an id: a checkpoint that is gone answers to nothing else. The rules of retention hold for
        it as before: with ``pin`` it comes back pinned, and no save of a run retires it again. Raises
        :class:`~ckpt_lib.errors.CheckpointNotFoundError` when its bytes have been removed.
        """
        manifest = commit.undelete(self._folder, str(CheckpointId.parse(checkpoint_id)), pin=pin)
        self._write_snapshot()
        return self._catalogue.describe(manifest)

    def list_deleted(self) -> list[CheckpointMetadata]:
        """The deleted checkpoints that can still be brought back, oldest first."""
        view = self._index.view()
        return [manifest.describe() for manifest in view.deleted if view.is_complete(manifest)]

    def empty_trash(self) -> list[str]:
        """Remove the bytes of everything deleted, whatever ``trash_seconds`` says, unless somebody is reading it.

        Returns the ids of the checkpoints that are gone for good. Leftovers of dead processes go as well.
        """
        swept = commit.sweep(self._folder, self._index.view().entries.values())
        return [manifest.checkpoint_id for manifest in swept.expired]

    def cleanup_checkpoints(self, *, policy: RetentionPolicy | None = None, dry_run: bool = False) -> CleanupReport:
        """Retire what the retention policy gives up, and remove what dead processes left behind.

        What stays while others go is read and verified first: a damaged checkpoint never counts as kept. For
        ``trash_seconds``, :meth:`undelete_checkpoint` brings back what went. Backups beyond ``max_backups`` go for
        good; the report's ``backups`` tells which. When only they cannot be cleaned up, nothing is raised: the report's
        ``backups_error`` says why. What the store raises when it fails on the way says which checkpoints are gone;
        batches deleted before stay deleted.
        """
        _check_policies(None, policy)
        if not self._folder.store.entries(self._folder.path):  # a mistyped name creates no experiment
            return self._clean(policy, dry_run=dry_run, known=None)
        try:
            report = self._clean(policy, dry_run=dry_run, known=None, grace_seconds=self.config.trash_seconds)
        finally:
            if not dry_run:
                self._write_snapshot()
        try:
            outcome: dict[str, Any] = {"backups": self._clean_backups(known=None, dry_run=dry_run)}
        except (CheckpointError, OSError) as error:  # what became of the checkpoints is to be told all the same
            logger.error("cleaning up the backups failed: %s", error)
            outcome = {"backups_error": str(error)}
        return report.model_copy(update=outcome)

    def cleanup_backups(self, *, policy: RetentionPolicy | None = None, dry_run: bool = False) -> CleanupReport:
        """Retire the backups beyond ``max_backups``, or what ``policy`` gives up; their bytes are freed at once.

        Backups of damaged checkpoints stay, and so do those of checkpoints in quarantine. :meth:`cleanup_checkpoints`
        and each new backup do this by ``max_backups`` as well.
        """
        _check_policies(None, policy)
        return self._clean_backups(policy, known=None, dry_run=dry_run)

    def _clean(
        self,
        policy: RetentionPolicy | None,
        *,
        dry_run: bool,
        known: KnownVersions | None,
        grace_seconds: float = 0.0,
        folder: CheckpointFolder | None = None,
        index: Index | None = None,
    ) -> CleanupReport:
        monitor = (self._catalogue_of(index) if index else self._catalogue).monitor()  # home may be away
        in_use = self._saver.parent_id
        return clean(
            folder or self._folder,
            index or self._index,
            policy or self.retention_policy or _at_most(self.config.max_checkpoints, monitor),
            monitor=monitor,
            protected={} if in_use is None else {in_use: "in use: loaded or saved last by this process"},
            known=known,
            dry_run=dry_run,
            grace_seconds=grace_seconds,
            trash_seconds=self.config.trash_seconds,
        )

    def _clean_backups(
        self,
        policy: RetentionPolicy | None = None,
        *,
        known: KnownVersions | None,
        dry_run: bool = False,
        just_made: str | None = None,
    ) -> CleanupReport:
        monitor = self._catalogue.monitor()
        view = self._index.view()
        damaged = [str(error.checkpoint_id) for error in view.unreadable]
        damaged += [item.checkpoint_id for item in view.manifests if not view.is_complete(item)]
        damaged += [item.checkpoint_id for item in self.list_quarantined()]
        protected = dict.fromkeys(damaged, "its checkpoint is damaged")
        if just_made is not None:
            protected[just_made] = "made just now"
        return clean(
            self._backups,
            self._backup_index,
            policy or _at_most(self.config.max_backups, monitor),
            monitor=monitor,
            protected=protected,
            known=known,
            dry_run=dry_run,
        )


def _check_apart(name: str, folder: CheckpointFolder, option: str, other: CheckpointFolder) -> None:
    if os.path.realpath(folder.location()) == os.path.realpath(other.location()):
        raise ConfigError(f"{name} would lie in the same folder", path=other.location(), hint=f"Change {option}.")


def _rebuild(
    config: CheckpointConfig, name: str, save_policy: SavePolicy | None, retention_policy: RetentionPolicy | None
) -> CheckpointManager:
    return CheckpointManager(config, name, save_policy=save_policy, retention_policy=retention_policy)


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A call of a manager's method that does not keep the manager alive: its copies of the state go with it at once."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        if (found := reference()) is not None:
            found(*arguments)

    return call


def _at_most(count: int, monitor: Monitor) -> KeepAtMost:
    return KeepAtMost(count=count, metric=monitor.metric, mode=monitor.mode)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log a failure of something that may fail without harm to what is already safe."""
    try:
        yield
    except Exception as error:  # whatever it is, a policy of the caller's among them: the checkpoint is safe
        logger.error("%s failed: %s", what, error, exc_info=not isinstance(error, CheckpointError | OSError))


def _check_policies(save: Any, retention: Any) -> None:
    for policy, method in ((save, "should_save"), (retention, "reasons")):
        if policy is not None and not callable(getattr(policy, method, None)):
            raise ConfigError(f"a policy has a method {method}", got=type(policy).__name__)


def _refuse_pinned(manifest: Manifest) -> CheckpointError | None:
    if not manifest.pinned:
        return None
    return ProtectedCheckpointError(
        "the checkpoint is pinned",
        checkpoint_id=manifest.checkpoint_id,
        hint=f"Unpin it first: `ckpt pin {manifest.checkpoint_id} --off`.",
    )
