"""What the ranks of small trainings do, each in a process of its own."""

from __future__ import annotations

import datetime
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which optimizers would load in each process
from torch import distributed, nn
from torch.utils.data import DataLoader

from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.errors import RankError, StateMismatchError, StoreUnavailableError


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
            manager._saver._writer.save = _raise  # type: ignore[method-assign]
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


def _raise(*_arguments: Any, **_options: Any) -> Any:
    raise StoreUnavailableError("the disk is away")


def apart(manager: CheckpointManager, rank: int) -> Any:
    """Each rank has an experiment of its own."""
    config = manager.config.model_copy(update={"rank_zero_saves": False})
    own = CheckpointManager(config, f"rank-{rank}")
    saved = own.save_checkpoint(model=nn.Linear(1, 1), epoch=rank)
    return [bool(saved), own.load_checkpoint("latest", nn.Linear(1, 1))["epoch"] == rank]


def positions(manager: CheckpointManager, rank: int) -> Any:
    """All ranks save with generators and positions of their own, which come back to each of them."""
    torch.manual_seed(rank)
    state = TrainingState(
        model=_model(1), data=_loader(rank), generators={"noise": torch.Generator().manual_seed(rank)}
    )
    torch.manual_seed(rank)
    batches = _batches(state)
    for _ in range(rank + 1):
        next(batches)
    for save in (
        manager.save_checkpoint,
        lambda *given, **facts: manager.save_checkpoint_async(*given, **facts).result(),
    ):
        found = save(state, epoch=1)
        assert found is not None
    expected = [torch.rand(1).item(), _noise(state), next(batches).tolist()]
    resumed = TrainingState(model=_model(2), data=_loader(rank), generators={"noise": torch.Generator()})
    payload = manager.resume(resumed)
    assert payload is not None
    assert payload["approximate"] == []
    drawn = [torch.rand(1).item(), _noise(resumed), next(_batches(resumed)).tolist()]
    return [drawn == expected, len(payload["rng_state"]), [item["batches_done"] for item in payload["data_state"]]]


def _noise(state: TrainingState) -> float:
    return torch.rand(1, generator=state.generators["noise"]).item()


def _batches(state: TrainingState) -> Iterator[torch.Tensor]:
    assert isinstance(state.data, ResumableLoader)
    return iter(state.data)


def _loader(rank: int) -> ResumableLoader[Any]:
    generator = torch.Generator().manual_seed(rank)
    return ResumableLoader(DataLoader(list(range(20)), 2, shuffle=True, generator=generator))  # type: ignore[arg-type]


def zero(manager: CheckpointManager, rank: int) -> Any:
    """Rank 0 alone saves a state with a position, which is refused; one without cannot be resumed with one."""
    state = TrainingState(model=_model(1), data=_loader(rank))
    found = []
    if rank == 0:
        try:
            manager.save_checkpoint(state, epoch=1)
        except RankError as error:
            found.append(str(error))
        manager.save_checkpoint(model=state.model, epoch=2)
    distributed.barrier()
    try:
        manager.resume(state)
    except StateMismatchError as error:
        found.append(str(error))
    return found


def preempted(manager: CheckpointManager, rank: int) -> Any:
    """Ranks are asked to stop at different steps, the first of them by no signal at all; all save at the same one."""
    found = []
    for run, asked in enumerate(((5, 4), (4, 5), (None, 4), (4, None), (None, 10), (10, None))):
        own = CheckpointManager(manager.config, f"run-{run}", run_id=str(run))
        distributed.barrier()
        found.append(_preempted(own, rank, asked[rank], late_seconds=0.1 if asked[rank] == 10 else 0.0))
    return found


def _preempted(manager: CheckpointManager, rank: int, asked_at: int | None, *, late_seconds: float) -> Any:
    """Train, and be asked to stop ``late_seconds`` after the other rank may have ended the same step."""
    model = _model(1)
    state = TrainingState(model=model, data=_loader(rank), generators={"noise": torch.Generator().manual_seed(rank)})
    step = 0
    last_save = lambda: {"state": state, "epoch": 1, "step": step}  # noqa: E731
    try:
        with manager.save_on_signal(last_save, signals=[signal.SIGUSR1]) as preemption:
            for _ in _batches(state):
                model(torch.ones(2, 3)).sum().backward()  # which waits for the other rank
                step += 1
                if step == asked_at:
                    time.sleep(late_seconds)
                    signal.raise_signal(signal.SIGUSR1)
                preemption.safe_point()
    except SystemExit as end:
        saved = manager.load_checkpoint()
        return [end.code, step, saved["step"], len(saved["rng_state"]), len(saved["data_state"])]
    return "it was not stopped"


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


def readers(manager: CheckpointManager, rank: int) -> Any:
    """A checkpoint is damaged, then lost; rank 1 loads it before rank 0 has brought it back, and then all resume."""
    model = _model(1)
    saved = manager.save_checkpoint(model=model, epoch=1)
    folder = Path(manager.config.checkpoint_dir, manager.experiment_name)
    payload, manifest = folder / f"{saved}.pt", folder / f"{saved}.json"
    found: list[Any] = []
    for is_lost in (False, True):
        if rank == 0 and is_lost:
            payload.unlink()
            manifest.unlink()
        elif rank == 0:
            payload.write_bytes(bytes(100))
        distributed.barrier()
        if rank == 1:
            before, other = _files(folder), nn.Linear(3, 2)
            own = CheckpointManager(manager.config, manager.experiment_name)
            assert own.load_checkpoint(saved or "", other)["checkpoint_id"] == saved
            assert _first_weight(other) == _first_weight(model)
            resumed = own.resume()
            assert resumed is not None
            found += [resumed["checkpoint_id"] == saved, _files(folder) == before]
        distributed.barrier()
        own = CheckpointManager(manager.config, manager.experiment_name)
        assert own.resume(_model(3)) is not None
        found.append(bool(own.validate_checkpoint(saved or "")))
        distributed.barrier()
    return found


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def worker(manager: CheckpointManager, rank: int) -> Any:
    """A worker of rank 1's data loader is killed while that rank waits for rank 0."""
    loader: DataLoader[int] = DataLoader(list(range(100)), num_workers=1, multiprocessing_context="fork")  # type: ignore[arg-type]
    batches = iter(loader)
    next(batches)
    distributed.barrier()
    error = ""
    if rank == 0:
        time.sleep(1)
    else:
        killer = threading.Timer(0.3, batches._workers[0].kill)  # type: ignore[attr-defined]
        killer.start()
    try:
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    except RuntimeError as failure:
        error = f"{type(failure).__name__}: {failure}"
    return error


RUNS: dict[str, Callable[[CheckpointManager, int], Any]] = {
    run.__name__: run for run in (save, fail, apart, positions, zero, preempted, alone, leave, readers, worker)
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
    if name in ("alone", "zero"):
        store.set_timeout(datetime.timedelta(seconds=1))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder, max_checkpoints=20), "run")
    Path(f"{folder}-{rank}.json").write_text(json.dumps(RUNS[name](manager, rank)), encoding="utf-8")
    if name != "leave":
        distributed.barrier()
        distributed.destroy_process_group()
