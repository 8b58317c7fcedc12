"""Folders of Megatron-LM: recognised, checked for missing ranks, and left to Megatron's own converters."""

from __future__ import annotations

import re
from typing import Any

from ckpt_lib.core.wording import count_of
from ckpt_lib.foreign.base import Facts, ForeignCheckpoint, StoredObject
from ckpt_lib.foreign.dcp_folders import dcp_contents
from ckpt_lib.foreign.dcp_metadata import METADATA_FILE
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.split_folders import folder_of_latest, ranks_missing
from ckpt_lib.foreign.torch_parts import read_torch

LATEST = "latest_checkpointed_iteration.txt"
_COMMON_FILE = "common.pt"
_STATE_FILES = ("model_optim_rng.pt", "model_rng.pt")
_RANK_FILE = re.compile(r"mp_rank_(\d+)(?:_(\d+))?(?:_(\d+))?/(\w+\.pt)")
_ITERATION = re.compile(r"iter_(\d{1,18})")
_OBSTACLE = (
    "Megatron-LM has split the weights among processes, under names of its own. Convert it with "
    "tools/checkpoint/convert.py of Megatron-LM, or to Hugging Face with Megatron Bridge, and name what that writes."
)


class MegatronFolder:
    """A checkpoint of Megatron-LM: the folder of one iteration, or the one around it."""

    name = "megatron"

    def recognises(self, files: FoundFiles) -> bool:
        if LATEST in files.sizes_bytes:
            return True
        is_distributed = METADATA_FILE in files.sizes_bytes and _COMMON_FILE in files.sizes_bytes
        return is_distributed or any(
            (found := _RANK_FILE.fullmatch(name)) and found[4] in _STATE_FILES for name in files.names
        )

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        """Describe a checkpoint.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` if the file of a rank is missing.
        """
        folder = folder_of_latest(files, LATEST, _title_of) if LATEST in files.sizes_bytes else files
        if METADATA_FILE in folder.sizes_bytes:
            weights, _ = dcp_contents(folder)
            common = read_torch(folder, _COMMON_FILE) if _COMMON_FILE in folder.sizes_bytes else {}
            contents = {**(common if isinstance(common, dict) else {}), **weights}
            left_out: list[str] = []
        else:
            contents, left_out = _of_ranks(folder)
        return ForeignCheckpoint(
            kind=self.name,
            title="a checkpoint of Megatron-LM",
            files=files,
            contents=contents,
            payload=None,
            facts=Facts(writer="megatron-lm", step=_step(folder, contents), config=_config(contents)),
            obstacle=_OBSTACLE,
            can_be_mapped=False,
            left_out=tuple(left_out),
        )


def _title_of(latest: str) -> str:
    """Return the name of the folder of an iteration; an empty one for what is none."""
    if latest.isascii() and latest.isdecimal():
        return f"iter_{int(latest):07}"
    return latest if latest == "release" else ""


def _of_ranks(files: FoundFiles) -> tuple[dict[str, Any], list[str]]:
    """Return what the first rank holds, and what was not described, once there is a file of each rank."""
    found = [match for name in files.names if (match := _RANK_FILE.fullmatch(name))]
    states = {_rank(match): match[0] for match in found if match[4] in _STATE_FILES}
    if not states:
        raise ranks_missing(files, [f"mp_rank_00/{_STATE_FILES[0]}"])
    everyone = {_rank(match): match[0].partition("/")[0] for match in found}
    missing = [f"{folder}/{_STATE_FILES[0]}" for rank, folder in everyone.items() if rank not in states]
    counts = [max(numbers) + 1 for numbers in zip(*everyone, strict=True)]
    if missing or len(everyone) < counts[0] * counts[1] * counts[2]:
        missing += [f"{count_of(counts[0] * counts[1] * counts[2] - len(everyone), 'folder')} of other ranks"]
        raise ranks_missing(files, missing)
    first = read_torch(files, states[min(states)])
    left_out = [f"The states of {count_of(len(states) - 1, 'further rank')} were not described."] * (len(states) > 1)
    return (first if isinstance(first, dict) else {}), left_out


def _rank(match: re.Match[str]) -> tuple[int, int, int]:
    """Return the numbers of a rank: among the tensor-parallel, the pipeline-parallel and the expert-parallel ones."""
    return int(match[1]), int(match[2] or 0), int(match[3] or 0)


def _step(files: FoundFiles, contents: dict[str, Any]) -> int | None:
    said = contents.get("iteration")
    if type(said) is int:
        return said
    found = _ITERATION.fullmatch(files.title)
    return int(found[1]) if found else None


def _config(contents: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the training as far as they are plain; a ``Namespace`` is stored by its attributes."""
    arguments = contents.get("args")
    state = arguments.state if isinstance(arguments, StoredObject) else arguments
    plain = (str, int, float, bool, type(None))
    return {str(name): value for name, value in state.items() if type(value) in plain} if type(state) is dict else {}
