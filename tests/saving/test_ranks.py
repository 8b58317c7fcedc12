"""Data-parallel training: rank 0 alone writes, and the other ranks learn the outcome, in real process groups."""

from __future__ import annotations

import json
import multiprocessing
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.helpers import MakeManager, save
from tests.saving.rank_runs import main

SIZE = 2
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.saving.rank_runs"])  # so that torch is loaded once


def run_ranks(name: str, folder: Path, *, size: int = SIZE, over_network: bool = False) -> list[Any]:
    """What each rank of a run returned."""
    address = str(folder / "meeting")
    if over_network:
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{chosen.getsockname()[1]}"
    ranks = [
        _CONTEXT.Process(target=main, args=(name, str(folder / "store"), address, rank, size)) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * size
    return [json.loads((folder / f"store-{rank}.json").read_text()) for rank in range(size)]


def test_all_ranks_get_what_rank_zero_does(tmp_path: Path) -> None:
    """Ids, resumes and loads are the same on all ranks; one checkpoint for each save; rank 0 may save alone between."""
    first, second = run_ranks("save", tmp_path, size=2)
    assert first == second
    assert first[0] is None
    assert len({*first[1:4]}) == 3
    assert first[4:6] == [True, None]
    assert first[6].startswith("checkpoint_epoch_0006")
    assert first[7:9] == [7, []]
    assert first[10] == 1
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "store")), "run")
    assert sorted(item.epoch for item in manager.list_checkpoints()) == [1, 2, 3, 4, 5, 6]


def test_all_ranks_raise_what_rank_zero_raises(tmp_path: Path) -> None:
    """Typed errors arrive as they are, from saves at once and in the background, and each is raised once."""
    first, second = run_ranks("fail", tmp_path)
    assert first == second
    assert [text.partition(":")[0] for text in first] == [
        *["UnsupportedStateError"] * 2,
        *["StoreUnavailableError"] * 3,
    ]


def test_ranks_may_act_apart(tmp_path: Path) -> None:
    """With ``rank_zero_saves=False``, each rank writes and reads an experiment of its own, and waits for none."""
    assert run_ranks("apart", tmp_path) == [[True, True]] * SIZE


def test_each_rank_goes_on_from_its_own_position(tmp_path: Path) -> None:
    """Generators and positions in the data of every rank are in the checkpoint, from saves of both kinds."""
    assert run_ranks("positions", tmp_path, size=3) == [[True, 3, [1, 2, 3]]] * 3


def test_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    """Signals come to ranks at different moments, or to one alone: none waits for the other for ever."""
    first, second = run_ranks("preempted", tmp_path)
    assert first == second
    assert [outcome[0] for outcome in first] == [128 + signal.SIGUSR1] * 6
    for _, stopped, saved, *processes in first:
        assert stopped == saved
        assert stopped in (5, 6, 7, 10)
        assert processes == [2, 2]


def test_positions_of_rank_zero_alone_are_no_others(tmp_path: Path) -> None:
    """A save with a position that only rank 0 makes does not wait for ever; a resume says what is missing."""
    (refused, *first), second = run_ranks("zero", tmp_path)
    assert "rank 1 did not make the same call within 1 s" in refused
    assert "the checkpoint holds no data state" in str(first)
    assert "the checkpoint holds no data state" in str(second)


def test_a_call_that_rank_zero_does_not_make_ends_with_an_error(tmp_path: Path) -> None:
    """A rank waits as long as ``init_process_group`` was told, and is told what was expected."""
    _, error = run_ranks("alone", tmp_path)
    assert error.startswith("rank 0 did not make the same call within 1 s: save of run, epoch 1, step 0;")
    assert "rank_zero_saves=False" in error


def test_the_death_of_a_worker_is_not_blamed_on_rank_zero(tmp_path: Path) -> None:
    """PyTorch raises it in whatever the main thread does then, such as waiting for rank 0: it comes through."""
    saved, error = run_ranks("worker", tmp_path)
    assert saved == ""
    assert error.startswith("RuntimeError: DataLoader worker")


def test_rank_zero_alone_brings_back_what_is_damaged_or_lost(tmp_path: Path) -> None:
    """Another rank loads it from its backup, and writes nothing: neither by its id nor while it resumes."""
    first, second = run_ranks("readers", tmp_path)
    assert first == [True, True]
    assert second == [True] * 6


def test_rank_zero_stays_until_all_have_heard(tmp_path: Path) -> None:
    """The process that serves the others ends when they have the outcome of the last save."""
    first, second = run_ranks("leave", tmp_path, over_network=True)
    assert first == second
    assert first.startswith("checkpoint_epoch_0001")


def test_without_ranks_nothing_changes(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a process group does not ask for one, nor for torch where it was not loaded."""
    manager = make_manager()
    monkeypatch.delattr("torch.distributed.distributed_c10d._get_default_store")
    assert save(manager, 1)
