"""Folders of a model as the libraries of Hugging Face save it, and checkpoints of their Trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.wording import listed
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.base import Facts, ForeignCheckpoint
from ckpt_lib.foreign.folders import folder_checkpoint, numbered_names, present
from ckpt_lib.foreign.json_files import number, read_json
from ckpt_lib.foreign.random_states import with_random_states
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.torch_parts import read_torch
from ckpt_lib.foreign.weights import (
    MODEL_STEMS,
    OTHER_STEMS,
    SHARDED_MODEL,
    SHARDED_OPTIMIZER,
    Weights,
    has_shards,
    read_shards,
    read_weights,
    weights_name,
)

STATE_FILE = "trainer_state.json"
ARGUMENTS_FILE = "training_args.bin"
_CONFIG_FILES = ("config.json", "adapter_config.json")
_TRAINER_KEYS = {
    **{name: name for name in ("model", "optimizer", "scheduler", "config")},
    "scaler": "others",
    "trainer_state": "extra_state",
}
_RNG_FILE = re.compile(r"rng_state(?:_(\d+))?\.pth")
_RNG_KEYS = {"python": "python", "numpy": "numpy", "torch": "cpu", "cuda": "cuda"}
_NO_METRIC = re.compile(r"epoch|step|.*(?:_per_second|runtime|total_flos)")
_CHECKPOINT_TITLE = re.compile(r"checkpoint-\d+")


class HuggingFaceModel:
    """A folder with the weights of a model, and its configuration if it has one."""

    name = "huggingface"

    def recognises(self, files: FoundFiles) -> bool:
        return _model_name(files) is not None

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        weights, config = _weights(files), _config(files)
        findings = list(weights.findings)
        if _CHECKPOINT_TITLE.fullmatch(files.title):
            findings.append(
                f"The folder is named as a checkpoint of a Trainer, but holds no {STATE_FILE}: the save did not end, "
                "or someone has removed the file."
            )
        return folder_checkpoint(
            self.name,
            "a model folder of Hugging Face",
            files,
            present(model=weights.tensors, config=config or None),
            {"model": "model", "config": "config"},
            facts=Facts(writer=_writer(config), config=config),
            left_out=_not_opened(files),
            findings=findings,
        )


class TrainerCheckpoint:
    """A folder ``checkpoint-500`` of the Trainer of Transformers."""

    name = "hf-trainer"

    def recognises(self, files: FoundFiles) -> bool:
        if STATE_FILE in files.sizes_bytes:
            return _has_weights(files) or not any("/" in name for name in files.names)
        marks = ("optimizer.pt", "scheduler.pt")
        return any(name in marks or _RNG_FILE.fullmatch(name) for name in files.names)

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        """Describe a checkpoint. The Trainer writes its own state last, so that a folder without it is refused."""
        if STATE_FILE not in files.sizes_bytes:
            raise _half_written(files, STATE_FILE)
        if not _has_weights(files):
            raise _half_written(files, "model.safetensors")
        state, weights, config = read_json(files, STATE_FILE), _weights(files), _config(files)
        contents = present(
            model=weights.tensors,
            optimizer=_optimizer(files),
            scheduler=_torch_part(files, "scheduler.pt"),
            scaler=_torch_part(files, "scaler.pt"),
            trainer_state=state,
            config=config or None,
        )
        found = folder_checkpoint(
            self.name,
            "a checkpoint of the Hugging Face Trainer",
            files,
            contents,
            _TRAINER_KEYS,
            facts=_facts(state, config),
            left_out=_not_opened(files),
            findings=weights.findings,
        )
        return with_random_states(found, files, numbered_names(files, _RNG_FILE), _RNG_KEYS)


def _model_name(files: FoundFiles) -> str | None:
    return weights_name(files, *MODEL_STEMS) or weights_name(files, *OTHER_STEMS)


def _has_weights(files: FoundFiles) -> bool:
    return _model_name(files) is not None or has_shards(files, SHARDED_MODEL)


def _weights(files: FoundFiles) -> Weights:
    name = _model_name(files)
    if name is None:
        return Weights(read_shards(files, SHARDED_MODEL, "model"), (SHARDED_MODEL,))
    return read_weights(files, name)


def _optimizer(files: FoundFiles) -> Any:
    if has_shards(files, SHARDED_OPTIMIZER):
        return read_shards(files, SHARDED_OPTIMIZER, "optimizer")
    return _torch_part(files, "optimizer.pt", "optimizer.bin")


def _config(files: FoundFiles) -> dict[str, Any]:
    name = next((name for name in _CONFIG_FILES if name in files.sizes_bytes), None)
    return {} if name is None else dict(read_json(files, name))


def _writer(config: Mapping[str, Any]) -> str | None:
    for library in ("transformers", "diffusers", "peft"):
        version = config.get(f"{library}_version", config.get(f"_{library}_version"))
        if isinstance(version, str):
            return f"{library} {version}"
    return None


def _torch_part(files: FoundFiles, *names: str) -> Any:
    """Return what the first of these files holds; ``None`` if there is none of them."""
    name = next((name for name in names if name in files.sizes_bytes), None)
    return None if name is None else read_torch(files, name)


def _facts(state: Mapping[str, Any], config: Mapping[str, Any]) -> Facts:
    epoch, step = number(state.get("epoch")), number(state.get("global_step"))
    return Facts(
        writer=_writer(config) or "transformers",
        epoch=int(epoch) if epoch is not None and math.isfinite(epoch) else None,
        step=step if isinstance(step, int) else None,
        metrics=metrics_of(state),
        config=config,
    )


def metrics_of(state: Mapping[str, Any]) -> dict[str, float]:
    """Return each metric as it was logged last, and the best value of the one that the best model is chosen by."""
    history = state.get("log_history")
    metrics: dict[str, float] = {}
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict):
            found = {name: number(value) for name, value in entry.items() if not _NO_METRIC.fullmatch(name)}
            metrics.update({name: float(value) for name, value in found.items() if value is not None})
    best = number(state.get("best_metric"))
    return metrics if best is None else {**metrics, "best_metric": float(best)}


def _half_written(files: FoundFiles, missing: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"the checkpoint of a Trainer is half-written: it lacks {missing}",
        path=files.path,
        hint="Take the checkpoint before it.",
    )


def _not_opened(files: FoundFiles) -> list[str]:
    """Return which files of a folder of Hugging Face are left out, and why."""
    left_out = []
    if ARGUMENTS_FILE in files.sizes_bytes:
        left_out.append(f"{ARGUMENTS_FILE} is a pickle of a class of its own program, and was not opened.")
    if shards := sorted({name.partition("/")[0] for name in files.names if name.startswith("global_step")}):
        left_out.append(f"{listed(shards)}: the shards of DeepSpeed's optimizer; zero_to_fp32.py joins the weights.")
    return left_out
