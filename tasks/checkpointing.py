"""``checkpointing``: a training loop's checkpoints inside a flow, from the resume to the last commit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing import get_start_method
from typing import Any

from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectConcurrentFuture
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.task_runners import ThreadPoolTaskRunner

from ckpt_lib import CheckpointConfig, CheckpointManager, TrainingState
from ckpt_lib.errors import AlreadyRunningError, ConfigError, LaunchError, NoValidCheckpointError, UnknownMetricError
from ckpt_lib.formats import Payload
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.policies.saving import SavePolicy
from ckpt_lib.saving.background import SaveHandle
from prefect_checkpoints.tasks._options import NO_TAGS, checkpoint_task, keep_manager
from prefect_checkpoints.tasks._preempted import acknowledging_stops, end_preempted
from prefect_checkpoints.tasks._progress import progress_artifact
from prefect_checkpoints.tasks.report import artifact_key, report_rollback, store_of

_FROM = "from:"
_MAX_TIMES_BACK = 3


def _commit_name() -> str:
    facts = task_run.parameters["handle"].facts
    return f"commit {facts.experiment_name} epoch {facts.epoch} step {facts.step}"


@checkpoint_task(_commit_name, tags=NO_TAGS, retries=0)
def commit_checkpoint(handle: SaveHandle) -> str | None:
    """Wait until a save is durable, and return its id: the save's own task run.

    A store that does not answer is tried again by the save itself.
    """
    return handle.result()


class Checkpoints:
    """What :func:`checkpointing` yields: where the training stands, and how it saves."""

    def __init__(
        self,
        manager: CheckpointManager,
        state: TrainingState,
        runner: ThreadPoolTaskRunner[Any],
        advance: Callable[[float], None],
        resumed: Payload | None,
    ) -> None:
        self.manager = manager
        self.state = state
        self.resumed = resumed
        """What :meth:`ckpt_lib.CheckpointManager.resume` returned; ``None`` for a training that begins."""
        self.epoch = resumed["next_epoch"] if resumed else 1
        """The epoch that is being trained."""
        self.step = resumed["step"] if resumed else 0
        """How many steps have been trained."""
        self._runner = runner
        self._advance = advance
        self._commits: list[PrefectConcurrentFuture[str | None]] = []
        self._safe_point: Callable[[], None] = lambda: None
        self._ended_epoch: tuple[int, int] | None = None
        """Epoch and step of a save at an epoch's end, until more is trained."""
        self._just_saved: SaveHandle | None = None
        """The save that has just copied the state, while nothing can have changed that."""
        self._went_back_to: str | None = None
        self.times_back = 0
        """How often the training went back to the same checkpoint."""

    def epochs(self, last: int) -> Iterator[int]:
        """Yield the epochs that are left up to ``last``, counted from 1, and show the progress in the run."""
        first = self.epoch
        for epoch in range(first, last + 1):
            self.epoch = epoch
            yield epoch
            self._advance(1 / (last + 1 - first))

    def count_step(self) -> None:
        """Count a step. The state is whole here, so training ends here if a signal asks it to."""
        self.step += 1
        self._safe_point()

    def save(self, metrics: Mapping[str, Any] | None = None, **options: Any) -> SaveHandle:
        """Copy the state, and return; a task run of its own reports the commit.

        The save policy decides whether there is anything to save. ``options`` are those of
        :meth:`ckpt_lib.CheckpointManager.save_checkpoint_async`. Raises the error of an earlier save that failed,
        unless ``on_save_failure`` is ``"warn"``.
        """
        self._raise_failure()
        self._ended_epoch = None
        handle = self.manager.save_checkpoint_async(
            self.state, metrics=metrics, **{"epoch": self.epoch, "step": self.step, **options}
        )
        if handle.facts is not None:  # else the policy said no
            self._commits.append(self._runner.submit(commit_checkpoint, {"handle": handle}))
            if handle.facts.epoch_finished:
                self._ended_epoch = self.epoch, self.step
            self._just_saved = handle
        self._safe_point()
        self._just_saved = None
        return handle

    def roll_back(self, reason: str) -> Payload:
        """Go back to the newest healthy checkpoint, and on from there with the batches that come next.

        What was trained since is lost, and the batches of it are not seen again: the position in the data and the
        random numbers go on. The step goes on counting too, so that later checkpoints are later ones. The run's log and
        an artifact say why.

        Raises :class:`~ckpt_lib.errors.NoValidCheckpointError` when there is none to go back to, and after the third
        time that no checkpoint was saved in between.
        """
        self.manager.flush()
        newest = self.manager.get_latest_checkpoint()
        latest_id = newest.checkpoint_id if newest else None
        self.times_back = self.times_back + 1 if latest_id == self._went_back_to else 1
        self._went_back_to = latest_id
        if self.times_back > _MAX_TIMES_BACK:
            raise NoValidCheckpointError(
                f"the training came to no save after going back {_MAX_TIMES_BACK} times: {reason}",
                hint="Lower the learning rate, or begin from an older checkpoint: start='from:<id>'.",
            )
        kept = replace(self.state, data=None, generators={}, rng=False)
        restored = self.manager.resume(kept)
        if restored is None and self.resumed is not None:  # nothing was saved since this run began from another one
            restored = self.manager.load_checkpoint(self.resumed["checkpoint_id"], kept)
        if restored is None:
            raise NoValidCheckpointError(f"there is no checkpoint to go back to: {reason}")
        get_run_logger().warning("%s: going back to %s", reason, restored["checkpoint_id"])
        report_rollback(self.manager.config, self.manager.experiment_name, restored["checkpoint_id"], reason, self.step)
        return restored

    def _last_save(self) -> dict[str, Any] | None:
        """Return what is saved when a signal comes: nothing, if the same has just been saved.

        What was saved as the end of an epoch is one still.
        """
        saved = self._just_saved
        if saved is not None and saved.exception() is None and saved.result() is not None:
            return None
        is_end = self._ended_epoch == (self.epoch, self.step) or None
        return {"state": self.state, "epoch": self.epoch, "step": self.step, "epoch_finished": is_end}

    def _raise_failure(self) -> None:
        ended = [commit for commit in self._commits if commit.wrapped_future.done()]  # .state would ask the server
        self._commits = [commit for commit in self._commits if commit not in ended]
        for commit in ended:
            commit.result()

    def _finish(self) -> None:
        """Wait for every commit and what follows it; raise the first error."""
        self.manager.flush()
        commits, self._commits = self._commits, []
        for future in commits:
            future.wait()
        for future in commits:
            future.result()


