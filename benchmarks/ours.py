"""Our side of every comparison: a manager in a folder of its own, of which nothing is left for the next round."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.harness import settle
from benchmarks.states import State
from ckpt_lib import CheckpointConfig, CheckpointManager

EXPERIMENT = "benchmark"


class Ours:
    """A manager and the number of its next epoch."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder / EXPERIMENT
        defaults = {
            "checkpoint_dir": str(folder),
            "max_checkpoints": 1000,
            "backup_checkpoints": False,
            "trash_seconds": 0,  # what is discarded between the rounds would fill the disk
        }
        self.manager = CheckpointManager(CheckpointConfig(**{**defaults, **options}), EXPERIMENT)
        self._epoch = 0

    def next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def save(self, state: State) -> str:
        """Save and wait until it is done."""
        saved = self.manager.save_checkpoint(**state.parts, epoch=self.next_epoch())
        if saved is None:
            raise RuntimeError("the save policy said no")
        return saved

    def load(self) -> object:
        """Load what was saved last, verified."""
        return self.manager.load_checkpoint("latest")

    def payload(self, checkpoint_id: str) -> Path:
        return self.folder / f"{checkpoint_id}.pt"

    def discard(self) -> None:
        """Delete every checkpoint and backup, and let the disk finish with it."""
        for checkpoint_id in self.manager.checkpoint_ids():
            self.manager.delete_checkpoint(checkpoint_id)
        self.manager.empty_trash()  # the last one that is deleted stays there, whatever trash_seconds says
        shutil.rmtree(self.folder / "backups", ignore_errors=True)
        settle()
