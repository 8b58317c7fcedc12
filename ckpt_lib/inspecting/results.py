"""``Inspection``, what an inspection returns."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.metadata import StoredMetric


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class TensorStatistics(_Result):
    """Statistics of a tensor's finite elements. ``None`` without any; complex numbers have no mean, min and max."""

    norm: float | None
    mean: float | None
    min: int | float | None
    max: int | float | None
    nan_count: int
    infinite_count: int
    zero_count: int


class InspectedTensor(_Result):
    """One tensor of a checkpoint. ``shares_memory_with`` names the first one that lies in the same memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    shares_memory_with: str | None = None
    statistics: TensorStatistics | None = None


class InspectedState(_Result):
    """One state that a checkpoint holds, such as ``model`` or ``optimizer``."""

    name: str
    tensor_count: int
    element_count: int
    size_bytes: int


class StoredCheckpoint(_Result):
    """What the manifest says of a checkpoint of a store."""

    checkpoint_id: str
    experiment_name: str
    state: str
    tags: tuple[str, ...]
    pinned: bool
    format: str
    sha256: str
    is_thinned: bool
    is_quarantined: bool
    plain_size_bytes: int
    compression_ratio: float | None
    """Stored by plain bytes; ``None`` without compression."""


class Inspection(_Result):
    """What :func:`ckpt_lib.inspect_checkpoint` found; true unless there is a ``problem``."""

    path: str
    kind: str
    """The name of the kind, such as ``lightning``; ``unknown`` for what is none."""
    title: str
    """The kind for a person, such as ``a Lightning checkpoint``."""
    writer: str | None = None
    saved_at: datetime | None = None
    size_bytes: int
    file_count: int
    tensors: tuple[InspectedTensor, ...] = ()
    """All tensors, as they are stored."""
    tensor_bytes: int = 0
    """The size of all tensors; those that are the same memory count once, here and below."""
    bytes_by_dtype: dict[str, int] = {}
    model_element_count: int = 0
    """How many values are in the tensors of the model, buffers included; in all tensors where no model can be told."""
    parameter_count: int | None = None
    """How many of them are parameters; ``None`` where the file does not tell them from buffers. No state dict does."""
    states: tuple[InspectedState, ...] = ()
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, StoredMetric] = {}
    config: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    """The classes whose code runs when a pickle in it is loaded whole."""
    to_load: str = ""
    """What it takes to load it, in one sentence."""
    needs: tuple[str, ...] = ()
    """The same for programs: of ``trust_pickle``, ``package:NAME``, ``format:NAME``, ``program``, ``repair``; empty for
    nothing."""
    left_out: tuple[str, ...] = ()
    """What a load or an import does not bring, and why: one sentence each."""
    findings: tuple[str, ...] = ()
    """What is suspicious: one sentence each."""
    checkpoint: StoredCheckpoint | None = None
    """What its manifest says, of a checkpoint of a store."""
    problem: str | None = None
    """Why no more can be said: damage, or something that is no checkpoint."""

    def __bool__(self) -> bool:
        return self.problem is None
