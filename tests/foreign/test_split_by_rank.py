"""Folders of DeepSpeed and Megatron-LM, as these lay them out: complete or not, and who converts them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib.errors import CorruptCheckpointError
from tests.foreign.described import kind_at, read
from tests.foreign.test_dcp import WHOLE, Shards, rows


def deepspeed(folder: Path, *, data_ranks: int = 2, model_ranks: int = 2, is_split: bool = False) -> Path:
    """Write the folder of a step: of ZeRO stage 1 or 2, or of stage 3, which splits the weights as well."""
    step = folder / "global_step100"
    step.mkdir(parents=True)
    said = {"dp_world_size": data_ranks, "mp_world_size": model_ranks, "global_steps": 100, "ds_version": "0.18.1"}
    for model in range(model_ranks):
        for data in range(data_ranks):
            torch.save(
                {"optimizer_state_dict": {}}, step / f"bf16_zero_pp_rank_{data}_mp_rank_{model:02}_optim_states.pt"
            )
            if is_split:
                torch.save(said, step / f"zero_pp_rank_{data}_mp_rank_{model:02}_model_states.pt")
        if not is_split:
            weights = {"module": {"w": torch.ones(2)}}
            torch.save({**weights, **said}, step / f"mp_rank_{model:02}_model_states.pt")
    (folder / "latest").write_text("global_step100")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit(1)")
    return folder


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("inner", [".", "global_step100"])
def test_a_folder_of_deepspeed(tmp_path: Path, inner: str, is_split: bool) -> None:
    """It is recognised by either folder and described; loading it is left to the converter that is named."""
    found = read(deepspeed(tmp_path, is_split=is_split) / inner).checkpoint
    assert (found.kind, found.payload) == ("deepspeed", None)
    assert (found.facts.writer, found.facts.step) == ("deepspeed 0.18.1", 100)
    assert "zero_to_fp32.py" in str(found.obstacle)
    assert "of 4 ranks" in found.left_out[-1]


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("pattern", ["*rank_01_model_states.pt", "*zero_pp_rank_1_mp_rank_01_optim*", "*pp_rank_1_*"])
def test_a_missing_rank_of_deepspeed_is_named(tmp_path: Path, pattern: str, is_split: bool) -> None:
    """Also the highest one, of which no other file tells: the states say how many there are."""
    step = deepspeed(tmp_path, is_split=is_split) / "global_step100"
    for path in list(step.glob(pattern)):
        path.unlink()
    with pytest.raises(CorruptCheckpointError, match=r"lacks the files of . rank"):
        kind_at(tmp_path)


@pytest.mark.parametrize("latest", ["global_step200", "../elsewhere", "", "x" * 5000, "\udcff"])
def test_a_latest_that_leads_nowhere_is_refused(tmp_path: Path, latest: str) -> None:
    """The folder that it names has to be one of those that are there."""
    (deepspeed(tmp_path) / "latest").write_bytes(latest.encode(errors="surrogateescape"))
    with pytest.raises(CorruptCheckpointError):
        kind_at(tmp_path)


def test_a_folder_of_deepspeed_without_latest_is_refused(tmp_path: Path) -> None:
    """It is written last."""
    (deepspeed(tmp_path) / "latest").unlink()
    with pytest.raises(CorruptCheckpointError, match="lacks the file latest"):
        kind_at(tmp_path)


def test_states_that_lie_about_their_number_are_refused(tmp_path: Path) -> None:
    """A number that no cluster has costs neither time nor memory."""
    folder = deepspeed(tmp_path, data_ranks=1, model_ranks=1)
    torch.save({"dp_world_size": 2**60}, folder / "global_step100" / "mp_rank_00_model_states.pt")
    assert kind_at(folder) == "deepspeed"  # it is no number of ranks, so that the files alone tell
    torch.save({"dp_world_size": 2**16}, folder / "global_step100" / "mp_rank_00_model_states.pt")
    with pytest.raises(CorruptCheckpointError, match="65,535 ranks"):
        kind_at(folder)


def megatron(folder: Path, names: list[str], **state: Any) -> Path:
    """Write the folder of an iteration with these folders of ranks."""
    for name in names:
        path = folder / "iter_0000100" / name / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        arguments = argparse.Namespace(num_layers=2, world_size=4, dtype=torch.bfloat16)
        torch.save({"iteration": 100, "args": arguments, "model": {"w": torch.ones(2)}, **state}, path)
    (folder / "latest_checkpointed_iteration.txt").write_text("100\n")
    return folder


RANKS = ["mp_rank_00", "mp_rank_01"]
PIPELINE_RANKS = [f"mp_rank_{tensor:02}_{pipeline:03}" for tensor in range(2) for pipeline in range(2)]


@pytest.mark.parametrize("names", [RANKS, PIPELINE_RANKS])
@pytest.mark.parametrize("inner", [".", "iter_0000100"])
def test_a_folder_of_megatron(tmp_path: Path, names: list[str], inner: str) -> None:
    """It is recognised by either folder and described; loading it is left to the converter that is named."""
    found = read(megatron(tmp_path, names) / inner).checkpoint
    assert (found.kind, found.payload, found.facts.step) == ("megatron", None, 100)
    assert found.facts.config == {"num_layers": 2, "world_size": 4}
    assert "tools/checkpoint/convert.py" in str(found.obstacle)


@pytest.mark.parametrize("name", PIPELINE_RANKS[:3])
@pytest.mark.parametrize("is_folder_gone", [True, False])
def test_a_missing_rank_of_megatron_is_refused(tmp_path: Path, name: str, is_folder_gone: bool) -> None:
    """A gap among the ranks, or a folder without its states."""
    path = megatron(tmp_path, PIPELINE_RANKS) / "iter_0000100" / name
    (path / "model_optim_rng.pt").unlink()
    if not is_folder_gone:
        torch.save({}, path / "distrib_optim.pt")
    with pytest.raises(CorruptCheckpointError, match="lacks the files of some ranks"):
        kind_at(tmp_path)


@pytest.mark.parametrize("latest", ["200", "-1", "release", "x", "", "9" * 900])
def test_an_iteration_that_is_not_there_is_refused(tmp_path: Path, latest: str) -> None:
    """A tracker that names no folder belongs to a copy that broke off."""
    (megatron(tmp_path, RANKS) / "latest_checkpointed_iteration.txt").write_text(latest)
    with pytest.raises(CorruptCheckpointError, match="names a step whose folder is not there"):
        kind_at(tmp_path)


def test_a_distributed_folder_of_megatron(tmp_path: Path) -> None:
    """Its tensors are described by name and shape, from the same metadata as PyTorch's own."""
    (tmp_path / "iter_0000100").mkdir()
    shards = Shards(tmp_path / "iter_0000100")
    shards.add("decoder.weight", (7, 5), rows(3))
    shards.finish()
    torch.save({"iteration": 100, "args": argparse.Namespace(num_layers=2)}, shards.folder / "common.pt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    for folder in (tmp_path, shards.folder):
        found = read(folder)
        assert (found.checkpoint.kind, found.checkpoint.facts.step) == ("megatron", 100)
        assert torch.equal(found.contents["decoder.weight"], WHOLE)
        assert found.checkpoint.payload is None


@pytest.mark.parametrize("write", [deepspeed, lambda path: megatron(path, RANKS)])
def test_states_that_are_cut_off_are_refused(tmp_path: Path, write: Any) -> None:
    """The error names the file."""
    path = next(path for path in sorted(write(tmp_path).rglob("*.pt")) if "optim_states" not in path.name)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptCheckpointError, match=path.name):
        kind_at(tmp_path)
