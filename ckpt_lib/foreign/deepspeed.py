"""Folders of DeepSpeed: recognised, checked for missing ranks, and left to DeepSpeed's own converter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.base import Facts, ForeignCheckpoint
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.split_folders import folder_of_latest, ranks_missing
from ckpt_lib.foreign.torch_parts import read_torch

_LATEST = "latest"
_MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_OBSTACLE = (
    "DeepSpeed has split the weights and the optimizer among processes. Join the weights with `zero_to_fp32.py`, "
    "which lies beside them, or with deepspeed.utils.zero_to_fp32, and name the file that it writes."
)

Ranks = dict[tuple[int, int], str]
"""The file of each pair of ranks: among the data-parallel processes, and among the model-parallel ones."""


class DeepSpeedFolder:
    """A checkpoint of DeepSpeed: the folder of one step, or the one around it with the file ``latest``."""

    name = "deepspeed"

    def recognises(self, files: FoundFiles) -> bool:
        names = (name.rpartition("/")[2] for name in files.names if name.count("/") <= 1)
        return any(_MODEL_FILE.fullmatch(name) or _OPTIMIZER_FILE.fullmatch(name) for name in names)

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        """Describe a checkpoint. Raises :class:`CorruptCheckpointError` if the file of a rank is missing."""
        folder = _step_folder(files)
        states, optimizers = _ranks(folder, _MODEL_FILE), _ranks(folder, _OPTIMIZER_FILE)
        if not states:
            raise ranks_missing(folder, ["mp_rank_00_model_states.pt"], "1 rank")
        first = read_torch(folder, states[min(states)])
        contents = {"model_states": first} if isinstance(first, dict) else {}
        said = contents.get("model_states", {})
        _check_complete(folder, states, optimizers, said)
        step, version = said.get("global_steps"), said.get("ds_version")
        return ForeignCheckpoint(
            kind=self.name,
            title="a checkpoint of DeepSpeed",
            files=files,
            contents=contents,
            payload=None,
            facts=Facts(
                writer=f"deepspeed {version}" if isinstance(version, str) else "deepspeed",
                step=step if type(step) is int else _step_in(folder.title),
            ),
            obstacle=_OBSTACLE,
            can_be_mapped=False,
            left_out=tuple(_left_out(states, optimizers)),
        )


def _step_folder(files: FoundFiles) -> FoundFiles:
    """Return the folder of the step that ``latest`` names; the same one if it is that of a step."""
    if any("/" not in name and _MODEL_FILE.fullmatch(name) for name in files.names):
        return files
    if _LATEST not in files.sizes_bytes:
        raise CorruptCheckpointError(
            f"the folder lacks the file {_LATEST}, which names the folder of the newest step",
            path=files.path,
            hint="The save did not end. Name the folder of an earlier step.",
        )
    return folder_of_latest(files, _LATEST, str)


def _ranks(files: FoundFiles, pattern: re.Pattern[str]) -> Ranks:
    found = ((pattern.fullmatch(name), name) for name in files.names)
    return {(int(match[1] or 0), int(match[2])): name for match, name in found if match}


def _check_complete(files: FoundFiles, states: Ranks, optimizers: Ranks, said: Mapping[str, Any]) -> None:
    """Require a file for each rank: of the numbers that the states tell, or up to the highest that there is."""
    everyone = states.keys() | optimizers.keys()
    data_parallel = _count(said.get("dp_world_size"), max(rank for rank, _ in everyone))
    model_parallel = _count(said.get("mp_world_size"), max(rank for _, rank in everyone))
    is_split = any(data_rank for data_rank, _ in states)  # ZeRO stage 3 splits the weights as well
    for found, data_ranks, name in (
        (states, data_parallel if is_split else 1, "model states"),
        (optimizers, data_parallel if optimizers else 0, "optimizer states"),
    ):
        if len(found) < data_ranks * model_parallel:
            wanted = ((data, model) for model in range(model_parallel) for data in range(data_ranks))
            missing = [
                f"{name} of rank {data}, model-parallel rank {model}"
                for data, model in wanted
                if (data, model) not in found
            ]
            raise ranks_missing(files, missing, count_of(len(missing), "rank"))


def _count(said: Any, highest: int) -> int:
    """Return how many ranks there are: one more than the highest, or as many as the states say if that is possible."""
    limit = 2**16
    return max(said if type(said) is int and said <= limit else 1, min(highest, limit) + 1)


def _step_in(title: str) -> int | None:
    found = re.fullmatch(r"global_step(\d{1,18})", title)
    return int(found[1]) if found else None


def _left_out(states: Ranks, optimizers: Ranks) -> list[str]:
    left_out = []
    if len(states) > 1:
        left_out.append(f"The states of {count_of(len(states) - 1, 'further rank')} of the model were not described.")
    if optimizers:
        left_out.append(f"The optimizer's states of {count_of(len(optimizers), 'rank')} were not described.")
    return left_out
