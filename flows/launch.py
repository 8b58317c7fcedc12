"""``launch``: run ``torchrun`` or any other training command, and restart it until it is done."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from uuid import uuid4

from prefect import flow, get_run_logger
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import LaunchError
from ckpt_lib.launch.launcher import Launcher, LaunchRequest
from ckpt_lib.launch.report import LaunchReport
from ckpt_lib.launch.restarts import RestartPolicy
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.tasks import report_launch
from prefect_checkpoints.tasks._preempted import end_preempted


@flow(name="launch", flow_run_name="launch {experiment_name}", **KEPT_RESULT)
def launch(
    config: CheckpointConfig,
    experiment_name: str,
    command: list[str] | str,
    *,
    max_restarts: int = 3,
    max_fruitless_restarts: int = 1,
    restart_delay_seconds: float = 10.0,
    stall_minutes: float | None = None,
    stop_deadline_seconds: float = 60.0,
    environment: dict[str, str] | None = None,
    working_directory: str | None = None,
) -> LaunchReport:
    """Run a training command as a child process, and restart it until it is done.

    The command finds its experiment by CheckpointManager.from_env(), and resumes by itself. Its output is in the run's
    log. When this run is cancelled or asked to stop, or its process is killed, the command gets time to save, and then
    it and all that it has started are ended; the next launch of the experiment on this machine waits for that. After
    SIGTERM, the run's state is Preempted. The run fails if the command did not get done. Returns how each attempt
    ended.

    Args:
        config: The store and its options, handed to the command as CKPT_ variables.
        experiment_name: The experiment that the command saves to.
        command: The program and its arguments; a text is split into words, but no shell runs it.
        max_restarts: How often to restart a command that failed, hung or was killed.
        max_fruitless_restarts: How many restarts in a row may follow attempts that made no checkpoint.
        restart_delay_seconds: Wait before a restart; doubled after each attempt without a checkpoint.
        stall_minutes: Stop and restart the command if it makes no checkpoint for so long.
        stop_deadline_seconds: Time to save after SIGTERM, before SIGKILL.
        environment: Further variables for the command.
        working_directory: The folder to run the command in.
    """
    require_absolute(config)
    request = LaunchRequest(
        command,
        config,
        experiment_name,
        launch_id=str(flow_run.id or uuid4()),
        restarts=RestartPolicy(max_restarts, max_fruitless_restarts, restart_delay_seconds),
        stall_seconds=None if stall_minutes is None else 60 * stall_minutes,
        stop_seconds=stop_deadline_seconds,
        environment=environment,
        directory=working_directory,
    )
    manager, logger = CheckpointManager(config, experiment_name), get_run_logger()

    def ids() -> list[str]:
        return [*manager.checkpoint_ids(), *(item.checkpoint_id for item in manager.list_stranded())]

    log_line, tell = partial(_log, logger.info), partial(_log, logger.warning)
    launcher = Launcher(request, ids, log_line=log_line, tell=tell)
    report = launcher.run()
    if launcher.stopped_by is not None:
        tell(str(report))
        # Not as a task: those of a run that is being cancelled do not run.
        report_launch.fn(config, experiment_name, report)
        if isinstance(launcher.stopped_by, TerminationSignal):
            end_preempted(manager, f"the launch ({report.progress})")
        raise launcher.stopped_by
    report_launch(config, experiment_name, report)
    if report.outcome != "done":
        raise LaunchError(f"the command did not get done: {report}", report=report)
    return completed(report, str(report))


def _log(log: Callable[..., None], text: str) -> None:
    """Log a text, also when the worker that reads this process's console was killed.

    Prefect writes to the console by Rich, which then ends the program, once; the server has got the text before.
    """
    with suppress(SystemExit):
        log("%s", text)
