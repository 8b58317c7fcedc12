"""Fills a store with many small checkpoints, faster than saves would: what it writes is what a save leaves."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import Manifest, new_token, parse_record
from ckpt_lib.core.names import CheckpointId

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def fill(root: Path, experiments: int, each: int, *, seed: int = 0) -> None:
    """Write ``each`` checkpoints into each of some experiments, one of them by a real save."""
    chance = random.Random(seed)
    config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=10**9, backup_checkpoints=False)
    for number in range(experiments):
        name = f"run_{number:05}"
        with CheckpointManager(config, name) as manager:
            saved = manager.save_checkpoint(model=nn.Linear(1, 1), epoch=each, step=each, metrics={"val_loss": 2.0})
            assert saved is not None
            record = parse_record((root / name / f"{saved}.json").read_bytes(), path=saved)
            assert isinstance(record, Manifest)
            _write(root / name, record, each - 1, chance)


def _write(folder: Path, model: Manifest, count: int, chance: random.Random) -> None:
    """Write checkpoints with the payload of ``model``."""
    payload = (folder / model.payload_name).read_bytes()
    for number in range(1, count + 1):  # the payload says of which epoch it is
        moment = _BEGIN + timedelta(seconds=number)
        checkpoint_id = str(CheckpointId(model.epoch, model.step, moment))
        file = model.payload.model_copy(update={"name": f"{checkpoint_id}.pt"})
        manifest = model.changed(
            checkpoint_id=checkpoint_id,
            uid=f"{chance.getrandbits(128):032x}",
            claim=new_token(),
            timestamp=moment,
            metrics={"val_loss": chance.random(), "train_loss": chance.random(), "accuracy": chance.random()},
            config={"learning_rate": 0.1, "batch_size": 32},
            tags=("keep",) if number % 50 == 0 else (),
            sequence=number + 1,
            files=(file,),
        )
        (folder / file.name).write_bytes(payload)
        (folder / f"{checkpoint_id}.json").write_bytes(manifest.to_bytes())


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
