"""Fills a store with many small checkpoints, faster than saves would: what it writes is what a save leaves."""

from __future__ import annotations

import hashlib
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import xxhash
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry, Manifest, new_token
from ckpt_lib.core.names import CheckpointId

_PAYLOAD = b"x"
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def fill(root: Path, experiments: int, each: int, *, seed: int = 0) -> None:
    """Write ``each`` checkpoints into each of some experiments, the last of them by a real save."""
    chance = random.Random(seed)
    for number in range(experiments):
        name = f"run_{number:05}"
        config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=10**9, backup_checkpoints=False)
        _write(root / name, name, each - 1, chance)
        with CheckpointManager(config, name) as manager:
            manager.save_checkpoint(model=nn.Linear(1, 1), epoch=each, step=each * 100, metrics={"val_loss": 2.0})


def _write(folder: Path, name: str, count: int, chance: random.Random) -> None:
    folder.mkdir(parents=True)
    digest = hashlib.sha256(_PAYLOAD).hexdigest()
    for epoch in range(1, count + 1):
        moment = _BEGIN + timedelta(seconds=epoch)
        checkpoint_id = str(CheckpointId(epoch, epoch * 100, moment))
        file = FileEntry(
            name=f"{checkpoint_id}.pt",
            size_bytes=len(_PAYLOAD),
            sha256=digest,
            chunk_size_bytes=2**23,
            chunk_xxh3_128=(xxhash.xxh3_128_hexdigest(_PAYLOAD),),
        )
        manifest = Manifest(
            checkpoint_id=checkpoint_id,
            uid=f"{chance.getrandbits(128):032x}",
            claim=new_token(),
            state="live",
            timestamp=moment,
            epoch=epoch,
            step=epoch * 100,
            model_name="Linear",
            experiment_name=name,
            metrics={"val_loss": chance.random(), "train_loss": chance.random(), "accuracy": chance.random()},
            config={"learning_rate": 0.1, "batch_size": 32},
            tags=("keep",) if epoch % 50 == 0 else (),
            sequence=epoch,
            format="torch",
            files=(file,),
            libraries={"torch": "2.13.0"},
        )
        (folder / file.name).write_bytes(_PAYLOAD)
        (folder / f"{checkpoint_id}.json").write_bytes(manifest.to_bytes())


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
