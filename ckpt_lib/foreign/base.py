"""What a checkpoint of any program holds, before a byte of its tensors is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import torch

from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.stream import VerifiedFile


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """Bytes of a file, from ``start`` to ``stop``."""

    file: VerifiedFile
    start: int
    stop: int


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """All facts about a tensor except its elements, and how to read those."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    memory: Hashable
    """Tensors of one checkpoint with the same value here share memory, at least in part."""
    read: Callable[[], torch.Tensor]
    """Returns the tensor, where possible as a view of the mapped file. Tensors that shared memory do so again."""
    offset_bytes: int = 0
    """Where in that memory its first element lies."""
    regions: Callable[[], Sequence[Region]] = tuple
    """Returns where its elements lie, each once and in any order, and nothing else; nothing where that is not known."""
    memory_bytes: int | None = None
    """The size of the memory that it lies in, which may be larger than the tensor; ``None`` where it is not known."""

    @property
    def size_bytes(self) -> int:
        """The size of the elements, however often they share memory."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class StoredObject:
    """An object whose class only its own program has: what is stored of it. No code was run to find that."""

    class_name: str
    """With its module, such as ``ultralytics.nn.tasks.DetectionModel``."""
    arguments: tuple[Any, ...] = field(default=(), repr=False)  # they may be long, and shared without end
    state: Any = field(default=None, repr=False)
    """What ``__setstate__`` would get: usually its attributes by name. Parts of a module are found in it."""
    entries: Mapping[Any, Any] | list[Any] | None = field(default=None, repr=False)
    """What it holds as a dict or a list, if its class is made from one of these."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says about itself. ``None`` and empty for what it does not say."""

    writer: str | None = None
    """The program and version that wrote it, such as ``lightning 2.6.6``."""
    epoch: int | None = None
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    saved_at: datetime | None = None


@dataclass(frozen=True, eq=False)
class ForeignCheckpoint:
    """One checkpoint, as :func:`ckpt_lib.foreign.open_checkpoint` returns it.

    Structures are nested dicts, lists and tuples of plain values, with a :class:`StoredTensor` for each tensor and, in
    ``contents`` only, a :class:`StoredObject` for what is neither.
    """

    kind: str
    """The name of the kind that read it, such as ``lightning``."""
    title: str
    """The kind for a person, such as ``a Lightning checkpoint``."""
    files: FoundFiles
    contents: Mapping[str, Any]
    """All that it holds, under its own names."""
    payload: Mapping[str, Any] | None
    """The same under the keys of :mod:`ckpt_lib.core.payload_keys`; ``None`` where it cannot be loaded."""
    facts: Facts = field(default_factory=Facts)
    obstacle: str | None = None
    """Why it cannot be loaded, and what to do instead; ``None`` if it can."""
    can_be_mapped: bool = True
    """False where it is more than the names in it that keeps it from being loaded, so that no ``key_map`` helps."""
    left_out: tuple[str, ...] = ()
    """What ``payload`` lacks of the files, and why: one sentence each."""
    unread: tuple[str, ...] = ()
    """The sentences of ``left_out`` about files that are not in ``contents``: no ``key_map`` brings those back."""
    findings: tuple[str, ...] = ()
    """What is suspicious about it: one sentence each."""


class Kind(Protocol):
    """A kind of checkpoint: the program that wrote it, or the format of its file."""

    name: str

    def recognises(self, files: FoundFiles) -> bool:
        """Tell whether these files are of this kind, by their names and first bytes."""
        ...

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        """Describe what they hold, reading structure and no tensors, in bounded time and memory.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for files that are cut off or contradict themselves, and
        :class:`~ckpt_lib.errors.UnsafePayloadError` for structures that would take time or memory out of proportion.
        """
        ...
