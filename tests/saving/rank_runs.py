"""What the ranks of small trainings do, each in a process of its own."""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which optimizers would load in each process
from torch import distributed, nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import RankError, StoreUnavailableError
from ckpt_lib.saving.ranks import gather_from_ranks


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.parallel.DistributedDataParallel(nn.Linear(3, 2))


def _first_weight(model: nn.Module) -> float:
    return float(next(model.parameters())[0, 0].detach())


def save(manager: CheckpointManager, rank: int) -> Any:
    """All ranks save and resume; then rank 0 alone saves; then all load by name."""
    model = _model(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found: list[Any] = [manager.resume(model, optimizer)]
    for epoch in (1, 2):
        metrics = {"val_loss": float(epoch + rank)}  # of rank 0 alone
        found.append(manager.save_checkpoint(model=model, optimizer=optimizer, epoch=epoch, metrics=metrics))
    if rank == 0:
        manager.save_checkpoint(model=model, optimizer=optimizer, epoch=3)
        manager.save_checkpoint_async(model=model, optimizer=optimizer, epoch=4).result()
    handle = manager.save_checkpoint_async(model=model, optimizer=optimizer, epoch=5)
    found += [handle.result(), handle.done()]
    found.append(manager.save_checkpoint_async(model=model, optimizer=optimizer, epoch=6).exception())
    manager.flush()
    other = _model(2)
    payload = manager.resume(other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9))
    assert payload is not None
    assert _first_weight(other) == _first_weight(model)
    found += [payload["checkpoint_id"], payload["next_epoch"], payload["passed_over"]]
    found.append(manager.load_checkpoint("best", other)["checkpoint_id"])
    return [*found, manager.load_checkpoint(found[1], other)["epoch"]]


def fail(manager: CheckpointManager, rank: int) -> Any:
    """Every save fails on rank 0, at once and in the background; a state that cannot be saved as well."""
    model = _model(1)
    found = []
    for epoch, extra in ((1, {"bad": object()}), (2, {})):
        if rank == 0 and epoch == 2:
            manager._saver._writer.save = _raise  # type: ignore[method-assign, assignment]
        for method in (manager.save_checkpoint, lambda **given: manager.save_checkpoint_async(**given).result()):
            try:
                method(model=model, epoch=epoch, extra_state=extra)
            except Exception as error:
                found.append(f"{type(error).__name__}: {str(error)[:60]}")
    manager.save_checkpoint_async(model=model, epoch=3)
    try:
        manager.flush()
    except Exception as error:
        found.append(type(error).__name__)
    manager.flush()  # once
    return found


def _raise(*_arguments: Any) -> Any:
    raise StoreUnavailableError("the disk is away")


def apart(manager: CheckpointManager, rank: int) -> Any:
    """Each rank has an experiment of its own."""
    config = manager.config.model_copy(update={"rank_zero_saves": False})
    own = CheckpointManager(config, f"rank-{rank}")
    saved = own.save_checkpoint(model=nn.Linear(1, 1), epoch=rank)
    return [bool(saved), own.load_checkpoint("latest", nn.Linear(1, 1))["epoch"] == rank]


def gather(_manager: CheckpointManager, rank: int) -> Any:
    """Each rank has a value, several times."""
    found: list[Any] = []
    for count in range(3):
        values = gather_from_ranks({"rank": rank, "count": count})
        assert (values is None) == (rank > 0)
        found.append(values)
    return found if rank == 0 else None


def alone(manager: CheckpointManager, rank: int) -> Any:
    """Rank 1 makes a call that rank 0 does not make."""
    if rank == 0:
        distributed.barrier()
        return None
    try:
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    except RankError as error:
        return str(error)
    finally:
        distributed.barrier()
    return None


def leave(manager: CheckpointManager, rank: int) -> Any:
    """Rank 0 ends as soon as it has saved; the store of the process group is in its process."""
    return manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)


RUNS: dict[str, Callable[[CheckpointManager, int], Any]] = {
    run.__name__: run for run in (save, fail, apart, gather, alone, leave)
}


def main(name: str, folder: str, address: str, rank: int, size: int) -> None:
    """One rank: write as JSON what the run returns."""
    warnings.simplefilter("error")
    patience = datetime.timedelta(seconds=60)
    host, _, port = address.partition(":")
    store: Any = distributed.FileStore(address, size)  # type: ignore[attr-defined]
    if port.isdigit():
        store = distributed.TCPStore(host, int(port), size, rank == 0, timeout=patience)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    if name == "alone":
        store.set_timeout(datetime.timedelta(seconds=1))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder, max_checkpoints=20), "run")
    Path(f"{folder}-{rank}.json").write_text(json.dumps(RUNS[name](manager, rank)), encoding="utf-8")
    if name != "leave":
        distributed.barrier()
        distributed.destroy_process_group()
