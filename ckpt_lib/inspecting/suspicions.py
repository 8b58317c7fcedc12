"""What is suspicious about a checkpoint, from its structure alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY
from ckpt_lib.core.wording import count_of, listed, shown, size_text
from ckpt_lib.foreign import ForeignCheckpoint, FoundFiles, StoredTensor
from ckpt_lib.foreign.dangerous_names import finding_of, is_of_names, runs_commands
from ckpt_lib.inspecting.holdings import Named, bytes_in, distinct, tensors_of
from ckpt_lib.inspecting.results import InspectedTensor

_TORCH_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".pickle", ".model", ".th", ".ts", ".jit", ".ptl"}
_SAFETENSORS_SUFFIXES = {".safetensors"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
_UNUSED_BYTES = 2**20
_OTHER_BYTES = 2**26
_STATES_OF_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
"""What an optimizer of PyTorch keeps for a parameter, in the shape of the parameter."""


def suspicions(found: ForeignCheckpoint, tensors: Named, classes: Sequence[str]) -> Iterator[str]:
    """Yield what is suspicious, one sentence each."""
    yield from found.findings
    yield from _of_classes(classes, found.findings)
    yield from _of_the_name(found.files)
    if not tensors and found.obstacle is None:
        yield "It holds no tensors."
    unused = dict(_unused_memory(tensors))
    if unused:
        names = listed([shown(name) for name in unused])
        size = size_text(sum(unused.values()))
        use, them = ("uses a small part of its", "it") if len(unused) == 1 else ("use a small part of their", "them")
        yield f"{names} {use} memory, and {size} are stored for nothing: clone {them} before saving."
    used_bytes = bytes_in(distinct(tensors)) + sum(unused.values())
    if found.obstacle is None and found.files.size_bytes - used_bytes > max(_OTHER_BYTES, used_bytes):
        yield f"{size_text(found.files.size_bytes - used_bytes)} of its bytes are no tensors."
    if found.payload is not None:
        yield from _of_the_optimizer(found.payload.get(MODEL_KEY), found.payload.get(OPTIMIZER_KEY))


def of_statistics(tensors: Iterable[InspectedTensor]) -> Iterator[str]:
    """Yield what the elements of tensors tell."""
    read = [(tensor.name, tensor.statistics) for tensor in tensors if tensor.statistics]
    for name, noun in (("nan_count", "NaN"), ("infinite_count", "infinities")):
        hit = [shown(tensor) for tensor, statistics in read if getattr(statistics, name)]
        if hit:
            yield f"There are {noun} in {listed(hit)}."


def _of_classes(classes: Sequence[str], told: Sequence[str]) -> Iterator[str]:
    hostile = [name for name in classes if runs_commands(name)]
    if hostile and not any(map(is_of_names, told)):  # a folder of several pickles has not told of them
        yield finding_of(hostile)
    others = [name for name in classes if name not in hostile]
    if others:
        yield f"Loading its pickle whole runs code of {count_of(len(others), 'name')}: {listed(others, most=5)}."


def _of_the_name(files: FoundFiles) -> Iterator[str]:
    """Tell of a file whose name says that it is something else."""
    if not files.is_one_file or not files.size_bytes:
        return
    suffix = os.path.splitext(files.title)[1].lower()
    is_pickled = files.start().startswith(_PICKLE_STARTS)
    is_safetensors = files.start()[8:].startswith(b"{")
    if suffix in _SAFETENSORS_SUFFIXES and is_pickled:
        yield f"Its name ends with {suffix}, but it holds a pickle: readers that go by the name fail, or run its code."
    elif is_safetensors and suffix in _TORCH_SUFFIXES:
        yield f"Its name ends with {suffix}, but it is a safetensors file: torch.load cannot read it."
    elif is_pickled and suffix and suffix not in _TORCH_SUFFIXES and not suffix[1:].isdigit():
        yield f"Its name ends with {shown(suffix)}, which is unusual for a file of torch.save."


def _unused_memory(tensors: Named) -> Iterator[tuple[str, int]]:
    """Yield the first tensor of each memory of which most is not used, and how much."""
    in_memory: dict[Hashable, Named] = {}
    for name, tensor in tensors:
        if tensor.memory_bytes is not None:
            in_memory.setdefault(tensor.memory, []).append((name, tensor))
    for group in in_memory.values():
        memory_bytes = max(tensor.memory_bytes or 0 for _, tensor in group)
        unused_bytes = memory_bytes - bytes_in(distinct(group))
        if unused_bytes > max(_UNUSED_BYTES, memory_bytes // 2):
            yield group[0][0], unused_bytes


def _of_the_optimizer(model: Any, optimizer: Any) -> Iterator[str]:
    """Tell of an optimizer that was built for other parameters than the model has."""
    state = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if not isinstance(state, Mapping) or not model:
        return
    shapes = Counter(tensor.shape for _, tensor in tensors_of(model))
    strange = []
    for parameter, kept in state.items():
        shape = _shape_of_parameter(kept)
        if shape is not None and shape not in shapes:
            strange.append(f"{shown(parameter)} {list(shape)}")
    if strange:
        named = count_of(len(strange), "parameter")
        yield f"The optimizer has state for {named} of shapes that the model has not: {listed(strange)}."
        return
    count = sum(len(group["params"]) for group in _groups(optimizer))
    if count > sum(shapes.values()):
        yield f"The optimizer has {count:,} parameters, and the model {sum(shapes.values()):,} tensors."


def _shape_of_parameter(kept: Any) -> tuple[int, ...] | None:
    if not isinstance(kept, Mapping):
        return None
    tensors = (kept.get(name) for name in _STATES_OF_PARAMETERS)
    return next((tensor.shape for tensor in tensors if isinstance(tensor, StoredTensor)), None)


def _groups(optimizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = optimizer.get("param_groups")
    found = groups if isinstance(groups, list | tuple) else []
    return [
        group for group in found if isinstance(group, Mapping) and isinstance(group.get("params", ()), list | tuple)
    ]