@contextlib.contextmanager
def checkpointing(
    config: CheckpointConfig,
    experiment_name: str,
    state: TrainingState,
    *,
    start: str = "resume",
    save_policy: SavePolicy | None = None,
    retention_policy: RetentionPolicy | None = None,
    deadline_seconds: float = 25.0,
    map_location: Any = "cpu",
) -> Iterator[Checkpoints]:
    """Save and resume the training that a flow runs::

        with checkpointing(config, "digits", state) as checkpoints:
            for epoch in checkpoints.epochs(10):
                for batch in loader:
                    train_step(batch)
                    checkpoints.count_step()
                checkpoints.save({"val_loss": evaluate(model)})

    At entry, the state is restored from the newest checkpoint that verifies. With ``start="fresh"`` it is not, and with
    ``start="from:<id>"`` it is from that one; another attempt of the same flow run then goes on from what it has saved
    itself. Each save returns when the state is copied. At the end, every commit has come to its own end.

    On SIGTERM, the state is saved at the next save or counted step, and the flow run ends. Its state is then called
    ``Preempted``; with ``PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule`` it goes on elsewhere. If the loop comes
    to no such point within ``deadline_seconds``, it ends without that save.

    Raises :class:`~ckpt_lib.errors.ConfigError` outside of a flow, for an unknown ``start``, and for what cannot be
    saved; the errors of :meth:`ckpt_lib.CheckpointManager.resume`; :class:`~ckpt_lib.errors.AlreadyRunningError` where
    a process of this machine trains this run already, as one does whose worker has died; and at its end the error of a
    save that failed.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigError(
            "checkpointing is for flows", expected="a call in a flow run", hint="Elsewhere, use CheckpointManager."
        )
    _check_workers(state)
    own_run_id = None if start == "resume" else context.flow_run.id.hex
    manager = CheckpointManager(
        config, experiment_name, save_policy=save_policy, retention_policy=retention_policy, run_id=own_run_id
    )
    with contextlib.suppress(UnknownMetricError):  # which metrics will come, only the training knows
        manager.check(state)
    key = artifact_key("training", config, experiment_name)
    with (
        _only_one(config, experiment_name, own_run_id),
        keep_manager(manager),
        _task_runner(config) as runner,
        progress_artifact(key, f"Training {experiment_name}", 1.0) as advance,
    ):
        resumed = _begin(manager, state, start, map_location)
        checkpoints = Checkpoints(manager, state, runner, advance, resumed)
        with manager, _ended_by_signal(checkpoints, deadline_seconds):
            yield checkpoints
            checkpoints._finish()


@contextlib.contextmanager
def _only_one(config: CheckpointConfig, experiment_name: str, run_id: str | None) -> Iterator[None]:
    """Keep two trainings of one run apart: a flow run is run again while the process of a dead worker goes on."""
    if sys.platform == "win32":
        yield
        return
    from ckpt_lib.launch.locking import VARIABLE, LaunchLock

    if VARIABLE in os.environ:  # the launch that started this process does that already
        yield
        return

    with contextlib.ExitStack() as stack:
        try:
            name = experiment_name if run_id is None else f"{experiment_name}/{run_id}"
            stack.enter_context(LaunchLock(store_of(config), name, stop_seconds=0))
        except AlreadyRunningError:
            raise
        except LaunchError as error:  # no place for a lock is no reason not to train
            get_run_logger().warning("Nothing keeps a second training of this run away: %s", error)
        yield


def _check_workers(state: TrainingState) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` for worker processes that are forked, which fail in a flow.

    What Prefect runs at the end of a process fails in a forked one, and PyTorch ends the training for that.
    """
    for part in state.parts():
        loader: Any = getattr(part.item, "loader", part.item)
        if part.kind != "data" or not getattr(loader, "num_workers", 0):
            continue
        context = loader.multiprocessing_context
        method = get_start_method() if context is None else context.get_start_method()
        if method == "fork":
            raise ConfigError(
                "the data loader forks its worker processes, and a forked process of a Prefect flow fails at its end",
                expected="worker processes that are not forked from the flow's",
                hint='Pass multiprocessing_context="forkserver" to the DataLoader, or num_workers=0.',
            )


