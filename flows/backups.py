"""``manage_backups``: list the backups of an experiment, and delete some."""

from prefect import flow

from ckpt_lib import CheckpointConfig, CheckpointMetadata, open_store
from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.policies.retention import RetentionPolicy
from prefect_checkpoints.flows._form import ConfigForBackups
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed
from prefect_checkpoints.flows._runner import thread_runner
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.tasks import cleanup_backups, delete_backup, list_backups, report_backups, report_cleanup


@flow(name="manage_backups", flow_run_name="backups of {experiment_name}", task_runner=thread_runner(), **KEPT_RESULT)
def manage_backups(
    config: ConfigForBackups = CheckpointConfig(),  # noqa: B008  frozen
    experiment_name: str = "digits",
    delete_ids: tuple[str, ...] = (),
    retention: RetentionPolicy | None = None,
    dry_run: bool = True,
) -> list[CheckpointMetadata]:
    """Publish a list of an experiment's backups; with ``dry_run=False``, delete some first.

    By default, nothing is deleted and a retention plan is published. With ``dry_run=False``, ``delete_ids`` are
    deleted, and then the backups that ``retention`` does not keep or, by default, those beyond ``max_backups``.
    Checkpoints stay. Returns the remaining backups, oldest first.

    Args:
        config: The store and its options.
        experiment_name: An existing experiment; it may consist of backups alone.
        delete_ids: Backups to delete for good, intact or in quarantine.
        retention: Replaces max_backups.
        dry_run: Only list and plan.
    """
    require_absolute(config)
    backups = open_store(config.backup_dir) if config.backup_dir else None
    check_experiment_exists(open_store(config.checkpoint_dir), experiment_name, backups=backups)
    if dry_run and delete_ids:
        raise ConfigError("delete_ids were given, but dry_run is on", expected="dry_run=False", got=str(delete_ids))
    freed_bytes = sum(delete_backup(config, experiment_name, checkpoint_id) for checkpoint_id in delete_ids)
    report = cleanup_backups(config, experiment_name, retention, dry_run)
    report_cleanup(config, experiment_name, report, backups=True)
    report_backups(config, experiment_name)
    left = list_backups(config, experiment_name)
    return completed(left, f"{count_of(len(left), 'backup')}; {size_text(freed_bytes + report.freed_bytes)} freed")
