"""The configuration, manager and checkpoint ids that the options of a command select."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_lib.errors import CheckpointError, ConfigError, ExperimentNotFoundError, NotAStoreError, StoreUnavailableError

# Functions import the core when they use it, so that `ckpt --help` answers at once.
if TYPE_CHECKING:
    from ckpt_lib.config import CheckpointConfig
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.store import Store


def read_config(store: str | None, config_file: Path | None, **options: Any) -> CheckpointConfig:
    """Return the configuration. Options of the command override the environment, which overrides the file.

    Options that were not given stay unset: a default must not look like a choice of the monitored metric.
    """
    from ckpt_lib.config import CheckpointConfig

    given: dict[str, Any] = {}
    if config_file is not None:
        given |= CheckpointConfig.from_yaml(config_file).model_dump(exclude_unset=True)
    given |= CheckpointConfig.from_env().model_dump(exclude_unset=True)
    if store is not None:
        given["checkpoint_dir"] = store
    config = CheckpointConfig(**given | {name: value for name, value in options.items() if value is not None})
    for url in (config.checkpoint_dir, config.backup_dir, config.fallback_dir):
        refuse_memory(url)
    return config


def refuse_memory(url: str | None) -> None:
    """Raise ``ConfigError`` for a store in memory: what a command would write there is lost when it ends."""
    from ckpt_lib.store.registry import scheme_of

    if url is not None and scheme_of(url) == "memory":
        raise ConfigError(
            "a store in memory ends with its process, so no command can find or leave anything there",
            expected="a path or file:// URL",
            got=url,
            hint="In a test or notebook, use CheckpointManager with the same URL.",
        )


def open_manager(
    store: str | None,
    experiment: str | None,
    config_file: Path | None,
    *,
    may_be_new: bool = False,
    **options: int | None,
) -> CheckpointManager:
    """Return the manager of the selected experiment. Nothing is created.

    ``may_be_new`` allows a named experiment that the store does not hold. ``options`` of the configuration that are
    ``None`` stay unset.
    """
    from ckpt_lib.manager import CheckpointManager
    from ckpt_lib.store import open_store

    config = read_config(store, config_file, **options)
    try:
        name = _experiment_name(open_store(config.checkpoint_dir), experiment, may_be_new=may_be_new)
    except (NotAStoreError, ExperimentNotFoundError) as error:
        error.hint = _where_backups_are(config, experiment) or error.hint
        raise
    return CheckpointManager(config, name)


def _where_backups_are(config: CheckpointConfig, experiment: str | None) -> str | None:
    """Say which experiments are left in the backup location, as after the loss of the store's disk; ``None`` if none.

    With the name of an ``experiment``, only that one counts.
    """
    from ckpt_lib.core.wording import listed
    from ckpt_lib.experiment.listing import list_experiments
    from ckpt_lib.store import open_store

    if config.backup_dir is None:
        return None
    try:
        found = list_experiments(open_store(config.backup_dir))
    except (CheckpointError, OSError):  # it holds none, or does not answer
        return None
    left = [name for name in found if experiment in (None, name)]
    if not left:
        return None
    command = "`ckpt list --backups`" if experiment else f"`ckpt list --backups --experiment {left[0]}`"
    return f"Backups of {listed(left, most=10)} are in {config.backup_dir}: {command} lists them."


def open_copies(
    store: str | None, experiment: str | None, config_file: Path | None, *, backups: bool, **options: int | None
) -> CheckpointManager:
    """Return the manager for a command about checkpoints or, with ``backups``, about backups.

    An experiment may consist of backups alone.
    """
    from ckpt_lib.experiment.listing import check_experiment_exists
    from ckpt_lib.store import open_store

    manager = open_manager(store, experiment, config_file, may_be_new=backups, **options)
    if backups:
        tell_of_other_backups(manager)
        require_backup_location(manager)
        elsewhere = open_store(manager.config.backup_dir) if manager.config.backup_dir else None
        check_experiment_exists(open_store(manager.config.checkpoint_dir), manager.experiment_name, backups=elsewhere)
    return manager


def open_each(
    store: str | None, experiment: str | None, config_file: Path | None, *, backups: bool
) -> list[CheckpointManager]:
    """Return the manager of the named experiment or, if none is named, one for each experiment of the store.

    With ``backups``, these are the experiments of which there are backups elsewhere, too.
    """
    from ckpt_lib.experiment.listing import list_experiments

    names: set[str] = set()
    if experiment is None:
        settings = read_config(store, config_file)
        names.update(list_experiments(settings.checkpoint_dir, missing_ok=backups))
        if backups and settings.backup_dir is not None:
            names.update(list_experiments(settings.backup_dir))
    if len(names) < 2:
        return [open_copies(store, experiment or next(iter(names), None), config_file, backups=backups)]
    return [open_copies(store, name, config_file, backups=backups) for name in sorted(names)]


def tell_of_other_backups(manager: CheckpointManager) -> None:
    """Say where runs have backups that this configuration does not name."""
    from ckpt_lib.cli.output import note

    if place := manager.other_backup_dir:
        name = manager.experiment_name
        note(f"Runs of {name} have their backups in {place}: set CKPT_BACKUP_DIR to see them.", warning=True)


def tell_of_no_store(config: CheckpointConfig) -> None:
    """Say that nothing is stored where a server looks: a training may begin later, or the path is mistyped."""
    from ckpt_lib.cli.output import note
    from ckpt_lib.experiment.listing import list_experiments
    from ckpt_lib.store import location, open_store

    store = open_store(config.checkpoint_dir)
    try:
        list_experiments(store)
    except NotAStoreError:
        note(f"No checkpoints are stored at {location(store)} yet: see that the path is right.", warning=True)
    except (CheckpointError, OSError):  # the store does not answer now; each request says so
        return


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
    from ckpt_lib.store import location

    if name is not None:
        return check_experiment_name(name) if may_be_new else check_experiment_exists(store, name)
    known = list_experiments(store)
    if not known:
        raise ExperimentNotFoundError(
            "the store holds no experiments yet", path=location(store), hint="The first save of a run creates one."
        )
    if len(known) > 1:
        raise ConfigError(
            f"the store holds {len(known)} experiments; name one of them",
            path=location(store),
            expected=f"--experiment with one of {listed(known, most=20)}",
        )
    return known[0]


def resolve(manager: CheckpointManager, name: str, *, backups: bool = False) -> str:
    """Return the id that ``name`` stands for among the checkpoints or the backups.

    An id stands for itself, even if its checkpoint is damaged or gone.
    """
    from ckpt_lib.core.names import is_checkpoint_id

    if is_checkpoint_id(name):
        return name
    return (manager.get_backup if backups else manager.get_checkpoint)(name).checkpoint_id


def resolve_all(manager: CheckpointManager, names: Sequence[str], *, backups: bool = False) -> list[str]:
    """Return the ids that ``names`` stand for, each once."""
    return list(dict.fromkeys(resolve(manager, name, backups=backups) for name in names))


def check_ids_or_all(names: Sequence[str] | None, *, everything: bool) -> None:
    """Raise ``ConfigError`` if checkpoints are named although all are asked for."""
    if names and everything:
        raise ConfigError("ids and --all cannot be combined", expected="one of them", got=" ".join(names))
