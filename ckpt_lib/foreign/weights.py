"""Finds the weights of a model in a folder: in one file, or in several that an index names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_lib.core.wording import count_of, listed, shown
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.foreign.dcp_folders import dcp_contents
from ckpt_lib.foreign.dcp_metadata import METADATA_FILE
from ckpt_lib.foreign.json_files import read_json
from ckpt_lib.foreign.safetensors_files import tensors_of
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.torch_parts import read_torch
from ckpt_lib.foreign.tree import tensors_in

INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", f".safetensors{INDEX_SUFFIX}", ".bin", f".bin{INDEX_SUFFIX}")
"""In the order in which the libraries of Hugging Face look for them."""
MODEL_STEMS = ("model", "pytorch_model", "pytorch_model_fsdp")
OTHER_STEMS = ("adapter_model", "diffusion_pytorch_model")
"""Of PEFT and Diffusers."""


SHARDED_MODEL, SHARDED_OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"
"""Folders that Accelerate and the Trainer have the processes of FSDP save into."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one model by name, and the files that hold them."""

    tensors: Mapping[str, Any]
    file_names: tuple[str, ...]
    findings: tuple[str, ...] = ()


def weights_name(files: FoundFiles, *stems: str) -> str | None:
    """Return the file or index of the weights in a folder, as the libraries of Hugging Face choose among several."""
    names = (f"{stem}{suffix}" for suffix in SUFFIXES for stem in stems)
    return next((name for name in names if name in files.sizes_bytes), None)


def has_shards(files: FoundFiles, folder: str) -> bool:
    """Tell whether torch.distributed.checkpoint has saved into a folder within this one."""
    return f"{folder}/{METADATA_FILE}" in files.sizes_bytes


def read_shards(files: FoundFiles, folder: str, key: str) -> Any:
    """Describe what torch.distributed.checkpoint has saved under a key into a folder within this one.

    Raises as :func:`~ckpt_lib.foreign.dcp_folders.dcp_contents` does, and
    :class:`~ckpt_lib.errors.UnsupportedFormatError` for transformed bytes.
    """
    contents, obstacle = dcp_contents(files.below(folder))
    if obstacle is not None:
        raise UnsupportedFormatError(f"{folder} cannot be read: {obstacle}", path=files.path)
    return contents.get(key, contents)


def read_weights(files: FoundFiles, name: str) -> Weights:
    """Describe the weights in a file, or in all files that an index names.

    Raises :class:`CorruptCheckpointError` for files that are missing, cut off or contradict the index.
    """
    if name.endswith(INDEX_SUFFIX):
        return _indexed(files, name)
    return Weights(_tensors(files, name), (name,))


def _indexed(files: FoundFiles, index_name: str) -> Weights:
    index = read_json(files, index_name)
    places = _places(files, index_name, index)
    file_names = tuple(dict.fromkeys(places.values()))
    missing = [name for name in file_names if name not in files.sizes_bytes]
    if missing:
        raise CorruptCheckpointError(
            f"{index_name} names {count_of(len(missing), 'file')} that the folder lacks: {listed(missing)}",
            path=files.path,
            hint="Copy or download them again.",
        )
    found: dict[str, Any] = {}
    homes: dict[str, str] = {}
    for name in file_names:
        tensors = _tensors(files, name)
        if twice := tensors.keys() & homes.keys():
            key = min(twice)
            raise CorruptCheckpointError(
                f"the tensor {shown(key)} is in two files, {homes[key]} and {name}", path=files.path
            )
        found.update(tensors)
        homes.update(dict.fromkeys(tensors, name))
    strays = [key for key, name in places.items() if homes.get(key) != name]
    if strays:
        raise CorruptCheckpointError(
            f"{count_of(len(strays), 'tensor')} of {index_name} are not in their files: {listed(strays)}",
            path=files.path,
        )
    return Weights(found, file_names, tuple(_index_findings(index_name, index, found, places)))


def _places(files: FoundFiles, index_name: str, index: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of the file that holds each tensor."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CorruptCheckpointError(f"{index_name} has no weight_map of tensors and files", path=files.path)
    suffix = index_name.removesuffix(INDEX_SUFFIX)[index_name.index(".") :]
    for name in set(places.values()):
        if "/" in name or "\\" in name or not name.endswith(suffix):
            raise CorruptCheckpointError(
                f"{index_name} names something else than files beside it", path=files.path, got=shown(name)
            )
    return places


def _index_findings(
    index_name: str, index: Mapping[str, Any], found: Mapping[str, Any], places: Mapping[str, str]
) -> Iterator[str]:
    if more := sorted(found.keys() - places.keys()):
        yield f"{index_name} does not name {count_of(len(more), 'tensor')} of its files: {listed(more)}."
    metadata = index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    memory = {tensor.memory: tensor.size_bytes for _, tensor in tensors_in(found)}
    if said is not None and said != sum(memory.values()):
        yield f"{index_name} says that the tensors take {shown(said)} bytes; they take {sum(memory.values())}."


def _tensors(files: FoundFiles, name: str) -> Mapping[str, Any]:
    try:
        found = tensors_of(files.open(name)) if name.endswith(".safetensors") else read_torch(files, name)
    except CheckpointError as error:
        error.path = error.path or f"{files.path}/{name}"
        raise
    if not isinstance(found, Mapping):
        raise CorruptCheckpointError(f"{name} holds no weights by name", path=files.path)
    return found
