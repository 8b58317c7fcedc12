"""``CheckpointConfig``: the options of a manager."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Self

from fsspec.core import split_protocol, strip_protocol
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.wording import briefly, closest
from ckpt_lib.errors import ConfigError

OnMissingMetric = Literal["warn", "raise"]
OnSaveFailure = Literal["raise", "warn"]
Compression = bool | Literal["zstd"]
BackupMode = Literal["blocking", "background"]

LIMIT_64 = 2**63  # Prefect's forms and events hold no larger numbers


class CheckpointConfig(BaseModel):
    """Options for saving, verifying, keeping and backing up the checkpoints of an experiment.

    Frozen. A wrong option raises :class:`~ckpt_lib.errors.ConfigError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_dir: str = Field(
        default="checkpoints", min_length=1, description="Root of the store: a path or file:// URL."
    )
    save_interval: int = Field(default=1, ge=1, lt=LIMIT_64, description="Save if the epoch is a multiple of this.")
    max_checkpoints: int = Field(
        default=10,
        ge=0,
        lt=LIMIT_64,
        description="How many checkpoints to keep: the best and the newest others. Pinned and damaged checkpoints are "
        "kept in addition and do not count. The newest valid and the best one are kept whatever the number.",
    )
    save_best_only: bool = Field(default=False, description="Save only if monitor_metric improves.")
    monitor_metric: str = Field(default="val_loss", min_length=1, description="The metric that decides which is best.")
    monitor_mode: Mode = Field(default="min", description="Whether a smaller or a larger monitor_metric is better.")
    save_optimizer: bool = Field(default=True, description="Store the optimizer state.")
    save_scheduler: bool = Field(default=True, description="Store the learning-rate scheduler state.")
    save_rng: bool = Field(
        default=True, description="Store the state of Python's, NumPy's and PyTorch's random number generators."
    )
    save_metadata: bool = Field(
        default=True,
        description="Record config and library versions in the manifest, and keep checkpoint_metadata.json. "
        "The manifest itself is always written: it is the commit.",
    )
    format: str = Field(
        default="torch",
        min_length=1,
        description="How payloads are written: torch, safetensors, or a format that another package provides. Loading "
        "reads what was saved in any installed format.",
    )
    compression: Compression = Field(
        default=False,
        description="Compress payloads. True makes weights smallest; zstd writes files that the program zstd reads, "
        "too. Needs the extra prefect-checkpoints[compression]. Loading reads what was saved with and without.",
    )
    backup_checkpoints: bool = Field(default=True, description="Copy each saved checkpoint to the backup location.")
    validate_checkpoints: bool = Field(
        default=True, description="Verify the bytes of a payload before loading from them."
    )
    verify_after_write: bool = Field(
        default=False,
        description="Read each payload back from the disk before committing it, and fail the save if a byte differs.",
    )
    health_check: bool = Field(
        default=False,
        description="Check the model, the optimizer state and monitor_metric for NaN and infinities at each save. "
        "An unhealthy checkpoint is saved and kept, but is never the best, and resume() does not use it.",
    )
    cache_size_bytes: int = Field(
        default=0,
        ge=0,
        lt=LIMIT_64,
        description="Memory for verified payloads that are loaded again; 0 keeps none.",
    )
    backup_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Root of the backups. Default: the folder backups/ inside the experiment.",
    )
    backup_mode: BackupMode = Field(
        default="blocking",
        description="Whether save_checkpoint returns after its backup is made, or after the commit, and a thread makes "
        "the backup in the background. Background saves never wait for backups.",
    )
    backup_deadline_seconds: float = Field(
        default=300.0,
        ge=0,
        allow_inf_nan=False,
        description="How long flush(), close(), save_on_signal() and the end of the process wait for backups in the "
        "background, and a save for a backup location that hangs. What is not done by then is named in the log, and "
        "made with the next backup that succeeds.",
    )
    backup_only_best: bool = Field(default=False, description="Back up only checkpoints that are the best so far.")
    max_backups: int = Field(
        default=10, ge=0, lt=LIMIT_64, description="Like max_checkpoints, for the backup location."
    )
    on_missing_metric: OnMissingMetric = Field(
        default="warn",
        description="What a save does if neither its metrics nor any checkpoint of the experiment has monitor_metric: "
        "warn once and name the existing metrics, or raise an error and save nothing.",
    )
    fallback_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Root of a store, best on a local disk, that saves go to if checkpoint_dir fails. The next "
        "successful save or `ckpt reconcile` moves them to checkpoint_dir. Give each checkpoint_dir its own: what is "
        "here goes to whichever asks first for an experiment of that name.",
    )
    on_save_failure: OnSaveFailure = Field(
        default="raise",
        description="What a save does if checkpoint_dir and fallback_dir, if set, both fail: raise the error, or warn "
        "and return None, so that training continues.",
    )
    single_writer: bool = Field(
        default=False,
        description="Your word that one process alone writes to the experiment: needed where the store cannot keep two "
        "writers apart, as a file system without locks.",
    )
    rank_zero_saves: bool = Field(
        default=True,
        description="In a torch.distributed training, rank 0 alone writes, and the other ranks that make the same call "
        "get its outcome. Without it, each rank acts by itself: for ranks with experiments of their own.",
    )
    index_url: str | None = Field(
        default=None,
        min_length=1,
        description="Database that remembers what the stores hold, so that large experiments answer at once: a URL of "
        "SQLAlchemy's for SQLite or PostgreSQL. Default: a file in the user's cache folder.",
    )
    thin_after: int | None = Field(
        default=None,
        ge=1,
        lt=LIMIT_64,
        description="All but the newest so many checkpoints keep only their weights: they lose the state of optimizer "
        "and scheduler, and no run can resume from them. The best and pinned ones keep everything. Default: all keep "
        "everything.",
    )
    trash_seconds: float = Field(
        default=86_400.0,
        ge=0,
        allow_inf_nan=False,
        description="How long checkpoints deleted by name or by a cleanup can be brought back. Their bytes are freed "
        "afterwards; 0 frees them at once. Retention after a save always frees bytes at once.",
    )
    max_pending_saves: int = Field(
        default=1,
        ge=1,
        lt=LIMIT_64,
        description="How many background saves may run at the same time; each needs memory for a copy of the state. "
        "Further saves wait.",
    )
    overlap_copy: bool = Field(
        default=False,
        description="Copy the state for a background save during the next forward and backward pass; the optimizer's "
        "next step waits for the rest of the copy. Set it only if nothing writes to parameters or optimizer state "
        "before that step. A write that PyTorch counts fails the save.",
    )

    if not TYPE_CHECKING:  # type checkers know the options from the fields

        def __init__(self, **options: Any) -> None:
            # So that a wrong option always raises ConfigError instead of pydantic's error.
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise config_error(error, hint=_OPTIONS_HINT, options=type(self).model_fields) from None

    @field_validator("checkpoint_dir", "backup_dir", "fallback_dir", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        # Keep text: a Path would merge the two slashes of a URL.
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("checkpoint_dir", "backup_dir", "fallback_dir")
    @classmethod
    def _without_nul(cls, value: str | None) -> str | None:
        # fsencode raises ValueError for a lone surrogate, too.
        if value is not None and b"\0" in os.fsencode(value):
            raise ValueError("a path cannot hold a NUL character")
        return value

    @field_validator("index_url")
    @classmethod
    def _names_a_database(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from sqlalchemy.engine import make_url  # it takes a moment to load, and few set this option
        from sqlalchemy.exc import ArgumentError

        try:
            if make_url(value).get_backend_name() in ("sqlite", "postgresql"):
                return value
        except ArgumentError:
            pass
        raise ValueError("expected sqlite:////path/of/a/file or postgresql+psycopg://user@host/database")

    def __getstate__(self) -> dict[Any, Any]:
        # The process that unpickles it may have another working directory, and must find the same folders.
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], **_places(self)}}

    @property
    def monitor(self) -> Monitor:
        """``monitor_metric`` and ``monitor_mode`` as one value."""
        return Monitor(metric=self.monitor_metric, mode=self.monitor_mode)

    @classmethod
    def development(cls, **options: Any) -> Self:
        """Preset for trying things out: save every epoch, keep 5. ``options`` override it."""
        return cls(**{"save_interval": 1, "max_checkpoints": 5, **options})

    @classmethod
    def production(cls, **options: Any) -> Self:
        """Preset for long runs: every 10th epoch if it is the best, keep 20, backed up and verified."""
        preset: dict[str, Any] = {
            "save_interval": 10,
            "max_checkpoints": 20,
            "save_best_only": True,
            "backup_checkpoints": True,
            "validate_checkpoints": True,
        }
        return cls(**{**preset, **options})

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Read options from a YAML mapping; ``options`` override it.

        Raises :class:`ConfigError` for a missing or unreadable file, anything but a mapping, or a wrong option.
        """
        from ckpt_lib.core.yaml_files import read_yaml  # here, as most configurations come from elsewhere

        loaded = read_yaml(path, "the configuration file")
        if loaded is None:
            loaded = {}
        if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
            raise ConfigError(
                "the configuration file is not a mapping of options",
                path=str(path),
                expected="lines such as `save_interval: 5`",
                got=type(loaded).__name__,
            )
        return cls(**{**loaded, **options})

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Read options from ``CKPT_*`` variables, e.g. ``CKPT_SAVE_INTERVAL=5``; ``options`` override them."""
        try:
            found = _Environment().model_dump(exclude_unset=True)
        except ConfigError as error:
            raise ConfigError(f"CKPT_* environment variables: {error.message}", hint=error.hint) from error
        return cls(**{**found, **options})


class _Environment(BaseSettings, CheckpointConfig):
    """``CheckpointConfig`` filled from the environment."""

    model_config = SettingsConfigDict(env_prefix="CKPT_", extra="ignore", frozen=True)


def located(config: CheckpointConfig) -> CheckpointConfig:
    """Return the options with absolute paths, which are valid in every working directory."""
    return config.model_copy(update=_places(config))


def _places(config: CheckpointConfig) -> dict[str, str]:
    places = ((option, getattr(config, option)) for option in _PLACES)
    return {option: _absolute(place) for option, place in places if place is not None}


def _absolute(place: str) -> str:
    """Return a path as an absolute one; a URL of anything but local files is returned unchanged."""
    return strip_protocol(place) if split_protocol(place)[0] in (None, "file", "local") else place


def is_monitor_given(config: CheckpointConfig) -> bool:
    """Return whether the monitor was set explicitly, even if to the default."""
    return not {"monitor_metric", "monitor_mode"}.isdisjoint(config.model_fields_set)


def is_max_backups_given(config: CheckpointConfig) -> bool:
    """Return whether ``max_backups`` was set explicitly: its default may be less than the training keeps."""
    return "max_backups" in config.model_fields_set


_PLACES = ("checkpoint_dir", "backup_dir", "fallback_dir")
_MAX_PROBLEMS = 10
_OPTIONS_HINT = "CheckpointConfig.model_fields lists the options with their meaning."


def config_error(error: ValidationError, *, hint: str | None = None, options: Iterable[str] = ()) -> ConfigError:
    """Turn pydantic's error about options into a ``ConfigError``; ``options`` are the valid names."""
    found = error.errors(include_url=False)
    problems = [_problem(item, options) for item in found[:_MAX_PROBLEMS]]
    if len(found) > _MAX_PROBLEMS:
        problems.append(f"and {len(found) - _MAX_PROBLEMS} more")
    return ConfigError("; ".join(problems), hint=hint)


def _problem(item: ErrorDetails, options: Iterable[str]) -> str:
    text = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:  # an error of several options together
        return text
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        close = closest(name, options)
        text = "there is no such option" + (f" (did you mean {close}?)" if close else "")
    return f"{name[:100]}={briefly(item['input'])}: {text}"