def _task_runner(config: CheckpointConfig) -> ThreadPoolTaskRunner[Any]:
    """Return threads of our own: whatever runs the flow's tasks, a save under way stays in this process."""
    return ThreadPoolTaskRunner(max_workers=config.max_pending_saves + 1)


def _begin(manager: CheckpointManager, state: TrainingState, start: str, map_location: Any) -> Payload | None:
    if start not in ("resume", "fresh") and not start.startswith(_FROM):
        raise ConfigError("start is unknown", expected='"resume", "fresh" or "from:<id>"', got=start)
    resumed = manager.resume(state, map_location=map_location)
    if resumed is None and start.startswith(_FROM):
        resumed = manager.load_checkpoint(start.removeprefix(_FROM), state, map_location=map_location)
    if resumed is not None:
        get_run_logger().info("Going on from %s with epoch %d", resumed["checkpoint_id"], resumed["next_epoch"])
    return resumed


@contextlib.contextmanager
def _ended_by_signal(checkpoints: Checkpoints, deadline_seconds: float) -> Iterator[None]:
    """Save once more when SIGTERM comes, and have the state of the flow run say so."""
    if threading.current_thread() is not threading.main_thread():
        get_run_logger().info("SIGTERM is not handled: the flow does not run in the main thread")
        yield
        return

    preemption = checkpoints.manager.save_on_signal(
        checkpoints._last_save, signals=[signal.SIGTERM], deadline_seconds=deadline_seconds
    )
    try:
        with acknowledging_stops(preemption.handler), preemption:
            checkpoints._safe_point = preemption.safe_point
            yield
    except TerminationSignal:
        end_preempted(checkpoints.manager, f"the training at step {checkpoints.step}")
        raise
