"""``checkpoint_job``: a job of the REST API as a flow run."""

from collections.abc import Callable
from typing import Any

from prefect import flow
from prefect.states import Failed

from ckpt_lib import CheckpointConfig, open_store
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import CheckpointError
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.web.job import ending_of
from ckpt_lib.web.operations import AnyWork, Outcome
from ckpt_lib.web.problems import problem_of
from prefect_checkpoints.flows._job_outcomes import report_outcomes, report_problem
from prefect_checkpoints.flows._job_progress import job_progress
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed
from prefect_checkpoints.flows._runner import thread_runner
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.tasks._options import manager_for
from prefect_checkpoints.tasks._step import run_step
from prefect_checkpoints.tasks.report import artifact_key


@flow(
    name="checkpoint_job",
    flow_run_name="{work.operation} {experiment_name}",
    task_runner=thread_runner(),
    **KEPT_RESULT,
)
def checkpoint_job(
    config: CheckpointConfig, experiment_name: str, work: AnyWork, checkpoint_ids: list[str] | None = None
) -> list[Outcome]:
    """Validate, back up, restore or repair checkpoints, as a job of the REST API.

    Each checkpoint is a task run, which is tried again if the store did not answer. A checkpoint that fails does not
    prevent the others; the run fails then. It may be killed and started again: what is done is left as it is. Returns
    an outcome for each checkpoint, and publishes them.

    Args:
        config: The store and its options.
        experiment_name: An existing experiment; it may consist of backups alone.
        work: The operation and, where it is on checkpoints, their names, or "all" for all of them.
        checkpoint_ids: What the names stood for when the job was started. By default, they are resolved now.
    """
    require_absolute(config)
    title = f"{work.operation} {experiment_name}"
    try:
        outcomes = _do(config, experiment_name, work, checkpoint_ids, title)
    except CheckpointError as error:
        report_problem(artifact_key("job", config, experiment_name), title, problem_of(error))
        raise
    report_outcomes(artifact_key("job", config, experiment_name), title, outcomes)
    problem = ending_of(outcomes).problem
    if problem is not None:
        return Failed(message=problem.detail)  # type: ignore[return-value]
    return completed(outcomes, f"{work.operation}: {count_of(len(outcomes), 'checkpoint')}")


def _do(
    config: CheckpointConfig, experiment_name: str, work: AnyWork, checkpoint_ids: list[str] | None, title: str
) -> list[Outcome]:
    backups = open_store(config.backup_dir) if config.backup_dir else None
    check_experiment_exists(open_store(config.checkpoint_dir), experiment_name, backups=backups)
    manager = manager_for(config, experiment_name)
    ids = work.resolve(manager) if checkpoint_ids is None else checkpoint_ids
    key = artifact_key("job-progress", config, experiment_name)
    with job_progress(key, title, work.total_bytes(manager, ids)) as progress:

        def step(checkpoint_id: str, call: Callable[[], Any]) -> Any:
            before = progress.done_bytes

            def attempt() -> Any:
                progress.rewind(before)
                return call()

            return run_step(f"{work.operation} {checkpoint_id}", attempt)

        return work.do(manager, ids, progress, step)
