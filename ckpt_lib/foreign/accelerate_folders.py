"""Folders that ``Accelerator.save_state`` of Hugging Face's Accelerate writes."""

from __future__ import annotations

import re
from typing import Any

from ckpt_lib.core.wording import count_of, listed
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.base import Facts, ForeignCheckpoint
from ckpt_lib.foreign.folders import folder_checkpoint, numbered_names
from ckpt_lib.foreign.random_states import with_random_states
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.torch_parts import read_torch
from ckpt_lib.foreign.weights import (
    MODEL_STEMS,
    SHARDED_MODEL,
    SHARDED_OPTIMIZER,
    Weights,
    has_shards,
    read_shards,
    read_weights,
    weights_name,
)

_RANDOM_FILE = re.compile(r"random_states_(\d+)\.pkl")
_RNG_KEYS = {
    "python": "random_state",
    "numpy": "numpy_random_seed",
    "torch": "torch_manual_seed",
    "cuda": "torch_cuda_manual_seed",
}
_OWN_FILE = re.compile(r"custom_checkpoint_\d+\.pkl")
_MARKS = ("optimizer.bin", "scheduler.bin", "sampler.bin")


class AccelerateFolder:
    """The state of all objects that one ``Accelerator`` has prepared."""

    name = "accelerate"

    def recognises(self, files: FoundFiles) -> bool:
        return any(name in _MARKS or _RANDOM_FILE.fullmatch(name) or _OWN_FILE.fullmatch(name) for name in files.names)

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        models = _models(files)
        if not models:
            raise CorruptCheckpointError(
                "the folder of Accelerate holds no weights of a model",
                path=files.path,
                expected="model.safetensors or pytorch_model.bin",
                hint="The save did not end: weights are written first. Take the checkpoint before it.",
            )
        parts = {
            "model": {name: weights.tensors for name, weights in models.items()},
            "optimizer": _numbered(files, "optimizer"),
            "scheduler": _numbered(files, "scheduler"),
            "others": _others(files),
        }
        found = folder_checkpoint(
            self.name,
            "a folder of Accelerate's save_state",
            files,
            {name: value for found in parts.values() for name, value in found.items()},
            {name: key for key, found in parts.items() for name in found},
            facts=Facts(writer="accelerate"),
            left_out=_left_out(files),
            findings=[finding for weights in models.values() for finding in weights.findings],
        )
        return with_random_states(found, files, numbered_names(files, _RANDOM_FILE), _RNG_KEYS)


def _models(files: FoundFiles) -> dict[str, Weights]:
    """Return the weights of each model: the first is ``model``, the next one ``model_1``."""
    models: dict[str, Weights] = {}
    while True:
        ending = f"_{len(models)}" if models else ""
        name = weights_name(files, *(f"{stem}{ending}" for stem in MODEL_STEMS))
        if name is None and not models and has_shards(files, SHARDED_MODEL):
            models["model"] = Weights(read_shards(files, SHARDED_MODEL, "model"), (SHARDED_MODEL,))
        if name is None:
            return models
        models[f"model{ending}"] = read_weights(files, name)


def _numbered(files: FoundFiles, stem: str) -> dict[str, Any]:
    """Return what ``optimizer.bin``, ``optimizer_1.bin`` and so on hold."""
    found: dict[str, Any] = {}
    if stem == "optimizer" and has_shards(files, SHARDED_OPTIMIZER):
        return {stem: read_shards(files, SHARDED_OPTIMIZER, stem)}
    while (key := f"{stem}_{len(found)}" if found else stem) and f"{key}.bin" in files.sizes_bytes:
        found[key] = read_torch(files, f"{key}.bin")
    return found


def _others(files: FoundFiles) -> dict[str, Any]:
    names = [name for name in files.names if name == "scaler.pt" or _OWN_FILE.fullmatch(name)]
    return {name.partition(".")[0]: read_torch(files, name) for name in names}


def _left_out(files: FoundFiles) -> list[str]:
    left_out = []
    if names := [name for name in files.names if re.fullmatch(r"(sampler|dl_state_dict)(_\d+)?\.bin", name)]:
        left_out.append(f"{listed(names)}: the place in the data belongs to Accelerate's own data loaders.")
    inner = {name.partition("/")[0] for name in files.names if "/" in name}
    if folders := sorted(inner - {SHARDED_MODEL, SHARDED_OPTIMIZER}):
        left_out.append(f"{listed(folders)}: {count_of(len(folders), 'folder')} to name one by one.")
    return left_out
