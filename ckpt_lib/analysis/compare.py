"""Comparing checkpoints: their metrics, configuration, tags and, when asked, their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import ConfigError
from ckpt_lib.formats import Payload

Comparison = dict[str, Any]


def compare(checkpoints: Sequence[CheckpointMetadata]) -> Comparison:
    """Line up what was recorded; every list is in the order of ``checkpoint_ids``, with ``None`` where nothing was.

    Keys: ``checkpoint_ids``; ``metrics_comparison`` and ``config_comparison``, name to values (configuration only
    where it differs); ``tags_comparison``, tag to booleans; ``metadata_comparison``, fact to values.
    """
    if len(checkpoints) < 2:
        raise ConfigError("a comparison needs at least two checkpoints", got=len(checkpoints))
    configs = _lined_up([_flat(checkpoint.config) for checkpoint in checkpoints])
    facts = ("epoch", "step", "timestamp", "file_size", "model_name", "is_best", "is_latest")
    tags = dict.fromkeys(tag for checkpoint in checkpoints for tag in checkpoint.tags)
    plain = [checkpoint.model_dump(mode="json") for checkpoint in checkpoints]
    return {
        "checkpoint_ids": [checkpoint.checkpoint_id for checkpoint in checkpoints],
        "metrics_comparison": _lined_up([checkpoint.metrics for checkpoint in checkpoints]),
        "config_comparison": {
            name: values for name, values in configs.items() if any(value != values[0] for value in values)
        },
        "tags_comparison": {tag: [tag in checkpoint.tags for checkpoint in checkpoints] for tag in tags},
        "metadata_comparison": {fact: [item[fact] for item in plain] for fact in facts},
    }


def metrics_frame(comparison: Comparison) -> pd.DataFrame:
    """One row a metric, one column a checkpoint, and the change from the first to the last of them."""
    frame = pd.DataFrame.from_dict(
        comparison["metrics_comparison"], orient="index", columns=comparison["checkpoint_ids"], dtype=object
    )
    numeric = frame.apply(pd.to_numeric, errors="coerce")
    return frame.assign(change=numeric.iloc[:, -1] - numeric.iloc[:, 0])


def compare_tensors(reference: Payload, other: Payload) -> dict[str, dict[str, Any]]:
    """How each tensor of the models differs: ``max_abs_difference`` and ``relative_l2``, or else the ``shapes``.

    ``relative_l2`` is the Euclidean norm of the difference over that of the reference.

    One tensor at a time is converted to float64 (complex ones to complex128), so that memory stays at the two payloads.
    """
    first, second = reference["model_state_dict"], other["model_state_dict"]
    names = dict.fromkeys((*first, *second))
    return {name: _tensor_difference(first.get(name), second.get(name)) for name in names}


def _tensor_difference(first: Any, second: Any) -> dict[str, Any]:
    shapes = [list(item.shape) if isinstance(item, torch.Tensor) else None for item in (first, second)]
    if None in shapes or shapes[0] != shapes[1]:
        return {"shapes": shapes}
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    a, b = first.detach().to("cpu", wide), second.detach().to("cpu", wide)
    norm = float(torch.linalg.vector_norm(a))
    difference = b - a
    distance = float(torch.linalg.vector_norm(difference))
    return {
        "max_abs_difference": float(difference.abs().max()) if difference.numel() else 0.0,
        "relative_l2": distance / norm if norm else float(distance > 0),
    }


def _lined_up(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    return {name: [mapping.get(name) for mapping in mappings] for name in names}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
