"""What is known of a checkpoint of another program, without its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.advice.trees import FoundCheckpoint, Tree, files_of
from ckpt_lib.core.metadata import MAX_COUNT
from ckpt_lib.core.payload_keys import RESUME_ONLY_KEYS
from ckpt_lib.errors import CheckpointError, NotACheckpointError
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.foreign.tree import tensors_in

_STEP = re.compile(r"(?i)(?:global_step|step|checkpoint|ckpt|iter|iteration)[-_=]?(\d{1,17})(?!\d)")
_EPOCH = re.compile(r"(?i)(?:epoch|ep)[-_=]?(\d{1,17})(?!\d)")
_RESUME_FILE = re.compile(
    r"(?i)(optimizer|scheduler|rng_state|random_states|scaler)[-_.\d]*\.\w+|optim_states.*|.*_optim_states\.\w+"
)


@dataclass(frozen=True)
class Described:
    """A checkpoint, and what its structure says."""

    found: FoundCheckpoint
    title: str = ""
    epoch: int | None = None
    step: int | None = None
    said_epoch: int | None = None
    """What the checkpoint itself says, whatever its name is; ``epoch`` may come from the name."""
    said_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    resume_bytes: int = 0
    """What only a run needs that goes on from it."""
    resume_files: tuple[str, ...] = ()
    """The files that hold nothing else."""
    damage: str | None = None
    """Why it cannot be read at all."""
    is_unknown: bool = False
    """Whether no program is known that writes such files."""

    @property
    def path(self) -> str:
        return self.found.path

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


def describe(tree: Tree, found: FoundCheckpoint) -> Described:
    """Read the structure of a checkpoint. Damage is noted, and so is what cannot be recognised."""
    epoch, step = _number(_EPOCH, found.path), _number(_STEP, found.path)
    if found.is_unfinished or not found.size_bytes:
        return Described(found, epoch=epoch, step=step, damage=None if found.is_unfinished else "It is empty.")
    before = f"{found.path}/" if found.path else ""
    names = {
        path.removeprefix(before) if path != found.path else "": file.size_bytes for path, file in found.files.items()
    }
    try:
        with files_of(tree.full(found.path), names) as files:
            opened = describe_checkpoint(files)
            facts, payload = opened.facts, opened.payload or {}
            resume_files = _resume_files(found) if payload.keys() & set(RESUME_ONLY_KEYS) or len(names) > 1 else ()
            return Described(
                found,
                title=opened.title,
                epoch=epoch if facts.epoch is None else facts.epoch,
                step=step if facts.step is None else facts.step,
                said_epoch=facts.epoch,
                said_step=facts.step,
                metrics=dict(facts.metrics),
                resume_bytes=sum(found.files[name].size_bytes for name in resume_files)
                or _resume_bytes(payload, found.size_bytes),
                resume_files=resume_files,
            )
    except NotACheckpointError:
        is_blank = not any(_start(tree, found))
        damage = "It begins with zeros, as after a loss of power." if is_blank else None
        return Described(found, epoch=epoch, step=step, damage=damage, is_unknown=not is_blank)
    except (CheckpointError, OSError) as error:
        message = error.message if isinstance(error, CheckpointError) else str(error)
        return Described(found, epoch=epoch, step=step, damage=f"It cannot be read: {message.rstrip('.')}.")


def _resume_files(found: FoundCheckpoint) -> tuple[str, ...]:
    return tuple(path for path in found.files if _RESUME_FILE.fullmatch(path.rpartition("/")[2]) and path != found.path)


def _resume_bytes(payload: Mapping[str, Any], stored_bytes: int) -> int:
    """Return the bytes of tensors that only a run needs that goes on, each memory counted once.

    Of a file that is smaller than its tensors, as a compressed one, they are as large a part as of these.
    """
    kept = _memory({key: value for key, value in payload.items() if key not in RESUME_ONLY_KEYS})
    dropped = _memory({key: payload.get(key) for key in RESUME_ONLY_KEYS})
    dropped_bytes = sum(size for memory, size in dropped.items() if memory not in kept)
    total_bytes = sum((dropped | kept).values())
    return dropped_bytes if total_bytes <= stored_bytes else dropped_bytes * stored_bytes // total_bytes


def _memory(value: Any) -> dict[Any, int]:
    """Return the size of each memory that tensors have, by what identifies it."""
    sizes: dict[Any, int] = {}
    for _, tensor in tensors_in(value):
        sizes[tensor.memory] = max(sizes.get(tensor.memory, 0), tensor.size_bytes)
    return sizes


def _start(tree: Tree, found: FoundCheckpoint) -> bytes:
    try:
        with open(tree.full(next(iter(found.files))), "rb") as file:
            return file.read(64)
    except OSError:
        return b"?"


def _number(pattern: re.Pattern[str], path: str) -> int | None:
    """Return the number in the name of a checkpoint."""
    numbers: Sequence[str] = pattern.findall(path.rpartition("/")[2])
    return int(numbers[-1]) if numbers and int(numbers[-1]) < MAX_COUNT else None
