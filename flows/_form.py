"""Options of the configuration that the run forms of flows show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from ckpt_lib import CheckpointConfig


@dataclass(frozen=True)
class _Shows:
    """Limits the JSON schema of a ``CheckpointConfig`` to the options that the flow uses.

    The other options stay valid, so that a caller may pass a whole configuration. Unknown options are refused.
    """

    options: tuple[str, ...]

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        schema["properties"] = {name: schema["properties"][name] for name in self.options}
        del schema["additionalProperties"]
        schema["propertyNames"] = {"enum": list(CheckpointConfig.model_fields)}
        return reference


def _default(options: tuple[str, ...]) -> FieldInfo:
    """Return a field with the default that the form shows."""
    default = CheckpointConfig().model_dump(include=set(options))
    field: FieldInfo = Field(json_schema_extra={"default": default})
    return field


_VALIDATION = ("checkpoint_dir", "backup_dir", "backup_checkpoints", "backup_only_best", "max_backups", "trash_seconds")
_CLEANUP = ("checkpoint_dir", "max_checkpoints", "backup_dir", "max_backups", "trash_seconds")
_BACKUPS = ("checkpoint_dir", "backup_dir", "max_backups")
_EVALUATION = ("checkpoint_dir", "backup_dir")
_LIFECYCLE = ("checkpoint_dir", "max_checkpoints", "backup_dir", "backup_only_best", "max_backups", "trash_seconds")

ConfigForValidation = Annotated[CheckpointConfig, _Shows(_VALIDATION), _default(_VALIDATION)]
"""The doctor makes missing backups, so it needs the options of backups."""
ConfigForCleanup = Annotated[CheckpointConfig, _Shows(_CLEANUP), _default(_CLEANUP)]
ConfigForBackups = Annotated[CheckpointConfig, _Shows(_BACKUPS), _default(_BACKUPS)]
ConfigForEvaluation = Annotated[CheckpointConfig, _Shows(_EVALUATION), _default(_EVALUATION)]
"""Backups get the metrics that are added to their checkpoints."""
ConfigForLifecycle = Annotated[CheckpointConfig, _Shows(_LIFECYCLE), _default(_LIFECYCLE)]
