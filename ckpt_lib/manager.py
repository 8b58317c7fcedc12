"""``CheckpointManager``: the façade over one experiment's checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Self

from ckpt_lib.config import CheckpointConfig, located
from ckpt_lib.core.facts import GivenFacts
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.errors import ConfigError
from ckpt_lib.live.sharing import Sharing
from ckpt_lib.loading.loader import Loader
from ckpt_lib.maintenance.cleaners import CheckpointCleaner
from ckpt_lib.maintenance.keeper import check_policy
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.policies.saving import SavePolicy, policy_of
from ckpt_lib.restorer import Restorer
from ckpt_lib.saving.background import SaveHandle
from ckpt_lib.saving.backups import Backups
from ckpt_lib.saving.check_report import CheckReport
from ckpt_lib.saving.failover import FailoverWriter, SaveTarget
from ckpt_lib.saving.fallback import Fallback, ReconcileReport
from ckpt_lib.saving.free_space import FreeSpace
from ckpt_lib.saving.post_save import PostSave
from ckpt_lib.saving.preemption import Preemption
from ckpt_lib.saving.rank_saver import RankSaver
from ckpt_lib.saving.reconciler import Reconciler
from ckpt_lib.saving.request import ObjectState, SaveRequest, StateMapping
from ckpt_lib.state.training_state import Named, TrainingState, training_state
from ckpt_lib.stream import Progress


class CheckpointManager(Restorer):
    """Saves, finds, checks, loads and retires the checkpoints of one experiment.

    Creating a manager reads and writes nothing. It may be shared by threads, and any number of managers, in any number
    of processes, may work on the same experiment. Pickled or copied, it becomes a manager of the same folders, also in
    another working directory, without the saves under way.

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
        run_id: str | None = None,
    ) -> None:
        """``save_policy`` and ``retention_policy`` take the place of those that ``config`` spells.

        With a ``run_id``, all saves belong to that run, and :meth:`resume` goes on with no other: for a run that begins
        anew, or from an older checkpoint, under the name of an experiment that has others.

        Raises :class:`~ckpt_lib.errors.InvalidNameError` or :class:`~ckpt_lib.errors.ConfigError`.
        """
        super().__init__(config, experiment_name, retention_policy, run_id)
        check_policy(save_policy, "should_save")
        self._located_config = located(self.config)  # now: the working directory may be another later
        self._own_save_policy = save_policy
        self.save_policy = save_policy or policy_of(self.config)
        post_save = PostSave(self._locations, Backups(self._locations, self._copies), self._cleaner, self._snapshot)
        self._fallback, self._reconciler = self._fallback_with(post_save)
        self._saver = RankSaver(
            self._locations,
            self.save_policy,
            writer=FailoverWriter(*self._targets(), self.config.on_save_failure),
            lineage=self._lineage,
            post_save=post_save,
            reconciler=self._reconciler,
        )
        self._sharing = Sharing(self._saver, self._locations, self._lineage)
        self._loader = Loader(self._locations, self._lineage, self._reconciler, self._copies)

    @classmethod
    def from_env(
        cls,
        experiment_name: str | None = None,
        *,
        save_policy: SavePolicy | None = None,
        retention_policy: RetentionPolicy | None = None,
        **options: Any,
    ) -> Self:
        """Return the manager that ``CKPT_*`` variables describe, as the flow ``launch`` sets them for its command.

        ``CKPT_EXPERIMENT`` names the experiment, and :meth:`CheckpointConfig.from_env` reads the options; arguments
        override both. Raises :class:`~ckpt_lib.errors.ConfigError` if no experiment is named, or for a wrong option.
        """
        if not (name := experiment_name or os.environ.get("CKPT_EXPERIMENT")):
            raise ConfigError("no experiment is named", expected="an experiment_name, or CKPT_EXPERIMENT")
        config = CheckpointConfig.from_env(**options)
        return cls(config, name, save_policy=save_policy, retention_policy=retention_policy)

    def _fallback_with(self, post_save: PostSave) -> tuple[Fallback | None, Reconciler | None]:
        home, stranded = self._locations.home, self._locations.fallback
        if stranded is None:
            return None, None
        fallback = Fallback(stranded, home, self._locations.backups, self._locations.watch)
        return fallback, Reconciler(fallback, home, lineage=self._lineage, known=self._known, post_save=post_save)

    def _targets(self) -> tuple[SaveTarget, SaveTarget | None]:
        """Return the home and, where configured, the fallback, each with what may be deleted to make room."""
        known, verify = self._known, self.config.verify_after_write
        space = FreeSpace(self._cleaner, self._backup_cleaner)
        at_once = self.config.backup_mode == "blocking" and not self.config.backup_only_best
        backups = self._locations.backups if self.config.backup_checkpoints and at_once else None
        home = SaveTarget(
            self._locations.home, known, space, watch=self._locations.watch, backups=backups, verify=verify
        )
        if (fallback := self._locations.fallback_catalogue) is None:
            return home, None
        cleaner = CheckpointCleaner(fallback, self.config, self.retention_policy, self._lineage, known)
        return home, SaveTarget(fallback.experiment, known, FreeSpace(cleaner), verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        # A manager for the same checkpoints; saves under way, and what this one has loaded, stay in its process.
        policies = self._own_save_policy, self.retention_policy
        return _rebuild, (self._located_config, self.experiment_name, *policies, self._lineage.only_run_id)

    def __repr__(self) -> str:
        return f"CheckpointManager({self._locations.home.location()!r})"

    # --- saving ---

    def save_checkpoint(
        self,
        state: TrainingState | None = None,
        *,
        epoch: int,
        model: Named | None = None,
        optimizer: Named | None = None,
        scheduler: Named | None = None,
        step: int = 0,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        extra_state: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        compare_content: bool = False,
        epoch_finished: bool | None = None,
        force: bool = False,
    ) -> str | None:
        """Save, if the save policy says so or with ``force``, and return the new id; ``None`` when it says no.

        When this returns, the checkpoint survives a kill and, where the file system honours fsync, power loss. Then
        it is backed up and old ones are retired, as configured; a failure of *that* is logged and does not undo or
        fail the save. Any error raised leaves the experiment as it was.

        ``config`` is the run's own configuration, kept for comparisons: a mapping, a dataclass or a Namespace, whose
        values are stored as :mod:`ckpt_lib.core.plain` says. ``extra_state`` is anything else to resume from, of
        tensors and plain values; :meth:`check` says what comes back as another type. With an ``idempotency_key``,
        repeating a save returns the first one's id; with ``compare_content`` as well, only if state, metrics,
        configuration, tags and description are the same, and what differs is saved. ``epoch_finished=False`` says that
        the epoch goes on, so that :meth:`resume` names it as the next one to train.
        """
        objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler)
        facts = GivenFacts(epoch, step, metrics, tags, description, config, idempotency_key, epoch_finished)
        return self._sharing.save(
            SaveRequest(ObjectState(objects, extra_state), facts, compare_content=compare_content, force=force)
        )

    def save_state(
        self,
        state: Mapping[str, Any],
        *,
        epoch: int,
        step: int = 0,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        idempotency_key: str | None = None,
        compare_content: bool = False,
        epoch_finished: bool | None = None,
        force: bool = False,
    ) -> str | None:
        """Save as :meth:`save_checkpoint` does, for those who have states and not the objects that hold them.

        ``state`` holds ``"model_state_dict"`` and, where there are any, ``"optimizer_state_dict"``,
        ``"scheduler_state_dict"``, ``"others"`` and ``"extra_state"``, each a mapping; another key raises
        :class:`~ckpt_lib.errors.ConfigError`. The generators without a name are saved with them. The checkpoint does
        not name the classes that the states are of, and its optimizer's state is matched by position when it is loaded.
        """
        facts = GivenFacts(epoch, step, metrics, tags, description, config, idempotency_key, epoch_finished)
        request = SaveRequest(StateMapping(state), facts, compare_content=compare_content, force=force)
        return self._sharing.save(request)

    def check(
        self,
        state: TrainingState | None = None,
        *,
        model: Named | None = None,
        optimizer: Named | None = None,
        scheduler: Named | None = None,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        extra_state: Mapping[str, Any] | None = None,
    ) -> CheckReport:
        """Return what a save of this would store, or raise what it would raise, and write nothing: to be called before
        training begins.

        The state is written and read back in memory, the elements of tensors up to 64 MiB. One
        :class:`~ckpt_lib.errors.UnsupportedStateError` tells of all values that cannot be stored. The report names
        those that a load gives back as another type: NumPy arrays as tensors, NumPy scalars as numbers and, in
        ``extra_state``, dataclasses as dicts, members of enums as their values, and paths as text.

        Pass ``metrics`` as training will, whatever their values: with ``save_best_only`` or
        ``on_missing_metric="raise"``, a save without the monitored metric is refused.
        """
        objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler)
        facts = GivenFacts(0, metrics=metrics, tags=tags, description=description, config=config)
        return self._saver.check(SaveRequest(ObjectState(objects, extra_state), facts))

    def save_checkpoint_async(
        self,
        state: TrainingState | None = None,
        *,
        epoch: int,
        model: Named | None = None,
        optimizer: Named | None = None,
        scheduler: Named | None = None,
        step: int = 0,
        metrics: Mapping[str, Any] | None = None,
        tags: Collection[str] = (),
        description: str = "",
        config: Any = None,
        extra_state: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        epoch_finished: bool | None = None,
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
        objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler)
        facts = GivenFacts(epoch, step, metrics, tags, description, config, idempotency_key, epoch_finished)
        return self._sharing.start(SaveRequest(ObjectState(objects, extra_state), facts, force=force))

    def save_on_signal(
        self,
        state: Callable[[], Mapping[str, Any] | None],
        *,
        signals: Collection[int] | None = None,
        deadline_seconds: float | None = None,
    ) -> Preemption:
        """Save once more when a signal, by default SIGTERM or SIGINT, asks this process to stop.

        ``state`` is called then, and returns the arguments for :meth:`save_checkpoint`, or ``None`` when what there is
        has just been saved. It is called at the next safe
        point that the loop declares, for only the loop knows when the state is whole; see
        :class:`ckpt_lib.saving.preemption.Preemption`. The save policy is not asked, and background saves are waited
        for.

        Use it as a context manager, in the main thread: anywhere else it raises
        :class:`~ckpt_lib.errors.ConfigError`, as it does for what is no signal.
        """
        if not callable(state):
            raise ConfigError("state must be a function that returns what to save", got=type(state).__name__)
        wanted = (signal.SIGTERM, signal.SIGINT) if signals is None else signals
        save = partial(self._saver.save_preempted, state)
        return Preemption(save, wanted, deadline_seconds, with_ranks=self.config.rank_zero_saves)

    def why_not_saved(self) -> tuple[NotSaved, ...]:
        """Return why there is no newer checkpoint, the most important reason first: nothing if the last save made one.

        It is about the saves of this manager: what failed since its last checkpoint, what is still being written, and
        why the save policy refused the last save. Each reason has a ``kind`` and its numbers, and ``str()`` says it in
        words. ``ckpt why`` answers for other processes. Nothing is read or written, and any thread may ask.
        """
        return self._saver.why_not_saved()

    def share(
        self,
        *,
        state: Callable[[], Mapping[str, Any] | None] | None = None,
        load: Callable[[str], object] | None = None,
    ) -> AbstractContextManager[None]:
        """Let other processes of this user see the run and ask it to save or load, while the context lasts.

        ``ckpt runs`` lists it. A request to save makes the next save of the loop one that the save policy cannot
        refuse. With ``state``, a function that returns the arguments of :meth:`save_checkpoint` or ``None`` when what
        there is has just been saved, :meth:`serve_requests` saves as well. A request to load is refused without
        ``load``, which gets an id and restores that checkpoint. Neither happens anywhere else, nor on another thread,
        and their failures reach who asked, not the training.

        Of several ranks, the first is shared; it saves with the loop's next save, and takes no loads. A run that is
        killed leaves files that the next list removes. Raises :class:`~ckpt_lib.errors.ConfigError` on Windows and for
        a run that is shared already, and :class:`~ckpt_lib.errors.StoreError` if the state folder cannot be used.
        """
        return self._sharing.share(state, load)

    def serve_requests(self) -> None:
        """Say that the state is whole here: do what other processes have asked for, if the run is shared."""
        self._sharing.serve()

    def prepare(
        self,
        state: TrainingState | None = None,
        *,
        model: Named | None = None,
        optimizer: Named | None = None,
        scheduler: Named | None = None,
    ) -> None:
        """Take and touch the memory for background saves, so that the first does not keep training any longer than
        the next: to be called when the optimizer has its state, which is after its first step.
        """
        objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler)
        self._saver.prepare(ObjectState(objects))

    @property
    def staging_bytes(self) -> int:
        """The memory that background saves hold for copies: ``max_pending_saves`` times the state at most."""
        return self._saver.background.staging_bytes

    def flush(self) -> None:
        """Return once every background save so far is durable and backed up. Raises an error no one has seen.

        Backups in the background are waited for until ``backup_deadline_seconds`` have passed. What is missing then is
        named in the log, and made with a later backup.
        """
        self._saver.flush()

    def close(self, final: Mapping[str, Any] | None = None) -> None:
        """:meth:`flush`, and let go of the memory for copies. The manager may still be used.

        ``final``, the arguments of :meth:`save_checkpoint`, is saved first, whatever the save policy says.
        """
        if final is not None:
            self.save_checkpoint(**{**final, "force": True})
        self._saver.close()

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

    # --- the fallback folder ---

    def list_stranded(self) -> list[CheckpointMetadata]:
        """List the checkpoints in the fallback folder that wait to be moved home, oldest first."""
        return [manifest.describe() for manifest in self._fallback.manifests()] if self._fallback else []

    def reconcile(self, *, progress: Progress | None = None) -> ReconcileReport:
        """Move what is stranded in the fallback folder home; see :meth:`ckpt_lib.saving.fallback.Fallback.reconcile`.

        Then back it up and retire old ones, as after a save. Each save that does not fail does this by itself, and so
        does :meth:`resume`. It may run beside training. Raises :class:`~ckpt_lib.errors.ConfigError` without a
        ``fallback_dir``, and :class:`~ckpt_lib.errors.StoreError` when the store fails on the way.
        """
        if self._reconciler is None:
            raise ConfigError("no fallback folder is configured", expected="fallback_dir")
        return self._reconciler.reconcile(progress)


def _rebuild(
    config: CheckpointConfig,
    name: str,
    save_policy: SavePolicy | None,
    retention_policy: RetentionPolicy | None,
    run_id: str | None,
) -> CheckpointManager:
    return CheckpointManager(config, name, save_policy=save_policy, retention_policy=retention_policy, run_id=run_id)
