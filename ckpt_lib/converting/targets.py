"""Writes a checkpoint in a format of another program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.converting.accelerate_folder import accelerate_files
from ckpt_lib.converting.files import NewFile, publish
from ckpt_lib.converting.hf_folder import hf_files
from ckpt_lib.converting.hf_trainer import trainer_files
from ckpt_lib.converting.lightning import MODEL_NAME, lightning_contents
from ckpt_lib.converting.names import OF_TRAININGS
from ckpt_lib.converting.options import ConversionOptions
from ckpt_lib.converting.safetensors_files import safetensors_files
from ckpt_lib.converting.torch_files import script_contents, torch_file
from ckpt_lib.converting.training_parts import refuse_only_model
from ckpt_lib.converting.weights import weights_of
from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY, MODEL_KEY, PAYLOAD_KEYS
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.store import Store, location, open_store
from ckpt_lib.store.registry import url_text

_SUFFIXES = {"torch": ".pt", "lightning": ".ckpt", "safetensors": ".safetensors"}


@dataclass(frozen=True)
class Conversion:
    """What a conversion made."""

    path: str
    """The file; of several, the index that names them; for a format that is a folder, the folder."""
    format: str
    files: tuple[str, ...]
    """The names of all files, in the folder that they lie in."""
    size_bytes: int
    """The size of all files together."""
    left_out: tuple[str, ...] = field(default=())
    """What is not in it, or not as it was: one sentence each."""


@dataclass(frozen=True)
class Target:
    """Where the result goes: a folder, and the name of the file in it."""

    store: Store
    name: str
    """Empty for a result that is a folder."""


def target_of(destination: str | os.PathLike[str], options: ConversionOptions, title: str) -> Target:
    """Return where a result goes. In a folder, which ends with a slash or exists, the file is called ``title``."""
    place = url_text(destination).replace(os.sep, "/")
    suffix = _SUFFIXES.get(options.format)
    if suffix is None:
        return Target(open_store(place), "")
    if place.endswith("/") or os.path.isdir(location(open_store(place))):
        return Target(open_store(place), f"{title}{suffix}")
    parent, _, name = place.rpartition("/")
    if options.format == "safetensors" and not name.endswith(suffix):
        name += suffix
    return Target(open_store(parent or ("/" if place.startswith("/") else ".")), name)


def write_as(payload: Mapping[str, Any], target: Target, options: ConversionOptions) -> Conversion:
    """Write a payload of stored tensors, durably and all or nothing; see :func:`ckpt_lib.converting.files.publish`.

    Raises :class:`~ckpt_lib.errors.UnsupportedStateError` for what the format cannot hold,
    :class:`~ckpt_lib.errors.ConfigError` for numbers that the wanted type cannot hold, and
    :class:`~ckpt_lib.errors.CheckpointExistsError` when another file has its name; nothing is written then.
    """
    if options.only_model and not payload.get(MODEL_KEY):
        raise UnsupportedStateError("the checkpoint holds no model", hint="Convert all of it.")
    files, notes = _files(payload, target.name, options)
    publish(target.store, files, options.progress)
    last = files[-1].name if target.name else ""
    names = tuple(file.name for file in files)
    size_bytes = sum(file.size_bytes for file in files)
    return Conversion(location(target.store, last), options.format, names, size_bytes, tuple(notes))


def _files(payload: Mapping[str, Any], name: str, options: ConversionOptions) -> tuple[list[NewFile], list[str]]:
    if options.holds_weights_only:
        return _weight_files(payload, name, options)
    if options.format == "lightning":
        contents, notes = lightning_contents(payload, only_model=options.only_model)
        return [torch_file(name, contents, MODEL_NAME, options.dtype)], notes
    if options.format in OF_TRAININGS:
        return _training_files(payload, options)
    if options.only_model:
        return [torch_file(name, payload[MODEL_KEY], None, options.dtype)], []
    return [torch_file(name, script_contents(payload), MODEL_KEY, options.dtype)], []


def _training_files(payload: Mapping[str, Any], options: ConversionOptions) -> tuple[list[NewFile], list[str]]:
    if options.only_model:
        raise refuse_only_model(options.format)
    if options.format == "hf-trainer":
        return trainer_files(payload, options.dtype, options.max_shard_bytes)
    return accelerate_files(payload, options.dtype)


def _weight_files(payload: Mapping[str, Any], name: str, options: ConversionOptions) -> tuple[list[NewFile], list[str]]:
    if not options.only_model:
        _refuse_more(payload, options)
    weights = weights_of(payload, options.dtype)
    if options.format == "hf-folder":
        return hf_files(weights, payload.get("config") or {}, options.dtype, options.max_shard_bytes)
    notes = [
        f"{shown(other)} is the same memory as {shown(kept)}: stored once, and noted as save_model notes it."
        for other, kept in weights.tied.items()
    ]
    stem = name.removesuffix(_SUFFIXES["safetensors"])
    return safetensors_files(weights, stem, options.max_shard_bytes), notes


def _refuse_more(payload: Mapping[str, Any], options: ConversionOptions) -> None:
    keys = (key for key in (*PAYLOAD_KEYS.values(), EXTRA_STATE_KEY) if key != MODEL_KEY)
    if found := [key for key in keys if payload.get(key)]:
        raise UnsupportedStateError(
            f"{options.format} holds the weights of a model only, and the checkpoint holds more",
            got=", ".join(found),
            hint="Say that only the weights are wanted (--only model), or convert it to the format torch.",
        )
