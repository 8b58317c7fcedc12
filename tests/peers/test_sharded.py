"""Two processes of PyTorch, and of Lightning, save a model in shards; it is read as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.foreign.described import assert_same, read

SAVE = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(21.0).view(7, 3)
parts = {f"cut{dimension}": distribute_tensor(whole.clone(), mesh, [Shard(dimension)]) for dimension in (0, 1)}
dcp.save({"model": {**parts, "same": whole}, "epoch": 4}, checkpoint_id=folder)
dist.barrier()
dist.destroy_process_group()
"""
FIT = """
import sys, torch, lightning
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def configure_model(self):
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])
    def training_step(self, batch, number):
        return self.layer(batch[0]).sum()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 4)))
strategy = ModelParallelStrategy(save_distributed_checkpoint=True, process_group_backend="gloo")
trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, logger=False,
    enable_progress_bar=False, enable_checkpointing=False)
trainer.fit(Model(), batches)
trainer.save_checkpoint(sys.argv[1])
"""


def run(script: str, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a script from a file, which Lightning starts again for its other process."""
    path = folder / "script.py"
    path.write_text(script)
    return subprocess.Popen([sys.executable, str(path), *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_of_pytorch(tmp_path: Path) -> None:
    """Tensors cut along either dimension by real processes come back whole, to the bit."""
    folder = tmp_path / "saved"
    processes = [run(SAVE, tmp_path, str(folder), str(rank)) for rank in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert len(list(folder.glob("*.distcp"))) == 2
    whole = torch.arange(21.0).view(7, 3)
    found = read(folder)
    assert_same(found.payload["model_state_dict"], {"cut0": whole, "cut1": whole, "same": whole})
    assert found.checkpoint.facts.epoch == 4


def test_two_processes_of_lightning(tmp_path: Path) -> None:
    """A model that Lightning trained in shards is read with its optimizer and the state of the training."""
    path = tmp_path / "sharded.ckpt"
    assert run(FIT, tmp_path, str(path)).wait(300) == 0
    found = read(path)
    facts = found.checkpoint.facts
    assert (facts.writer, facts.step) == ("lightning 2.6.6", 8)
    weights = found.payload["model_state_dict"]
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "layer.weight": (4, 4),
        "layer.bias": (4,),
    }
    model = torch.nn.Linear(4, 4)
    model.load_state_dict({name.removeprefix("layer."): tensor for name, tensor in weights.items()})
    torch.optim.AdamW(model.parameters()).load_state_dict(found.payload["optimizer_state_dict"])
