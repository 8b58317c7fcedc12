"""``CheckpointConfig``: the options of a manager. It is frozen, and refused as a whole when one option is wrong."""

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
from ckpt_lib.core.yaml_files import read_yaml
from ckpt_lib.errors import ConfigError

OnMissingMetric = Literal["warn", "raise"]
OnSaveFailure = Literal["raise", "warn"]

LIMIT_64 = 2**63  # the pages and events of Prefect carry no larger numbers


class CheckpointConfig(BaseModel):
    """How one experiment's checkpoints are saved, checked, kept and backed up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_dir: str = Field(
        default="checkpoints", min_length=1, description="Root of the store: a path or file:// URL."
    )
    save_interval: int = Field(default=1, ge=1, lt=LIMIT_64, description="Save when the epoch is a multiple of this.")
    max_checkpoints: int = Field(
        default=10,
        ge=0,
        lt=LIMIT_64,
        description="How many checkpoints stay: the best and the newest others. Pinned and damaged checkpoints are "
        "kept in addition and do not count. The last valid and the best one stay whatever the number.",
    )
    save_best_only: bool = Field(default=False, description="Save only when monitor_metric improves.")
    monitor_metric: str = Field(default="val_loss", min_length=1, description="The metric that decides which is best.")
    monitor_mode: Mode = Field(default="min", description="Whether a smaller or a larger monitor_metric is better.")
    save_optimizer: bool = Field(default=True, description="Store the optimizer state.")
    save_scheduler: bool = Field(default=True, description="Store the learning-rate scheduler state.")
    save_metadata: bool = Field(
        default=True,
        description="Record config and library versions in the manifest, and keep checkpoint_metadata.json. "
        "The manifest itself is always written: it is the commit.",
    )
    compression: bool = Field(default=False, description="Compress payloads. Not available yet: True is refused.")
    backup_checkpoints: bool = Field(default=True, description="Copy each saved checkpoint to the backup location.")
    validate_checkpoints: bool = Field(
        default=True, description="Verify the bytes of a payload before anything is loaded from them."
    )
    verify_after_write: bool = Field(
        default=False,
        description="Read each payload back from the disk before it is committed, and refuse the save when a byte "
        "differs.",
    )
    health_check: bool = Field(
        default=False,
        description="Look for NaN and infinities in the model, the optimizer state and monitor_metric at each save. "
        "An unhealthy checkpoint is saved and kept, but is never the best, nor what resume() goes on from.",
    )
    cache_size_bytes: int = Field(
        default=0,
        ge=0,
        lt=LIMIT_64,
        description="How much memory may keep whole verified payloads for loading them again; 0 keeps none.",
    )
    backup_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Root of the backups. Default: the folder backups/ inside the experiment.",
    )
    backup_only_best: bool = Field(
        default=False, description="Back up only checkpoints that are the best so far, instead of each one."
    )
    max_backups: int = Field(
        default=10, ge=0, lt=LIMIT_64, description="Like max_checkpoints, for the backup location."
    )
    on_missing_metric: OnMissingMetric = Field(
        default="warn",
        description="What a save does when monitor_metric is not among its metrics and no checkpoint of the experiment "
        "has it: warn once, naming the metrics there are, or raise the error and save nothing.",
    )
    fallback_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Root of a store, best on a disk of this machine, that saves go to when checkpoint_dir fails. They "
        "come home by the next save that does not fail, or by `ckpt reconcile`.",
    )
    on_save_failure: OnSaveFailure = Field(
        default="raise",
        description="What a save does when the store fails, and fallback_dir, if there is one, does too: raise the "
        "error, or warn and return None, so that training goes on.",
    )
    trash_seconds: float = Field(
        default=86_400.0,
        ge=0,
        allow_inf_nan=False,
        description="For how long what was deleted, by name or by a cleanup, can be brought back. Its bytes are freed "
        "afterwards; 0 frees them at once. What is retired after a save is always freed at once.",
    )
    max_pending_saves: int = Field(
        default=1,
        ge=1,
        lt=LIMIT_64,
        description="How many background saves may be under way; each takes memory for a copy of the state. "
        "One more waits.",
    )
    overlap_copy: bool = Field(
        default=False,
        description="True says that nothing writes to parameters or optimizer state between a background save and the "
        "next step of the optimizer: they are then copied while the next forward and backward pass run, and the step "
        "waits for what is left. A write that PyTorch counts fails the save.",
    )

    if not TYPE_CHECKING:  # type checkers know the options from the fields

        def __init__(self, **options: Any) -> None:
            # So that a wrong option raises our one error instead of pydantic's, through every door.
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise config_error(error, hint=_OPTIONS_HINT, options=type(self).model_fields) from None

    @field_validator("checkpoint_dir", "backup_dir", "fallback_dir", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        # Kept as text: a Path would fold the two slashes of a URL into one.
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("checkpoint_dir", "backup_dir", "fallback_dir")
    @classmethod
    def _without_nul(cls, value: str | None) -> str | None:
        # Half a character cannot be encoded, which is a ValueError too.
        if value is not None and b"\0" in os.fsencode(value):
            raise ValueError("a path cannot hold a NUL character")
        return value

    @field_validator("compression")
    @classmethod
    def _not_compressed(cls, value: bool) -> bool:
        if value:
            raise ValueError("this version writes no compressed payloads; leave compression=False")
        return value

    def __getstate__(self) -> dict[Any, Any]:
        # Whoever unpickles it may have another working directory, and is to find the same folders.
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
    """The same fields, filled from the environment."""

    model_config = SettingsConfigDict(env_prefix="CKPT_", extra="ignore", frozen=True)


def located(config: CheckpointConfig) -> CheckpointConfig:
    """Return the same options with absolute paths, which mean the same in every working directory."""
    return config.model_copy(update=_places(config))


def _places(config: CheckpointConfig) -> dict[str, str]:
    places = ((option, getattr(config, option)) for option in _PLACES)
    return {option: _absolute(place) for option, place in places if place is not None}


def _absolute(place: str) -> str:
    """A path as the store at it reads it; a URL that is not of this machine's files stays as it is."""
    return strip_protocol(place) if split_protocol(place)[0] in (None, "file", "local") else place


def is_monitor_given(config: CheckpointConfig) -> bool:
    """Return whether the monitor was chosen, if only by writing the defaults out."""
    return not {"monitor_metric", "monitor_mode"}.isdisjoint(config.model_fields_set)


_PLACES = ("checkpoint_dir", "backup_dir", "fallback_dir")
_MAX_PROBLEMS = 10
_OPTIONS_HINT = "CheckpointConfig.model_fields lists the options with their meaning."


def config_error(error: ValidationError, *, hint: str | None = None, options: Iterable[str] = ()) -> ConfigError:
    """pydantic's error about some of ``options``, as ours."""
    found = error.errors(include_url=False)
    problems = [_problem(item, options) for item in found[:_MAX_PROBLEMS]]
    if len(found) > _MAX_PROBLEMS:
        problems.append(f"and {len(found) - _MAX_PROBLEMS} more")
    return ConfigError("; ".join(problems), hint=hint)


def _problem(item: ErrorDetails, options: Iterable[str]) -> str:
    text = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:  # what is wrong with the options together has no place among them
        return text
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        close = closest(name, options)
        text = "there is no such option" + (f" (did you mean {close}?)" if close else "")
    return f"{name[:100]}={briefly(item['input'])}: {text}"
