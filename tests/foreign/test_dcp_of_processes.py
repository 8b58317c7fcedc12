"""What two real processes save in shards by torch.distributed.checkpoint is inspected and imported as one."""

from __future__ import annotations

from pathlib import Path

import torch

from ckpt_lib import inspect_checkpoint
from tests.foreign.described import assert_same
from tests.helpers import MakeManager, start_python

SAVE = """
import os, sys, warnings
warnings.simplefilter("ignore")  # PyTorch's own
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
model(torch.ones(2, 5)).sum().backward()
optimizer.step()
weights, trained = get_state_dict(model, optimizer)
columns = distribute_tensor(torch.arange(35.0).view(5, 7).bfloat16(), mesh, [Shard(1)])
state = {"model": weights, "optimizer": trained, "columns": columns, "epoch": 4}
dcp.save(state, checkpoint_id=folder)

def whole(item):
    if isinstance(item, DTensor):
        return item.full_tensor()
    return {name: whole(part) for name, part in item.items()} if isinstance(item, dict) else item

full = whole(state)  # by both processes
if rank == 0:
    torch.save(full, f"{folder}.whole.pt")
dist.barrier()
dist.destroy_process_group()
"""


def save_in_shards(folder: Path) -> None:
    """Have two processes train and save; they meet in a file, and speak over the loopback device."""
    with start_python(SAVE, folder, 0) as first, start_python(SAVE, folder, 1) as second:
        try:
            ended = [process.communicate(timeout=120)[1] for process in (first, second)]
        finally:
            for process in (first, second):
                process.kill()
        assert (first.returncode, second.returncode) == (0, 0), ended


def test_shards_of_two_processes(tmp_path: Path, make_manager: MakeManager) -> None:
    """A model under FSDP with its optimizer, and a tensor cut by columns: each is told, imported and loaded whole, to
    the bit.
    """
    folder = tmp_path / "saved"
    save_in_shards(folder)
    whole = torch.load(f"{folder}.whole.pt", weights_only=True)
    assert {path.name for path in folder.iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}

    told = inspect_checkpoint(folder)
    assert told.kind == "dcp"
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in whole["model"].items()}
    shapes["columns"] = (5, 7)
    assert {tensor.name: tuple(tensor.shape) for tensor in told.tensors if tensor.name in shapes} == shapes

    manager = make_manager()
    loaded = manager.load_checkpoint(manager.import_checkpoint(folder))
    assert loaded["epoch"] == 4
    assert_same(dict(loaded["model_state_dict"]), whole["model"])
    assert_same(loaded["optimizer_state_dict"]["state"], whole["optimizer"]["state"])
