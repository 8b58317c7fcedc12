"""A checkpoint as a folder that ``Accelerator.load_state`` of Accelerate reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ckpt_lib.converting.files import NewFile
from ckpt_lib.converting.random_states import random_states
from ckpt_lib.converting.safetensors_files import safetensors_files
from ckpt_lib.converting.torch_files import torch_file
from ckpt_lib.converting.training_parts import others_of, require_training, scaler_of, states_by_name
from ckpt_lib.converting.weights import weights_of
from ckpt_lib.core.payload_keys import DATA_KEY, EXTRA_STATE_KEY, MODEL_KEY
from ckpt_lib.core.wording import listed, shown

_PROGRAM = "Accelerate"
_CUSTOM = re.compile(r"custom_checkpoint_(\d+)")
_AT_A_BOUNDARY = 0
"""Accelerate's count of batches, by which it tells when gradients are whole. They are, in a checkpoint."""


def accelerate_files(payload: Mapping[str, Any], dtype: torch.dtype | None) -> tuple[list[NewFile], list[str]]:
    """Return the files of the folder, and sentences about what is not in it.

    Several models, optimizers and schedulers are numbered in their order, as Accelerate numbers what it prepares.
    Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for a checkpoint without a model or an optimizer.
    """
    require_training(payload, ("model", "optimizer"), _PROGRAM)
    files: list[NewFile] = []
    notes: list[str] = []
    for ending, model in _numbered(states_by_name(payload, "model").values()):
        weights = weights_of({MODEL_KEY: model}, dtype)
        files += safetensors_files(weights, f"model{ending}", max_shard_bytes=sys.maxsize)  # it reads no index
        notes += [
            f"{shown(name)} is the same memory as {shown(kept)}: stored once." for name, kept in weights.tied.items()
        ]
    for kind in ("optimizer", "scheduler"):
        states = states_by_name(payload, kind).values()
        files += [torch_file(f"{kind}{ending}.bin", state, None, None) for ending, state in _numbered(states)]
    if scaler := scaler_of(payload):
        files.append(torch_file("scaler.pt", scaler, None, None))
    others = _ordered(others_of(payload))
    for number, name in enumerate(others):
        files.append(torch_file(f"custom_checkpoint_{number}.pkl", others[name], None, None))
    states_of_processes, about_random = random_states(payload)
    for number, state in enumerate(states_of_processes):
        files.append(torch_file(f"random_states_{number}.pkl", _random_state(state), None, None))
    return files, [*notes, *about_random, *_about_others(others), *_left_out(payload)]


def _numbered(states: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return ((f"_{number}" if number else "", state) for number, state in enumerate(states))


def _ordered(others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of other objects in Accelerate's order: those that came from it, then the rest as it was."""

    def place(name: str) -> float:
        found = _CUSTOM.fullmatch(name)
        return int(found[1]) if found else float("inf")

    return {name: others[name] for name in sorted(others, key=place)}


def _random_state(state: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "step": _AT_A_BOUNDARY,
        "random_state": state["python"],
        "numpy_random_seed": state["numpy"],
        "torch_manual_seed": state["torch"],
    }
    return {**found, "torch_cuda_manual_seed": state["cuda"]} if "cuda" in state else found


def _about_others(others: Mapping[str, Any]) -> list[str]:
    renamed = [
        f"{shown(name)} is custom_checkpoint_{number}"
        for number, name in enumerate(others)
        if name != f"custom_checkpoint_{number}"
    ]
    return [f"Register as many objects in this order: {listed(renamed, 20)}."] if renamed else []


def _left_out(payload: Mapping[str, Any]) -> list[str]:
    counts = [f"{name} {payload[name]}" for name in ("epoch", "step") if payload.get(name) is not None]
    missing = [*counts, *(name for name in ("metrics", "config", DATA_KEY, EXTRA_STATE_KEY) if payload.get(name))]
    return [f"Accelerate has no place for {', '.join(missing)}: left out."] if missing else []
