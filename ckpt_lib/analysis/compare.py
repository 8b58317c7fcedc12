"""Comparisons of checkpoints: metrics, configuration, tags and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd
import torch

from ckpt_lib.analysis.notebook import Comparison
from ckpt_lib.analysis.results import CheckpointComparison, ComparedFacts, TensorDifference
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.errors import ConfigError
from ckpt_lib.formats import Payload


def compare(checkpoints: Sequence[CheckpointMetadata], names: Sequence[str]) -> CheckpointComparison:
    """Set checkpoints side by side by these names, without their tensors; fewer than two are a ``ConfigError``."""
    if len(checkpoints) < 2:
        raise ConfigError("a comparison needs at least two checkpoints", got=len(checkpoints))
    configs = _columns([_flat(checkpoint.config) for checkpoint in checkpoints])
    tags = dict.fromkeys(tag for checkpoint in checkpoints for tag in checkpoint.tags)
    comparison: CheckpointComparison = {
        "checkpoint_ids": list(names),
        "metrics_comparison": _columns([checkpoint.metrics for checkpoint in checkpoints]),
        "config_comparison": {
            name: values for name, values in configs.items() if any(value != values[0] for value in values)
        },
        "tags_comparison": {tag: [tag in checkpoint.tags for checkpoint in checkpoints] for tag in tags},
        "metadata_comparison": _facts(checkpoints),
    }
    return cast(CheckpointComparison, Comparison(comparison))


def _facts(checkpoints: Sequence[CheckpointMetadata]) -> ComparedFacts:
    return {
        "epoch": [item.epoch for item in checkpoints],
        "step": [item.step for item in checkpoints],
        "timestamp": [item.model_dump(mode="json")["timestamp"] for item in checkpoints],
        "file_size": [item.file_size for item in checkpoints],
        "model_name": [item.model_name for item in checkpoints],
        "is_best": [item.is_best for item in checkpoints],
        "is_latest": [item.is_latest for item in checkpoints],
    }


def metrics_frame(comparison: CheckpointComparison) -> pd.DataFrame:
    """Return a row for each metric: its value in each checkpoint, and the ``change`` from the first to the last."""
    frame = pd.DataFrame.from_dict(
        comparison["metrics_comparison"], orient="index", columns=comparison["checkpoint_ids"], dtype=object
    )
    numeric = frame.apply(pd.to_numeric, errors="coerce")
    return frame.assign(change=numeric.iloc[:, -1] - numeric.iloc[:, 0])


def compare_tensors(reference: Payload, other: Payload) -> dict[str, TensorDifference]:
    """Compare the tensors of two models by name.

    One tensor at a time is converted to float64 (complex ones to complex128): beyond the two payloads, this takes the
    memory of a few copies of the largest tensor.
    """
    first, second = reference[MODEL_KEY], other[MODEL_KEY]
    names = dict.fromkeys((*first, *second))
    return {name: _tensor_difference(first.get(name), second.get(name)) for name in names}


def _tensor_difference(first: Any, second: Any) -> TensorDifference:
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


def _columns(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return for each name its values in all the mappings, ``None`` where it is missing."""
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
