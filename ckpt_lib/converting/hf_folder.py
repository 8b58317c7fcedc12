"""Weights as a folder that ``from_pretrained`` of Hugging Face's libraries reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ckpt_lib.converting.files import NewFile, text_file
from ckpt_lib.converting.safetensors_files import safetensors_files
from ckpt_lib.converting.weights import Weights
from ckpt_lib.core.wording import shown

STEM = "model"
CONFIG_FILE = "config.json"
_MARKS = ("model_type", "architectures")
_DTYPES = ("dtype", "torch_dtype")
_NO_CONFIG = (
    f"No {CONFIG_FILE} was written: the checkpoint's config holds no configuration of a model, which has a "
    f"{_MARKS[0]}. Put that of the model there."
)


def hf_files(
    weights: Weights, config: Mapping[str, Any], dtype: torch.dtype | None, max_shard_bytes: int
) -> tuple[list[NewFile], list[str]]:
    """Return the files of the folder, and sentences about what is not in it.

    A tensor that shares its memory with another one is dropped: the model ties them again when it is made. Where the
    weights were cast to ``dtype``, the configuration says so: ``from_pretrained`` casts them to what stands there.
    """
    notes = [f"{shown(name)} is the same memory as {shown(kept)}: dropped." for name, kept in weights.tied.items()]
    files = safetensors_files(Weights(weights.tensors), STEM, max_shard_bytes)
    text = next(filter(None, (_as_json(found, dtype) for found in _candidates(config))), None)
    if text is None:
        return files, [*notes, _NO_CONFIG]
    return [*files, text_file(CONFIG_FILE, text)], notes


def _candidates(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what may be the configuration of a model: all of it, or an entry such as ``model_config``."""
    for found in (config, *config.values()):
        if isinstance(found, Mapping) and any(mark in found for mark in _MARKS):
            yield found


def _as_json(config: Mapping[str, Any], dtype: torch.dtype | None) -> bytes | None:
    if dtype is not None:
        config = {**config, **{key: str(dtype).removeprefix("torch.") for key in _DTYPES if key in config}}
    try:
        return f"{json.dumps(config, indent=2, sort_keys=True, allow_nan=False)}\n".encode()
    except (TypeError, ValueError):  # something that is no configuration of theirs
        return None
