"""From the options of a command to the manager it works with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_lib.errors import ConfigError, ExperimentNotFoundError, NotAStoreError, StoreUnavailableError

# The core is imported by the functions that use it, so that `ckpt --help` answers at once.
if TYPE_CHECKING:
    from ckpt_lib.config import CheckpointConfig
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.store import Store


def read_config(store: str | None, config_file: Path | None, **options: Any) -> CheckpointConfig:
    """The configuration: options of the command before the environment before the file before defaults.

    Only what was said is set: a default must not look like a choice of the monitored metric.
    """
    from ckpt_lib.config import CheckpointConfig

    said: dict[str, Any] = {}
    if config_file is not None:
        said |= CheckpointConfig.from_yaml(config_file).model_dump(exclude_unset=True)
    said |= CheckpointConfig.from_env().model_dump(exclude_unset=True)
    if store is not None:
        said["checkpoint_dir"] = store
    return CheckpointConfig(**said | {name: value for name, value in options.items() if value is not None})


def open_manager(
    store: str | None,
    experiment: str | None,
    config_file: Path | None,
    *,
    may_be_new: bool = False,
    **options: int | None,
) -> CheckpointManager:
    """The manager of the experiment that is meant. Nothing is created.

    ``may_be_new`` allows a named experiment that the store does not hold (yet, or any more). ``options`` of the
    configuration that are ``None`` are not set.
    """
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.store import open_store

    config = read_config(store, config_file, **options)
    name = _experiment_name(open_store(config.checkpoint_dir), experiment, may_be_new=may_be_new)
    return CheckpointManager(config, name)


def open_copies(
    store: str | None, experiment: str | None, config_file: Path | None, *, backups: bool, **options: int | None
) -> CheckpointManager:
    """The manager for a command that is about checkpoints or, with ``backups``, about these.

    They may be all that is left of an experiment.
    """
    from ckpt_lib.experiment.listing import check_experiment_exists
    from ckpt_lib.store import open_store

    manager = open_manager(store, experiment, config_file, may_be_new=backups, **options)
    if backups:
        require_backup_location(manager)
        elsewhere = open_store(manager.config.backup_dir) if manager.config.backup_dir else None
        check_experiment_exists(open_store(manager.config.checkpoint_dir), manager.experiment_name, backups=elsewhere)
    return manager


def require_backup_location(manager: CheckpointManager) -> None:
    """Raise ``StoreUnavailableError`` if the backup location cannot be listed, whatever the reason."""
    try:
        manager.backup_ids()
    except NotAStoreError as error:
        raise StoreUnavailableError(
            "the backup location cannot be read",
            path=error.path,
            got=error.message,
            hint="Mount its disk, or change backup_dir.",
        ) from error


def _experiment_name(store: Store, name: str | None, *, may_be_new: bool) -> str:
    from ckpt_lib.core.names import check_experiment_name
    from ckpt_lib.core.wording import listed
    from ckpt_lib.experiment.listing import check_experiment_exists, list_experiments

    if name is not None:
        return check_experiment_name(name) if may_be_new else check_experiment_exists(store, name)
    known = list_experiments(store)
    if not known:
        raise ExperimentNotFoundError(
            "the store holds no experiments yet", path=store.location(""), hint="The first save of a training adds one."
        )
    if len(known) > 1:
        raise ConfigError(
            f"the store holds {len(known)} experiments, and none was named",
            path=store.location(""),
            expected=f"--experiment with one of {listed(known, most=20)}",
        )
    return known[0]


def resolve(manager: CheckpointManager, name: str, *, backups: bool = False) -> str:
    """The id that ``name`` stands for, among the checkpoints or the backups.

    An id stands for itself: its checkpoint may be damaged or gone.
    """
    from ckpt_lib.core.names import is_checkpoint_id

    if is_checkpoint_id(name):
        return name
    return (manager.get_backup if backups else manager.get_checkpoint)(name).checkpoint_id


def resolve_all(manager: CheckpointManager, names: Sequence[str], *, backups: bool = False) -> list[str]:
    """The ids that ``names`` stand for, each once."""
    return list(dict.fromkeys(resolve(manager, name, backups=backups) for name in names))


def check_ids_or_all(names: Sequence[str] | None, *, everything: bool) -> None:
    """Refuse a command line that names checkpoints and asks for all of them as well."""
    if names and everything:
        raise ConfigError("either checkpoints are named or --all is given, not both", got=" ".join(names))
