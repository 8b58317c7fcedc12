"""A form that makes a configuration, and gives it as YAML and as Python to copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import yaml

from ckpt_lib.config import CheckpointConfig

FIELDS = (
    "checkpoint_dir",
    "save_interval",
    "max_checkpoints",
    "save_best_only",
    "monitor_metric",
    "monitor_mode",
    "save_optimizer",
    "save_scheduler",
    "save_metadata",
    "compression",
    "backup_checkpoints",
    "validate_checkpoints",
)
"""The options of the form; the others are described in the reference of the configuration."""
_LABELS = {
    "checkpoint_dir": "Store",
    "save_interval": "Save every N epochs",
    "max_checkpoints": "Keep at most",
    "save_best_only": "Save only improvements",
    "monitor_metric": "Monitored metric",
    "monitor_mode": "Better is",
    "save_optimizer": "Save the optimizer",
    "save_scheduler": "Save the scheduler",
    "save_metadata": "Save metadata",
    "compression": "Compress",
    "backup_checkpoints": "Make backups",
    "validate_checkpoints": "Verify on load",
}


def field_of(name: str, config: CheckpointConfig) -> gr.Radio | gr.Checkbox | gr.Number | gr.Textbox:
    """Return the component for an option."""
    value, label = getattr(config, name), _LABELS[name]
    if name == "monitor_mode":
        return gr.Radio([("smaller", "min"), ("larger", "max")], value=value, label=label)
    if isinstance(value, bool):
        return gr.Checkbox(value, label=label)
    if isinstance(value, int):
        return gr.Number(value, label=label, precision=0, minimum=0)
    return gr.Textbox(str(value), label=label)


def config_texts(options: Mapping[str, Any], experiment: str) -> tuple[str, str]:
    """Return the configuration as YAML and as Python; only what is not the default.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a wrong option.
    """
    config = CheckpointConfig(**options)
    default = CheckpointConfig()
    chosen = {name: getattr(config, name) for name in FIELDS if getattr(config, name) != getattr(default, name)}
    chosen = {"checkpoint_dir": config.checkpoint_dir} | chosen
    arguments = "".join(f"    {name}={value!r},\n" for name, value in chosen.items())
    python = (
        "from ckpt_lib import CheckpointConfig, CheckpointManager\n\n"
        f"config = CheckpointConfig(\n{arguments})\n"
        f"manager = CheckpointManager(config, {experiment or 'my_experiment'!r})\n"
    )
    return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True), python
