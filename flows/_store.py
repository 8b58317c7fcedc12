"""Checks of the store that flows make before they begin."""

from __future__ import annotations

import os

from fsspec.core import split_protocol
from prefect.context import FlowRunContext

from ckpt_lib import CheckpointConfig, list_experiments, open_store
from ckpt_lib.errors import ConfigError


def experiments_of(config: CheckpointConfig, *, allow_missing: bool = False) -> list[str]:
    """Return the names of the experiments in a store, sorted.

    Raises :class:`~ckpt_lib.errors.NotAStoreError` if the store is missing, as on an unmounted disk, unless
    ``allow_missing`` is set, and :class:`~ckpt_lib.errors.ConfigError` as :func:`require_absolute` does.
    """
    require_absolute(config)
    return list_experiments(open_store(config.checkpoint_dir), missing_ok=allow_missing)


def require_absolute(config: CheckpointConfig, **folders: str | None) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` for a relative folder in a run of a deployment.

    A worker would resolve it against its own working directory, and use another store.
    """
    run = FlowRunContext.get()
    if run is not None and run.flow_run is not None and run.flow_run.deployment_id is not None:
        refuse_relative(config, **folders)


def refuse_relative(config: CheckpointConfig, **folders: str | None) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` for a relative folder that a run of a deployment would refuse."""
    folders |= {name: getattr(config, name) for name in ("checkpoint_dir", "backup_dir", "fallback_dir")}
    for name, folder in folders.items():
        if folder is not None and not _is_absolute(folder):
            raise ConfigError(
                f"{name} is relative, but a deployment may run in any folder",
                expected="an absolute path or a URL",
                got=repr(folder),
                hint=f"Set {name} in the deployment's parameters; prefect.yaml takes the store from "
                "CKPT_CHECKPOINT_DIR when it is deployed.",
            )


def _is_absolute(folder: str) -> bool:
    protocol, path = split_protocol(folder)
    return os.path.isabs(path) if protocol in (None, "file", "local") else True
